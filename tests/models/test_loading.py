"""Loading is strict: what is not ours is refused, and a pickle is never read."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import interp
from interp.models import HookedAttn
from tests.models import zoo


class Trap:
    """Unpickled, it would leave a mark: proof that somebody read a pickle."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return (Path.touch, (self.mark,))


@pytest.mark.parametrize("new_format", [True, False])
def test_a_pickle_is_never_read_under_any_name(saved: Path, new_format: bool) -> None:
    mark = saved.parent / "mark"
    torch.save(
        {"embed.W_E": Trap(mark)},
        saved / "model.safetensors",
        _use_new_zipfile_serialization=new_format,
    )
    with pytest.raises(ValueError, match=r"model.safetensors is a pickle under another name"):
        interp.load(saved)
    assert not mark.exists()
    (saved / "model.safetensors").rename(saved / "pytorch_model.bin")
    with pytest.raises(
        FileNotFoundError, match=r"no model.safetensors \(pytorch_model.bin is a pickle, which is"
    ):
        interp.load(saved)
    assert not mark.exists()


@pytest.mark.parametrize("header", [0x0280, 0x0480, ord("P") + (ord("K") << 8)])
def test_a_header_as_long_as_a_pickles_first_bytes_is_no_pickle(saved: Path, header: int) -> None:
    # A safetensors file starts with the length of its header, and 640 reads b"\x80\x02".
    path = saved / "model.safetensors"
    HookedAttn(
        d_vocab=3, d_model=2, n_heads=1, n_ctx=2, bias=False, norm="none", unembed_bias=False
    ).save_pretrained(saved)
    weights = load_file(path)

    def header_length(padding: int) -> int:
        save_file(weights, path, metadata={"padding": "x" * padding})
        return int.from_bytes(path.read_bytes()[:8], "little")

    assert header_length(header - header_length(0)) == header
    assert path.read_bytes()[:2] == header.to_bytes(2, "little")
    assert torch.equal(interp.load(saved).W_E, weights["embed.W_E"])


def spoil(path: Path, change: Callable[[bytes], bytes]) -> None:
    path.write_bytes(change(path.read_bytes()))


@pytest.mark.parametrize(
    "change",
    [
        lambda data: data[: len(data) // 2],
        lambda data: data[:-1],
        lambda data: data[:5],
        lambda data: b"",
        lambda data: b"not a tensor " * 99,
        lambda data: data[:8] + b"[" + data[9:],
    ],
    ids=["half", "a byte short", "a stump", "empty", "foreign", "a spoilt header"],
)
def test_corrupt_weights_are_refused(saved: Path, change: Callable[[bytes], bytes]) -> None:
    spoil(saved / "model.safetensors", change)
    with pytest.raises(ValueError, match=r"model.safetensors is corrupt or truncated \("):
        interp.load(saved)


def with_weights(directory: Path, **changes: Tensor | None) -> None:
    path = directory / "model.safetensors"
    weights: dict[str, Any] = load_file(path)
    weights |= {name.replace("__", "."): value for name, value in changes.items()}
    save_file({name: value for name, value in weights.items() if value is not None}, path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ln_final__w": None}, "weight 'ln_final.w' is missing"),
        (
            {"embed__W_E": None, "embed__WE": torch.zeros(zoo.D_VOCAB, zoo.D_MODEL)},
            "weight 'embed.W_E' is missing; did you mean 'embed.WE'",
        ),
        ({"embed__extra": torch.zeros(2)}, "weight 'embed.extra' has no place in this model"),
        (
            {"unembed__W_U": torch.zeros(zoo.D_VOCAB, zoo.D_MODEL)},
            r"weight 'unembed.W_U' has shape \(23, 12\), but must be \(12, 23\)",
        ),
        (
            {"unembed__b_U": torch.zeros(zoo.D_VOCAB, dtype=torch.int64)},
            "weight 'unembed.b_U' is torch.int64, but must be floating",
        ),
    ],
)
def test_weights_that_are_not_the_configs_are_named(
    saved: Path, changes: dict[str, Tensor | None], message: str
) -> None:
    with_weights(saved, **changes)
    with pytest.raises(ValueError, match=f"saved: {message}"):
        interp.load(saved)


def config_of(directory: Path) -> dict[str, Any]:
    return json.loads((directory / "config.json").read_text())


CONFIGS: dict[str, tuple[str | Callable[[dict[str, Any]], Any], str]] = {
    "not JSON": ("{", "config.json is not JSON"),
    "not text": ("\udcff\udcfe", "config.json is not JSON"),
    "empty": ("", "config.json is not JSON"),
    "another library's": (
        lambda config: {"architectures": ["MT5ForSpeech"], "model_type": "mt5"},
        "architectures names 'MT5ForSpeech'.* is no causal language model of transformers",
    ),
    "another library's, with our weights": (
        lambda config: {
            "architectures": ["GPT2LMHeadModel"],
            "model_type": "gpt2",
            "n_layer": 1,
            "n_embd": 8,
            "n_head": 2,
            "vocab_size": 9,
        },
        "the weights are not this config's: missing keys lm_head.weight, transformer",
    ),
    "a list": (lambda config: [config], "config.json is not an interp config"),
    "architecture is a list": (
        lambda config: config | {"architecture": ["HookedConvAttn"]},
        "config.json is not an interp config",
    ),
    "unknown architecture": (
        lambda config: config | {"architecture": "HookedMamba"},
        "architecture 'HookedMamba' is not one of HookedAttn, HookedAttnAttn, HookedConvAttn",
    ),
    "unknown key": (
        lambda config: config | {"d_modle": 3},
        "config.json: config: unknown key 'd_modle'; known keys are d_vocab",
    ),
    "another width": (
        lambda config: config | {"d_model": 16},
        r"weight '.*' has shape \(.*12\), but must be \(.*16\)",
    ),
    "a size that is none": (
        lambda config: config | {"n_ctx": 0},
        "config.json: ModelConfig: n_ctx is 0",
    ),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_a_config_that_is_not_ours_is_refused(saved: Path, name: str) -> None:
    change, message = CONFIGS[name]
    if isinstance(change, str):
        (saved / "config.json").write_bytes(change.encode("utf-8", "surrogateescape"))
    else:
        (saved / "config.json").write_text(json.dumps(change(config_of(saved))))
    with pytest.raises(ValueError, match=message):
        interp.load(saved)


def test_a_broken_tokenizer_is_refused(saved: Path) -> None:
    (saved / "tokenizer.json").write_text('{"version": "1.0"')
    with pytest.raises(ValueError, match=r"tokenizer.json cannot be read as a tokenizer"):
        interp.load(saved)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_missing_file_is_named(saved: Path, name: str) -> None:
    (saved / name).unlink()
    with pytest.raises(FileNotFoundError, match=f"saved holds no {name}; save with"):
        interp.load(saved)


def test_a_file_is_no_directory(saved: Path) -> None:
    with pytest.raises(ValueError, match="is a file; give the directory that save_pretrained"):
        interp.load(saved / "config.json")


def test_an_unknown_option_is_refused(saved: Path) -> None:
    with pytest.raises(
        TypeError, match="no option 'devcie'; besides device and dtype it takes rev"
    ):
        interp.load(saved, devcie="cuda")
