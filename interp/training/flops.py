"""What one token costs in the forward pass, counted from shapes."""

from dataclasses import dataclass
from typing import Any, cast

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import PreTrainedModel

from interp.models.config import ModelConfig
from interp.models.hooks import undisturbed


@dataclass(frozen=True)
class Flops:
    """Floating-point operations per token of a forward pass: two for each multiply-add.

    Counted is every product of an activation with a weight or with another activation. Norms,
    softmaxes, biases and the embedding's lookup are not. Training costs three times as much.

    Args:
        layers: the layers' weights: convolutions, W_Q, W_K, W_V and W_O, smears, MLPs.
        attention: queries with keys, and patterns with values, for the average number of visible
            keys in a block of n_ctx tokens: (n_ctx + 1) / 2, or n_ctx without a causal mask.
        unembedding: the stream with W_U.
    """

    layers: float
    attention: float
    unembedding: float

    @property
    def total(self) -> float:
        """All three."""
        return self.layers + self.attention + self.unembedding


def flops_per_token(config: ModelConfig) -> Flops:
    """How many operations does this model spend on a token?

    >>> from interp.models import Attention
    >>> head = Attention(n_heads=4, d_head=16, bias=False)
    >>> flops_per_token(ModelConfig(d_vocab=100, d_model=64, n_ctx=31, layers=(head,)))
    Flops(layers=32768, attention=4096.0, unembedding=12800)
    """
    layers = 0
    for spec in config.layers:
        layers += spec.multiply_adds(config.d_model)
        layers += 0 if spec.mlp is None else spec.mlp.multiply_adds(config.d_model)
    attention = sum(spec.attention_multiply_adds(config.n_ctx) for spec in config.layers)
    return Flops(2 * layers, 2 * attention, 2 * config.d_model * config.d_vocab)


def flops_of(model: Any, n_ctx: int) -> Flops:
    """The same of any causal language model, in blocks of n_ctx tokens.

    Of a model of `transformers`, PyTorch counts a forward pass. It counts no products channel by
    channel but those of convolutions; a product of two activations is taken for attention, of
    which half of the keys are visible.

    >>> from interp.models import HookedAttn, hugging_face
    >>> sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    >>> sizes |= {"num_key_value_heads": 2, "intermediate_size": 32}
    >>> llama = hugging_face.fresh("LlamaForCausalLM", sizes, d_vocab=50, n_ctx=8)
    >>> flops_of(llama, n_ctx=8)
    Flops(layers=5120.0, attention=288.0, unembedding=1600)
    """
    if not isinstance(model, PreTrainedModel):
        return flops_per_token(model.config)
    tokens = torch.zeros(1, n_ctx, dtype=torch.long, device=model.device)
    # The counter does not know the CPU's fused kernel; this one is two matrix products.
    with (
        undisturbed(model),
        sdpa_kernel(SDPBackend.MATH),
        FlopCounterMode(display=False) as counter,
    ):
        model(tokens, use_cache=False)
    counts = {str(what): n / n_ctx for what, n in counter.get_flop_counts()["Global"].items()}
    attention = counts.pop("aten.bmm", 0.0)
    d_vocab, d_model = cast(Any, model.get_output_embeddings()).weight.shape
    unembedding = 2 * d_model * d_vocab
    layers = sum(counts.values()) - unembedding
    return Flops(layers, attention * (n_ctx + 1) / (2 * n_ctx), unembedding)
