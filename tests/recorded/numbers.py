"""Numbers of every public analysis, recorded: what must not move while the library is rebuilt.

    python -m tests.recorded.numbers --write                        # all of them
    python -m tests.recorded.numbers --write --only conv-attn deep  # of some models

writes `numbers.json` anew; without `--write` it says what has moved, as `test_numbers.py` does in
the tests. A number that moves is a mistake, or a correction: the commit that records it again says
which, and why.

All is float64 on one thread, from fixed seeds, and holds to 1e-10 relative to max(1, |number|) on
any processor. What depends on random numbers in float32 does not: it is a question of its own, and
its tolerance stands beside it. Of a large answer are recorded some single values, chosen by their
labels, and a sum of all, weighted by their labels; of standard errors and chance levels the mean.
The models of the zoo give the sum and the errors only.
"""

import argparse
import json
import math
import traceback
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
import torch

import interp
import interp.analysis
from tests.recorded.models import NAMES, subject
from tests.recorded.questions import Loose, of_runs, questions

FILE = Path(__file__).with_name("numbers.json")
RUNS = "runs"
"""What is asked of training runs, beside the models."""

ALL = (*NAMES, RUNS)
TOLERANCE = 1e-10
Number = float | str
"""A number, or what else must stay: labels, a sentence, "refused"."""


def measured(name: str) -> dict[str, dict[str, Number]]:
    """Every question's answer for one model, as numbers by label."""
    if name == RUNS:
        asked, samples = of_runs(), 1
    else:
        one = subject(name)
        asked, samples = questions(one), one.samples
    found: dict[str, dict[str, Number]] = {}
    for question, call in asked:
        if question in found:
            raise ValueError(f"{name} is asked {question!r} twice; give each question its own name")
        try:
            answer = call()
        except ValueError as error:
            if not is_refusal(error):
                raise
            found[question] = {"answer": "refused"}
        else:
            numbers = dict(spread(answer, f"{name}/{question}", samples))
            found[question] = {label: _rounded(number) for label, number in numbers.items()}
    return found


def _rounded(number: Number) -> Number:
    """To 12 digits: beyond them it is the processor's, and would change whenever it is recorded."""
    return float(f"{number:.12g}") if isinstance(number, float) else number


def is_refusal(error: ValueError) -> bool:
    """Whether the library itself raised it: what Python or NumPy raises is a mistake of ours."""
    *_, last = traceback.extract_tb(error.__traceback__)
    ours = Path(last.filename).is_relative_to(Path(interp.__file__).parent)
    return ours and (last.line or "").startswith("raise ")


def spread(answer: Any, path: str, samples: int) -> Iterator[tuple[str, Number]]:
    """An answer of any kind as few numbers that would hardly all stay if it changed."""
    match answer:
        case str() | int() | float():
            yield "answer", answer
        case Loose():
            yield "tolerance", answer.tolerance
            yield from spread(answer.answer, path, samples)
        case interp.Result():
            yield from _of_result(answer, path, samples)
        case interp.analysis.Circuit():
            yield from _of_parts(_parts(answer), path, samples)
        case torch.Tensor() | np.ndarray():
            yield from _of_array(_numpy(answer), path, samples)
        case Mapping():
            yield from _of_parts(answer, path, samples)
        case _:
            raise TypeError(f"{path} is a {type(answer).__name__}, which cannot be recorded")


def _of_parts(parts: Mapping[str, Any], path: str, samples: int) -> Iterator[tuple[str, Number]]:
    if all(isinstance(part, int | float) for part in parts.values()):
        yield from _of_cells(np.array(list(parts.values())), [parts], path, samples)
        return
    for name, part in parts.items():
        for label, number in spread(part, f"{path}/{name}", samples):
            yield f"{name} {label}".removesuffix(" answer"), number


def _of_array(array: np.ndarray, path: str, samples: int) -> Iterator[tuple[str, Number]]:
    if samples:
        yield "shape", str(list(array.shape))
    yield from _of_cells(array, [range(size) for size in array.shape], path, samples)


def _numpy(array: torch.Tensor | np.ndarray) -> np.ndarray:
    return array.detach().cpu().numpy() if isinstance(array, torch.Tensor) else array


def _parts(circuit: interp.analysis.Circuit) -> dict[str, Any]:
    """Singular values, a few entries, the highest, and how the diagonal stands out."""
    parts: dict[str, Any] = {"S": circuit.S}
    if circuit.rows.kind == "direction":
        return {**parts, "entries": circuit.AB}
    parts["entries"] = circuit.subset([1, 3], [2])
    parts["top"] = float(circuit.centred().top_pairs(1)["value"].iloc[0])
    if circuit.rows.kind == circuit.columns.kind == "token":
        parts["diagonal"] = float(circuit.diagonal_preference().sel(measure="diagonal_preference"))
    return parts


def _of_result(result: interp.Result, path: str, samples: int) -> Iterator[tuple[str, Number]]:
    unit = (
        result.unit
        if isinstance(result.unit, str)
        else ", ".join(dict.fromkeys(result.unit.values()))
    )
    beside = {"error": result.standard_error}
    if samples:
        beside["chance"] = result.chance
        yield "labels", ", ".join(map(_axis, result.axes, result.labels.values())) + f" [{unit}]"
    yield from _of_cells(result.values, list(result.labels.values()), path, samples)
    for name, array in beside.items():
        if array is not None and np.isfinite(array).any():
            yield name, float(array[np.isfinite(array)].mean())
    for name, number in result.provenance.items():
        if isinstance(number, float):
            yield name, number


def _axis(name: str, labels: Iterable[Any]) -> str:
    named = list(map(str, labels))
    return f"{name} " + (
        f"{named[0]} to {named[-1]} ({len(named)})" if named[1:] else "".join(named)
    )


def _of_cells(
    values: np.ndarray, labels: Sequence[Iterable[Any]], path: str, samples: int
) -> Iterator[tuple[str, Number]]:
    """All of few values; of many some and a sum, and how many of them are no numbers."""
    names = [list(map(str, axis)) for axis in labels]
    few = values.size <= 1 + samples
    places = list(np.ndindex(values.shape)) if few else _some(values, names, path, samples)
    for place in places:
        label = ", ".join(axis[i] for axis, i in zip(names, place, strict=True))
        yield label or "answer", float(values[place])
    if not few:
        known = np.isfinite(values)
        if not known.all():
            yield "unknown", values.size - int(known.sum())
        if known.any():
            yield "sum", _weighted(np.where(known, values, 0.0), names) / math.sqrt(known.sum())


def _weighted(values: np.ndarray, names: Sequence[Sequence[str]]) -> float:
    """The sum of all values, each weighted by its labels: no two can be exchanged unnoticed."""
    for axis in reversed(names):
        values = values @ np.array([0.5 + crc32(label.encode()) / 2**32 for label in axis])
    return float(values)


def _some(
    values: np.ndarray, names: Sequence[Sequence[str]], path: str, samples: int
) -> list[tuple[int, ...]]:
    """Places of numbers, chosen by their labels: the same ones whatever the order of the labels."""
    found: list[tuple[int, ...]] = []
    for draw in range(10 * samples):  # some values are no numbers
        place = tuple(
            min(range(len(axis)), key=lambda i, axis=axis: crc32(f"{path}{draw}{axis[i]}".encode()))
            for axis in names
        )
        if len(found) < samples and place not in found and np.isfinite(values[place]):
            found.append(place)
    return found


def moved(
    recorded: Mapping[str, Mapping[str, Number]], found: Mapping[str, Mapping[str, Number]]
) -> list[str]:
    """What differs, a line for each number: its key, what was recorded, and what is so now."""
    lines: list[str] = []
    for question in dict.fromkeys([*recorded, *found]):
        before, now = recorded.get(question, {}), found.get(question, {})
        tolerance = before.get("tolerance", TOLERANCE)
        lines += [
            f"{question}/{label}: recorded {before.get(label, 'nothing')}, "
            f"now {now.get(label, 'nothing')}"
            for label in dict.fromkeys([*before, *now])
            if not (label in before and label in now)
            or not equal(before[label], now[label], float(tolerance))
        ]
    return lines


def equal(recorded: Number, found: Number, tolerance: float = TOLERANCE) -> bool:
    """To the tolerance times max(1, |recorded|); NaN equals NaN, and text itself alone."""
    if isinstance(recorded, str) or isinstance(found, str):
        return recorded == found
    if not (math.isfinite(recorded) and math.isfinite(found)):
        return str(float(recorded)) == str(float(found))
    return abs(found - recorded) <= tolerance * max(1.0, abs(recorded))


def read() -> dict[str, dict[str, dict[str, Number]]]:
    """What is recorded: by model, question and label."""
    return json.loads(FILE.read_text(encoding="utf-8"))


def write(found: Mapping[str, Mapping[str, Mapping[str, Number]]]) -> None:
    """Record, a line for each question, so that a change is read line by line."""
    models = []
    for name, asked in found.items():
        lines = [f"  {json.dumps(key)}: {json.dumps(answer)}" for key, answer in asked.items()]
        models.append(f" {json.dumps(name)}: {{\n" + ",\n".join(lines) + "\n }")
    FILE.write_text("{\n" + ",\n".join(models) + "\n}\n", encoding="utf-8")


def main() -> None:
    """Compare what is so with what is recorded, or record it."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--write", action="store_true", help="record instead of comparing")
    parser.add_argument("--only", nargs="+", choices=ALL, default=ALL, help="these models")
    options = parser.parse_args()
    torch.set_num_threads(1)
    recorded = read() if FILE.exists() else {}
    found = {name: measured(name) for name in options.only}
    for name, asked in found.items():
        for line in moved(recorded.get(name, {}), asked):
            print(f"{name}/{line}")
    if options.write:
        merged = recorded | found
        write({name: merged[name] for name in ALL if name in merged})
        answers = [answer for asked in merged.values() for answer in asked.values()]
        numbers = [n for answer in answers for n in answer.values() if not isinstance(n, str)]
        print(f"{len(numbers)} numbers of {len(answers)} answers in {FILE.name}")


if __name__ == "__main__":
    main()
