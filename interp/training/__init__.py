"""Training: a frozen recipe, the Hugging Face Trainer, and what is measured on the way."""

from interp.training.recipe import Recipe
from interp.training.run import train

__all__ = ["Recipe", "train"]
