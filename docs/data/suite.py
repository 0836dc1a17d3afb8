"""The tables that the pages on the suite draw from, beside the one that ships with the package.

    interp suite formation
    python docs/data/suite.py runs/formation smeared-keys
    python docs/data/suite.py runs/formation composition
    python docs/data/suite.py runs/formation removals
    python docs/data/suite.py runs/formation in-context

Errors on text are over the groups of its blocks, in a column `group` or counted as `n_groups`. The
tables that lie here are from before that: their runs are gone and the groups of their blocks were
not kept, so `standard_error` is NaN for all that was measured on text (the metrics `loss` and
`in_context_learning_score` of removals, the analysis `smeared_keys`). `alignment_null` of
smeared-keys and `p_corrected` of composition were computed by formulas that have been corrected
since, and are left out. The next run of this program writes them all.

Each writes `docs/data/{table}.parquet`, a row per number. On one busy core a run takes about 5
seconds per step for smeared-keys and composition, 25 seconds for in-context, and 2 to 5 minutes for
removals. Nothing here is private to the project: with other directories it makes the same tables of
other suites.
"""

import json
from collections.abc import Callable, Collection, Iterator
from itertools import product
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
import torch
import typer

import interp
from interp.analysis import InductionScore, RepeatedTokens, Result
from interp.analysis.losses.in_context import early_and_late
from interp.data.blocks import open_table
from interp.training.text import Text, spread
from interp.views import Checkpoints, view

HERE = Path(__file__).parent
STEPS = (0, 45, 86, 120, 167, 232, 322, 447, 622, 1200)
READ_BACK = ("conv-attn", "conv-attn-depthwise", "conv-attn-lag-1-zero", "smeared-attn")
"""Those with a head of two key lags."""

BLOCKS, TEXT_BLOCKS, CONTEXT_BLOCKS = 32, 128, 512
"""Held-out blocks: for covariances; for the loss; for the in-context-learning score."""


def runs(directory: Path) -> Iterator[tuple[dict[str, Any], Path]]:
    """Every trained run: what it is, and where."""
    known = pd.read_parquet(directory / "development.parquet")
    for run, rows in known.groupby("run"):
        first = rows.iloc[0]
        what = {key: first[key] for key in ("member", "corpus", "seed")}
        yield {**what, "tokens_per_step": rows.tokens.max() // rows.step.max()}, directory / run


def held_out(run: Path, n: int) -> Text:
    """Blocks that the run was not trained on, from all over the text, and the group of each.

    Groups are those that `pack` wrote. A run that was packed before it wrote any gets 20 stretches
    of the chosen blocks, which follow one another in the text.
    """
    name = json.loads((run / "blocks.json").read_text())["held_out"]
    return spread(open_table(run.parent / "data" / name), n)


def repeats(model: Any) -> RepeatedTokens:
    """The sequences that `induction_score` makes by itself."""
    viewed = view(model)
    return interp.repeated_tokens(
        50,
        d_vocab=viewed.d_vocab,
        bos=viewed.bos,
        exclude=viewed.special_tokens,
        n_ctx=viewed.n_ctx,
    )


def cells(model: Any, heads: list[str]) -> dict[str, list[Any]]:
    """Hooks that take one cell (query lag, key lag) out of all of these heads' scores."""
    reads = interp.match_table(model).values.shape
    return {
        f"cell ({i}, {j})": [
            hook for head in heads for hook in interp.without_lag_pair(model, head, (i, j))
        ]
        for i, j in product(range(reads[1]), range(reads[2]))
    }


def smeared_keys(run: Path) -> Iterator[pd.DataFrame]:
    """What each head reads, where it matches, and what it does without each cell, as it trains."""
    (text, groups), checkpoints = held_out(run, BLOCKS), Checkpoints.from_run(run).at(STEPS)
    for step, model in checkpoints:
        induction = interp.induction_score(model)
        head = induction.best()
        found: list[Result] = [
            induction,
            interp.detect_smeared_keys(model, text, groups=groups),
            interp.match_table(model, tokens=text),
            interp.ablate(
                model,
                repeats(model),
                cells(model, [head]),
                metric=InductionScore(head),
                control="none",
            ),
        ]
        for result in found:
            frame = result.to_frame().assign(analysis=result.name, step=step, best=head)
            yield frame.assign(n_groups=result.provenance.get("n_groups"))


def removals(run: Path) -> Iterator[pd.DataFrame]:
    """What the trained model loses without a cell, a lag, a head: four metrics, paired errors."""
    model = interp.load(str(run))
    best, random_tokens = interp.induction_score(model).best(), repeats(model)
    judged = (
        (random_tokens, None, InductionScore(best)),
        (random_tokens, None, "second_copy_loss"),
        (*held_out(run, TEXT_BLOCKS), "loss"),
        (*held_out(run, CONTEXT_BLOCKS), "in_context_learning_score"),
    )
    for (tokens, groups, metric), given in product(judged, removed(model, best)):
        control = "none" if isinstance(given, dict) else None
        result = interp.ablate(
            model, tokens, given, metric=metric, groups=groups, control=control, n_random=3
        )
        frame = result.to_frame().rename(columns={"head": "component"})
        origin = {key: result.provenance.get(key) for key in ("metric", "n_sequences", "n_groups")}
        yield frame.assign(**origin, best=best)


def removed(model: Any, best: str) -> Iterator[Any]:
    """Units, and cells as hooks, that are taken out one after the other."""
    viewed = view(model)
    last = max(viewed.heads)
    heads = [head for head in viewed.head_labels if head.startswith(f"L{last}")]
    units = [best]
    if 0 in viewed.lags:
        ways = ["+".join(f"L0.lag1->{head}.{way}" for head in heads) for way in "qkv"]
        units += [f"L0.lag{lag}" for lag in range(viewed.lags[0])]
        units += ways if viewed.lags[0] > 1 else []
    else:
        earlier = [head for head in viewed.head_labels if head.startswith("L0") and head != best]
        units += [*earlier, *(f"{head}->{best}.k" for head in earlier if last)]
    yield units
    if viewed.lags.get(0) == 2 or model.attn(last).smear is not None:
        yield cells(model, heads)


def composition(run: Path) -> Iterator[pd.DataFrame]:
    """What the best induction head of two attention layers reads of the first, as it trains."""
    best = interp.induction_score(interp.load(str(run))).best()
    for step, model in Checkpoints.from_run(run).at(STEPS):
        earlier = [head for head in view(model).head_labels if head.startswith("L0")]
        paths = [f"{head}->{best}.{way}" for head in earlier for way in "qkv"]
        found = [
            interp.induction_score(model),
            interp.previous_token_score(model),
            interp.composition_scores(model, n_rotations=1000),
            interp.ablate(
                model, repeats(model), paths, metric=InductionScore(best), control="none"
            ),
        ]
        for result in found:
            yield result.to_frame().assign(analysis=result.name, step=step, best=best)
        yield own_token(model).assign(analysis="own_token", step=step, best=best)


def own_token(model: Any) -> pd.DataFrame:
    """Mean attention from each token to itself, of each head of layer 0."""
    name = "blocks.0.attn.hook_pattern"
    with torch.no_grad():
        _, cache = model.run_with_cache(repeats(model).tokens, names_filter=name)
    values = cache[name].diagonal(dim1=-2, dim2=-1).mean((0, 2)).tolist()
    return pd.DataFrame({"head": [f"L0H{head}" for head in range(len(values))], "value": values})


def in_context(run: Path) -> Iterator[pd.DataFrame]:
    """Every held-out block's group, loss and score, so that models can be paired.

    An error over blocks is one over their groups.
    """
    model, (blocks, groups) = interp.load(str(run)), held_out(run, 10_000)
    early, late = early_and_late(blocks.shape[1])
    for first, some in enumerate(blocks.split(20)):
        with torch.no_grad():
            losses = model(some, return_type="loss", loss_per_token=True)
        score = losses[:, late - 1] - losses[:, early - 1]
        numbers = range(20 * first, 20 * first + len(some))
        block = {"block": numbers, "group": groups[numbers.start : numbers.stop]}
        yield pd.DataFrame({**block, "loss": losses.mean(1), "score": score})


Study = Callable[[Path], Iterator[pd.DataFrame]]
TABLES: dict[str, tuple[Study, Collection[str] | None]] = {
    "smeared-keys": (smeared_keys, READ_BACK),
    "composition": (composition, ("attn-attn",)),
    "removals": (removals, None),
    "in-context": (in_context, None),
}
"""Each table's study, and the members that it is about: None for all."""


def main(
    directory: Annotated[Path, typer.Argument(help="where `interp suite formation` put its runs")],
    table: Annotated[str, typer.Argument(help=" or ".join(TABLES))],
) -> None:
    """Measure every run, and write one table."""
    torch.set_num_threads(1)
    study, members = TABLES[table]
    parts = []
    for what, run in runs(directory):
        if members is None or what["member"] in members:
            frames = pd.concat(study(run), ignore_index=True)
            parts.append(frames.assign(**what))
            print(run.name, flush=True)
    whole = pd.concat(parts, ignore_index=True)
    whole.to_parquet(HERE / f"{table}.parquet", index=False, compression="zstd")


if __name__ == "__main__":
    typer.run(main)
