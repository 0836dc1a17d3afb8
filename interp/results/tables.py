"""How a result looks as a table: rounded numbers, at most one screen, every text escaped."""

import html
import math
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

ROWS_SHOWN, COLUMNS_SHOWN = 16, 8

STYLE = """<style>
.interp-result { display: inline-block; box-sizing: border-box; max-width: 100%; overflow-x: auto;
  margin: .4em 0; padding: .7em 1em; font-variant-numeric: tabular-nums;
  border: 1px solid color-mix(in srgb, currentColor 20%, transparent); border-radius: 10px; }
.interp-result p { margin: 0 0 .5em; }
.interp-result table { border-collapse: collapse; margin: 0; font-size: .92em; }
.interp-result th, .interp-result td { padding: .2em .8em; border: 0; background: none;
  text-align: right; white-space: nowrap; }
.interp-result tbody th, .interp-result details td { text-align: left; }
.interp-result details td { white-space: normal; overflow-wrap: anywhere; }
.interp-result thead th { border-bottom: 1px solid; }
.interp-result tbody tr + tr > * {
  border-top: 1px solid color-mix(in srgb, currentColor 10%, transparent); }
.interp-result details { margin-top: .6em; font-size: .92em; opacity: .8; }
.interp-result summary { cursor: pointer; }
</style>"""


def grid(frame: pd.DataFrame, axes: Sequence[str]) -> pd.DataFrame:
    """The cells of a tidy frame as text: the last axis down, the others across, cut to one screen.

    Below the labels come a row "chance", where chance is one number all the way down, and a row
    "highest", where rows were cut.

    Args:
        frame: what `Result.to_frame` returns: one row per cell, the last axis running fastest.
        axes: the names of its axes, in order.
    """
    names = [str(name) for name in frame[axes[-1]]] if axes else [""] * len(frame)
    rows = len(set(frame[axes[-1]])) if axes else 1
    columns = {}
    for start in range(0, len(frame), rows or 1)[:COLUMNS_SHOWN]:
        across = ", ".join(str(frame[axis].iloc[start]) for axis in axes[:-1])
        columns[across or "value"] = _column(frame.iloc[start : start + rows], names[:rows])
    table = pd.DataFrame(columns)
    if len(frame) > rows * COLUMNS_SHOWN:
        table["…"] = "…"
    if len(axes) == 1:
        for extra, show in (("chance", rounded), ("unit", str)):
            cells = dict(zip(names, map(show, frame[extra].tolist()), strict=True))
            if len(set(cells.values())) > 1:
                table[extra] = [cells.get(str(name), "") for name in table.index]
    return table


def _column(block: pd.DataFrame, names: Sequence[str]) -> dict[str, str]:
    values, errors, chances = (block[c].tolist() for c in ("value", "standard_error", "chance"))
    cells = {
        name: rounded(value, error)
        for name, value, error in zip(names[:ROWS_SHOWN], values, errors, strict=False)
    }
    if len(names) > ROWS_SHOWN:
        cells["…"] = "…"
        numbers = {name: v for name, v in zip(names, values, strict=True) if not math.isnan(v)}
        if numbers:
            highest = max(numbers, key=lambda name: numbers[name])
            cells["highest"] = f"{highest}: {rounded(numbers[highest])}"
    if len(set(chances)) == 1 and not math.isnan(chances[0]):
        cells["chance"] = rounded(chances[0])
    return cells


def rounded(value: float, error: float = math.nan) -> str:
    """A number for reading, to three decimals or to the first digit of its standard error.

    Scientific where that would hide the number, a dash where there is none.

    >>> rounded(0.91234), rounded(0.91234, 0.0102), rounded(0.91234, 0.00002)
    ('0.912', '0.912 ± 0.010', '0.91234 ± 0.00002')
    >>> rounded(-0.00002), rounded(-0.00002, 0.0102), rounded(float("nan"))
    ('-2.0e-05', '-0.000 ± 0.010', '–')
    """
    if math.isnan(value):
        return "–"
    if math.isnan(error):
        return f"{value:.3f}" if value == 0 or 1e-3 <= abs(value) < 1e4 else f"{value:.1e}"
    digits = 3 if error <= 0 else min(max(3, -math.floor(math.log10(error))), 6)
    return f"{value:.{digits}f} ± {error:.{digits}f}"


def as_html(title: str, table: pd.DataFrame, provenance: Mapping[str, Any]) -> str:
    """A framed table under its title, with the provenance folded away; every text is escaped."""
    rows = "".join(
        f"<tr><th>{html.escape(key)}</th><td>{html.escape(str(value))}</td></tr>"
        for key, value in provenance.items()
    )
    return (
        f'<div class="interp-result">{STYLE}<p><strong>{html.escape(title)}</strong></p>'
        f"{table.to_html(border=0)}"
        f"<details><summary>Provenance</summary><table><tbody>{rows}</tbody></table></details></div>"
    )
