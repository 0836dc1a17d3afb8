"""Labelled numbers with their error, chance level and origin: what every analysis returns."""

from typing import TYPE_CHECKING

from interp.results.result import Label as Label
from interp.results.result import Result as Result
from interp.results.result import over_samples as over_samples
from interp.results.sampling import stretches as stretches

if not TYPE_CHECKING:
    from interp.public import attach

    __getattr__, __dir__, __all__ = attach(__name__)
