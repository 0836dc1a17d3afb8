"""A griffe extension: the examples at the end of our docstrings, as code.

Griffe looks for them under a heading "Examples:". Ours stand after a blank line, as Python's own
documentation writes them, and Markdown would take `>>>` for a quotation.
"""

import re
from typing import Any

from griffe import Extension, Object

# From a prompt at the margin to the next blank line.
EXAMPLE = re.compile(r"^>>> .*(?:\n(?!\s*$).*)*", re.MULTILINE)


class Doctests(Extension):
    """Puts each example between fences."""

    def on_object(self, *, obj: Object, **_: Any) -> None:
        """Called once for every object that was read."""
        if obj.docstring is not None:
            obj.docstring.value = EXAMPLE.sub(r"```pycon\n\g<0>\n```", obj.docstring.value)
