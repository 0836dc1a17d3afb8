"""Training: a frozen recipe, the Hugging Face Trainer, and what is measured on the way."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from interp.training.recipe import Recipe as Recipe
    from interp.training.run import train as train
else:
    # A recipe can be read without the Trainer, which takes seconds to import.
    from interp.public import attach

    __getattr__, __dir__, __all__ = attach(__name__)
