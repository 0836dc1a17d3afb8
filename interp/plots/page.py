"""One HTML file with all it shows: figures, views, tables and prose, and no request to outside."""

import html
import itertools
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

from interp.plots import style
from interp.plots.attention import AttentionView, bundle
from interp.results.result import write_whole

# The browser refuses every request the page could make, whatever the libraries in it would like.
POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
    "img-src data: blob:; font-src data:; base-uri 'none'; form-action 'none'"
)

CSS = f"""
:root {{ color-scheme: light dark; --page: #fdfdfc; --ink: {style.INK}; --quiet: #5f6672; }}
@media (prefers-color-scheme: dark) {{
  :root {{ --page: #16181d; --ink: #e4e7ee; --quiet: #9aa1ae; }}
}}
* {{ box-sizing: border-box; }}
body {{ margin: 0 auto; padding: 2.5rem 1.5rem 5rem; max-width: 1040px; background: var(--page);
  color: var(--ink); font: 16px/1.6 {style.FONT}; -webkit-text-size-adjust: 100%; }}
h1 {{ margin: 0 0 .4em; font-size: 1.9rem; line-height: 1.2; letter-spacing: -.01em; }}
h2 {{ margin: 2.6em 0 .4em; font-size: 1.3rem; line-height: 1.3; }}
p {{ margin: 0 0 1em; max-width: 44em; }}
.lead {{ color: var(--quiet); font-size: 1.08rem; }}
.content {{ margin: 1.2em 0; overflow-x: auto; }}
@media (max-width: 640px) {{ body {{ padding: 1.4rem 1rem 3rem; }} h1 {{ font-size: 1.5rem; }} }}
"""

DRAW = f"""
const dark = matchMedia("(prefers-color-scheme: dark)");
const ink = () => dark.matches ? "#e4e7ee" : "{style.INK}";
const options = {{ responsive: true, displaylogo: false, showSendToCloud: false }};
const places = [];
function draw(place, {{ data, layout }}) {{
  (layout.font ??= {{}}).color = ink();
  Plotly.newPlot(place, data, layout, options);
  places.push(place);
}}
dark.addEventListener("change", () => {{
  for (const place of places) Plotly.relayout(place, {{ "font.color": ink() }});
}});
"""


@runtime_checkable
class Shown(Protocol):
    """Anything that a notebook can show: a figure, an attention view, a Result."""

    def _repr_html_(self) -> str: ...


@dataclass(frozen=True)
class Section:
    """A heading, prose and what there is to see.

    Args:
        heading: plain text.
        prose: plain text; a blank line begins a new paragraph.
        contents: plotly figures, attention views, results, or anything else a notebook shows.
    """

    heading: str
    prose: str = ""
    contents: Sequence[Shown] = ()


def write_page(
    path: str | os.PathLike[str], title: str, sections: Sequence[Section], lead: str = ""
) -> None:
    """Write one self-contained HTML file, whole or not at all.

    plotly.js is in it once, the code of circuitsvis once and only for an attention view. The page
    denies itself every request, so it looks the same offline and tells nobody that it was opened.

    Args:
        path: the file to write.
        title: plain text, like all text here; it is escaped.
        sections: in the order of reading.
        lead: a sentence or two under the title.

    Raises:
        FileNotFoundError: the directory to write to does not exist.
        TypeError: a content that no notebook could show.
    """
    contents = [content for section in sections for content in section.contents]
    for content in contents:
        if not isinstance(content, Shown):
            raise TypeError(f"a page cannot show {content!r}: it has no _repr_html_")
    figures = [content for content in contents if isinstance(content, go.Figure)]
    with_views = any(isinstance(content, AttentionView) for content in contents)
    numbers = itertools.count()
    body = "\n".join(_section(section, numbers) for section in sections)
    parts = (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{html.escape(title)}</title>\n<style>{CSS}</style>\n</head>\n<body>\n<main>",
        f"<h1>{html.escape(title)}</h1>",
        *_paragraphs(lead, ' class="lead"'),
        bundle() if with_views else "",
        f"{body}\n</main>",
        f"<script>{get_plotlyjs()}</script>\n<script>{DRAW}</script>" if figures else "",
        *(_drawing(number, figure) for number, figure in enumerate(figures)),
        "</body>\n</html>\n",
    )
    write_whole(path, "\n".join(filter(None, parts)))


def _section(section: Section, numbers: Iterator[int]) -> str:
    shown = [f'<div class="content">{_shown(c, numbers)}</div>' for c in section.contents]
    heading = f"<h2>{html.escape(section.heading)}</h2>"
    return "\n".join(["<section>", heading, *_paragraphs(section.prose), *shown, "</section>"])


def _shown(content: Shown, numbers: Iterator[int]) -> str:
    if isinstance(content, go.Figure):
        return f'<div id="figure-{next(numbers)}"></div>'
    if isinstance(content, AttentionView):
        return content.html(include_bundle=False)
    return content._repr_html_()


def _drawing(number: int, figure: go.Figure) -> str:
    # plotly escapes what could close the script element.
    return f'<script>draw("figure-{number}", {figure.to_json()})</script>'


def _paragraphs(text: str, attributes: str = "") -> Iterator[str]:
    for paragraph in re.split(r"\n\s*\n", text.strip()):
        if paragraph:
            yield f"<p{attributes}>{html.escape(paragraph)}</p>"
