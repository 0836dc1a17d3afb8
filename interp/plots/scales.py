"""From values to colours: one scale for each unit, and a bar that names it."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from plotly.colors import sample_colorscale

from interp.plots import style

# cmocean's "dense" on white: even steps of lightness, from nothing to dark.
SEQUENTIAL = (
    "#f4f8f9", "#bfdde5", "#9cc9e2", "#81b4e3", "#739ae4", "#757fdd",
    "#7864ca", "#774aaf", "#71328d", "#641f68", "#501442", "#360e24",
)  # fmt: skip
# Blue below zero, red above (Crameri's "vik", thinned out): equal steps on both sides.
DIVERGING = (
    "#00215f", "#10508c", "#4f8cb5", "#a3c7d9", "#f3f1ee",
    "#e3b99f", "#cd8157", "#a64a14", "#590008",
)  # fmt: skip
SHARES = ("probability", "fraction", "share")
"""What lies between 0 and 1 in units of this name is coloured on that range."""
# Pixels.
BAR, BAR_GAP, BAR_HEIGHT, UNIT_HEIGHT = 200, 44, 38, 18


@dataclass(frozen=True)
class Scale:
    """From value to colour; `unit` stands over the bar."""

    low: float
    high: float
    colours: tuple[str, ...] = SEQUENTIAL
    unit: str = ""

    @classmethod
    def of(cls, values: np.ndarray, unit: str = "", middle: float = 0.0) -> "Scale":
        """Shares from 0 to 1, others to their largest, both signs evenly around the middle."""
        known = values[np.isfinite(values)]
        low, high = (float(known.min()), float(known.max())) if known.size else (0.0, 1.0)
        if low < 0:
            reach = max(middle - low, high - middle)
            return cls(middle - reach, middle + reach, DIVERGING, unit)
        is_share = not unit or any(word in unit for word in SHARES)
        return cls(0.0, 1.0 if high == 0 or (is_share and high <= 1) else high, SEQUENTIAL, unit)

    @classmethod
    def by_unit(
        cls, values: Iterable[tuple[str, np.ndarray]], middle: float = 0.0
    ) -> dict[str, "Scale"]:
        """A scale for all values of the same unit."""
        members: dict[str, list[np.ndarray]] = {}
        for unit, array in values:
            members.setdefault(unit, []).append(array.ravel())
        return {u: cls.of(np.concatenate(arrays), u, middle) for u, arrays in members.items()}

    @property
    def width(self) -> float:
        """Of the bar with its unit over it, and of the gap to the next."""
        return BAR_GAP + max(BAR, style.width_of(self.unit, 11))

    def axis(self, x: float = 0.0) -> dict[str, Any]:
        """As plotly's colour axis, whose bar begins at this share of the plot's width."""
        ticks = [self.low, (self.low + self.high) / 2, self.high]
        bar = {
            "orientation": "h", "len": BAR, "lenmode": "pixels", "thickness": 9, "outlinewidth": 0,
            "x": x, "xref": "paper", "xanchor": "left", "xpad": 0,
            "y": 0, "yref": "container", "yanchor": "bottom", "ypad": 8,
            "tickvals": ticks, "tickformat": ".3~g", "tickfont": {"size": 11},
        }  # fmt: skip
        return {"cmin": self.low, "cmax": self.high, "colorscale": self.colours, "colorbar": bar}

    @property
    def height(self) -> int:
        """Of the bar with its numbers and its unit."""
        return BAR_HEIGHT + UNIT_HEIGHT * bool(self.unit)

    def name(self, x: float, below: float) -> dict[str, Any]:
        """The unit over the bar, as plotly's annotation, so far below the plot.

        A title of plotly's own would make the bar shorter.
        """
        return {
            "text": style.words(self.unit), "showarrow": False, "font": {"size": 11},
            "x": x, "xref": "paper", "xanchor": "left", "xshift": -1,
            "y": 0, "yref": "paper", "yanchor": "bottom", "yshift": BAR_HEIGHT - below,
        }  # fmt: skip

    def ink_on(self, values: np.ndarray) -> list[str]:
        """For each value the colour of text, dark or white, that stands out more from its tile."""
        shares = (np.nan_to_num(values) - self.low) / (self.high - self.low)
        tiles = sample_colorscale(list(self.colours), shares.clip(0, 1), colortype="tuple")
        tiles = np.array(tiles).reshape(-1, 3)
        linear = np.where(tiles <= 0.04045, tiles / 12.92, ((tiles + 0.055) / 1.055) ** 2.4)
        luminance = linear @ np.array([0.2126, 0.7152, 0.0722])
        # Here the contrasts (WCAG 2) with white and with the ink, of luminance 0.018, are equal.
        return [style.INK if bright else "white" for bright in luminance > 0.217]
