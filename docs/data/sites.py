"""The two tables that the page *Where must a convolution stand?* draws from.

    interp suite sites --corpus docs
    interp suite sites
    python docs/data/sites.py runs/sites

writes, of every run of the suite `sites` that is finished by then, `docs/data/sites.parquet` (what
was measured while it trained, with the columns of `interp.analysis.suite_table`) and
`docs/data/sites-read.parquet` (what the trained model reads through its convolution, and what it
does without it). Run again when more have finished, it measures only those that are new; `--anew`
measures all. About 40 seconds a run on one core.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
import torch
import typer
from suite import BLOCKS, TEXT_BLOCKS, held_out, repeats

import interp
from interp.analysis import InductionScore
from interp.training.suite import Suite, collect
from interp.views import view

HERE = Path(__file__).parent
MEASURES = (
    *("induction", "previous_token", "duplicate_token"),
    *("second_copy_loss", "second_copy_accuracy", "drop"),
    *("validation_loss", "in_context_learning_score"),
)
EARLIER = re.compile(r".*\.lag[1-9][0-9]*")
"""Units that bring an earlier token somewhere."""


def development(suite: Suite, directory: Path) -> pd.DataFrame:
    """What was measured in training, and is shown."""
    table = collect(suite, directory)
    return table[table.measure.isin(MEASURES)].reset_index(drop=True)


def read(directory: Path) -> Iterator[pd.DataFrame]:
    """What a trained model's heads read through its convolution, and what it costs without."""
    model = interp.load(str(directory))
    viewed, random_tokens = view(model), repeats(model)
    induction = interp.induction_score(model)
    best = induction.best()
    yield induction.to_frame().assign(analysis=induction.name, best=best)
    lags = "+".join(label for label in units(model) if EARLIER.fullmatch(label))
    if any(EARLIER.fullmatch(label) and ".k." in label for label in units(model)) or viewed.lags:
        text, groups = held_out(directory, BLOCKS)
        smeared = interp.detect_smeared_keys(model, text, groups=groups)
        shares = interp.lag_pair_shares(model, random_tokens.tokens)
        for result in (smeared, shares):
            yield result.to_frame().assign(analysis=result.name, best=best, **counts(result))
    if not lags:
        return
    judged = (
        (random_tokens, None, InductionScore(best)),
        (random_tokens, None, "second_copy_loss"),
        (*held_out(directory, TEXT_BLOCKS), "loss"),
    )
    for tokens, groups, metric in judged:
        result = interp.ablate(model, tokens, lags, metric=metric, groups=groups, control="none")
        frame = result.to_frame().assign(analysis="without", best=best, **counts(result))
        yield frame.assign(metric=result.provenance["metric"], component="earlier lags")


def units(model: Any) -> list[str]:
    """The labels of all that can be taken out of a model."""
    from interp.analysis.interventions.units import Catalogue

    return list(Catalogue.of(view(model), model.config.n_ctx).components)


def counts(result: interp.Result) -> dict[str, Any]:
    """On how many sequences, of how many groups, a result was measured."""
    return {key: result.provenance.get(key) for key in ("n_sequences", "n_groups")}


def main(
    directory: Annotated[Path, typer.Argument(help="where `interp suite sites` put its runs")],
    suite: Annotated[str, typer.Option(help="the suite, or its TOML file")] = "sites",
    out: Annotated[Path, typer.Option(help="where the tables go")] = HERE,
    anew: Annotated[bool, typer.Option(help="measure all runs again")] = False,
) -> None:
    """Measure every finished run, and write both tables."""
    torch.set_num_threads(1)
    whole = Suite.load(suite)
    finished = Suite(whole.name, tuple(run for run in whole if run.is_finished(directory)))
    if not len(finished):
        raise SystemExit(f"no run of {whole.name} is finished in {directory}")
    place = out / f"{whole.name}-read.parquet"
    known = pd.read_parquet(place) if place.is_file() and not anew else None
    parts = [] if known is None else [known]
    for run in finished:
        if known is not None and run.recipe.name in set(known.run):
            continue
        frame = pd.concat(read(directory / run.recipe.name), ignore_index=True)
        facts = {"member": run.member, "corpus": run.corpus, "seed": run.recipe.seed}
        positions = run.recipe.model["positions"]
        parts.append(frame.assign(run=run.recipe.name, positions=positions, **facts))
        print(run.recipe.name, flush=True)
        pd.concat(parts, ignore_index=True).to_parquet(place, index=False, compression="zstd")
    table = development(finished, directory)
    table.to_parquet(out / f"{whole.name}.parquet", index=False, compression="zstd")


if __name__ == "__main__":
    typer.run(main)
