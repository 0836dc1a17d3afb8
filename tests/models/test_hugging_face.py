"""Models of transformers: made from a config alone, saved and read strictly, nothing executed."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import interp
from interp.models import hugging_face
from interp.models.hugging_face import fresh

LFM2 = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "block_auto_adjust_ff_dim": False,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "layer_types": ["conv", "full_attention"],
}
INKLING = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "rel_extent": 32,
    "layer_types": ["hybrid"],
    "mlp_layer_types": ["dense"],
    "logits_mup_width_multiplier": 1.0,
}
MODELS = {"Lfm2ForCausalLM": LFM2, "InklingForCausalLM": INKLING}
SIZES: dict[str, Any] = {"d_vocab": 300, "n_ctx": 32}


@pytest.fixture(params=MODELS)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def directory(name: str, tmp_path: Path) -> Path:
    hugging_face.save(fresh(name, MODELS[name], **SIZES), tmp_path)
    return tmp_path


def weights(model: torch.nn.Module) -> dict[str, Tensor]:
    return dict(model.named_parameters())


def test_a_seed_makes_the_weights_and_disturbs_nobody(name: str):
    torch.manual_seed(5)
    expected = torch.randn(3)
    torch.manual_seed(5)
    one, same, other = (fresh(name, MODELS[name], **SIZES, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(torch.randn(3), expected)
    assert all(torch.equal(weights(one)[key], weights(same)[key]) for key in weights(one))
    assert not all(torch.equal(weights(one)[key], weights(other)[key]) for key in weights(one))


def test_sizes_and_special_tokens_are_the_recipes_and_the_tokenizers(name: str):
    tokenizer = interp.load("conv-attn").tokenizer
    config = fresh(name, MODELS[name], d_vocab=len(tokenizer), n_ctx=77, tokenizer=tokenizer).config
    assert (config.vocab_size, config.max_position_embeddings) == (len(tokenizer), 77)
    assert config.bos_token_id == tokenizer.bos_token_id
    assert config.pad_token_id == tokenizer.pad_token_id


@pytest.mark.parametrize(
    ("kind", "change", "words"),
    [
        ("Lfm2ForCausal", {}, "no causal language model of transformers.*'Lfm2ForCausalLM'"),
        ("Lfm2Model", {}, "no causal language model"),
        ("Lfm2ForCausalLM", {"hidden_siz": 3}, "Lfm2Config has no field 'hidden_siz'.*hidden_size"),
        ("Lfm2ForCausalLM", {"hidden_size": "wide"}, "'hidden_size' expected int, got str"),
        ("Lfm2ForCausalLM", {"layer_types": ["conv"]}, "num_hidden_layers.*layer_types"),
        ("Lfm2ForCausalLM", {"num_attention_heads": 3}, "cannot be made from this config"),
        ("Lfm2ForCausalLM", {"vocab_size": 9}, "vocab_size is set by d_vocab or n_ctx"),
        ("GPT2LMHeadModel", {"n_positions": 9}, "n_positions is set by d_vocab or n_ctx"),
    ],
)
def test_what_makes_no_model_is_refused(kind: str, change: dict, words: str):
    with pytest.raises(ValueError, match=f"(?s){words}"):
        fresh(kind, {**(LFM2 if kind.startswith("Lfm2") else {}), **change}, **SIZES)


def test_a_model_that_reads_what_it_is_to_predict_is_refused():
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    sizes["intermediate_size"] = 16
    with pytest.raises(ValueError, match=r"later tokens.*is_decoder"):
        fresh("BertLMHeadModel", sizes, **SIZES)
    assert fresh("BertLMHeadModel", {**sizes, "is_decoder": True}, **SIZES)


def test_what_is_saved_comes_back(name: str, directory: Path):
    assert not [path for path in directory.iterdir() if path.suffix in (".bin", ".pt", ".pkl")]
    model, loaded = fresh(name, MODELS[name], **SIZES), hugging_face.load(directory)
    assert type(loaded) is type(model)
    assert not loaded.training
    tokens = torch.arange(20)[None]
    assert torch.equal(loaded(tokens).logits, model.eval()(tokens).logits)
    half = hugging_face.load(directory, dtype=torch.float16)
    hugging_face.save(half, directory)
    assert hugging_face.load(directory).dtype == torch.float16
    assert hugging_face.load(directory, dtype=torch.float32).dtype == torch.float32


@pytest.mark.parametrize("change", ["missing", "surplus", "misshapen", "pickled", "gone"])
def test_weights_that_are_not_the_configs_are_refused(name: str, directory: Path, change: str):
    path = directory / "model.safetensors"
    state = load_file(path)
    key = next(iter(state))
    words = {
        "missing": f"missing keys.*{key}",
        "surplus": "unexpected keys surplus.weight",
        "misshapen": f"mismatched keys.*{key}",
        "pickled": "pickle is never read",
        "gone": "holds no model.safetensors",
    }
    if change == "missing":
        del state[key]
    elif change == "surplus":
        state["surplus.weight"] = torch.zeros(2)
    elif change == "misshapen":
        state[key] = state[key][:1].clone()
    save_file(state, path, metadata={"format": "pt"})
    if change == "pickled":
        torch.save(state, path)
    elif change == "gone":
        path.unlink()
    with pytest.raises((ValueError, FileNotFoundError), match=words[change]):
        interp.load(directory)


def test_a_checkpoints_own_code_is_not_run(name: str, directory: Path):
    trap = directory / "trap.py"
    trap.write_text("raise SystemExit('a checkpoint ran its own code')")
    path = directory / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "auto_map": {"AutoModelForCausalLM": "trap.Trap"}}))
    assert type(hugging_face.load(directory)).__name__ == name
    path.write_text(json.dumps({**config, "architectures": ["Trap"]}))
    with pytest.raises(ValueError, match="architectures names 'Trap'"):
        hugging_face.load(directory)
