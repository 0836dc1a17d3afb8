"""A trained model's card: data, tokens, seed, recipe, loss, scores, commit. Every number is measured here."""

import json
import math
import subprocess
from pathlib import Path

import numpy as np
from datasets import Dataset
from huggingface_hub import ModelCardData

import interp.models as models
from interp.analysis import head_scores, in_context_learning_score, loss_by_position, repeated_sequence_loss
from interp.analysis.result import Result, versions
from interp.analysis.sequences import copy_length
from interp.data.corpus import Corpus
from interp.training.recipe import Recipe


def write_card(directory: Path, recipe: Recipe, corpus: Corpus, train: Dataset, held_out: Dataset) -> None:
    """Measure the saved model and write its README.md and scores.json."""
    model = models.load(str(directory))
    text = held_out["input_ids"][:]
    n = copy_length(model.config.n_ctx)
    scores = head_scores(model, n=n)
    repeated = repeated_sequence_loss(model, n=n)
    loss = float(loss_by_position(model, text).values.mean())
    icl = in_context_learning_score(model, text)
    best = scores.sel(score="induction").best()
    induction = scores.sel(score="induction", head=best)
    twin = head_scores(recipe.build(model.config.d_vocab, model.tokenizer), n=n).sel(score="induction")
    data = ModelCardData(
        library_name="interp", license="mit", tags=["mechanistic-interpretability", "induction-heads"]
    )
    epochs = recipe.steps * recipe.batch_size / len(train)
    numbers = {
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "tokens_trained_on": recipe.tokens,
        "held_out_blocks": len(held_out),
        "held_out_loss": loss,
        "in_context_learning_score": float(icl),
        "best_head": best,
        "induction_score": float(induction),
        "untrained_twin_induction_score": float(twin.values.max()),
        **{name: float(repeated.sel(measure=name)) for name in repeated.labels["measure"]},
    }
    text_card = f"""---
{data.to_yaml()}
---

# {recipe.name}

A {recipe.architecture} of {numbers["parameters"]:,} parameters, trained on the text described below and on nothing else: no
repeated random tokens, on which its heads are scored.

```python
import interp

model = interp.load("{recipe.name}")
interp.head_scores(model)
```

## Data

{corpus.description} {len(train):,} blocks of {recipe.n_ctx} tokens to train on, {len(held_out):,} held out by a hash of
each document. Tokenizer: {recipe.tokenizer}, {model.config.d_vocab:,} tokens, trained on the same text.
{recipe.tokens:,} tokens were read, {epochs:.2f} times the corpus.

## What was measured

| | |
|---|---|
| loss on held-out text | {loss:.3f} nats per token |
| in-context-learning score (loss at token {icl.provenance["late"]} minus token {icl.provenance["early"]}) | {_value(icl)} nats |
| best head on repeated random tokens | {best}: induction score {_value(induction)} (chance {np.asarray(induction.chance).item():.3f}) |
| the same score, best head of the untrained twin | {float(twin.values.max()):.3f} |
| first copy's loss | {_value(repeated.sel(measure="first_copy_loss"))} nats |
| second copy's loss | {_value(repeated.sel(measure="second_copy_loss"))} nats |
| drop | {_value(repeated.sel(measure="drop"))} nats |
| second copy's top-1 accuracy | {_value(repeated.sel(measure="second_copy_accuracy"))} |

Induction score: `interp.head_scores` on {induction.provenance["n_sequences"]} sequences of BOS and twice
{induction.provenance["n"]} distinct random tokens, seed {induction.provenance["seed"]}; ± is the standard error over sequences.
Uniform predictions would cost ln({model.config.d_vocab:,}) = {math.log(model.config.d_vocab):.2f} nats.

## Recipe

`interp train {recipe.name}`, with seed {recipe.seed}{_commit()}, and
{", ".join(f"{name} {version}" for name, version in versions().items())}:

```toml
{recipe.to_toml().strip()}
```
"""
    (directory / "README.md").write_text(text_card)
    (directory / "scores.json").write_text(json.dumps(numbers, indent=1) + "\n")


def _value(result: Result) -> str:
    return f"{float(result):.3f} ± {np.asarray(result.standard_error).item():.3f}"


def _commit() -> str:
    """The commit of the code, where it runs from a checkout."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    return f", at commit {found.stdout.strip()}" if found.returncode == 0 else ""
