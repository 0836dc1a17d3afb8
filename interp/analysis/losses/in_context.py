"""In-context learning as behaviour: how much does a model gain from what it has already read?"""

import math
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from interp.analysis.probes.probe import handed_in, origin_of, probe_for
from interp.models.shapes import Tokens
from interp.results.result import Result
from interp.results.sampling import Groups, Sampling
from interp.views import View, view

LOGITS_AT_ONCE = 32_000_000
"""How many logits one forward pass may give: 128 MB in float32."""


def repeated_sequence_loss(
    model: Any, *, n: int = 50, n_sequences: int = 50, seed: int = 0
) -> Result:
    """Does the model predict random tokens better the second time? What induction heads cause.

    Measured on `[BOS] + r + r`, r being n distinct random tokens. Each copy's first token is left
    out: nothing predicts it.

    Returns:
        A Result over "measure": `first_copy_loss`, `second_copy_loss` and `drop` (first minus
        second) in nats, `second_copy_accuracy` as the share of tokens that are the likeliest
        prediction. Chance for the losses is ln(vocabulary), what uniform predictions cost; a model
        of text is confidently wrong on random tokens, so both losses can lie above it.

    Raises:
        ValueError: sizes that do not fit the context, a weight that is NaN, or a bidirectional
            model, which predicts no next token.

    Source: Olsson et al. 2022.

    >>> from interp.models import HookedAttn
    >>> model = HookedAttn(d_vocab=100, d_model=32, n_heads=2, n_ctx=128)
    >>> repeated_sequence_loss(model, n=20, n_sequences=4).labels["measure"]
    ('first_copy_loss', 'second_copy_loss', 'drop', 'second_copy_accuracy')
    """
    viewed = view(model)
    probe = probe_for(viewed, n, n_sequences, seed)
    loss, hit = _losses(viewed, probe.tokens, "repeated_sequence_loss")
    # The loss of predicting token t stands at index t - 1.
    first, second = (
        slice(probe.positions(copy)[1] - 1, probe.positions(copy)[-1]) for copy in (0, 1)
    )
    losses = [loss[:, first].mean(1), loss[:, second].mean(1)]
    samples = [*losses, losses[0] - losses[1], hit[:, second].double().mean(1)]
    uniform = math.log(viewed.d_vocab)
    measures = ("first_copy_loss", "second_copy_loss", "drop", "second_copy_accuracy")
    return Result.from_samples(
        "repeated_sequence_loss",
        torch.stack(samples, dim=1).numpy(),
        ("measure",),
        labels={"measure": measures},
        chance=[uniform, uniform, 0.0, 1 / viewed.d_vocab],
        unit=dict(zip(measures, ("nats", "nats", "nats", "fraction"), strict=True)),
        provenance=origin_of(viewed, probe),
    )


def loss_by_position(model: Any, tokens: Tokens, *, groups: Groups | None = None) -> Result:
    """How well is the token at each position predicted? Mean next-token loss in nats, by position.

    Args:
        model: one of ours, or a `TransformerBridge`.
        tokens: `[batch pos]`, all of one length, such as the packed blocks of held-out text.
        groups: which text each sequence is from, one label per sequence: blocks that follow one
            another in a text are alike, and taken as independent they make errors too small. With
            groups, errors are over their means. `pack` writes a column `group`; where only the
            order is known, `stretches` makes labels.

    Returns:
        A Result over "position": position t is the loss of token t given the tokens before it, so
        it starts at 1.

    Raises:
        ValueError: tokens that the model cannot read, groups of another number, a weight that is
            NaN, or a bidirectional model, which predicts no next token.

    >>> from interp.models import HookedAttn
    >>> model = HookedAttn(d_vocab=100, d_model=32, n_heads=2, n_ctx=128)
    >>> tokens, group = torch.arange(24).reshape(4, 6), ["numpy", "numpy", "torch", "torch"]
    >>> loss = loss_by_position(model, tokens, groups=group)
    >>> loss.labels["position"], loss.provenance["n_groups"]
    ((1, 2, 3, 4, 5), 2)
    """
    viewed = view(model)
    viewed.check_tokens(tokens)
    sampling = Sampling.of(groups, len(tokens))
    loss, _ = _losses(viewed, tokens, "loss_by_position")
    return Result.from_samples(
        "loss_by_position",
        loss.numpy(),
        ("position",),
        labels={"position": tuple(range(1, tokens.shape[1]))},
        chance=math.log(viewed.d_vocab),
        unit="nats",
        provenance=handed_in(viewed, tokens, sampling),
        groups=sampling,
    )


def in_context_learning_score(
    model: Any,
    tokens: Tokens,
    *,
    early: int | None = None,
    late: int | None = None,
    groups: Groups | None = None,
) -> Result:
    """How much better is a late token predicted than an early one? Loss at `late` minus at `early`.

    More negative is better. Olsson et al. 2022 use the 50th and the 500th token; for shorter
    sequences the default is 10 % and 95 % of their length. The result says which were used.

    Args:
        model: one of ours, or a `TransformerBridge`.
        tokens: `[batch pos]` of text, all of one length. Use many: with 128 blocks, differences
            under 0.1 nats are noise.
        early: the early position.
        late: the late position.
        groups: which text each sequence is from; see `loss_by_position`.

    Returns:
        A Result over "measure", with the single measure `in_context_learning_score`, in nats.

    Raises:
        ValueError: positions out of order or out of the sequence, tokens that the model cannot
            read, a weight that is NaN, or a bidirectional model.

    >>> from interp.models import HookedAttn
    >>> model = HookedAttn(d_vocab=100, d_model=32, n_heads=2, n_ctx=128)
    >>> score = in_context_learning_score(model, torch.arange(80).reshape(4, 20))
    >>> score.provenance["early"], score.provenance["late"]
    (2, 19)
    """
    viewed = view(model)
    viewed.check_tokens(tokens, at_least=3)
    sampling = Sampling.of(groups, len(tokens))
    length = tokens.shape[1]
    default_early, default_late = early_and_late(length)
    early = default_early if early is None else early
    late = default_late if late is None else late
    if not 1 <= early < late < length:
        raise ValueError(
            f"early={early} and late={late} must be positions of a sequence of {length} tokens "
            f"with 1 <= early < late <= {length - 1}"
        )
    loss, _ = _losses(viewed, tokens, "in_context_learning_score")
    return Result.from_samples(
        "in_context_learning_score",
        (loss[:, late - 1] - loss[:, early - 1])[:, None].numpy(),
        ("measure",),
        labels={"measure": ("in_context_learning_score",)},
        chance=0.0,
        unit="nats",
        provenance={**handed_in(viewed, tokens, sampling), "early": early, "late": late},
        groups=sampling,
    )


def early_and_late(length: int) -> tuple[int, int]:
    """The two positions of the in-context-learning score, for sequences of this length.

    >>> early_and_late(512), early_and_late(256)
    ((50, 500), (26, 243))
    """
    if length > 500:
        return 50, 500
    return max(1, round(0.1 * length)), min(length - 1, round(0.95 * length))


def in_batches(viewed: View, tokens: Tokens, name: str) -> tuple[Int[Tensor, "_ pos"], ...]:
    """Sequences as batches, of which a pass gives no more than `LOGITS_AT_ONCE`.

    Args:
        viewed: the model.
        tokens: all sequences.
        name: what asks for predictions, to say so in a refusal.

    Raises:
        ValueError: tokens that the model cannot read, a weight that is NaN, or a bidirectional
            model, which predicts no next token.
    """
    viewed.check_tokens(tokens)
    viewed.check_finite()
    viewed.check_predicts_next(name)
    return tokens.split(max(1, LOGITS_AT_ONCE // (tokens.shape[1] * viewed.d_vocab)))


def _losses(
    viewed: View, tokens: Tokens, name: str
) -> tuple[Float[Tensor, "batch predicted"], Bool[Tensor, "batch predicted"]]:
    """The loss in nats of every token but the first, and whether it was the likeliest prediction.

    A batch of sequences at a time, so that the logits of all are never there at once.
    """
    losses, hits = [], []
    for some in in_batches(viewed, tokens, name):
        outputs = viewed.outputs(some, positions=range(tokens.shape[1] - 1))
        loss, hit = outputs.losses_and_hits(some[:, 1:])
        losses.append(loss)
        hits.append(hit.bool())
    return torch.cat(losses).double().cpu(), torch.cat(hits).cpu()
