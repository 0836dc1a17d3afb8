"""A mkdocs hook: the JavaScript of figures and attention views, from the installed packages.

Each library is one file of the site, and a page refers to it only if it shows something of its
kind. Nothing is fetched, neither now nor when the site is read.
"""

import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from plotly.offline import get_plotlyjs

from interp.plots.attention import bundle

PLOTLY, CIRCUITSVIS = "assets/plotly.js", "assets/circuitsvis.js"
FIGURES = "assets/figures.js"  # ours

LOADED = r"<(?:script|link|img|iframe)\b[^>]*?(?:src|href)="
OUTSIDE = re.compile(LOADED + r"[\"']?(?:https?:)?//[^\"'> ]*")


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Add the two libraries to the site."""
    views = bundle().removeprefix("<script>").removesuffix("</script>")
    for path, code in ((PLOTLY, get_plotlyjs()), (CIRCUITSVIS, views)):
        files.append(File.generated(config, path, content=code))
    return files


def on_post_page(output: str, *, page: Page, **_: Any) -> str:
    """Load what the page shows: before an attention view, whose own script draws it; else last."""
    root = "../" * page.url.count("/")
    head, end = "", ""
    if "CircuitsVis.render(" in output:
        head = f'<script src="{root}{CIRCUITSVIS}"></script>\n'
    if 'class="cell-output figure"' in output:
        end = "".join(f'<script src="{root}{path}" defer></script>\n' for path in (PLOTLY, FIGURES))
    return output.replace("</head>", f"{head}{end}</head>", 1)


def on_post_build(*, config: MkDocsConfig) -> None:
    """Fail where a page would load something from another machine."""
    for path in sorted(Path(config.site_dir).rglob("*.html")):
        if found := OUTSIDE.search(path.read_text(encoding="utf-8")):
            raise SystemExit(f"{path.name} loads something from outside: {found.group()}")
