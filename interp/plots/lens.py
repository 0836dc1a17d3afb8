"""The logit lens: what a model would predict after each of its layers."""

import numpy as np
import plotly.graph_objects as go

from interp.plots import style
from interp.plots.attribution import by_position
from interp.plots.curves import Line, Lines, chances, in_panels
from interp.plots.panels import Axis
from interp.plots.registry import Order, draws
from interp.plots.tiles import Tiles, drawn
from interp.results.result import Result, rounded

PANEL, CELL = 140, (62, 30)  # pixels
LONGEST_WORD = 8


@draws("layer", order=Order.SHARED)
def curves(result: Result) -> go.Figure:
    """Each "measure" after each "layer", one above the other; chance is a dashed line.

    With one measure chosen, "position" makes a heatmap.

    Raises:
        ValueError: positions and several measures at once.
    """
    if set(result.axes) == {"layer", "position"}:
        return by_position(result, "layer")
    what = "choose one measure to see the positions, such as sel(measure='loss')"
    style.require(result, set(result.axes) <= {"layer", "measure"}, what)
    parts = [("", result)]
    if "measure" in result.axes:
        parts = [(str(name), result.sel(measure=name)) for name in result.labels["measure"]]
    panels = [_panel(name, part, name == parts[-1][0]) for name, part in parts]
    return in_panels(result, panels, PANEL)


def _panel(name: str, part: Result, is_lowest: bool) -> Lines:
    layers = [str(layer) for layer in part.labels["layer"]]
    x = np.arange(len(layers), dtype=np.float64)
    limits = {"range": (-0.3, len(layers) - 0.7)}
    line = Line(
        style.plain(name) or part.name, x, part.values, style.errors(part),
        style.SERIES[0], is_dotted=True,
    )  # fmt: skip
    unit = Axis(style.unit_of(part), look={"nticks": 5, "rangemode": "tozero"})
    return Lines(
        [line],
        Axis("after layer" if is_lowest else "", layers, look=limits),
        unit,
        style.plain(name),
        chances(x, [part]),
    )


@draws("choice")
def table(result: Result) -> go.Figure:
    """The likeliest token after each layer on a tile of its probability, the last layer on top.

    Hovering shows the other likely tokens.
    """
    layers, words = result.labels["layer"], result.provenance["words"]
    choices, shares = result.provenance["top_words"], result.values

    def hover(i: int, j: int) -> str:
        lines = [f"<b>after {style.text(layers[i])}</b>, at {j}: {style.token(words[j])}"]
        pairs = zip(choices[i][j], shares[i, j], strict=True)
        lines += [f"{style.token(choice)}  {rounded(share)}" for choice, share in pairs]
        return "<br>".join(lines)

    short = [[_short(words[0]) for words in layer] for layer in choices]
    upwards = {"range": (-0.5, len(layers) - 0.5)}
    tiles = Tiles(
        shares[..., 0],
        Axis("after layer", layers, look=upwards),
        Axis("token read", [_short(word) for word in words]),
        hover,
        unit=style.unit_of(result),
        written=short,
    )
    return drawn(result, [tiles], CELL)


def _short(word: str) -> str:
    return style.shortened(style.marked(word), LONGEST_WORD)
