"""ModelConfig: JSON both ways, and refusals that name both values and the remedy."""

import json
import re
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given

from interp.models import MLP, Attention, Conv, HookedConvAttn, HookedGPT, ModelConfig
from tests.models import zoo

SIZES: dict[str, Any] = {"d_vocab": 10, "d_model": 12, "n_ctx": 8}
HEAD = Attention(n_heads=3, d_head=4)


def config(*layers: Any, **options: Any) -> ModelConfig:
    return ModelConfig(**(SIZES | {"layers": layers or (HEAD,)} | options))


@zoo.beartype_may_draw
@given(zoo.configs())
def test_json_both_ways(config: ModelConfig) -> None:
    text = config.to_json()
    assert ModelConfig.from_json(text) == config
    assert ModelConfig.from_dict(config.to_dict()) == config
    assert json.loads(text)["layers"][0]["kind"] in ("conv", "attention")


def test_json_is_readable_and_says_everything() -> None:
    data = json.loads(config(Conv(lags=3, mlp=MLP(7, "relu")), HEAD).to_json())
    assert data["layers"][0] == {
        "kind": "conv",
        "lags": 3,
        "depthwise": False,
        "bias": True,
        "lag_bias": False,
        "mlp": {"d_mlp": 7, "activation": "relu", "taps": 1},
    }
    assert data["layers"][1]["kind"] == "attention"
    assert data["norm_eps"] == 1e-5
    assert data["d_vocab"] == 10


def test_left_out_keys_have_their_defaults() -> None:
    data = {**SIZES, "layers": [{"kind": "attention", "n_heads": 3, "d_head": 4}]}
    assert ModelConfig.from_dict(data) == config(HEAD)


def test_a_config_is_a_value() -> None:
    assert config(HEAD) == config(HEAD)
    assert hash(config(HEAD)) == hash(config(HEAD))
    assert config([HEAD][0], norm="rms") != config(HEAD)
    with pytest.raises(AttributeError):
        config(HEAD).d_model = 3  # type: ignore[misc]


def test_a_list_of_layers_becomes_a_tuple(unchecked: None) -> None:
    assert ModelConfig(**SIZES, layers=[HEAD]).layers == (HEAD,)  # type: ignore[arg-type]


def test_replace_checks_again() -> None:
    assert config().replace(n_ctx=16).n_ctx == 16
    with pytest.raises(ValueError, match=r"d_vocab is 0"):
        config().replace(d_vocab=0)


REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "no width": (lambda: config(d_model=0), "d_model is 0, but .* at least 1"),
    "negative context": (lambda: config(n_ctx=-3), "n_ctx is -3, but .* at least 1"),
    "a fraction": (lambda: config(d_vocab=2.5), "d_vocab is 2.5, but .* whole number"),
    "a bool": (lambda: config(d_model=True), "d_model is True, but .* whole number"),
    "no heads": (lambda: Attention(n_heads=0, d_head=4), "n_heads is 0, but .* at least 1"),
    "no head width": (lambda: Attention(n_heads=1, d_head=0), "d_head is 0"),
    "no lags": (lambda: Conv(lags=0), "Conv: lags is 0, but .* at least 1"),
    "no neurons": (lambda: MLP(0), "MLP: d_mlp is 0"),
    "activation": (lambda: MLP(4, "tanh"), "activation is 'tanh'; choose one of relu, gelu, "),  # type: ignore[arg-type]
    "a flag": (lambda: Conv(bias="no"), "Conv: bias is 'no', but it must be true or false"),  # type: ignore[arg-type]
    "another flag": (
        lambda: Attention(1, 4, causal=0),  # type: ignore[arg-type]
        "Attention: causal is 0, but it must be true or false",
    ),
    "tied": (lambda: config(tied="yes"), "tied is 'yes', but it must be true or false"),
    "positions": (
        lambda: config(positions="alibi"),
        "positions is 'alibi'; choose one of learned, shortformer, rotary, sinusoidal, none",
    ),
    "norm": (lambda: config(norm="batch"), "norm is 'batch'; choose one of layer, rms, none"),
    "place": (lambda: config(norm_place="mid"), "norm_place is 'mid'; choose one of pre, post"),
    "dropout": (lambda: config(dropout=1.0), r"dropout is 1.0, but it must be in \[0, 1\)"),
    "NaN": (lambda: config(dropout=float("nan")), "dropout is nan, but .* finite number"),
    "hidden positions": (
        lambda: config(HEAD, Attention(n_heads=3, d_head=4, positions=False)),
        "layer 1: positions=False hides positions that act on queries and keys, but this model's "
        "are 'learned'; use rotary or shortformer positions, or drop it",
    ),
    "eps": (lambda: config(norm_eps=0.0), "norm_eps is 0.0, but it must be above 0"),
    "base": (lambda: config(rotary_base=1.0), "rotary_base is 1.0, but it must be above 1"),
    "no layers": (lambda: ModelConfig(**SIZES, layers=()), "layers is empty: give at least one"),
    "lags and context": (
        lambda: config(Conv(lags=9)),
        "layer 0: lags=9 .* n_ctx=8; use at most lags=8 or a longer context",
    ),
    "no output map": (
        lambda: config(HEAD, Attention(n_heads=3, d_head=5, output=False)),
        "layer 1: .* = 15 must equal d_model=12; change one of them or set output=True",
    ),
    "rotary and odd heads": (
        lambda: config(Attention(n_heads=2, d_head=3), positions="rotary"),
        "layer 0: rotary .* d_head=3 is odd; use an even d_head or other positions",
    ),
    "rotary without attention": (
        lambda: config(Conv(), positions="rotary"),
        "positions='rotary' .* no layer is an Attention; use learned, sinusoidal or none",
    ),
    "post without norm": (
        lambda: config(norm_place="post", norm="none"),
        "norm_place='post' .* norm='none' .* residual=True; use norm_place='pre'",
    ),
    "post without stream": (
        lambda: config(norm_place="post", residual=False),
        "norm_place='post' .* norm='layer' and residual=False; use norm_place='pre'",
    ),
    "sinusoids": (
        lambda: config(positions="sinusoidal", d_model=11),
        "sinusoidal .* d_model=11 is odd; use an even d_model",
    ),
    "shared width": (
        lambda: HookedConvAttn(d_vocab=10, d_model=10, n_heads=4, n_ctx=8),
        "d_model=10 cannot be shared among n_heads=4; choose sizes that divide, or give d_head",
    ),
    "a nope layer that is a conv": (
        lambda: HookedConvAttn(
            d_vocab=10, d_model=12, n_heads=3, n_ctx=8, positions="rotary", nope_layers=[0]
        ),
        r"nope_layers names layer 0, but the attention layers are \[1\]",
    ),
    "no shares": (
        lambda: HookedConvAttn(d_vocab=10, d_model=10, n_heads=0, n_ctx=8),
        "d_model=10 cannot be shared among n_heads=0",
    ),
    "a model without layers": (
        lambda: HookedGPT(d_vocab=10, d_model=8, n_heads=2, n_layers=0, n_ctx=8),
        "layers is empty",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_fit_together_is_refused(unchecked: None, name: str) -> None:
    make, message = REFUSED[name]
    with pytest.raises(ValueError, match=f"(?s){message}"):
        make()


def test_a_layer_of_another_kind_is_refused(unchecked: None) -> None:
    with pytest.raises(TypeError, match="layer 1 is 'conv'; it must be a Conv or an Attention"):
        config(HEAD, "conv")


def changed(**changes: Any) -> dict[str, Any]:
    return {**config(Conv(), HEAD).to_dict(), **changes}


BROKEN: dict[str, tuple[Any, str]] = {
    "unknown key": (changed(d_modle=3), "unknown key 'd_modle'; known keys are d_vocab, d_model"),
    "layers is a number": (changed(layers=2), "layers is 2, but it must be a list of layers"),
    "a layer is a string": (changed(layers=["conv"]), "layer 0 is 'conv', but .* with a kind"),
    "no kind": (
        changed(layers=[{"lags": 2}]),
        "layer 0: kind is None; choose one of attention, conv",
    ),
    "unhashable kind": (changed(layers=[{"kind": []}]), r"layer 0: kind is \[\]; choose one"),
    "another kind": (changed(layers=[{"kind": "mamba"}]), "layer 0: kind is 'mamba'; choose one"),
    "a key of another kind": (
        changed(layers=[{"kind": "conv", "n_heads": 2}]),
        "layer 0: unknown key 'n_heads'; known keys are lags",
    ),
    "missing size": (changed(layers=[{"kind": "attention", "d_head": 2}]), "layer 0: .*n_heads"),
    "MLP is a number": (changed(layers=[{"kind": "conv", "mlp": 4}]), "layer 0: mlp is 4, but"),
    "size is a string": (changed(d_model="12"), "d_model is '12', but it must be a whole number"),
    "dropout is a string": (changed(dropout="0.1"), "dropout is '0.1', but .* finite number"),
    "positions is a list": (changed(positions=["rotary"]), r"positions is \['rotary'\]; choose"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_config_file_is_refused(unchecked: None, name: str) -> None:
    data, message = BROKEN[name]
    with pytest.raises(ValueError, match=f"(?i)config.*{message}"):
        ModelConfig.from_json(json.dumps(data))


@pytest.mark.parametrize("text", ["[]", "3", "null"])
def test_json_that_is_no_object_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=f"config is {re.escape(str(json.loads(text)))}, but"):
        ModelConfig.from_json(text)


def test_every_missing_size_is_named() -> None:
    for key in ("d_vocab", "d_model", "n_ctx", "layers"):
        data = {k: v for k, v in config().to_dict().items() if k != key}
        with pytest.raises(ValueError, match=key):
            ModelConfig.from_dict(data)


def test_attention_layers_are_numbered_among_all_layers() -> None:
    wide = Attention(n_heads=1, d_head=5)
    assert config(Conv(), HEAD, Conv(), wide).attention_layers == {1: HEAD, 3: wide}
