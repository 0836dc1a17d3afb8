"""What the pages and the README say about the package, read from the package itself.

`python docs/_site/facts.py` prints the README's table of the reference models.
"""

import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import MISSING, fields
from typing import Any, get_type_hints

import numpy as np
import pandas as pd

# Sizes that no two dimensions share, so that a number in a shape has one name.
SIZES = {
    "batch": 2,
    "lag": 3,
    "d_head": 5,
    "pos": 7,
    "head": 4,
    "d_mlp": 17,
    "d_model": 24,
    "n_ctx": 29,
    "vocab": 101,
}
NAMES = {size: name for name, size in SIZES.items()}

MEASURES = {
    "parameters": ("parameters", "{:,}"),
    "tokens read in training": ("tokens_read", "{:,}"),
    "best head": ("best_head", "{}"),
    "its induction score": ("induction_score", "{:.2f}"),
    "the best head's before training": ("untrained_induction_score", "{:.2f}"),
    "loss on the first copy, nats": ("first_copy_loss", "{:.2f}"),
    "loss on the second copy, nats": ("second_copy_loss", "{:.2f}"),
    "the second copy's tokens guessed right": ("second_copy_accuracy", "{:.1%}"),
    "loss on held-out text, nats": ("held_out_loss", "{:.2f}"),
}


def table(head: Sequence[str], rows: Iterator[Sequence[str]] | Sequence[Sequence[str]]) -> str:
    """Rows as a Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def measured(name: str) -> dict[str, Any]:
    """The scores.json of a bundled checkpoint: what was measured when it was trained."""
    from interp.models.hub import bundled

    return json.loads((bundled()[name] / "scores.json").read_text(encoding="utf-8"))


def over_blocks(blocks: pd.DataFrame, what: str) -> pd.DataFrame:
    """Mean over blocks of a text, in rows by seed: `mean`, `error`, `low` and `high` (95 %).

    `blocks` has a row per block and seed, numbered in the order of the text. Neighbouring blocks
    are alike: the error is over the groups that the table's column `group` names, or over 20
    stretches of consecutive blocks where it has none.
    """
    from interp.analysis import Result, stretches
    from interp.results.intervals import student_t

    rows = {}
    for seed, part in blocks.sort_values("block").groupby("seed"):
        groups = part["group"].tolist() if "group" in part else stretches(len(part))
        values = part[[what]].to_numpy(dtype=float)
        result = Result.from_samples(what, values, ("of",), labels={"of": (what,)}, groups=groups)
        mean, error = float(result), np.asarray(result.standard_error).item()
        reach = student_t(0.975, result.degrees_of_freedom) * error
        rows[seed] = {"mean": mean, "error": error, "low": mean - reach, "high": mean + reach}
    return pd.DataFrame(rows).T


def beyond(blocks: pd.DataFrame, member: str, other: str, what: str) -> pd.DataFrame:
    """`over_blocks` of what one model has beyond another of the same seed, block by block."""
    by = ["seed", "block", *(["group"] if "group" in blocks else [])]
    values = blocks.pivot_table(index=by, columns="member", values=what)
    return over_blocks((values[member] - values[other]).rename(what).reset_index(), what)


def over_seeds(values: Sequence[float], digits: int = 2) -> str:
    """Mean over independently trained runs, with Student's 95 % interval, in words."""
    from interp.results.intervals import mean_interval

    low, high = mean_interval(values)
    mean = np.mean(values)
    mean, low, high = (f"{value:z.{digits}f}" for value in (mean, low, high))
    return f"{mean}, 95 % interval {low} to {high}, n = {len(values)}"


def reference_models() -> str:
    """The bundled checkpoints of our own side by side, as measured when they were trained."""
    from interp.models.hub import bundled
    from interp.models.hugging_face import is_saved_in

    ours = [name for name, directory in bundled().items() if not is_saved_in(directory)]
    numbers = {name: measured(name) for name in ours}
    rows = [
        [label, *(form.format(numbers[name][key]) for name in numbers)]
        for label, (key, form) in MEASURES.items()
    ]
    return table(["", *(f"`{name}`" for name in numbers)], rows)


def card(name: str) -> str:
    """A bundled checkpoint's model card, to stand under a heading of the second level."""
    from interp.models.hub import bundled

    text = (bundled()[name] / "README.md").read_text(encoding="utf-8")
    body = re.sub(r"\A---\n.*?\n---\n", "", text, flags=re.DOTALL)
    body = re.sub(r"\A\s*# .*\n", "", body)
    return re.sub(r"^## ", "#### ", body, flags=re.MULTILINE)


def glossary() -> str:
    """The table of dimension names, from the module that holds it."""
    from interp.models import shapes

    return "\n".join(line for line in str(shapes.__doc__).splitlines() if line.startswith("|"))


def recipe_fields() -> str:
    """Every field of a recipe: its type, default and help."""
    from interp.training.recipe import Recipe

    types = get_type_hints(Recipe)
    rows = []
    for field in fields(Recipe):
        kind = getattr(types[field.name], "__name__", "")
        if kind in ("Literal", "Mapping"):
            kind = {"Literal": "choice", "Mapping": "table"}[kind]
        default = "{}" if field.default is MISSING else json.dumps(field.default)
        rows.append([f"`{field.name}`", kind, f"`{default}`", field.metadata["help"]])
    return table(["field", "type", "default", "meaning"], rows)


def family() -> str:
    """The presets: what each is, from its docstring, and its layers."""
    from interp import models
    from interp.models.presets import HubMixin

    rows = []
    for name in HubMixin.architectures:
        if name == "HookedSequenceModel":
            continue
        preset = getattr(models, name)
        model = preset(d_vocab=16, d_model=16, n_heads=2, n_ctx=8)
        counts = Counter(_layer(layer) for layer in model.config.layers)
        layers = ", ".join(f"{n} × {layer}" if n > 1 else layer for layer, n in counts.items())
        what = str(preset.__doc__).strip().split("\n\n")[0].replace("\n    ", " ")
        rows.append([f"[`{name}`][interp.models.presets.{name}]", layers, what])
    return table(["preset", "layers", "what it is"], rows)


def _layer(layer: Any) -> str:
    name = type(layer).__name__
    if name == "Conv":
        return f"Conv (lags 0 to {layer.lags - 1})"
    extras = [word for word, there in (("smeared keys", layer.smear), ("MLP", layer.mlp)) if there]
    return " + ".join([name, *extras])


def _specimen() -> Any:
    """A model with every kind of layer, of sizes that tell the dimensions apart."""
    from interp.models import MLP, Attention, Conv, HookedSequenceModel, ModelConfig

    s = SIZES
    attention = Attention(s["head"], s["d_head"], smear=True, mlp=MLP(s["d_mlp"]))
    config = ModelConfig(
        d_vocab=s["vocab"],
        d_model=s["d_model"],
        n_ctx=s["n_ctx"],
        layers=(Conv(lags=s["lag"]), attention),
    )
    return HookedSequenceModel(config)


def hook_points() -> str:
    """Every hook point of a conv block, an attention block and an MLP, with its shape."""
    import torch

    model = _specimen()
    tokens = torch.zeros(SIZES["batch"], SIZES["pos"], dtype=torch.long)
    _, cache = model.run_with_cache(tokens)
    rows = [[f"`{name}`", f"`[{_shape(name, cache[name].shape)}]`"] for name in model.hook_dict]
    return table(["hook point", "shape"], rows)


def parameters() -> str:
    """Every parameter of the same model, with its shape."""
    weights = _specimen().named_parameters()
    rows = [[f"`{name}`", f"`[{_shape(name, weight.shape)}]`"] for name, weight in weights]
    return table(["parameter", "shape"], rows)


def _shape(name: str, shape: Sequence[int]) -> str:
    words = [NAMES.get(size, str(size)) for size in shape]
    if name.endswith(("hook_pattern", "hook_attn_scores")):
        words[-2:] = ["query", "key"]
    if name.endswith("hook_log_sum_exp"):
        words[1] = "query"
    if name.endswith("W_conv"):
        words[-2:] = ["d_in", "d_out"]
    return " ".join(words)


def command_line() -> str:
    """The help of the command and of each of its subcommands, as a terminal prints it."""
    from typer.main import get_command
    from typer.testing import CliRunner

    from interp.cli import app

    def help_of(*words: str) -> str:
        width = {"TERMINAL_WIDTH": "84", "NO_COLOR": "1"}
        shown = CliRunner().invoke(app, [*words, "--help"], prog_name="interp", env=width)
        text = "\n".join(line.rstrip() for line in shown.output.splitlines()).strip("\n")
        return f"## `{' '.join(['interp', *words])}`\n\n```text\n{text}\n```\n"

    commands = vars(get_command(app))["commands"]
    return "\n".join([help_of(), *(help_of(name) for name in commands)])


if __name__ == "__main__":
    print(reference_models())
