"""What else might have been removed: random units, or as large a change in random directions.

Removing anything hurts. What a unit's removal does is compared with what as many random units do,
or with its own change of the stream turned by random rotations: the same size at every position,
the same angles between positions, only other directions. One draw proves nothing, so there are
several.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from interp.analysis.interventions.edits import Change
from interp.analysis.interventions.units import Catalogue, Unit
from interp.views import View

Control = Literal["units", "directions", "none"]

FEWEST_OTHERS = 5
"""With fewer other units of its kind, a unit is compared with random directions by default."""


def default_control(catalogue: Catalogue, units: Sequence[Unit]) -> Control:
    """Random units where there are enough of them, else random directions, else nothing."""
    if all(_number_of_others(catalogue, unit) >= FEWEST_OTHERS for unit in units):
        return "units"
    return "directions" if all(has_directions(unit, catalogue.viewed) for unit in units) else "none"


def check_control(control: Control, catalogue: Catalogue, units: Sequence[Unit]) -> None:
    """Refuse a control that a unit has not, before any forward pass.

    Raises:
        ValueError: the message names the unit and the remedy.
    """
    for unit in units:
        if control == "directions" and not has_directions(unit, catalogue.viewed):
            raise ValueError(
                f"{unit.label} writes nothing to the stream by itself"
                f"{_bent(unit, catalogue.viewed)}, so its change has no direction there; use "
                "control='units' or control='none'"
            )
        if control == "units" and not _number_of_others(catalogue, unit):
            raise ValueError(
                f"the model has no other unit of the kind of {unit.label}; use "
                "control='directions' or control='none'"
            )


def has_directions(unit: Unit, viewed: View) -> bool:
    """Whether a unit's change is a change of the stream, or on a path begins as one."""
    added = bool(unit.sources) and all(site.stream for site in unit.sources)
    return added and not _bent(unit, viewed)


def _bent(unit: Unit, viewed: View) -> str:
    """Why what a unit's terms are read at is not added to the stream through their maps, if so."""
    layers = {site.reads[0] for site in unit.sources if site.terms}
    reasons = (viewed.bent_heads(layer) for layer in sorted(layers))
    return next((f" ({reason})" for reason in reasons if reason), "")


@dataclass(eq=False)
class Draws:
    """Changes to measure, each once, and which of them are the controls of which.

    Attributes:
        changes: what has to be measured; the units themselves come first.
        controls: for each unit, the numbers of the changes that it is compared with.
    """

    changes: list[Change]
    controls: list[list[int]] = field(default_factory=list)

    @classmethod
    def of_units(
        cls, catalogue: Catalogue, units: Sequence[Unit], n_random: int, seed: int
    ) -> "Draws":
        """For each unit, the others of its kind that are measured anyway, and drawn ones."""
        draws = cls([Change(unit) for unit in units])
        generator = torch.Generator().manual_seed(seed)
        kinds = [_kinds(catalogue, unit) for unit in units]
        known = {_labels(unit): number for number, unit in enumerate(units)}
        for number, unit in enumerate(units):
            others = [
                i
                for i, kind in enumerate(kinds)
                if kind == kinds[number] and _labels(units[i]) != _labels(unit)
            ]
            drawn = {_labels(units[i]) for i in others}
            pools = _pools(catalogue, unit)
            for _ in range(50 * n_random):  # where there are few sets, some come up again and again
                if len(others) >= n_random:
                    break
                chosen = _draw(pools, generator)
                key = _labels(chosen)
                if len(key) < len(unit.members) or key in drawn or key == _labels(unit):
                    continue
                if key not in known:
                    known[key] = len(draws.changes)
                    draws.changes.append(Change(chosen))
                drawn.add(key)
                others.append(known[key])
            draws.controls.append(others)
        return draws

    @classmethod
    def of_directions(
        cls, units: Sequence[Unit], n_random: int, seed: int, d_model: int
    ) -> "Draws":
        """For each unit, its own change turned by each of several rotations."""
        rotations = [rotation(d_model, seed, draw) for draw in range(n_random)]
        draws = cls([Change(unit) for unit in units])
        for unit in units:
            first = len(draws.changes)
            draws.changes += [Change(unit, turn) for turn in rotations]
            draws.controls.append(list(range(first, len(draws.changes))))
        return draws

    @classmethod
    def without(cls, units: Sequence[Unit]) -> "Draws":
        """Nothing to compare with."""
        return cls([Change(unit) for unit in units], [[] for _ in units])


def rotation(d_model: int, seed: int, draw: int) -> Float[Tensor, "d_model d_model"]:
    """A rotation or reflection of the stream, all being equally likely (Haar)."""
    generator = torch.Generator().manual_seed(1_000_003 * seed + draw)
    Q, R = torch.linalg.qr(torch.randn(d_model, d_model, generator=generator, dtype=torch.float64))
    return Q * R.diagonal().sign()


def random_orders(
    catalogue: Catalogue, units: Sequence[Unit], n_random: int, seed: int
) -> list[list[Unit]]:
    """As many units in random order: of their kind, where they are of one kind, else they."""
    kinds = Counter(kind for unit in units for kind in _kinds(catalogue, unit))
    pool = list(units)
    if len(kinds) == 1 and all(len(unit.members) == 1 for unit in units):
        pool = list(catalogue.like(units[0])) or pool
    generator = torch.Generator().manual_seed(seed)
    return [
        [pool[i] for i in torch.randperm(len(pool), generator=generator).tolist()[: len(units)]]
        for _ in range(n_random)
    ]


def _pools(catalogue: Catalogue, unit: Unit) -> list[tuple[Unit, ...]]:
    """For each member of a unit, all units of its kind."""
    return [catalogue.like(member) for member in unit.members] if not unit.hooks else []


def _labels(unit: Unit) -> frozenset[str]:
    return frozenset(member.label for member in unit.members)


def _kinds(catalogue: Catalogue, unit: Unit) -> tuple[str, ...]:
    """What identifies the kinds of a unit's members: the first label of each kind."""
    firsts = [pool[0].label if pool else "" for pool in _pools(catalogue, unit)]
    return tuple(sorted(firsts)) if firsts else (unit.label,)


def _number_of_others(catalogue: Catalogue, unit: Unit) -> int:
    pools = _pools(catalogue, unit)
    return min((len(pool) - 1 for pool in pools), default=0)


def _draw(pools: Sequence[Sequence[Unit]], generator: torch.Generator) -> Unit:
    chosen = [
        pool[int(torch.randint(len(pool), (), generator=generator))] for pool in pools if pool
    ]
    return sum(chosen[1:], start=chosen[0])
