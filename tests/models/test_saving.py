"""Saving: everything that a model is, whole or not at all."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.testing import assert_close

import interp
from interp.models import HookedAttn, HookedAttnAttn, HookedConvAttn, HookedSequenceModel, hub
from tests.models import zoo
from tests.models.test_text import tokenizer
from tests.models.zoo import files

KIND = "conv-attn: as it comes"


def test_four_files_and_their_content(saved: Path) -> None:
    assert files(saved) == {"config.json", "model.safetensors", "README.md"}
    model = zoo.build(KIND)
    config = json.loads((saved / "config.json").read_text())
    assert config["architecture"] == "HookedConvAttn"
    assert config["layers"][0]["kind"] == "conv"
    weights = load_file(saved / "model.safetensors")
    assert weights.keys() == model.state_dict().keys()
    assert all(torch.equal(weights[name], value) for name, value in model.state_dict().items())
    card = (saved / "README.md").read_text()
    assert card.startswith("---\n")
    for piece in (
        "library_name: interp",
        "# HookedConvAttn",
        "interp.load(",
        "layer 1: `Attention",
    ):
        assert piece in card


def test_the_tokenizer_travels_with_the_model(tmp_path: Path) -> None:
    model = HookedConvAttn(d_vocab=9, d_model=12, n_heads=3, n_ctx=8, tokenizer=tokenizer())
    model.save_pretrained(tmp_path)
    assert {"tokenizer.json", "tokenizer_config.json"} <= files(tmp_path)
    loaded = interp.load(tmp_path)
    assert loaded.to_tokens(["the cat", "mat"]).tolist() == [[0, 3, 4], [0, 7, 2]]
    assert loaded.tokenizer.eos_token == "</s>"
    assert_close(loaded("the cat"), model.eval()("the cat"), rtol=0, atol=0)


def test_the_class_decides_what_it_loads(saved: Path) -> None:
    for kind in (HookedConvAttn, HookedSequenceModel):
        assert type(kind.from_pretrained(saved)) is HookedConvAttn
    with pytest.raises(
        ValueError, match=r"holds a HookedConvAttn, not a HookedAttn; use interp.load\("
    ):
        HookedAttn.from_pretrained(saved)


def test_what_is_loaded_can_be_cast_and_remembers_its_name(saved: Path) -> None:
    assert interp.load(saved).W_E.dtype == torch.float64
    model = interp.load(saved, dtype=torch.bfloat16, device="cpu")
    assert {weight.dtype for weight in model.parameters()} == {torch.bfloat16}
    assert model.loaded_from == "saved"
    assert zoo.build(KIND).loaded_from is None


def test_a_preset_saved_with_other_options_loads_as_it_was(tmp_path: Path) -> None:
    model = zoo.build("gpt: shortformer").fold_norms()
    model.save_pretrained(tmp_path)
    loaded = interp.load(tmp_path)
    assert loaded.config == model.config
    assert_close(loaded(zoo.tokens()), model(zoo.tokens()), rtol=0, atol=0)


def test_saving_again_replaces_the_model_and_keeps_the_card(saved: Path) -> None:
    (saved / "README.md").write_text("written by hand")
    (saved / "notes.txt").write_text("mine")
    other = zoo.build("attn-attn: tied, no biases")
    other.save_pretrained(saved)
    assert files(saved) == {"config.json", "model.safetensors", "README.md", "notes.txt"}
    assert (saved / "README.md").read_text() == "written by hand"
    loaded = interp.load(saved)
    assert type(loaded) is HookedAttnAttn
    assert_close(loaded(zoo.tokens()), other(zoo.tokens()), rtol=0, atol=0)


def test_a_tokenizer_that_another_model_left_is_not_taken_for_ours(tmp_path: Path) -> None:
    sizes: dict[str, Any] = {"d_vocab": 9, "d_model": 12, "n_heads": 3, "n_ctx": 8}
    HookedAttn(**sizes, tokenizer=tokenizer()).save_pretrained(tmp_path)
    HookedAttn(**sizes).save_pretrained(tmp_path)
    assert interp.load(tmp_path).tokenizer is None


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
@pytest.mark.parametrize("at", ["weights", "tokenizer", "card"])
def test_a_save_that_fails_half_way_leaves_the_old_model(
    monkeypatch: pytest.MonkeyPatch, saved: Path, at: str, error: type[BaseException]
) -> None:
    before = interp.load(saved)
    words = tokenizer()
    model = HookedAttn(d_vocab=9, d_model=12, n_heads=3, n_ctx=8, tokenizer=words)

    def fail(*args: Any, **kwargs: Any) -> None:
        raise error

    target: dict[str, tuple[Any, str]] = {
        "weights": (hub, "save_file"),
        "tokenizer": (type(words), "save_pretrained"),
        "card": (type(model), "generate_model_card"),
    }
    with monkeypatch.context() as patch:
        patch.setattr(*target[at], fail)
        with pytest.raises(error):
            model.save_pretrained(saved)
    assert files(saved) == {"config.json", "model.safetensors", "README.md"}
    after = interp.load(saved)
    assert type(after) is HookedConvAttn
    assert_close(after(zoo.tokens()), before(zoo.tokens()), rtol=0, atol=0)


def test_a_file_in_the_way_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "model").write_text("")
    with pytest.raises(FileExistsError):
        zoo.build(KIND).save_pretrained(tmp_path / "model")


def test_directories_are_made(tmp_path: Path) -> None:
    zoo.build(KIND).save_pretrained(tmp_path / "a" / "b")
    assert interp.load(tmp_path / "a" / "b").config == zoo.build(KIND).config
