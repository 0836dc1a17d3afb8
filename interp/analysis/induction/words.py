"""An induction circuit, or the lack of one, in plain words."""

import math
from collections.abc import Iterable, Mapping, Sequence

from interp.analysis.induction.decision import Decision
from interp.analysis.induction.edges import Cells, Edge, Effect
from interp.results.result import Result

Sender = int | tuple[str, float]
"""The lag that a sender is, or what it attends to most and how much."""

COPIES = 0.1
"""Nats: a model for which the repetition is worth less is not said to copy."""
MOSTLY = 0.5
"""A head that pays more than this to the token before is called a previous-token head."""


def of_none(decision: Decision, distant: Sequence[str], least: float) -> str:
    """That there is no circuit, why, and what is left unexplained."""
    why = _no_effect(decision) if decision.tested else _no_head(decision.scores, least)
    explained = _explained(decision) if decision.tested else "No head could be tested for that"
    parts = [f"No induction circuit: {why}", _drop(decision), f"{explained}."]
    if distant:
        parts.append(
            f"{_and(distant)} attend{_s(distant)} to the same place by distance, whatever stands "
            "there."
        )
    if decision.worth.low > 0 and decision.worth.value >= COPIES:
        parts.append(_what_copies(decision))
    return " ".join(parts)


def _what_copies(decision: Decision) -> str:
    order = decision.in_order
    if not (order.low > 0 and order.value >= COPIES):
        return "What helps is which tokens there were, in whatever order."
    if not decision.tested:
        return "Something copies, but no head attends as an induction head."
    return "Something copies; none of the heads that attend as induction heads carries it."


def _no_head(scores: Result, least: float) -> str:
    attended = scores.sel(measure="score")
    best = attended.sel(head=attended.best())
    assert best.chance is not None
    untrained = float(scores.sel(measure="random_weights", head=attended.best()))
    random = "" if math.isnan(untrained) else f", and random weights reach {untrained:.3f}"
    return (
        "no head pays the token after the current token's first occurrence "
        f"{least:g} more attention than its place explains. The highest score is "
        f"{attended.best()}'s, {float(best):.3f}; uniform attention gives "
        f"{float(best.chance):.3f}{random}."
    )


def _no_effect(decision: Decision) -> str:
    heads, removal = decision.heads, decision.removal
    them, they = _them(heads), "it" if len(heads) == 1 else "they"
    attend = f"{_and(_scored(heads, decision.attended))} attend{_s(heads)} like an induction head"
    changes = f"without, it changes by {_nats(removal)}"
    if not decision.needed:
        return f"{attend}, but the loss on the second copy does not need {them}: {changes}."
    if not decision.ordered:
        return (
            f"{attend}, and the loss on the second copy needs {them}: {changes}. But {they} "
            f"do{'es' * (len(heads) == 1)} not say what comes next: reading a first copy in "
            f"another order there changes it by {_interval(decision.order)} only."
        )
    return (
        f"{attend}, and {changes}, but that is less than {100 * decision.share:.0f} % of what the "
        "repetition is worth."
    )


def of_circuit(
    decision: Decision,
    followed: Sequence[str],
    edges: Sequence[Edge],
    cells: Mapping[str, Cells],
    senders: Mapping[str, Sender],
) -> str:
    """What the heads read, and what they are worth."""
    heads, (first, *later) = decision.heads, decision.groups
    chance = decision.scores.sel(measure="score", head=heads[0]).chance
    assert chance is not None
    parts = [
        f"Induction circuit of {_and(_scored(heads, decision.attended))}, by induction score; "
        f"uniform attention gives {float(chance):.3f}."
    ]
    if decision.distant:
        parts.append(
            f"{_and(decision.distant)} attend{_s(decision.distant)} to the same place by distance, "
            "whatever stands there, and what "
            f"{'it writes' if len(decision.distant) == 1 else 'they write'} is averaged over in "
            "all that follows."
        )
    if later:
        woken = [head for group in later for head in group]
        parts.append(
            f"{_and(woken)} attend{_s(woken)} so once {_and(first)} "
            f"{'is' if len(first) == 1 else 'are'} removed."
        )
    parts += [
        f"Without {_them(heads)} the loss on the second copy rises by {_nats(decision.removal)}.",
        _drop(decision),
        f"{_explained(decision)}.",
        *(_reads(head, edges, cells.get(head, {}), senders) for head in followed),
    ]
    if len(followed) < len(heads):
        parts.append(f"The other {len(heads) - len(followed)} were not followed up.")
    return " ".join(parts)


def _drop(decision: Decision) -> str:
    """What there is to explain."""
    drop, worth = decision.drop, decision.worth
    way = "below" if drop.value >= 0 else "above"
    low, high = sorted((abs(drop.low), abs(drop.high)))
    interval = f"{low:z.2f} to {high:z.2f}"
    if drop.low < 0 < drop.high:
        interval = f"{drop.low:z.2f} to {drop.high:z.2f} below"
    return (
        f"The second copy's loss is {abs(drop.value):.2f} nats (95 %: {interval}) {way} the "
        f"first's; the repetition is worth {_interval(worth)}."
    )


def _explained(decision: Decision) -> str:
    """How much of that the heads that were tested explain."""
    tested, explained = decision.tested, decision.explained
    if math.isnan(explained.value):
        return f"There is nothing for {_and(tested)} to explain"
    heads = decision.heads
    return (
        f"{_and(heads)} explain{_s(heads)} {100 * explained.value:.0f} % of that "
        f"(95 %: {100 * explained.low:.0f} to {100 * explained.high:.0f})"
    )


def _reads(head: str, edges: Sequence[Edge], cells: Cells, senders: Mapping[str, Sender]) -> str:
    into = [edge for edge in edges if edge.receiver == head]
    parts = []
    for channel, what in (("q", "queries"), ("k", "keys"), ("v", "values")):
        named = [
            f"{_named(edge, senders)} ({_without(edge)})"
            for edge in into
            if edge.channel == channel
        ]
        if named:
            parts.append(f"its {what} read {_and(named)}")
    if not any(edge.channel in ("q", "k") for edge in into):
        parts.insert(0, "no single path below it carries its matching")
    said = any(edge.lag for edge in into)  # the same, of keys alone
    return f"{head}: {', '.join(parts)}{'' if said else _cell(cells)}."


def _cell(cells: Cells) -> str:
    """The pair of lags that the matching needs most."""
    if not cells:
        return ""
    pair, effect = min(cells.items(), key=lambda item: item[1].value)
    return f"; without query lag {pair[0]} against key lag {pair[1]}: score {effect.value:+.2f}"


def _named(edge: Edge, senders: Mapping[str, Sender]) -> str:
    sender = edge.sender
    if edge.lag:
        return f"the key {'' if edge.lag == 1 else f'{edge.lag} '}before, by {edge.mixing}"
    if isinstance(known := senders.get(sender), int):
        nearest = {0: "the current token", 1: "the token before"}
        return f"{nearest.get(known, f'the token {known} before')} through {sender}"
    if sender == "embed":
        return "the embedding"
    where, how_much = known or ("", 0.0)
    return f"the {where.replace(' ', '-')} head {sender}" if how_much > MOSTLY else sender


def _without(edge: Edge) -> str:
    if edge.channel == "v":
        return f"without: loss {edge.loss.value:+.2f} nats"
    return f"without: score {edge.score.value:+.2f}"


def _nats(effect: Effect) -> str:
    random = f"random directions {effect.random_low:z.2f} to {effect.random_high:z.2f}"
    return f"{_interval(effect)[:-1]}; {random})"


def _interval(effect: Effect) -> str:
    return f"{effect.value:z.2f} nats (95 %: {effect.low:z.2f} to {effect.high:z.2f})"


def _scored(heads: Sequence[str], attended: Mapping[str, float]) -> list[str]:
    return [f"{head} ({attended[head]:.2f})" for head in heads]


def _s(things: Sequence[str]) -> str:
    """The ending of what one of them does."""
    return "s" * (len(things) == 1)


def _them(heads: Sequence[str]) -> str:
    return "it" if len(heads) == 1 else "them"


def _and(texts: Iterable[str]) -> str:
    *first, last = texts
    return f"{', '.join(first)} and {last}" if first else last
