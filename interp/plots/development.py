"""What develops while a model trains: curves against tokens, and loss by position as a map."""

from collections.abc import Iterator, Sequence

import numpy as np
import plotly.graph_objects as go
from jaxtyping import Float64

from interp.plots import style
from interp.plots.curves import BOTTOM, TOP
from interp.plots.panels import Clock, Line, Panel, after_zero, chances, stacked, tokens_at
from interp.results.result import Result, over_samples, rounded

MAP_HEIGHT = 430
THIN, CURVE = 0.9, 2.0  # widths of lines
FAINT = 0.45
COLORBAR = {"thickness": 10, "outlinewidth": 0, "ypad": 0, "nticks": 6, "tickfont": {"size": 11}}


def steps(result: Result) -> go.Figure:
    """How a result develops, against the logarithm of the tokens read, or of the steps.

    Over "position" it is a map of steps and positions. Anything else is drawn as curves in bands of
    one standard error: one for each label of a further axis, in a panel for each label of a second
    one; measures have a panel for each unit. Of many heads the highest few are in colour.

    Args:
        result: an axis "step", and at most two others; an axis "sample" is averaged.

    Raises:
        ValueError: more axes than can be drawn; choose with sel().
    """
    mean = over_samples(result)
    others = [axis for axis in mean.axes if axis != "step"]
    if "position" in others:
        return by_position(mean)
    if len(others) > 2:
        raise ValueError(
            f'{result.name} has the axes {result.axes}; curves over "step" are drawn for at most '
            "two others; choose the rest with sel()"
        )
    return stacked(mean, list(_panels(mean, others)), Clock.of(mean))


def _panels(result: Result, others: Sequence[str]) -> Iterator[Panel]:
    if len(others) == 2:
        across = "measure" if "measure" in others else others[0]
        for label in result.labels[across]:
            yield _panel(result.sel(**{across: label}), style.words(str(label)))
    elif others == ["measure"] and not isinstance(result.unit, str):
        colours = 0
        for unit in dict.fromkeys(result.unit.values()):
            names = [name for name in result.labels["measure"] if result.unit[str(name)] == unit]
            yield _panel(result.sel(measure=names), unit=unit, colours=colours, is_named=True)
            colours += len(names)
    else:
        yield _panel(result)


def _panel(
    part: Result, title: str = "", unit: str = "", colours: int = 0, is_named: bool = False
) -> Panel:
    """The curves of one panel, whose colours begin with this one; of many, the highest have one."""
    x, series = tokens_at(part), list(style.series(part, "step"))
    peaks = [np.nanmax(line.values, initial=-np.inf) for _, line in series]
    highest = sorted(np.argsort(peaks)[::-1][: len(style.SERIES)].tolist())
    grey, coloured = [], []
    for number, (name, line) in enumerate(series):
        words = style.words(name)
        if number not in highest:
            curve = after_zero(x, line.values, None)
            grey.append(Line(words, *curve, colour=style.faded(style.QUIET, FAINT), width=THIN))
            continue
        colour = style.SERIES[(colours + highest.index(number)) % len(style.SERIES)]
        curve = after_zero(x, line.values, line.standard_error)
        legend = words if is_named or len(series) > 1 else ""
        coloured.append(Line(words, *curve, colour=colour, width=CURVE, legend=legend))
    return Panel(title, unit or str(part.unit), [*grey, *coloured], chances(x, series))


def by_position(result: Result) -> go.Figure:
    """The map of Olsson et al. 2022: tokens read across, position upwards, the loss in colour.

    Both axes are logarithmic. When induction heads form, late positions become cheaper than early
    ones within a short time. What costs more than chance has the colour of chance.

    Args:
        result: a value over "step" and "position".

    Raises:
        ValueError: other axes, or fewer than two steps or positions.
    """
    if set(result.axes) != {"step", "position"} or min(result.values.shape) < 2:
        raise ValueError(
            f"{result.name} has the axes {result.axes} of lengths {result.values.shape}; a map is "
            'drawn of "step" and "position", two or more of each: choose the rest with sel()'
        )
    result = result.sel(step=[step for step in result.labels["step"] if step != 0])
    clock = Clock.of(result)
    values = np.moveaxis(result.values, result.axes.index("step"), 1)
    chance = np.inf if result.chance is None else float(np.nanmax(result.chance))
    figure = go.Figure(
        layout=style.layout(
            result,
            height=MAP_HEIGHT,
            margin={"l": 66, "r": 24, "t": TOP, "b": BOTTOM},
            xaxis=clock.axis(),
            yaxis=style.axis("position", type="log", dtick=1, showgrid=False),
        )
    )
    figure.add_heatmap(
        x=_edges(tokens_at(result)),
        y=_edges(np.array(result.labels["position"], dtype=np.float64)),
        z=values,
        zmax=min(float(np.nanmax(values)), chance),
        zmin=float(np.nanmin(values)),
        colorscale=style.SEQUENTIAL,
        colorbar=COLORBAR | {"title": {"text": style.words(str(result.unit)), "side": "right"}},
        text=_readings(result),
        hovertemplate="%{text}<extra></extra>",
    )
    return figure


def _readings(result: Result) -> list[list[str]]:
    frame = result.to_frame()
    told = [
        f"step {step}, position {position}: {rounded(value, error)}"
        for step, position, value, error in zip(
            frame["step"], frame["position"], frame["value"], frame["standard_error"], strict=True
        )
    ]
    cells = np.reshape(np.array(told, dtype=object), result.values.shape)
    return np.moveaxis(cells, result.axes.index("step"), 1).tolist()


def _edges(centres: Float64[np.ndarray, " centre"]) -> Float64[np.ndarray, " edge"]:
    """Where tiles around these places meet, half-way on a log scale."""
    logs = np.log(centres)
    middle = (logs[1:] + logs[:-1]) / 2
    return np.exp([logs[0] - (middle[0] - logs[0]), *middle, logs[-1] + (logs[-1] - middle[-1])])


def training(result: Result) -> go.Figure:
    """Loss in training and on held-out text in one panel, the accuracy there in another.

    Against steps, which are not logarithmic here. The training loss is drawn thin, as it is noisy.

    Args:
        result: over "step" and "measure", as `interp.analysis.training_curves` gives it.

    Raises:
        ValueError: other axes.
    """
    if set(result.axes) != {"step", "measure"}:
        raise ValueError(
            f'{result.name} has the axes {result.axes}; training is drawn of "step" and "measure"'
        )
    x = np.array(result.labels["step"], dtype=np.float64)
    units: dict[str, list[Line]] = {}
    for number, measure in enumerate(map(str, result.labels["measure"])):
        part = result.sel(measure=measure)
        words = style.words(measure)
        look = style.SERIES[number % len(style.SERIES)]
        width = THIN if measure.startswith("train") else CURVE
        line = Line(words, x, part.values, part.standard_error, look, width, legend=words)
        units.setdefault(str(part.unit), []).append(line)
    panels = [Panel("", unit, lines) for unit, lines in units.items()]
    return stacked(result, panels, Clock("step", is_log=False))
