"""Labelled numbers with their error, chance level and origin: what every analysis returns."""

from interp.results.result import Label, Result, over_samples
from interp.results.sampling import stretches

__all__ = ["Label", "Result", "over_samples", "stretches"]
