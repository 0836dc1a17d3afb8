"""What one token costs in the forward pass, counted from shapes."""

from dataclasses import dataclass

from interp.models.config import ModelConfig


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
