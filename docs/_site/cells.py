"""A mkdocs hook: code on a page is run when the site is built, and shown as a notebook shows it.

A block that begins with ```` ```python exec="true" source="above" session="NAME" ```` runs in the
names of its session. Under its source stands what it printed, then the value of its last line. With
`raises="ValueError"` it has to raise that error, whose message is shown instead; any other error
fails a strict build. `quiet="true"` leaves out what it printed. A block without `source` runs in
the same session, and what it prints is Markdown.

A page that says `notebook: examples/NAME.py` in its front matter is that notebook, in percent
format: its cells of Markdown are text, and its cells of code are such blocks.
"""

import ast
import html
import re
import traceback
from contextlib import redirect_stdout
from functools import partial
from io import StringIO
from pathlib import Path
from pprint import pformat
from typing import Any

import facts  # noqa: F401  for the pages: only while a hook is loaded can it be found
import plotly.graph_objects as go
from markdown_exec import ExecutionError, base_format, code_block, formatters

from interp.plots.attention import AttentionView

CELL = re.compile(r"^# %%( \[markdown\])?\n", re.MULTILINE)
"""What begins a cell."""

_sessions: dict[str, dict[str, Any]] = {}


def on_startup(command: str, dirty: bool) -> None:
    """Take the place of markdown-exec's own formatter."""
    formatters["python"] = _format


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """A page begins with a fresh session, so that `mkdocs serve` shows what a build shows."""
    _sessions.clear()
    notebook = page.meta.get("notebook")
    return markdown if notebook is None else page_of(Path(notebook))


def page_of(notebook: Path) -> str:
    """A notebook in percent format as the Markdown of a page."""
    cells = CELL.split(notebook.read_text(encoding="utf-8"))[1:]
    kinds, texts = cells[::2], (cell.strip() for cell in cells[1::2])
    return "\n\n".join(
        re.sub(r"^# ?", "", text, flags=re.MULTILINE)
        if kind
        else f'```python exec="true" source="above" session="notebook"\n{text}\n```'
        for kind, text in zip(kinds, texts, strict=True)
    )


def _format(**options: Any) -> str:
    options["html"] = shows_source = bool(options["source"])
    ours = {name: options["extra"].pop(name, "") for name in ("raises", "quiet")}
    run = partial(_run, **ours, as_markdown=not shows_source)
    return base_format(language="python", run=run, **options)


def _run(code: str, *, session: str, raises: str, quiet: str, as_markdown: bool, **_: Any) -> str:
    names = _sessions.setdefault(session, {"__name__": "__main__"})
    printed, value, error = StringIO(), None, ""
    try:
        with redirect_stdout(printed):
            value = _value_of(code, names)
    except Exception as exception:
        if type(exception).__name__ != raises:
            raise ExecutionError(code_block("python", traceback.format_exc())) from exception
        error = f"{raises}: {exception}"
    if raises and not error:
        raise ExecutionError(code_block("text", f"the block did not raise {raises}"))
    if as_markdown:
        return printed.getvalue()
    spoken = "" if quiet else _text(printed.getvalue())
    return "\n".join(filter(None, [spoken, _shown(value), _text(error, "error")]))


def _value_of(code: str, names: dict[str, Any]) -> Any:
    """Run the code; the value of its last statement, if that is an expression."""
    body = ast.parse(code).body
    last = body.pop() if body and isinstance(body[-1], ast.Expr) else None
    exec(compile(ast.Module(body, []), "<cell>", "exec"), names)
    if isinstance(last, ast.Expr):
        return eval(compile(ast.Expression(last.value), "<cell>", "eval"), names)
    return None


def _shown(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, go.Figure):
        # plotly escapes what could close the element.
        data = f'<script type="application/json">{value.to_json()}</script>'
        return f'<div class="cell-output figure">{data}</div>'
    if isinstance(value, AttentionView):
        return f'<div class="cell-output">{value.html(include_bundle=False)}</div>'
    if hasattr(value, "_repr_html_"):
        return f'<div class="cell-output">{value._repr_html_()}</div>'
    return _text(pformat(value, width=88, sort_dicts=False))


def _text(text: str, kind: str = "text") -> str:
    if not text.strip():
        return ""
    escaped = html.escape(text.rstrip())
    return f'<div class="cell-output {kind}"><pre><code>{escaped}</code></pre></div>'
