"""Where the heads look in one sequence: the installed circuitsvis, without the network."""

import html
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import resources
from uuid import uuid4

import numpy as np
import numpy.typing as npt
from jaxtyping import Float64

from interp.plots import style
from interp.plots.registry import Order, draws
from interp.results.result import Result


@dataclass(frozen=True, eq=False)
class AttentionView:
    """An attention pattern to look at: in a notebook by itself, on a page through `html`.

    circuitsvis's own `_repr_html_` asks a server on the internet whether there is one, and then
    loads its code from there; this one holds the code that was installed.
    """

    tokens: tuple[str, ...]
    head_names: tuple[str, ...]
    pattern: Float64[np.ndarray, "head query key"] = field(repr=False)

    def html(self, include_bundle: bool = True) -> str:
        """The view as HTML.

        Args:
            include_bundle: put the JavaScript of circuitsvis before it (1.3 MB). A page needs it
                once, before its first view.
        """
        place = f"attention-{uuid4().hex}"
        props = {
            # A ten-thousandth is far less than the eye can see; the file is half as long.
            "attention": self.pattern.round(4).tolist(),
            "tokens": [style.visible(token) for token in self.tokens],
            "attentionHeadNames": self.head_names,
            "minValue": 0,
            "maxValue": 1,
            "positiveColor": style.SERIES[0],
            "maskUpperTri": bool(np.triu(self.pattern, 1).max(initial=0) == 0),
        }
        draw = f'CircuitsVis.render("{place}", CircuitsVis.AttentionHeads, {in_script(props)});'
        view = (
            f'<div class="attention-view" style="background:#fff;color:{style.INK};'
            f'font-family:{html.escape(style.FONT)};padding:1em;border-radius:10px;overflow-x:auto">'
            f'<div id="{place}"></div></div>\n<script>{draw}</script>'
        )
        return f"{bundle()}\n{view}" if include_bundle else view

    def _repr_html_(self) -> str:
        return self.html()


def view(tokens: Sequence[str], pattern: npt.ArrayLike, head_names: Sequence[str]) -> AttentionView:
    """Where each head looks from each token; the first head is shown large, a click changes that.

    Args:
        tokens: the sequence as text, one string per position.
        pattern: attention probabilities `[head query key]`.
        head_names: "L1H3", ... one per head.

    Raises:
        ValueError: shapes that do not agree, or values that are no probabilities.

    >>> view(["<bos>", "a"], [[[1.0, 0.0], [0.4, 0.6]]], ["L1H3"]).head_names
    ('L1H3',)
    """
    array = np.array(pattern, dtype=np.float64)
    expected = (len(head_names), len(tokens), len(tokens))
    if array.shape != expected or not array.size:
        raise ValueError(
            f"pattern has shape {array.shape}; {len(head_names)} head names and {len(tokens)} "
            f"tokens make [head query key] = {expected}"
        )
    low, high = float(array.min()), float(array.max())
    if not (low >= 0 and high <= 1 + 1e-3 and math.isfinite(high)):
        raise ValueError(f"attention must lie between 0 and 1; this pattern has {low} to {high}")
    return AttentionView(tuple(tokens), tuple(head_names), array)


@draws("query", order=Order.SHARED)
def of(result: Result) -> AttentionView:
    """The view of a result over "head", "query" and "key", with the words in its provenance.

    The first head of the result is shown large: `result.sel(head=[...])` chooses and orders them.

    Raises:
        ValueError: the result has other axes.
    """
    what = "an attention view needs head, query and key: choose several with sel(head=[...])"
    style.require(result, result.axes == ("head", "query", "key"), what)
    words = result.provenance.get("words", result.labels["query"])
    return view([str(word) for word in words], result.values, [*map(str, result.labels["head"])])


def bundle() -> str:
    """The JavaScript of the installed circuitsvis as a script element."""
    code = (resources.files("circuitsvis") / "dist" / "cdn" / "iife.js").read_text(encoding="utf-8")
    # The last line names a map, which a debugger would go and look for. A string in it closes a
    # script element: a backslash keeps the string as it is and our element open.
    code = code.partition("\n//# sourceMappingURL=")[0].replace("</script", "<\\/script")
    return f"<script>{code}</script>"


def in_script(data: object) -> str:
    r"""JSON that is safe inside a script element, whatever its strings hold.

    >>> in_script({"token": "</script>"})
    '{"token": "\\u003c/script>"}'
    """
    return json.dumps(data, allow_nan=False).replace("<", "\\u003c")
