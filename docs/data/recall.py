"""What does the recall? The models that docs/recall.md asks, and the table it draws from.

    python docs/data/recall.py train runs/recall
    python docs/data/recall.py measure runs/recall

Small Mambas, `MambaForCausalLM` of transformers, of one layer or two, with their convolution and
without (its weights held at the identity), learn multi-query associative recall. Single layers of
attention, ours, with convolutions in several places, learn to continue the last n-gram as it went
on before. The sequences are of varied length; there are three seeds of each. Runs that are there
already are kept. On one free core, a Mamba takes one or two minutes and an attention layer some
seconds.

`measure` writes docs/data/recall.parquet, a row per number.
"""

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
import torch
import torch.nn.functional as F
import transformers
import typer
from torch import Tensor
from transformers.models.mamba import modeling_mamba

import interp
from interp.analysis import RecallTokens, ar_tokens, mqar_tokens
from interp.models import Attention
from interp.views import View, view

HERE = Path(__file__).parent
SEEDS = (0, 1, 2)
app = typer.Typer()


# ---------------------------------------------------------------------------------- recall: Mamba

D_VOCAB = 61
"""BOS, and 20 each of keys, values and fillers."""

LAGS = (0, 1, 2, 3)
"""Of a Mamba's convolution."""

PAIRS, LONGEST = (2, 4), 24
"""Pairs of a training sequence, and its length at most."""


@dataclass(frozen=True)
class Mamba:
    """A small Mamba, and how long it is trained."""

    layers: int
    convolution: bool = True
    steps: int = 2000

    def build(self, seed: int) -> transformers.MambaForCausalLM:
        """As transformers makes it; without its convolution, that one passes on its input."""
        with torch.random.fork_rng():
            torch.manual_seed(seed)  # noqa: TID251 - in a fork; transformers takes no generator
            model = transformers.MambaForCausalLM(
                transformers.MambaConfig(
                    vocab_size=D_VOCAB,
                    hidden_size=32,
                    state_size=16,
                    conv_kernel=len(LAGS),
                    num_hidden_layers=self.layers,
                    use_cache=False,
                    residual_in_fp32=False,
                    tie_word_embeddings=False,
                    bos_token_id=0,
                    eos_token_id=0,
                    pad_token_id=0,
                )
            )
        for layer in model.backbone.layers if not self.convolution else ():
            convolution = layer.mixer.conv1d
            with torch.no_grad():
                convolution.weight.zero_()[:, :, -1] = 1.0
                convolution.bias.zero_()
            convolution.requires_grad_(False)
        return model


MAMBAS = {
    "mamba-1": Mamba(1),
    "mamba-2": Mamba(2, steps=4000),
    "mamba-1-no-conv": Mamba(1, convolution=False),
}


def scan(
    hidden_states: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    z: Tensor,
    delta_bias: Tensor,
    **kwargs: Any,
) -> Tensor:
    """Mamba's selective scan: what transformers computes, four times faster with gradients.

        h_t = exp(Δ_t A) h_{t-1} + Δ_t B_t x_t        y_t = (C_t h_t + D x_t) silu(z_t)

    Its fallback cuts every position out of one tensor, and each cut's gradient is as large as that.
    """
    dt = F.softplus(dt + delta_bias[:, None]).permute(2, 0, 1)  # position first, as all below
    decay = (dt[..., None] * A).exp()
    write = (dt * hidden_states.permute(2, 0, 1))[..., None] * B.permute(2, 0, 1)[:, :, None]
    state, states = torch.zeros_like(write[0]), []
    for a, b in zip(decay.unbind(), write.unbind(), strict=True):
        state = torch.addcmul(b, a, state)
        states.append(state)
    read = torch.einsum("lbdn,bnl->bdl", torch.stack(states), C)
    return (read + hidden_states * D[:, None]) * F.silu(z)


@contextmanager
def scanned_faster() -> Iterator[None]:
    """Inside, Mambas scan by `scan`."""
    usual = modeling_mamba.mamba_selective_scan
    modeling_mamba.mamba_selective_scan = scan
    try:
        yield
    finally:
        modeling_mamba.mamba_selective_scan = usual


def train_mamba(kind: Mamba, seed: int) -> transformers.MambaForCausalLM:
    """On the values of all queries; every batch has its own number of pairs and length."""
    model, sizes = kind.build(seed), random.Random(seed)

    def loss_of(step: int) -> Tensor:
        n_pairs = sizes.randint(*PAIRS)
        probe = mqar_tokens(
            n_pairs,
            sizes.randint(4 * n_pairs, LONGEST),
            d_vocab=D_VOCAB,
            bos=0,
            n_sequences=32,
            seed=1_000_000 * (seed + 1) + step,
        )
        logits = at(model(probe.tokens).logits, probe.query)
        return F.cross_entropy(logits.flatten(0, 1), probe.target.flatten())

    with scanned_faster():
        optimise(model, loss_of, kind.steps, rate=3e-3)
    return model


def at(logits: Tensor, positions: Tensor) -> Tensor:
    """The logits at positions that every sequence has its own of."""
    return logits.gather(1, positions[:, :, None].expand(-1, -1, logits.shape[-1]))


def optimise(
    model: torch.nn.Module, loss_of: Callable[[int], Tensor], steps: int, rate: float
) -> None:
    """AdamW, with a warm-up of a tenth and a cosine to zero."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=rate, weight_decay=0.1, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, rate, total_steps=steps, pct_start=0.1
    )
    model.train()
    for step in range(steps):
        loss = loss_of(step)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        schedule.step()
        if step % 500 == 499:
            print(f"  step {step + 1}: loss {float(loss.detach()):.3f}", flush=True)
    model.eval()


# -------------------------------------------------------------------------- n-grams: attention

N_GRAMS = (1, 2)
ALPHABET = 16
"""Tokens; those of a sequence are drawn with replacement, so that single ones tell little."""
SHORT, LONG = (8, 32), 512
"""Lengths in training; the longest in a test."""

PLAIN = Attention(n_heads=2, d_head=32)
ON_QK = replace(PLAIN, taps_q=3, taps_k=3)
ATTENTIONS: dict[str, tuple[Attention, str, int]] = {
    "attention": (PLAIN, "none", 500),
    "attention, rotary": (PLAIN, "rotary", 500),
    "smeared keys": (replace(PLAIN, smear=True), "none", 500),
    "taps on k": (replace(PLAIN, taps_k=3), "none", 500),
    "taps on q, k": (ON_QK, "none", 500),
    "taps on q, k, rotary": (ON_QK, "rotary", 500),
    "taps on q, k, longer": (ON_QK, "none", 1500),
}
"""The layer, the positions, and how many steps it is trained."""


def ngrams(n: int, length: int, n_sequences: int, seed: int) -> tuple[Tensor, Tensor]:
    """Random tokens whose last n stood once before, and the token that followed there.

    Everywhere else that n-gram is broken: one of its tokens is exchanged for another.
    """
    draw = torch.Generator().manual_seed(seed)
    tokens = torch.randint(ALPHABET, (n_sequences, length), generator=draw)
    last = length - n
    # One token at least stands between the two: the answer.
    first = torch.randint(last - n, (n_sequences,), generator=draw)
    sought, rows = tokens[:, last:], torch.arange(n_sequences)
    held = torch.zeros_like(tokens, dtype=torch.bool)
    held[:, last:] = True
    for offset in range(n):
        tokens[rows, first + offset] = sought[:, offset]
        held[rows, first + offset] = True
    while True:
        again = (tokens.unfold(1, n, 1)[:, :last] == sought[:, None]).all(-1)
        again[rows, first] = False
        if not again.any():
            break
        for offset in reversed(range(n)):
            free = again & ~held[:, offset : offset + last]
            new = torch.randint(1, ALPHABET, free.shape, generator=draw) * free
            tokens[:, offset : offset + last] = (tokens[:, offset : offset + last] + new) % ALPHABET
            again &= ~free
    return tokens, tokens.gather(1, first[:, None] + n)[:, 0]


def train_attention(name: str, n: int, seed: int) -> interp.HookedSequenceModel:
    """On the token after the last n-gram, of sequences as long as each batch likes."""
    layer, positions, steps = ATTENTIONS[name]
    config = interp.ModelConfig(
        d_vocab=ALPHABET, d_model=64, n_ctx=LONG, layers=(layer,), positions=positions
    )
    model = interp.HookedSequenceModel.from_config(config, seed=seed)
    lengths = random.Random(seed)

    def loss_of(step: int) -> Tensor:
        tokens, target = ngrams(n, lengths.randint(*SHORT), 128, 1_000_000 * (seed + 1) + step)
        return F.cross_entropy(model(tokens)[:, -1], target)

    optimise(model, loss_of, steps, rate=3e-3)
    return model


# ---------------------------------------------------------------------------------- commands


def jobs() -> Iterator[tuple[str, Callable[[], Any]]]:
    """Every run's name, and what trains it."""
    for name, kind in MAMBAS.items():
        for seed in SEEDS:
            yield f"{name}-{seed}", partial(train_mamba, kind, seed)
    for n, name, seed in product(N_GRAMS, ATTENTIONS, SEEDS):
        yield f"{of_words(name)}-{n}-{seed}", partial(train_attention, name, n, seed)


def of_words(name: str) -> str:
    """A name as that of a directory."""
    return name.replace(", ", "-").replace(" ", "-")


@app.command()
def train(directory: Annotated[Path, typer.Argument(help="where runs are put")]) -> None:
    """Train every model that is not there yet."""
    torch.set_num_threads(1)
    for name, trained in jobs():
        if not (directory / name).exists():
            print(name, flush=True)
            trained().save_pretrained(directory / name)


# ---------------------------------------------------------------------------------- measuring

LENGTHS = (16, 24, 32, 64, 128, 256, 512)
N_PAIRS, N_TOKENS = 4, 15
"""Of the sequences that are patched: pairs, filler, and one query at the end."""


def wrapped(run: Path) -> Any:
    """A trained Mamba, with hook points."""
    return interp.wrap(transformers.MambaForCausalLM.from_pretrained(run).eval())


def recalls(model: Any) -> Iterator[pd.DataFrame]:
    """Accuracy on multi-query associative recall: in sequences as in training, longer, fuller."""
    for n_pairs, n in ((2, 12), (4, 24), (4, 48), (4, 96), (4, 192), (8, 48), (16, 96)):
        sizes: dict[str, Any] = {"n_pairs": n_pairs, "n": n, "n_sequences": 200, "seed": 2024}
        found = interp.mqar(model, **sizes).to_frame()
        mean = found.groupby("measure", as_index=False)[["value", "chance"]].mean()
        yield mean.assign(analysis="mqar", n_pairs=n_pairs, length=n)


def without_lags(model: Any) -> Iterator[pd.DataFrame]:
    """Accuracy of one query without a lag: everywhere, or at one place alone."""
    probe = ar_tokens(N_PAIRS, N_TOKENS, d_vocab=D_VOCAB, bos=0, n_sequences=100, seed=2024)

    def accuracy(logits: Tensor, tokens: Tensor) -> Tensor:
        return (logits[:, -1].argmax(-1) == probe.target[:, 0]).double()

    groups = [row // N_PAIRS for row in range(len(probe.tokens))]
    values, after = ([1 + 2 * pair + i for pair in range(N_PAIRS)] for i in (1, 2))
    rest = [place for place in range(N_TOKENS) if place not in (*values, *after)]
    for layer in range(view(model).n_layers):
        for lags in (*([lag] for lag in LAGS), LAGS[1:]):
            where = {
                "everywhere": [None],
                "value": values,
                "after": after,
                "query": [N_TOKENS],
                "elsewhere": rest,
            }
            units = {name: units_at(layer, lags, places) for name, places in where.items()}
            result = interp.ablate(
                model,
                probe.tokens,
                [*units.values()],
                metric=accuracy,
                groups=groups,
                control="none",
            )
            frame = result.to_frame()
            names = {unit: name for name, unit in units.items()}
            yield frame.assign(
                analysis="without",
                lags=",".join(map(str, lags)),
                layer=layer,
                role=frame["component"].map(names),
            ).drop(columns="component")


def interchanged(model: Any) -> Iterator[pd.DataFrame]:
    """Which activation, from a run on other tokens, brings the other answer with it?

    The clean sequence is asked for one of its pairs. In the corrupted one that pair has another
    key, or another value, or has exchanged its key with another pair. Clean activations are put
    into the corrupted run at single places; the metric is the probability of the clean answer.
    """
    probe = ar_tokens(N_PAIRS, N_TOKENS, d_vocab=D_VOCAB, bos=0, n_sequences=100, seed=2024)
    for pair in range(N_PAIRS):
        clean, target = probe.tokens[pair::N_PAIRS], probe.target[pair::N_PAIRS]
        key, other = 1 + 2 * pair, 1 + 2 * ((pair + 2) % N_PAIRS)

        def probability(logits: Tensor, tokens: Tensor, target: Tensor = target) -> Tensor:
            return logits[:, -1].double().softmax(-1).gather(1, target)[:, 0]

        exchanged = clean.clone()
        exchanged[:, [key, other]] = clean[:, [other, key]]
        inputs = {
            "another key": (with_another(clean, key, probe), [key]),
            "another value": (with_another(clean, key + 1, probe), [key]),
            "keys exchanged": (exchanged, [key, other]),
        }
        for change, (corrupted, keys) in inputs.items():
            sites = pd.DataFrame(
                sites_of(view(model), keys), columns=["layer", "site", "role", "unit"]
            )
            result = interp.patch(model, clean, corrupted, sites.unit.tolist(), probability)
            frame = result.to_frame().rename(columns={unit_axis(result): "changed"})
            frame = frame.merge(sites.rename(columns={"unit": "changed"}), on="changed")
            frame = frame.drop(columns="changed")
            yield frame.assign(analysis="interchange", change=change, pair=pair)


def unit_axis(result: interp.Result) -> str:
    """The axis of what was changed."""
    return next(axis for axis in result.axes if axis != "measure")


def with_another(tokens: Tensor, place: int, probe: RecallTokens) -> Tensor:
    """The token at a position replaced by one of its kind that the sequence does not hold."""
    first, last = probe.parts["keys" if place % 2 else "values"]
    changed = tokens.clone()
    for row, held in zip(changed, tokens.tolist(), strict=True):
        row[place] = next(token for token in range(first, last + 1) if token not in held)
    return changed


ROLES = {"key": 0, "value": 1, "after": 2}
"""How far from its key a pair's positions are; the one after its value is not its own."""


def sites_of(viewed: View, keys: Sequence[int]) -> Iterator[tuple[int, str, str, str]]:
    """Layer, name, place and unit: the stream, a convolution's lags, and what a layer writes."""
    roles = {role: [key + offset for key in keys] for role, offset in ROLES.items()}
    roles["query"] = [N_TOKENS]
    for layer in range(viewed.n_layers):
        (writer,) = viewed.written_by(layer)
        for role, places in roles.items():
            for name, unit in (("stream", f"L{layer}.resid_pre"), ("written", writer.label)):
                yield layer, name, role, "+".join(f"{unit}@{place}" for place in places)
            yield layer, "convolution", role, units_at(layer, LAGS, places)
            if role in ("key", "query"):
                continue
            for lag in LAGS:
                yield layer, f"lag {lag}", role, units_at(layer, [lag], places)
            rest = [place for place in range(N_TOKENS + 1) if place not in places]
            yield layer, "convolution", f"all but {role}", units_at(layer, LAGS, rest)


def units_at(layer: int, lags: Sequence[int], places: Sequence[int | None]) -> str:
    """Lags of a convolution joined, at some positions or everywhere, as one unit."""
    at_place = ("" if place is None else f"@{place}" for place in places)
    return "+".join(f"L{layer}.lag{lag}{where}" for where in at_place for lag in lags)


def by_length(run: Path, n: int) -> pd.DataFrame:
    """How often the token after the last n-gram is right, in sequences of each length."""
    model, parts = interp.HookedSequenceModel.from_pretrained(run).eval(), []
    for length in LENGTHS:
        tokens, target = ngrams(n, length, 500, seed=2024)
        with torch.no_grad():
            hits = (model(tokens)[:, -1].argmax(-1) == target).double().numpy()
        result = interp.Result.from_samples(
            "accuracy", hits[:, None], ("measure",), labels={"measure": ("accuracy",)}
        )
        parts.append(result.to_frame().assign(analysis="ngrams", n=n, length=length))
    return pd.concat(parts)


def asked(directory: Path) -> Iterator[tuple[dict[str, Any], Path, Callable[[], pd.DataFrame]]]:
    """Every run: what it is, where it is, and what measures it."""

    def of_mamba(run: Path) -> pd.DataFrame:
        model = wrapped(run)
        studies = (recalls, without_lags, interchanged)
        return pd.concat([part for study in studies for part in study(model)])

    for name, seed in product(MAMBAS, SEEDS):
        run = directory / f"{name}-{seed}"
        yield {"model": name, "seed": seed}, run, partial(of_mamba, run)
    for n, name, seed in product(N_GRAMS, ATTENTIONS, SEEDS):
        run = directory / f"{of_words(name)}-{n}-{seed}"
        yield {"model": name, "seed": seed}, run, partial(by_length, run, n)


@app.command()
def measure(directory: Annotated[Path, typer.Argument(help="where the runs are")]) -> None:
    """Ask every run that was not asked yet, and write the table."""
    torch.set_num_threads(1)
    parts = []
    for what, run, measured in asked(directory):
        found = run / "measured.parquet"
        if not found.exists():
            print(run.name, flush=True)
            measured().to_parquet(found)
        parts.append(pd.read_parquet(found).assign(**what))
    table = pd.concat(parts, ignore_index=True)
    table.to_parquet(HERE / "recall.parquet", index=False, compression="zstd")


if __name__ == "__main__":
    app()
