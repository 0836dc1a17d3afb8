"""Runs side by side: a thin line for each, a bold one for what is typical of a kind of model."""

import itertools
import re
from collections.abc import Mapping, Sequence

import numpy as np
import plotly.graph_objects as go

from interp.plots import style
from interp.plots.curves import Line, Lines
from interp.plots.development import after_zero, chance_levels, clock_axis, stacked
from interp.plots.panels import Axis
from interp.results.result import Result, tokens_at

RUN, MEDIAN = 0.9, 3.2  # widths of lines
FAINT_RUN = 0.55
DASHES = ("dot", "dash", "dashdot", "longdash", "longdashdot")

ARCHITECTURES = {
    "conv-attn": style.SERIES[0],
    "attn-attn": style.SERIES[1],
    "smeared-attn": style.SERIES[2],
    "attn": style.SERIES[3],
}
"""One colour for each, in every figure."""


def runs(
    panels: Mapping[str, Sequence[Result]], *, by: str | None = None, title: str = "Development"
) -> go.Figure:
    """Runs side by side: a thin line for each, and the bold median of each kind of model.

    An architecture has the same colour in every figure. The median is drawn where every run of its
    kind has been measured, between checkpoints straight against the logarithm of the tokens.

    Args:
        panels: by its title, what a panel shows: one score over "step" for each run.
        by: what sets kinds of models apart: a key of the provenance. By default "member", what a
            suite calls them, or else "architecture".
        title: of the figure.

    Raises:
        ValueError: no panels or runs, a run with other axes, or without `by` in its provenance.

    >>> origin = {"run": "attn-seed0", "architecture": "HookedAttn", "tokens_per_step": 2048}
    >>> score = Result("induction", np.array([0.01, 0.02]), ("step",), {"step": (10, 100)},
    ...     provenance=origin)
    >>> len(runs({"Best head": [score]}).data)
    2
    """
    everything = [run for part in panels.values() for run in part]
    if not everything:
        raise ValueError("there are no runs to draw; give each panel at least one")
    by = by or ("member" if all("member" in r.provenance for r in everything) else "architecture")
    for run in everything:
        if run.axes != ("step",) or by not in run.provenance:
            raise ValueError(
                f"{run.name} has the axes {run.axes} and the provenance {list(run.provenance)}; a "
                f'line is drawn of one score over "step", with {by!r} in its provenance'
            )
    kinds = list(dict.fromkeys(kind_of(run.provenance[by]) for run in everything))
    looks = dict(zip(kinds, looks_of(kinds), strict=True))
    drawn = [_runs_panel(name, part, by, looks) for name, part in panels.items()]
    seeds = len({run.provenance.get("run", id(run)) for run in everything})
    note = f"{seeds} runs: thin lines; bold: the median of each kind"
    return stacked(everything[0], drawn, name=title, unit="", notes=[note])


def _runs_panel(
    title: str, part: Sequence[Result], by: str, looks: Mapping[str, tuple[str, str]]
) -> Lines:
    thin, bold = [], []
    for kind, (colour, dash) in looks.items():
        mine = [run for run in part if kind_of(run.provenance[by]) == kind]
        curves = [after_zero(tokens_at(run), run.values, None)[:2] for run in mine]
        colour_of_run = style.faded(colour, FAINT_RUN)
        thin += [Line("", x, y, colour=colour_of_run, width=RUN, dash=dash) for x, y in curves]
        if curves:
            x, y = _median(curves)
            bold.append(Line(kind, x, y, colour=colour, width=MEDIAN, dash=dash, legend=kind))
    units = {style.unit_of(run) for run in part}
    unit = Axis(units.pop() if len(units) == 1 else "", look={"nticks": 6})
    longest = max(part, key=lambda run: tokens_at(run)[-1])
    levels = chance_levels(tokens_at(longest), [longest])
    return Lines([*thin, *bold], clock_axis(longest), unit, style.plain(title), levels)


def _median(curves: Sequence[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    low = max(x[0] for x, _ in curves)
    high = min(x[-1] for x, _ in curves)
    every = np.unique(np.concatenate([x for x, _ in curves]))
    shared = every[(every >= low) & (every <= high)]
    values = [np.interp(np.log(shared), np.log(x), y) for x, y in curves]
    return shared, np.median(values, axis=0) if len(shared) else shared


def kind_of(name: object) -> str:
    """A kind of model as figures call it.

    >>> kind_of("HookedSmearedAttn"), kind_of("one-lag")
    ('smeared-attn', 'one-lag')
    """
    bare = str(name).removeprefix("Hooked")
    return bare if bare == str(name) else re.sub(r"(?<=[a-z])(?=[A-Z])", "-", bare).lower()


def looks_of(kinds: Sequence[str]) -> list[tuple[str, str]]:
    """Colour and dash of each kind of model: a variant has its architecture's colour, and a dash.

    Other kinds have the colours that no architecture among these has, first solid and then dashed.

    >>> looks_of(["attn-attn", "conv-attn", "conv-attn-one-lag"])
    [('#D55E00', 'solid'), ('#0072B2', 'solid'), ('#0072B2', 'dot')]
    """
    longest_first = sorted(ARCHITECTURES, key=len, reverse=True)
    bases = [next((b for b in longest_first if kind.startswith(b)), None) for kind in kinds]
    taken = {ARCHITECTURES[base] for base in bases if base is not None}
    left = [colour for colour in style.SERIES if colour not in taken]
    spare = itertools.cycle(itertools.product(("solid", *DASHES), left or style.SERIES))
    dashes = {colour: iter(DASHES) for colour in ARCHITECTURES.values()}
    looks = []
    for kind, base in zip(kinds, bases, strict=True):
        if base is None:
            dash, colour = next(spare)
            looks.append((colour, dash))
        else:
            colour = ARCHITECTURES[base]
            looks.append((colour, "solid" if kind == base else next(dashes[colour], DASHES[-1])))
    return looks
