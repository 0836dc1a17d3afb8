"""No recorded number moves unnoticed: see `tests.recorded.numbers` for how to record."""

import json
import math
from collections.abc import Iterator
from dataclasses import replace

import jaxtyping
import numpy as np
import pytest

import interp
from tests.recorded import numbers


@pytest.fixture
def quick() -> Iterator[None]:
    """Shape checks off: every other test has them, and here they would take most of the time."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.mark.slow
@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("name", numbers.ALL)
def test_the_numbers_are_as_recorded(name: str):
    lines = numbers.moved(numbers.read()[name], numbers.measured(name))
    assert not lines, f"{len(lines)} numbers of {name} moved:\n" + "\n".join(lines)


def test_every_model_is_recorded_and_nothing_else():
    assert tuple(numbers.read()) == numbers.ALL
    assert numbers.FILE.stat().st_size < 200_000


def test_a_number_that_moves_is_named():
    before = {"score": {"L0H0": 1.0, "L0H1": 100.0, "error": math.nan, "labels": "head"}}
    after = {"score": {"L0H0": 1.0 + 2e-10, "L0H1": 100.0 + 5e-9, "error": math.nan, "new": 0.0}}
    assert [line.split(":")[0] for line in numbers.moved(before, after)] == [
        "score/L0H0",
        "score/labels",
        "score/new",
    ]


def test_a_tolerance_stands_beside_what_it_is_for():
    before = {"score": {"L0H0": 1.0}, "baseline": {"tolerance": 1e-5, "L0H0": 1.0}}
    after = {"score": {"L0H0": 1 + 1e-6}, "baseline": {"tolerance": 1e-5, "L0H0": 1 + 1e-6}}
    assert [line.split(":")[0] for line in numbers.moved(before, after)] == ["score/L0H0"]


def test_two_values_that_change_places_are_noticed():
    values = np.arange(12.0).reshape(3, 4)
    labels = {"head": ("L0H0", "L0H1", "L0H2"), "position": range(4)}
    result = interp.Result("score", values, tuple(labels), labels)
    exchanged = replace(result, values=values[[1, 0, 2]])
    turned = replace(result, values=values.T, axes=("position", "head"))
    sums = [dict(numbers.spread(one, "", samples=0))["sum"] for one in (result, exchanged, turned)]
    assert sums[0] == pytest.approx(sums[2], rel=1e-14)
    assert abs(sums[0] - sums[1]) > 0.1


def test_an_error_that_the_library_does_not_raise_is_no_refusal():
    with pytest.raises(ValueError, match="log10") as mistake:
        int("log10")
    assert not numbers.is_refusal(mistake.value)
    with pytest.raises(ValueError, match="no convolution") as refusal:
        interp.conv_lags(interp.load("attn"))
    assert numbers.is_refusal(refusal.value)


@pytest.mark.parametrize(
    ("recorded", "found"),
    [(math.nan, 0.0), (math.inf, -math.inf), (math.inf, 1.0), ("refused", 0.0), (1.0, "refused")],
)
def test_what_is_no_number_equals_itself_alone(recorded: float | str, found: float | str):
    assert not numbers.equal(recorded, found)
    assert not numbers.equal(found, recorded)
    assert numbers.equal(json.loads(json.dumps(recorded)), recorded)
