"""How results call the parts of a model: a head is written "L1H3", and read here alone."""

import re

_HEAD = re.compile(r"L([0-9]+)H([0-9]+)")


def head_of(label: object) -> tuple[int, int] | None:
    """Layer and number of a head; None where the label is not one's.

    >>> head_of("L1H3"), head_of("L1.mlp")
    ((1, 3), None)
    """
    match = _HEAD.fullmatch(label) if isinstance(label, str) else None
    return None if match is None else (int(match[1]), int(match[2]))
