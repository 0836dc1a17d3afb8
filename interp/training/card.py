"""A trained model's card: data, recipe, loss and scores. Every number is measured here."""

import json
import math
import subprocess
from pathlib import Path

import numpy as np
from huggingface_hub import ModelCardData

from interp.analysis import (
    head_scores,
    in_context_learning_score,
    loss_by_position,
    repeated_sequence_loss,
)
from interp.analysis.probes.sequences import copy_length
from interp.data.prepared import Prepared
from interp.results.result import Result, reading, versions
from interp.training.flops import flops_of
from interp.training.loss import NextTokenLoss
from interp.training.recipe import Recipe
from interp.training.text import text_of
from interp.views import view

TAGS = ["mechanistic-interpretability", "induction-heads"]

TEMPLATE = """---
{header}
---

# {name}

A {architecture} of {parameters:,} parameters, trained on the text described below and on nothing
else: no repeated random tokens, on which its heads are scored. A token costs it {flops:,.0f}
floating-point operations forward, {unembedding:,.0f} of them in the unembedding.

```python
import interp

model = interp.load("{name}")
interp.head_scores(model)
```

## Data

{corpus}

{blocks}, {held_out_blocks:,} blocks of held-out documents. Tokenizer: {tokenizer}, {d_vocab:,}
tokens, trained on the same text. {tokens:,} tokens were read{epochs}.

## What was measured

| | |
|---|---|
{table}

The copies are those of `interp.head_scores` and `interp.repeated_sequence_loss`: {n_sequences}
sequences of BOS and twice the same {n} distinct random tokens, seed {seed}; ± is the standard error
over sequences, and of held-out text over the {n_groups} groups (documents, or packages) that its
blocks are from: neighbouring blocks are not independent. Uniform predictions would cost
ln({d_vocab:,}) = {uniform:.2f} nats. A model of text can pay more on both copies, confidently wrong
about random tokens: the drop is what counts.

## Recipe

`interp train recipe.toml`, seed {recipe_seed}{commit}, {versions}:

```toml
{recipe}
```
"""


def write_card(directory: Path, recipe: Recipe, prepared: Prepared) -> None:
    """Measure the saved model and write its README.md and scores.json."""
    twin = NextTokenLoss.of(recipe.build(len(prepared.tokenizer), prepared.tokenizer))
    trained = twin.stored(directory)
    model, viewed = trained.analysable, view(trained.analysable)
    n = copy_length(viewed.n_ctx)
    text = text_of(prepared.held_out)
    scores = head_scores(model, n=n).sel(score="induction")
    best = scores.sel(head=scores.best())
    repeated = repeated_sequence_loss(model, n=n)
    loss = loss_by_position(model, text.tokens).values.mean()
    icl = in_context_learning_score(model, text.tokens, groups=text.groups)
    untrained = head_scores(twin.analysable, n=n).sel(score="induction").values.max()
    flops = flops_of(trained.model, recipe.n_ctx)
    numbers = {
        "parameters": sum(parameter.numel() for parameter in trained.model.parameters()),
        "flops_per_token": flops.total,
        "training_seed": recipe.seed,
        "tokens_read": recipe.tokens,
        "held_out_loss": float(loss),
        "in_context_learning_score": float(icl),
        "best_head": scores.best(),
        "induction_score": float(best),
        "untrained_induction_score": float(untrained),
        **{name: float(repeated.sel(measure=name)) for name in repeated.labels["measure"]},
    }
    late, early = icl.provenance["late"], icl.provenance["early"]
    rows = {
        "loss on held-out text": f"{loss:.3f} nats per token",
        f"in-context-learning score (loss at token {late} minus token {early})": _nats(icl),
        f"induction score of the best head, {scores.best()}": reading(best),
        "the same for uniform attention": f"{np.asarray(best.chance).item():.3f}",
        "the same for the best head of the untrained model": f"{untrained:.3f}",
        "first copy's loss": _nats(repeated.sel(measure="first_copy_loss")),
        "second copy's loss": _nats(repeated.sel(measure="second_copy_loss")),
        "drop from the first to the second": _nats(repeated.sel(measure="drop")),
        "second copy's top-1 accuracy": reading(repeated.sel(measure="second_copy_accuracy")),
    }
    card = TEMPLATE.format(
        header=ModelCardData(library_name="interp", license="mit", tags=TAGS).to_yaml(),
        name=recipe.name,
        architecture=recipe.architecture,
        parameters=numbers["parameters"],
        corpus=prepared.description,
        flops=flops.total,
        unembedding=flops.unembedding,
        blocks=_blocks(recipe, prepared),
        held_out_blocks=len(prepared.held_out),
        tokenizer=recipe.tokenizer,
        d_vocab=viewed.d_vocab,
        tokens=recipe.tokens,
        epochs=_epochs(recipe, prepared),
        table="\n".join(f"| {what} | {number} |" for what, number in rows.items()),
        n=n,
        n_sequences=best.provenance["n_sequences"],
        n_groups=icl.provenance["n_groups"],
        seed=best.provenance["seed"],
        uniform=math.log(viewed.d_vocab),
        recipe_seed=recipe.seed,
        commit=_commit(),
        versions=", ".join(f"{package} {version}" for package, version in versions().items()),
        recipe=recipe.to_toml().strip(),
    )
    (directory / "README.md").write_text(card)
    (directory / "scores.json").write_text(json.dumps(numbers, indent=1) + "\n")


def _blocks(recipe: Recipe, prepared: Prepared) -> str:
    if prepared.stream is not None:
        return f"Streamed in blocks of {recipe.n_ctx} tokens"
    return f"{len(prepared.train):,} blocks of {recipe.n_ctx} tokens to train on"


def _epochs(recipe: Recipe, prepared: Prepared) -> str:
    if prepared.stream is not None:
        return ""
    return f", {recipe.steps * recipe.batch_size / len(prepared.train):.2f} times the corpus"


def _nats(result: Result) -> str:
    return f"{reading(result)} nats"


def _commit() -> str:
    """The commit of the code, where it runs from a checkout."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    return f", at commit {found.stdout.strip()}" if found.returncode == 0 else ""
