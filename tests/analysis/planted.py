"""Models with a circuit written into their weights by hand, so that every number is known exactly.

The stream is split into subspaces that nothing else writes to (`Subspaces`), each holding a one-hot
vector: the current token, the token before it, the token to predict next, the position. There is no
norm, everything that is not named in a docstring is zero, and the models are in float64. A head
whose weights are all zero attends uniformly to what it sees: exactly the chance level.

Below, a sequence is `[BOS] + r + r` with n distinct tokens in r, so that position t of the second
copy holds the token of position t - n; position t sees the t + 1 keys 0 to t; and E = exp(gain).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from interp.models import (
    HookedAttn,
    HookedAttnAttn,
    HookedConvAttn,
    HookedSequenceModel,
    HookedSmearedAttn,
    ModelConfig,
)
from interp.models.layers import Attention, Conv, MultiHeadAttention

BOS = 0
"""What probes put first for a model without a tokenizer."""

SURE = 40.0
"""A gain at which, in float64, a softmax over a context this short is one-hot: exp(-40) = 4e-18."""

KNOWN_HEADS = ("previous", "duplicate", "other_duplicate", "first", "uniform")
"""What the heads of `known_heads` do, in their order."""


@dataclass(frozen=True)
class Subspaces:
    """Which channels of the stream hold what, each as a one-hot vector.

    >>> Subspaces(d_vocab=10, n_ctx=4).position
    slice(30, 34, None)
    """

    d_vocab: int
    n_ctx: int = 0

    @property
    def token(self) -> slice:
        """The current token, written by the embedding."""
        return slice(0, self.d_vocab)

    @property
    def previous(self) -> slice:
        """The token before the current one, written by a convolution or a previous-token head."""
        return slice(self.d_vocab, 2 * self.d_vocab)

    @property
    def output(self) -> slice:
        """The token to predict, written by the induction head and read by the unembedding alone."""
        return slice(2 * self.d_vocab, 3 * self.d_vocab)

    @property
    def position(self) -> slice:
        """The position, written by the learned positions."""
        return slice(3 * self.d_vocab, 3 * self.d_vocab + self.n_ctx)

    @property
    def d_model(self) -> int:
        """All of them together."""
        return 3 * self.d_vocab + self.n_ctx


def induction_conv_attn(
    *,
    d_vocab: int,
    n_ctx: int,
    head: int = 0,
    n_heads: int = 2,
    gain: float = 20.0,
    logit_gain: float = 10.0,
    lags: int = 2,
) -> HookedConvAttn:
    """An induction head L1H`head`, its previous-token shift done by the convolution.

    Lag 1 of L0 copies `token` into `previous`. The head's W_Q reads `token` and its W_K `previous`,
    so that a key scores `gain` where the token before it is the query's, else 0. Its W_V and W_O
    copy the attended token to `output`, which W_U reads times `logit_gain`. The other heads are
    zero. With `lags=1` there is no lag to write to: L1H`head` then sees keys of zero.

    Each query t of the second copy has one matching key, t - (n - 1); no query of the first copy
    has any. So, for L1H`head` and n > 2, the mean of:

    * induction, t in the second copy: E / (E + t); the duplicate's key there: 1 / (E + t);
    * previous and first token: 1 / (t + 1) in the first copy, 1 / (E + t) in the second.

    With c copies a query of copy k (from 0) has k matches, and pays each E / (kE + t + 1 - k).
    The logits are `logit_gain` times the attention that each token gets.
    """
    spaces = Subspaces(d_vocab)
    model = HookedConvAttn(
        d_vocab=d_vocab,
        d_model=spaces.d_model,
        n_heads=n_heads,
        d_head=d_vocab,
        n_ctx=n_ctx,
        lags=lags,
        norm="none",
        positions="none",
    )
    with torch.no_grad():
        _clear(model)
        _tokens_in_and_out(model, spaces, logit_gain)
        if lags > 1:
            _identity(model.conv(0).W_conv[1], spaces.token, spaces.previous)
        _match(model.attn(1), head, spaces.token, spaces.previous, gain)
        _copy(model.attn(1), head, spaces.token, spaces.output)
    return model


def induction_smeared_attn(
    *,
    d_vocab: int,
    n_ctx: int,
    head: int = 0,
    n_heads: int = 2,
    gain: float = 20.0,
    logit_gain: float = 10.0,
    alpha: float = -SURE,
) -> HookedSmearedAttn:
    """An induction head L0H`head`, its previous-token shift done by the smearing of its keys.

    W_Q and W_K read `token`; the key at s is the token at s times σ = sigmoid(`alpha`), plus the
    token at s - 1 times 1 - σ. The copying to the logits is that of `induction_conv_attn`, and at
    the default alpha, where σ is 4e-18, so are all the scores.

    At any alpha, with a = exp(gain (1 - σ)) and b = exp(gain σ): a query of the first copy pays
    itself b / (b + t) and any other key 1 / (b + t). In the second copy, with Z = a + 2b + t - 2,
    it pays the induction key a / Z, the duplicate and itself b / Z each, and any other key 1 / Z.
    """
    spaces = Subspaces(d_vocab)
    model = HookedSmearedAttn(
        d_vocab=d_vocab,
        d_model=spaces.d_model,
        n_heads=n_heads,
        d_head=d_vocab,
        n_ctx=n_ctx,
        norm="none",
        positions="none",
    )
    with torch.no_grad():
        _clear(model)
        _tokens_in_and_out(model, spaces, logit_gain)
        _match(model.attn(0), head, spaces.token, spaces.token, gain)
        _copy(model.attn(0), head, spaces.token, spaces.output)
        smear = model.attn(0).smear
        assert smear is not None
        smear[head] = alpha
    return model


def induction_attn_attn(
    *,
    d_vocab: int,
    n_ctx: int,
    head: int = 0,
    n_heads: int = 2,
    gain: float = 20.0,
    logit_gain: float = 10.0,
) -> HookedAttnAttn:
    """An induction head L1H`head` by K-composition with the previous-token head L0H0.

    L0H0 matches positions t and t - 1, with certainty, and copies `token` into `previous`; BOS,
    which sees only itself, counts as its own predecessor, which no later query looks for. L1's head
    is that of `induction_conv_attn`, with the same scores and logits. L0H0 has a previous-token
    score of 1, and a first-token score of 1 / 2n: position 1 is the one that BOS precedes.
    """
    spaces = Subspaces(d_vocab, n_ctx)
    model = HookedAttnAttn(
        d_vocab=d_vocab,
        d_model=spaces.d_model,
        n_heads=n_heads,
        d_head=max(d_vocab, n_ctx),
        n_ctx=n_ctx,
        norm="none",
        positions="learned",
    )
    with torch.no_grad():
        _clear(model)
        _tokens_in_and_out(model, spaces, logit_gain)
        _positions_in(model, spaces)
        _match(model.attn(0), 0, _all_but_first(spaces.position), _but_last(spaces.position), SURE)
        _copy(model.attn(0), 0, spaces.token, spaces.previous)
        _match(model.attn(1), head, spaces.token, spaces.previous, gain)
        _copy(model.attn(1), head, spaces.token, spaces.output)
    return model


def known_heads(*, d_vocab: int, n_ctx: int, gain: float = 20.0) -> HookedAttn:
    """One attention layer whose heads do, in order, what `KNOWN_HEADS` says; they write nothing.

    A key that matches scores `gain`, any other 0:

    * `previous`: positions t and t - 1. The key before gets E / (E + t), any other 1 / (E + t). At
      t = 1 the key before is the first token.
    * `duplicate`: the same token, itself included. In the second copy the duplicate and the token
      itself get E / (2E + t - 1) each, 1/2 for a large gain; in the first, itself E / (E + t).
    * `other_duplicate`: the same token, but positions take `gain` off the token itself. In the
      second copy the duplicate gets E / (E + t); in the first, attention is uniform.
    * `first`: the BOS token. It gets E / (E + t) from every t but 0.
    * `uniform`: nothing. 1 / (t + 1), the chance level.
    """
    spaces = Subspaces(d_vocab, n_ctx)
    model = HookedAttn(
        d_vocab=d_vocab,
        d_model=spaces.d_model,
        n_heads=len(KNOWN_HEADS),
        d_head=d_vocab + n_ctx,
        n_ctx=n_ctx,
        norm="none",
        positions="learned",
    )
    attn = model.attn(0)
    previous, duplicate, other_duplicate, first, _ = range(len(KNOWN_HEADS))
    with torch.no_grad():
        _clear(model)
        _tokens_in_and_out(model, spaces, logit_gain=0.0)
        _positions_in(model, spaces)
        _match(attn, previous, _all_but_first(spaces.position), _but_last(spaces.position), gain)
        for head in (duplicate, other_duplicate):
            _match(attn, head, spaces.token, spaces.token, gain)
        _match(attn, other_duplicate, spaces.position, spaces.position, -gain, at=d_vocab)
        attn.W_Q[first, spaces.token, 0] = gain / attn.scale
        attn.W_K[first, BOS, 0] = 1.0
    return model


def bare(
    layers: Sequence[Conv | Attention],
    *,
    d_vocab: int,
    n_ctx: int,
    logit_gain: float = 10.0,
    spare: int = 4,
) -> HookedSequenceModel:
    """Tokens and positions go in, what stands in `output` comes out; the layers do nothing yet.

    The last `spare` channels of the stream are nobody's.
    """
    spaces = Subspaces(d_vocab, n_ctx)
    config = ModelConfig(
        d_vocab=d_vocab,
        d_model=spaces.d_model + spare,
        n_ctx=n_ctx,
        layers=tuple(layers),
        norm="none",
        positions="learned",
        unembed_bias=False,
    )
    model = HookedSequenceModel(config)
    with torch.no_grad():
        _clear(model)
        _tokens_in_and_out(model, spaces, logit_gain)
        _positions_in(model, spaces)
    return model


def _clear(model: HookedSequenceModel) -> None:
    model.double().eval()
    for parameter in model.parameters():
        parameter.zero_()


def _tokens_in_and_out(model: HookedSequenceModel, spaces: Subspaces, logit_gain: float) -> None:
    every_token = slice(0, spaces.d_vocab)
    _identity(model.embed.W_E, every_token, spaces.token)
    _identity(model.unembed.W_U, spaces.output, every_token, logit_gain)


def _positions_in(model: HookedSequenceModel, spaces: Subspaces) -> None:
    _identity(model.W_pos, slice(0, spaces.n_ctx), spaces.position)


def _match(
    attn: MultiHeadAttention, head: int, query: slice, key: slice, gain: float, *, at: int = 0
) -> None:
    """A key scores `gain` where its `key` channels hold what the query's `query` channels hold.

    Uses the head's channels from `at` on.
    """
    channels = slice(at, at + query.stop - query.start)
    _identity(attn.W_Q[head], query, channels, gain / attn.scale)
    _identity(attn.W_K[head], key, channels)


def _copy(attn: MultiHeadAttention, head: int, source: slice, target: slice) -> None:
    """Attending writes the attended position's `source` channels into `target`."""
    channels = slice(0, source.stop - source.start)
    _identity(attn.W_V[head], source, channels)
    _identity(attn.W_O[head], channels, target)


def _identity(weight: Tensor, rows: slice, columns: slice, gain: float = 1.0) -> None:
    weight[rows, columns] = gain * torch.eye(rows.stop - rows.start, dtype=weight.dtype)


def _all_but_first(channels: slice) -> slice:
    return slice(channels.start + 1, channels.stop)


def _but_last(channels: slice) -> slice:
    return slice(channels.start, channels.stop - 1)
