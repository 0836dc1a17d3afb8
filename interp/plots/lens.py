"""The logit lens: what a model would predict after each of its layers."""

import html

import numpy as np
import plotly.graph_objects as go

from interp.plots import style
from interp.plots.attribution import by_position
from interp.plots.heatmaps import _Scale as Scale
from interp.results.result import Result, rounded

# Pixels.
TOP, BOTTOM, LEFT, RIGHT = 72, 56, 70, 24
PANEL, PANEL_GAP, PANEL_TITLE = 140, 46, 20
CELL_WIDTH, CELL_HEIGHT, COLORBAR = 62, 30, 60
NARROWEST = 320
LONGEST_WORD = 8


def curves(result: Result) -> go.Figure:
    """Each "measure" after each "layer", one above the other; chance is a dashed line.

    With one measure chosen, "position" makes a heatmap.

    Raises:
        ValueError: positions and several measures at once.
    """
    if set(result.axes) == {"layer", "position"}:
        return by_position(result, "layer")
    if set(result.axes) - {"layer", "measure"}:
        raise ValueError(
            f"{result.name} has the axes {result.axes}; choose one measure to see the positions, "
            "such as sel(measure='loss')"
        )
    panels = {"": result}
    if "measure" in result.axes:
        panels = {str(name): result.sel(measure=name) for name in result.labels["measure"]}
    step = PANEL + PANEL_GAP
    plot_height, top = step * len(panels) - PANEL_GAP, TOP + PANEL_TITLE
    figure = go.Figure(
        layout=style.layout(
            result,
            height=top + plot_height + BOTTOM,
            margin={"l": LEFT, "r": RIGHT, "t": top, "b": BOTTOM},
            showlegend=False,
            hovermode="x unified",
        )
    )
    for number, (name, panel) in enumerate(panels.items()):
        ceiling, floor = (1 - (number * step + down) / plot_height for down in (0, PANEL))
        _add_panel(figure, number, panel, name, (max(0.0, floor), ceiling))
    return figure.update_layout(
        {f"xaxis{len(panels) if len(panels) > 1 else ''}.title.text": "after layer"}
    )


def _add_panel(
    figure: go.Figure, number: int, panel: Result, name: str, domain: tuple[float, float]
) -> None:
    suffix = str(number + 1) if number else ""
    axes = {"xaxis": f"x{suffix}", "yaxis": f"y{suffix}"}
    layers = [str(layer) for layer in panel.labels["layer"]]
    error = panel.standard_error
    error = np.full_like(panel.values, np.nan) if error is None else error
    figure.update_layout(
        {
            f"xaxis{suffix}": style.axis(
                anchor=f"y{suffix}", showgrid=False, fixedrange=True, type="category",
                range=(-0.3, len(layers) - 0.7), automargin=False,
            ),
            f"yaxis{suffix}": style.axis(
                style.words(str(panel.unit)), anchor=f"x{suffix}", domain=domain, nticks=5,
                rangemode="tozero", fixedrange=True,
            ),
        }
    )  # fmt: skip
    figure.add_scatter(
        x=layers,
        y=panel.values,
        mode="lines+markers",
        line={"color": style.SERIES[0], "width": 2},
        marker={"size": 7},
        error_y={"array": error, "thickness": 1.5, "width": 4, "color": style.QUIET},
        text=[rounded(*reading) for reading in zip(panel.values, error, strict=True)],
        hovertemplate="%{text}<extra></extra>",
        **axes,
    )
    if panel.chance is not None:
        figure.add_scatter(
            x=layers,
            y=panel.chance,
            mode="lines",
            line={"color": style.QUIET, "width": 1.5, "dash": "dash"},
            text=[f"chance {rounded(level)}" for level in panel.chance],
            hovertemplate="%{text}<extra></extra>",
            **axes,
        )
    if name:
        figure.add_annotation(
            text=f"<b>{style.words(name)}</b>", showarrow=False,
            x=0, xref="paper", xanchor="left", y=domain[1], yref="paper", yanchor="bottom",
        )  # fmt: skip


def table(result: Result) -> go.Figure:
    """The likeliest token after each layer on a tile of its probability, the last layer on top.

    Hovering tells the other likely tokens.
    """
    layers, words = result.labels["layer"], result.provenance["words"]
    top_words, shares = result.provenance["top_words"], result.values
    best, scale = shares[..., 0], Scale(0.0, 1.0, style.SEQUENTIAL)
    hover = [
        [
            f"<b>after {layer}</b>, at {column}: {shown(word)}"
            + "".join(
                f"<br>{shown(choice)}  {rounded(share)}"
                for choice, share in zip(top_words[row][column], shares[row, column], strict=True)
            )
            for column, word in enumerate(words)
        ]
        for row, layer in enumerate(layers)
    ]
    width, height = CELL_WIDTH * len(words), CELL_HEIGHT * len(layers)
    whole = max(NARROWEST, LEFT + width + RIGHT)
    figure = go.Figure(
        go.Heatmap(
            z=best, text=hover, xgap=1.5, ygap=1.5, coloraxis="coloraxis",
            hovertemplate="%{text}<extra></extra>",
        ),
        layout=style.layout(
            result,
            width=whole,
            height=TOP + height + BOTTOM + COLORBAR,
            margin={"l": LEFT, "r": whole - LEFT - width, "t": TOP, "b": BOTTOM + COLORBAR},
            coloraxis=scale.axis(),
            xaxis=style.axis(
                "token read", showgrid=False, fixedrange=True, automargin=False, tickangle=0,
                tickvals=np.arange(len(words)), ticktext=[shown(w, LONGEST_WORD) for w in words],
            ),
            yaxis=style.axis(
                "after layer", showgrid=False, fixedrange=True,
                tickvals=np.arange(len(layers)), ticktext=layers,
            ),
        ),
    )  # fmt: skip
    rows, columns = np.indices(best.shape)
    figure.add_scatter(
        x=columns.ravel(),
        y=rows.ravel(),
        mode="text",
        text=[shown(choices[0], LONGEST_WORD) for layer in top_words for choices in layer],
        textfont={"size": 11, "color": scale.ink_on(best.ravel())},
        hoverinfo="skip",
        showlegend=False,
    )
    return figure


def shown(word: str, longest: int = 40) -> str:
    """A token as it can be read in a figure: white space made visible, long words cut.

    >>> shown(" the"), shown("interpretability", 8)
    ('·the', 'interpr…')
    """
    visible = word.replace(" ", "·").replace("\n", "⏎").replace("\t", "⇥")
    if len(visible) > longest:
        visible = visible[: longest - 1] + "…"
    return html.escape(visible, quote=False)
