"""The two course networks that this project grew from, read into our models.

One conv-attn and one attn-attn network, single-headed, with square W_Q, W_K, W_V, no output map, no
residual stream, no norm and no positions. Their linear layers hold `[out in]`; ours `[in out]`.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from interp.models.checks import require_weights
from interp.models.config import ModelConfig
from interp.models.layers import Attention, Conv

Shape = tuple[int, ...]

CONV_ATTN = ("conv", "qkv")
ATTN_ATTN = ("qkv1", "qkv2")


def read(
    state_dict: Mapping[str, Tensor], layers: tuple[str, str], n_ctx: int, causal: bool
) -> tuple[ModelConfig, dict[str, Tensor]]:
    """Config and weights of the model that computes what the course network computes."""
    _check(state_dict, layers)
    d_vocab, d_model = state_dict["embeddings.weight"].shape
    attention = Attention(1, d_model, causal=causal, output=False, bias=False)
    specs = tuple(Conv(lags=2) if name == "conv" else attention for name in layers)
    config = ModelConfig(
        d_vocab=d_vocab,
        d_model=d_model,
        n_ctx=n_ctx,
        layers=specs,
        positions="none",
        norm="none",
        residual=False,
    )
    ours = {"embed.W_E": state_dict["embeddings.weight"]}
    for index, name in enumerate(layers):
        weights = _conv_weights if name == "conv" else _head_weights
        ours |= {f"blocks.{index}.{key}": value for key, value in weights(state_dict, name).items()}
    ours["unembed.W_U"] = state_dict["lm_head.weight"].T
    ours["unembed.b_U"] = state_dict["lm_head.bias"]
    return config, ours


def _head_weights(state: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    return {f"attn.W_{m}": state[f"{name}.W_{m}.weight"].T[None] for m in "QKV"}


def _conv_weights(state: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    # A kernel of 3 with padding 1 reads t-1, t, t+1; the mask (1, 1, 0) takes the future away.
    before, current, _ = state[f"{name}.weight"].unbind(-1)
    return {"conv.W_conv": torch.stack([current.T, before.T]), "conv.b_conv": state[f"{name}.bias"]}


def _check(state: Mapping[str, Tensor], layers: tuple[str, str]) -> None:
    """Name the first missing, surplus or misshapen key."""
    embedding = state.get("embeddings.weight")
    if embedding is None or embedding.ndim != 2:
        found = "missing" if embedding is None else f"of shape {tuple(embedding.shape)}"
        raise ValueError(
            f"course network: embeddings.weight is {found}, but must be [vocab, d_model]"
        )
    d_vocab, d_model = embedding.shape
    if "conv" in layers and "filter_mask" in state:
        _check_filter(state["filter_mask"])
        state = {key: weight for key, weight in state.items() if key != "filter_mask"}
    require_weights(state, _shapes(d_vocab, d_model, layers), "course network", "key")


def _check_filter(mask: Tensor) -> None:
    """Refuse a mask on the kernel that is not (1, 1, 0) everywhere."""
    if mask.ndim == 0 or mask.shape[-1] != 3:
        raise ValueError(
            f"course network: filter_mask has shape {tuple(mask.shape)}, but must end in 3"
        )
    rows = mask.reshape(-1, 3).unique(dim=0).tolist()
    if rows != [[1.0, 1.0, 0.0]]:
        raise ValueError(
            f"course network: filter_mask is {rows[-1]}, but must be [1, 1, 0], or the future leaks"
        )


def _shapes(d_vocab: int, d_model: int, layers: tuple[str, str]) -> dict[str, Shape]:
    shapes: dict[str, Shape] = {"embeddings.weight": (d_vocab, d_model)}
    for name in layers:
        if name == "conv":
            shapes |= {"conv.weight": (d_model, d_model, 3), "conv.bias": (d_model,)}
        else:
            shapes |= {f"{name}.W_{m}.weight": (d_model, d_model) for m in "QKV"}
    return shapes | {"lm_head.weight": (d_vocab, d_model), "lm_head.bias": (d_vocab,)}
