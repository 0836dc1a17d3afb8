"""A griffe extension: four things about our sources that Griffe would read otherwise."""

import re
from typing import Any

from griffe import Class, ExprCall, Extension, Function, Object

# From a prompt at the margin to the next blank line.
EXAMPLE = re.compile(r"^>>> .*(?:\n(?!\s*$).*)*", re.MULTILINE)
RETURNS = re.compile(r"^Returns:\n( +)", re.MULTILINE)


class OurSources(Extension):
    """Runs after `griffe.UnpackTypedDictExtension`."""

    def on_object(self, *, obj: Object, **_: Any) -> None:
        """Put examples between fences: `>>>` outside a section is a quotation to Markdown."""
        if obj.docstring is not None:
            obj.docstring.value = EXAMPLE.sub(r"```pycon\n\g<0>\n```", obj.docstring.value)

    def on_class(self, *, cls: Class, **_: Any) -> None:
        """A recipe's field is a help text and a default; the signature gets the default."""
        for parameter in cls.parameters:
            call = parameter.default
            if isinstance(call, ExprCall) and str(call.function) == "_help":
                parameter.default = call.arguments[-1]

    def on_function(self, *, func: Function, **_: Any) -> None:
        """Name the returned type first, and drop a list of parameters that describes none."""
        if func.docstring is None:
            return
        if not func.docstring.value:
            func.docstring = None  # made for the keywords of a TypedDict
        elif func.returns is not None:
            # Or the words before the first colon would be taken for the type.
            typed = rf"Returns:\n\1{func.returns}: "
            func.docstring.value = RETURNS.sub(typed, func.docstring.value)
