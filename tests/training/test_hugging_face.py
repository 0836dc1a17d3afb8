"""A recipe may name a class of transformers: trained, kept, measured and resumed like any other."""

import json
import math
import re
import shutil
from pathlib import Path

import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

import interp
from interp.models.hugging_face import fresh
from interp.training import Recipe, train
from interp.training.flops import flops_of
from interp.training.loss import NextTokenLoss
from interp.training.optimizer import layouts_of, optimizer_for
from interp.views import WrappedModel
from tests.models.test_hugging_face import LFM2, MODELS, SIZES


def small(recipe: Recipe, architecture: str, **changes: object) -> Recipe:
    return recipe.replace(
        architecture=architecture, model=MODELS[architecture], snapshots=3, **changes
    )


@pytest.mark.parametrize("architecture", MODELS)
def test_it_survives_toml(recipe: Recipe, architecture: str):
    recipe = small(recipe, architecture)
    assert Recipe.from_toml(recipe.to_toml()) == recipe


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"architecture": "Lfm2ForCausl"}, ["architecture", "HookedConvAttn", "Lfm2ForCausalLM"]),
        ({"architecture": "Lfm2Model"}, ["architecture", "'Lfm2Model'", "causal language model"]),
        ({"initial_weights": "course"}, ["initial_weights", "scaled for Lfm2ForCausalLM"]),
        ({"model": {**LFM2, "vocab_size": 9}}, ["[model]", "Lfm2ForCausalLM", "vocab_size is set"]),
        ({"model": {**LFM2, "hidden_siz": 9}}, ["[model]", "no field 'hidden_siz'", "hidden_size"]),
        ({"model": {**LFM2, "num_attention_heads": 3}}, ["[model]", "cannot be made"]),
        ({"held_at_zero": ("model.layers.0.conv.conv.weigth",)}, ["conv.conv.weigth", "did you"]),
    ],
)
def test_what_cannot_be_trained_is_refused_before_any_work(
    change: dict, words: list[str], tmp_path: Path
):
    given = {"architecture": "Lfm2ForCausalLM", "model": LFM2, **change}
    with pytest.raises(ValueError, match="(?s)" + ".*".join(map(re.escape, words))):
        train(Recipe(**given), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("architecture", MODELS)
def test_the_loss_is_the_cross_entropy_of_the_next_token(architecture: str):
    model = fresh(architecture, MODELS[architecture], **SIZES)
    tokens = torch.randint(300, (3, 20), generator=torch.Generator().manual_seed(0))
    logits = model(tokens).logits[:, :-1]
    losses = F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten(), reduction="none")
    trained = NextTokenLoss.of(model)
    torch.testing.assert_close(trained.train()(tokens)["loss"], losses.mean())
    found = trained.eval()(tokens)
    accuracy = (logits.argmax(-1) == tokens[:, 1:]).float().mean(1)
    torch.testing.assert_close(
        found["measures"], torch.stack([losses.view(3, 19).mean(1), accuracy], 1)
    )
    copy = trained.with_weights(trained.state_dict())
    assert copy is not model
    torch.testing.assert_close(copy.eval()(tokens).logits, model.eval()(tokens).logits)


@pytest.mark.parametrize("architecture", MODELS)
def test_muon_has_the_linear_maps_and_adamw_the_rest(architecture: str):
    recipe = Recipe(architecture=architecture, model=MODELS[architecture], optimizer="muon")
    model = recipe.build(300)
    matrices = set(layouts_of(model))
    assert {name.rpartition(".")[0].rpartition(".")[2] for name in matrices} == {
        "Lfm2ForCausalLM": {
            *("in_proj", "out_proj", "w1", "w2", "w3", "q_proj", "k_proj", "v_proj")
        },
        "InklingForCausalLM": {
            *("q_proj", "k_proj", "v_proj", "r_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
        },
    }[architecture]
    optimizer = optimizer_for(model, recipe.replace(weight_decay=0.1))
    moved = [p for group in optimizer.param_groups for p in group["params"]]
    assert {id(p) for p in moved} == {id(p) for p in model.parameters()}
    assert len(moved) == len({id(p) for p in moved})
    names = {id(p): name for name, p in model.named_parameters()}
    still = [g for g in optimizer.param_groups if not g["weight_decay"]]
    assert all("norm" in names[id(p)] or p.ndim < 3 for g in still for p in g["params"])
    assert not any("conv" in names[id(p)] for g in still for p in g["params"])


def test_flops_are_those_counted_by_hand():
    d, d_mlp, vocab, n = 16, 24, SIZES["d_vocab"], 32
    flops = flops_of(fresh("Lfm2ForCausalLM", LFM2, **SIZES), n)
    conv = 3 * d * d + d * d + 3 * d  # in, out, and three scalars per channel
    attention = d * d + 2 * d * (d // 2) + d * d  # one head of keys for two of queries
    # The convolution gives two positions more than there are tokens, which are cut off.
    assert flops.layers == 2 * (conv + attention + 2 * 3 * d * d_mlp) + 2 * 3 * d * 2 / n
    assert flops.attention == 2 * 2 * d * (n + 1) / 2
    assert flops.unembedding == 2 * d * vocab


@pytest.fixture(scope="module", params=MODELS)
def run(
    request: pytest.FixtureRequest, recipe: Recipe, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    return train(small(recipe, request.param), tmp_path_factory.mktemp("runs") / "theirs")


def history(run: Path, key: str) -> dict[int, float]:
    rows = json.loads((run / "history.json").read_text())
    return {row["step"]: row[key] for row in rows if key in row}


def test_it_learns_and_is_loaded_again(run: Path):
    losses = history(run, "loss")
    assert losses[min(losses)] == pytest.approx(math.log(300), abs=0.6)
    assert losses[40] < losses[min(losses)] - 1
    model = interp.load(run)
    assert isinstance(model, WrappedModel)
    assert model.tokenizer.decode(model.tokenizer("alpha beta")["input_ids"]) == "alpha beta"
    assert history(run, "eval_loss")[40] == pytest.approx(losses[40], abs=0.5)


def test_its_heads_are_measured_as_it_trains(run: Path):
    model = interp.load(run)
    scores = interp.head_scores(model, n=15, n_sequences=32)
    assert history(run, "best_induction")[40] == pytest.approx(
        scores.sel(score="induction").values.max(), abs=1e-5
    )
    table = pd.read_parquet(run / "development.parquet")
    assert set(table["step"]) == {0, 1, 40}
    induction = table[(table["measure"] == "induction") & (table["step"] == 40)]
    assert set(induction["label"]) == set(scores.labels["head"])


def test_its_card_says_what_it_is(run: Path):
    card = (run / "README.md").read_text()
    recipe = Recipe.load(run / "recipe.toml")
    assert f"A {recipe.architecture} of" in card
    assert json.loads((run / "scores.json").read_text())["tokens_read"] == recipe.tokens
    assert recipe.to_toml().strip() in card


def test_it_goes_on_where_it_was_cut_off(run: Path, tmp_path: Path):
    cut_short = tmp_path / "run"
    shutil.copytree(run, cut_short)
    shutil.rmtree(cut_short / "checkpoints" / "checkpoint-40")
    (cut_short / "model.safetensors").unlink()
    train(Recipe.load(run / "recipe.toml"), cut_short, resume=True)
    before, after = (load_file(path / "model.safetensors") for path in (run, cut_short))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_tap_held_at_zero_stays_there(recipe: Recipe, tmp_path: Path):
    held = ("model.layers.0.conv.conv.weight.3",)
    recipe = small(recipe, "Lfm2ForCausalLM", held_at_zero=held, steps=6, probe_steps=6)
    model = interp.load(train(recipe, tmp_path / "run"))
    kernel = model.original_model.model.layers[0].conv.conv.weight
    assert not kernel[3].any()
    assert kernel[2].all()
