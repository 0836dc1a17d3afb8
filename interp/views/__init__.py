"""What an analysis may ask of any model: ours, a `TransformerBridge`, or any module, wrapped.

`view(model)` answers the same questions for all. An analysis written against a view runs on
any of them, and what a model cannot answer is refused at once, with the reason.
"""

from typing import TYPE_CHECKING

from interp.models.hooks import undisturbed as undisturbed
from interp.views.dispatch import view as view
from interp.views.entries import Entries as Entries
from interp.views.loading import load as load
from interp.views.protocol import View as View
from interp.views.revisions import Checkpoints as Checkpoints
from interp.views.running import EverythingCaptured as EverythingCaptured
from interp.views.running import Hook as Hook
from interp.views.running import Start as Start
from interp.views.running import keeping as keeping
from interp.views.wrapping import WrappedModel as WrappedModel
from interp.views.wrapping import wrap as wrap

if not TYPE_CHECKING:
    from interp.public import attach

    __getattr__, __dir__, __all__ = attach(__name__)
