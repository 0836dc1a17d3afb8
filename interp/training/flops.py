"""What one token costs in the forward pass, counted from shapes."""

from dataclasses import dataclass

from interp.models.config import Attention, Conv, ModelConfig


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

    >>> head = Attention(n_heads=4, d_head=16, bias=False)
    >>> flops_per_token(ModelConfig(d_vocab=100, d_model=64, n_ctx=31, layers=(head,)))
    Flops(layers=32768, attention=4096.0, unembedding=12800)
    """
    attention = sum(_attention(spec, config.n_ctx) for spec in config.attention_layers.values())
    layers = sum(2 * _multiply_adds(spec, config.d_model) for spec in config.layers)
    return Flops(layers, attention, 2 * config.d_model * config.d_vocab)


def _multiply_adds(spec: Conv | Attention, d_model: int) -> int:
    mlp = 0 if spec.mlp is None else 2 * d_model * spec.mlp.d_mlp
    if isinstance(spec, Conv):
        return mlp + spec.lags * d_model * (1 if spec.depthwise else d_model)
    width = spec.n_heads * spec.d_head
    smear = 2 * width if spec.smear else 0
    return mlp + smear + d_model * width * (4 if spec.output else 3)


def _attention(spec: Attention, n_ctx: int) -> float:
    visible = (n_ctx + 1) / 2 if spec.causal else n_ctx
    return 2 * 2 * spec.n_heads * spec.d_head * visible
