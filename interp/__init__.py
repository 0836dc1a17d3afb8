"""Mechanistic interpretability of small sequence models.

The names most readers need are here: `interp.load`, `interp.head_scores`, `interp.write_report`.
Importing the package costs nothing: a name brings in its module, and PyTorch with it, when it is
first used.

Example:
    >>> import interp
    >>> "conv-attn" in interp.available()
    True
"""

from typing import TYPE_CHECKING

# What is public, read by type checkers, and by `attach` for everybody else. A name is added in its
# package: what that offers is here too.
if TYPE_CHECKING:
    from interp.analysis import *
    from interp.data import *
    from interp.models import *
    from interp.report import write_report as write_report
    from interp.training import *
    from interp.views import Checkpoints as Checkpoints
    from interp.views import load as load
    from interp.views import wrap as wrap

    from . import analysis as analysis
    from . import data as data
    from . import models as models
    from . import plots as plots
    from . import report as report
    from . import results as results
    from . import training as training
    from . import views as views

    __version__: str
else:
    from interp.public import attach, provide

    provide("figure", "interp.plots.figures:figure")  # for Result.plot, which knows no pictures
    _public, _listed, __all__ = attach(__name__, renamed={"circuit": "induction_circuit"})
    del attach, provide

    def __getattr__(name):  # noqa: ANN001, ANN202
        if name == "__version__":
            from importlib.metadata import version

            globals()[name] = version(__name__)
            return globals()[name]
        return _public(name)

    def __dir__():  # noqa: ANN202
        return [*_listed(), "__version__"]
