"""An induction circuit, or the lack of one, in plain words."""

import math
import re
from collections.abc import Iterable, Mapping, Sequence

from interp.analysis.induction.edges import SMEAR, Cells, Edge, Effect
from interp.analysis.result import Result

LAG = re.compile(r"L\d+\.lag(\d+)")
OTHERS = {"embed": "the embedding", SMEAR: "the key before, by smearing"}
MOSTLY = 0.5
"""A head that pays more than this to the token before is called a previous-token head."""


def no_head(scores: Result, least: float) -> str:
    """No head attends as an induction head does."""
    attended = scores.sel(measure="score")
    best = attended.sel(head=attended.best())
    assert best.chance is not None
    untrained = float(scores.sel(measure="random_weights", head=attended.best()))
    random = "" if math.isnan(untrained) else f", and random weights reach {untrained:.3f}"
    return (
        "No induction circuit: no head pays the token after the current token's first occurrence "
        f"{least:g} more attention than its place explains. The highest score is "
        f"{attended.best()}'s, {float(best):.3f}; uniform attention gives "
        f"{float(best.chance):.3f}{random}."
    )


def no_effect(heads: Sequence[str], scores: Result, removal: Effect) -> str:
    """Heads attend so, but nothing comes of it."""
    return (
        f"No induction circuit: {_and(_scored(heads, scores))} attend"
        f"{'s' * (len(heads) == 1)} like an induction head, but the loss on the second copy does "
        f"not need {'it' if len(heads) == 1 else 'them'}: without, it changes by "
        f"{_nats(removal)}."
    )


def of_circuit(
    heads: Sequence[str],
    edges: Sequence[Edge],
    scores: Result,
    removal: Mapping[str, Effect],
    cells: Mapping[str, Cells],
    attended: Mapping[str, tuple[str, float]],
) -> str:
    """What the heads read, and what they are worth."""
    chance = scores.sel(measure="score", head=heads[0]).chance
    assert chance is not None
    return " ".join(
        [
            f"Induction circuit of {_and(_scored(heads, scores))}, by induction score; uniform "
            f"attention gives {float(chance):.3f}.",
            f"Without {'it' if len(heads) == 1 else 'them'} the loss on the second copy rises by "
            f"{_nats(removal['+'.join(heads)])}.",
            *(_reads(head, edges, cells.get(head, {}), attended) for head in heads),
        ]
    )


def _reads(
    head: str, edges: Sequence[Edge], cells: Cells, attended: Mapping[str, tuple[str, float]]
) -> str:
    into = [edge for edge in edges if edge.receiver == head]
    parts = []
    for channel, what in (("q", "queries"), ("k", "keys"), ("v", "values")):
        senders = [
            f"{_named(edge.sender, attended)} ({_without(edge)})"
            for edge in into
            if edge.channel == channel
        ]
        if senders:
            parts.append(f"its {what} read {_and(senders)}")
    if not any(edge.channel in ("q", "k") for edge in into):
        parts.insert(0, "no single path below it carries its matching")
    smeared = any(edge.sender == SMEAR for edge in into)  # the same, said already
    return f"{head}: {', '.join(parts)}{'' if smeared else _cell(cells)}."


def _cell(cells: Cells) -> str:
    """The pair of lags that the matching needs most."""
    if not cells:
        return ""
    pair, effect = min(cells.items(), key=lambda item: item[1].value)
    return f"; without query lag {pair[0]} against key lag {pair[1]}: score {effect.value:+.2f}"


def _named(sender: str, attended: Mapping[str, tuple[str, float]]) -> str:
    lag = LAG.fullmatch(sender)
    if lag:
        nearest = {"0": "the current token", "1": "the token before"}
        return f"{nearest.get(lag[1], f'the token {lag[1]} before')} through {sender}"
    if sender in OTHERS:
        return OTHERS[sender]
    where, how_much = attended.get(sender, ("", 0.0))
    return f"the {where.replace(' ', '-')} head {sender}" if how_much > MOSTLY else sender


def _without(edge: Edge) -> str:
    if edge.channel == "v":
        return f"without: loss {edge.loss.value:+.2f} nats"
    return f"without: score {edge.score.value:+.2f}"


def _nats(effect: Effect) -> str:
    return (
        f"{effect.value:.2f} nats (95 %: {effect.low:.2f} to {effect.high:.2f}; random directions "
        f"{effect.random_low:.2f} to {effect.random_high:.2f})"
    )


def _scored(heads: Sequence[str], scores: Result) -> list[str]:
    return [f"{head} ({float(scores.sel(measure='score', head=head)):.2f})" for head in heads]


def _and(texts: Iterable[str]) -> str:
    *first, last = texts
    return f"{', '.join(first)} and {last}" if first else last
