"""The recipes that ship build, and those for large corpora run on small ones of their form."""

import json
import shutil
from pathlib import Path
from typing import Any

import datasets
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

import interp
from interp.data import stream as stream_module
from interp.training import Recipe, train
from interp.training.suite import Suite
from interp.training.toml import bundled, read_toml

SUITES = [name for name, path in bundled().items() if "member" in read_toml(path)]
RECIPES = [name for name in bundled() if name not in SUITES]
TINY = {
    "vocab_size": 300,
    "n_ctx": 32,
    "batch_size": 4,
    "probe_steps": 6,
    "save_steps": 3,
    "snapshots": 3,
    "snapshot_blocks": 8,
    "held_out": 0.2,
    "held_out_documents": 3,
    "compile": False,
}
WORDS = [
    "the",
    "convolution",
    "reads",
    "the",
    "current",
    "token",
    "and",
    "the",
    "one",
    "before",
    "it",
]


def prose(number: int, n_words: int = 90) -> str:
    return " ".join([*(WORDS[(number + i * i) % len(WORDS)] for i in range(n_words)), "."])


def rows_of_wikitext(n_articles: int) -> list[str]:
    """Lines, as WikiText has them: a heading of its own, blank lines, text, sub-headings."""
    return [
        line
        for number in range(n_articles)
        for line in (
            "",
            f" = Article {number} = \n",
            "",
            f" {prose(number)} \n",
            f" = = Section {number} = = \n",
            f" {prose(number + 50)} \n",
        )
    ]


def write_rows(path: Path, rows: list[str]) -> str:
    path.write_text("".join(json.dumps({"text": row}) + "\n" for row in rows))
    return str(path)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[Any, dict[str, str]]:
    """What the hub would give: two data sets of the right form, streamed as they would be."""
    files = {
        ("Salesforce/wikitext", "wikitext-103-raw-v1"): {
            "train": write_rows(tmp_path / "wikitext.jsonl", rows_of_wikitext(12)),
            "validation": write_rows(tmp_path / "held_out.jsonl", rows_of_wikitext(3)[3:]),
        },
        ("Skylion007/openwebtext", None): {
            "train": write_rows(
                tmp_path / "web.jsonl", [f"{prose(n)}\n\n{prose(n + 9)}" for n in range(60)]
            )
        },
    }
    read = datasets.load_dataset

    def load_dataset(path: str, config: str | None = None, *, streaming: bool):
        assert streaming
        return read("json", data_files=files[path, config], streaming=True)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr(stream_module, "DOCUMENTS_AT_ONCE", 7)
    return files


def narrow(recipe: Recipe, **changes: Any) -> Recipe:
    """The same recipe in small."""
    model = {**recipe.model, "d_model": 16}
    if "layers" in model:
        model["layers"] = [
            {**layer, **({"d_head": 16} if "d_head" in layer else {})} for layer in model["layers"]
        ]
    return recipe.replace(model=model, **{**TINY, **changes})


def test_there_are_the_reference_recipes_and_suites():
    assert {"conv-attn", "smeared-attn", "lfm2", "inkling"} <= set(RECIPES)
    assert set(SUITES) == {"formation", "sites", "course", "openwebtext"}


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_builds_its_model(name: str):
    recipe = Recipe.load(name)
    assert recipe.name == name
    model = recipe.build(recipe.vocab_size)
    assert type(model).__name__ == recipe.architecture
    n_ctx = getattr(model.config, "n_ctx", getattr(model.config, "max_position_embeddings", 0))
    assert n_ctx == recipe.n_ctx
    assert Recipe.from_toml(recipe.to_toml()) == recipe


@pytest.mark.parametrize("name", SUITES)
def test_a_suite_survives_its_runs_recipes(name: str):
    for run in Suite.load(name):
        assert Recipe.from_toml(run.recipe.to_toml()) == run.recipe


def test_the_courses_networks_are_those_of_from_course():
    conv_attn, attn_attn = (run.recipe for run in Suite.load("course"))
    assert (conv_attn.learning_rate, conv_attn.warmup_ratio, conv_attn.epochs) == (3e-4, 0.1, 3)
    assert conv_attn.vocab_size == 25_000
    conv_attn, attn_attn = narrow(conv_attn), narrow(attn_attn)
    names = ("embeddings.weight", "lm_head.weight")
    shared = {name: torch.zeros(20, 16) for name in names} | {"lm_head.bias": torch.zeros(20)}
    conv = {"conv.weight": torch.zeros(16, 16, 3), "conv.bias": torch.zeros(16)}

    def head(name: str) -> dict[str, torch.Tensor]:
        return {f"{name}.W_{which}.weight": torch.zeros(16, 16) for which in "QKV"}

    theirs = interp.HookedConvAttn.from_course({**shared, **conv, **head("qkv")}, n_ctx=32)
    assert conv_attn.build(20).config == theirs.config
    theirs = interp.HookedAttnAttn.from_course({**shared, **head("qkv1"), **head("qkv2")}, n_ctx=32)
    assert attn_attn.build(20).config == theirs.config


def test_the_courses_initial_weights_are_pytorchs_own():
    # Each has the same distribution as the layer of PyTorch that the course uses.
    recipe = Suite.load("course").runs[0].recipe
    model = recipe.build(4000)
    torch_conv = torch.nn.Conv1d(512, 512, 3, padding=1).weight
    torch_linear = torch.nn.Linear(512, 4000)
    xavier = torch.nn.init.xavier_normal_(torch.empty(512, 512))
    for ours, theirs in (
        (model.W_E, torch.nn.Embedding(4000, 512).weight),
        (model.conv(0).W_conv, torch_conv),
        (model.W_U, torch_linear.weight),
        (model.b_U, torch_linear.bias),
        (model.attn(1).W_Q, xavier),
        (model.attn(1).W_V, xavier),
    ):
        assert ours.std().item() == pytest.approx(theirs.std().item(), rel=0.05)
        assert ours.abs().max().item() == pytest.approx(theirs.abs().max().item(), rel=0.25)
    assert torch.equal(recipe.build(4000).W_E, model.W_E)
    assert not torch.equal(recipe.replace(seed=1).build(4000).W_E, model.W_E)


@pytest.mark.parametrize("member", ["conv-attn", "attn-attn"])
def test_the_course_runs_on_text_of_its_form(hub: Any, tmp_path: Path, member: str):
    [run] = Suite.load("course").only([member])
    directory = train(narrow(run.recipe), tmp_path / "run")
    model = interp.load(str(directory))
    assert type(model).__name__ == run.recipe.architecture
    table = pd.read_parquet(directory / "development.parquet")
    blocks = int(table.loc[table["measure"] == "train_loss", "n_sequences"].iloc[0])
    assert blocks >= 2
    losses = table[table["measure"] == "validation_loss"].set_index("step")["value"]
    assert losses.iloc[-1] < losses.iloc[0]
    # Three passes over whole batches.
    card = (directory / "README.md").read_text()
    packed = int(card.split(" blocks of 32 tokens to train on")[0].rsplit("\n", 1)[-1])
    assert table["step"].max() == 3 * (packed // 4)


def test_openwebtext_runs_on_text_of_its_form_and_goes_on(hub: Any, tmp_path: Path):
    recipe = narrow(Suite.load("openwebtext").runs[0].recipe, steps=6)
    assert recipe.streaming
    whole = train(recipe, tmp_path / "whole")
    assert type(interp.load(str(whole))).__name__ == "HookedConvAttn"
    cut_short = tmp_path / "cut_short"
    shutil.copytree(whole, cut_short)
    shutil.rmtree(cut_short / "checkpoints" / "checkpoint-6")
    (cut_short / "model.safetensors").unlink()
    train(recipe, cut_short, resume=True)
    before, after = (load_file(run / "model.safetensors") for run in (whole, cut_short))
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert "Streamed in blocks of 32 tokens" in (whole / "README.md").read_text()


def test_a_stream_has_no_epochs():
    recipe = Suite.load("openwebtext").runs[0].recipe
    with pytest.raises(ValueError, match=r"epochs is 3\.0.*no length"):
        recipe.replace(epochs=3.0)
