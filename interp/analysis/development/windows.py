"""The shortest window of log-tokens that holds most of a curve's change.

Arrays run over "curve", such as one per bootstrap draw, and "step". Curves are straight lines
between steps.
"""

import numpy as np
from jaxtyping import Float64, Int64

SHARE = 0.8
"""How much of the total change the window holds."""

Curve = Float64[np.ndarray, " step"]
Curves = Float64[np.ndarray, "curve step"]
PerCurve = Float64[np.ndarray, " curve"]


def farthest_step(curves: Curves) -> Int64[np.ndarray, " curve"]:
    """Where each curve is farthest from its first value, up or down."""
    return abs(curves - curves[:, :1]).argmax(axis=1)


def largest_change(curves: Curves) -> PerCurve:
    """From each curve's first value to the one farthest from it."""
    farthest = np.take_along_axis(curves, farthest_step(curves)[:, None], axis=1)[:, 0]
    return farthest - curves[:, 0]


def shortest_windows(
    curves: Curves, logs: Curve, farthest: int
) -> Float64[np.ndarray, "curve measure"]:
    """Start, end, width and height of each curve, whose total change ends at step `farthest`.

    One end of the shortest window is at a checkpoint: between two, a window can be slid one way or
    the other without growing. So each checkpoint is tried as its start and as its end.
    """
    height = curves[:, farthest] - curves[:, 0]
    rising, change = curves * np.sign(height)[:, None], SHARE * abs(height)
    start, width = _from_checkpoints(rising, logs, change)
    mirrored, shorter = _from_checkpoints(-rising[:, ::-1], -logs[::-1], change)
    is_shorter = shorter < width
    width = np.where(is_shorter, shorter, width)
    start = np.where(is_shorter, -(mirrored + shorter), start)
    return np.stack([10**start, 10 ** (start + width), width, height], axis=1)


def _from_checkpoints(curves: Curves, logs: Curve, change: PerCurve) -> tuple[PerCurve, PerCurve]:
    """The shortest window that begins at a checkpoint: its start and width, NaN where none is."""
    row = np.arange(len(curves))
    start, width = np.full(len(curves), np.nan), np.full(len(curves), np.nan)
    for first in range(len(logs) - 1):
        goal = curves[:, first] + change
        later = curves[:, first + 1 :] >= goal[:, None]
        after = first + 1 + later.argmax(axis=1)
        below, above = curves[row, after - 1], curves[row, after]
        with np.errstate(invalid="ignore", divide="ignore"):
            part = (goal - below) / (above - below)
            there = logs[after - 1] + part * (logs[after] - logs[after - 1])
            candidate = np.where(later.any(axis=1), there - logs[first], np.inf)
            better = ~(candidate >= width) & np.isfinite(candidate)
        start[better], width[better] = logs[first], candidate[better]
    return start, width
