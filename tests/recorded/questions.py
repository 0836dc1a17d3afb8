"""What every recorded model is asked: each public analysis, by its public name.

A question is a name and a call without arguments. A call that the library refuses with a ValueError
is recorded as refused, so each model is asked everything. Only two things are not asked of `interp`
or `interp.analysis`: the operations of a forward pass and Muon's parameters, which training keeps.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch

import interp
import interp.analysis
from interp.training.flops import flops_per_token
from interp.training.optimizer import optimizer_for
from tests.recorded.models import Subject, subject

Question = tuple[str, Callable[[], Any]]

N_RANDOM = 3
"""Random draws, rotations, models: enough to see that they are the same ones."""


@dataclass(frozen=True)
class Loose:
    """An answer that holds to less than the usual tolerance.

    That is so where random numbers are drawn in float32: PyTorch's vectorised normal distribution
    gives other last digits on other processors. Rotations, and models of random weights, are such.
    """

    answer: Any
    tolerance: float = 1e-5


def questions(s: Subject) -> Iterator[Question]:
    """All that one model is asked."""
    for topic in (model_itself, scores, losses, weights, lags, attributions, interventions):
        yield from topic(s)
    yield from (("caches/" + name, call) for name, call in caches(s))


def model_itself(s: Subject) -> Iterator[Question]:
    """Logits, gradients, folding, sizes."""
    yield "logits", lambda: s.model(s.tokens)
    yield "loss", lambda: s.model(s.tokens, return_type="loss")
    yield "loss per token", lambda: s.model(s.tokens, return_type="loss", loss_per_token=True)
    yield "gradients", lambda: gradients(s)
    yield "fold_norms", lambda: s.model.fold_norms()(s.tokens)
    yield "parameters", lambda: sum(p.numel() for p in s.model.parameters())
    yield "flops_per_token", lambda: vars(flops_per_token(s.model.config))
    yield "muon", lambda: muon_groups(s)


def gradients(s: Subject) -> dict[str, float]:
    """The length of the loss's gradient by parameter."""
    parameters = dict(s.model.named_parameters())
    loss = s.model(s.tokens, return_type="loss")
    found = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
    pairs = zip(parameters, found, strict=True)
    return {name: 0.0 if g is None else float(g.norm()) for name, g in pairs}


def muon_groups(s: Subject) -> dict[str, int]:
    """How many parameters Muon moves, and how many AdamW does."""
    optimizer = optimizer_for(s.model, interp.Recipe(optimizer="muon"))
    sizes: dict[str, int] = {}
    for group in optimizer.param_groups:
        name = "Muon" if "layout" in group else "AdamW"
        sizes[name] = sizes.get(name, 0) + sum(p.numel() for p in group["params"])
    return sizes


def scores(s: Subject) -> Iterator[Question]:
    """What heads attend to."""
    probe: dict[str, Any] = {"n": s.n, "n_sequences": 4, "seed": 1}
    yield "head_scores", partial(interp.head_scores, s.model, **probe)
    for variant in ("stripe", "olsson", "tl"):
        call = partial(interp.induction_score, s.model, variant=variant)
        if variant == "olsson":
            yield (
                f"induction_score/{variant}",
                partial(call, n=min(25, s.model.config.n_ctx // 5), n_sequences=2, seed=1),
            )
        else:
            yield f"induction_score/{variant}", partial(call, **probe)
    yield "induction_score/sum", partial(interp.induction_score, s.model, reduce="sum", **probe)
    yield "previous_token_score", partial(interp.previous_token_score, s.model, **probe)
    yield "previous_token_score/text", partial(interp.previous_token_score, s.model, s.tokens)
    yield "duplicate_token_score", partial(interp.duplicate_token_score, s.model, **probe)
    yield "first_token_score", partial(interp.first_token_score, s.model, **probe)
    for layer in s.model.config.attention_layers:
        call = partial(interp.attention_pattern, s.model, s.tokens[:1], layer)
        yield f"attention_pattern/L{layer}", call


def losses(s: Subject) -> Iterator[Question]:
    """What it predicts, where."""
    probe: dict[str, Any] = {"n": s.n, "n_sequences": 4, "seed": 1}
    yield "repeated_sequence_loss", partial(interp.repeated_sequence_loss, s.model, **probe)
    asked: dict[str, Any] = {"n_pairs": 3, "n": 14, "n_sequences": 4, "seed": 1}
    yield "mqar", partial(interp.mqar, s.model, **asked)
    yield "mqar/distance", partial(interp.mqar, s.model, by="distance", power=1.0, **asked)
    yield "ar", partial(interp.ar, s.model, **asked)
    yield "loss_by_position", partial(interp.loss_by_position, s.model, s.tokens)
    call = partial(interp.in_context_learning_score, s.model, s.tokens)
    yield "in_context_learning_score", call
    yield "in_context_learning_score/2-9", partial(call, early=2, late=9)
    yield "logit_lens", partial(interp.logit_lens, s.model, s.tokens)
    call = partial(interp.logit_lens, s.model, s.tokens, correct=5, positions=[3, 7])
    yield "logit_lens/by position", partial(call, per_position=True)
    yield "lens_tokens", partial(interp.lens_tokens, s.model, s.tokens[:1], 3)
    yield (
        "repeated_tokens",
        lambda: (
            interp.repeated_tokens(
                s.n, d_vocab=s.model.config.d_vocab, bos=0, n_sequences=4, seed=1
            ).tokens
        ),
    )


def weights(s: Subject) -> Iterator[Question]:
    """QK, OV, composition, copying, positions: from the weights."""
    head, turn = s.heads[-1], {"distance": 2 * (s.model.config.positions == "rotary")}
    on_text: dict[str, Any] = {"tokens": s.tokens}
    qk = partial(interp.qk_circuit, s.model, head, **turn)
    ov = partial(interp.ov_circuit, s.model, head)
    yield "qk_circuit/residual", qk
    yield "qk_circuit/positions", partial(qk, basis="positions", **on_text)
    yield "qk_circuit/vocabulary", partial(qk, basis="vocabulary", **on_text)
    yield "qk_circuit/lags 0 1", partial(qk, basis="vocabulary", lags=(0, 1), **on_text)
    yield "ov_circuit/residual", ov
    yield "ov_circuit/vocabulary", partial(ov, basis="vocabulary", **on_text)
    yield "ov_circuit/lag 1", partial(ov, basis="vocabulary", lag=1, **on_text)
    yield "reads/q", lambda: of_reads(interp.analysis.reads(s.model, head, "q", **on_text))
    yield "reads/k", lambda: of_reads(interp.analysis.reads(s.model, head, "k"))
    yield "reads/v", lambda: of_reads(interp.analysis.reads(s.model, head, "v", **on_text))
    yield "copying_score/eigenvalue", partial(interp.copying_score, s.model, **on_text)
    yield (
        "copying_score/olsson",
        partial(interp.copying_score, s.model, "olsson", n=9, n_samples=3, **on_text),
    )
    yield (
        "positional_circuit",
        partial(interp.positional_circuit, s.model, head, n_positions=12, **on_text),
    )
    yield "match_table", partial(interp.match_table, s.model, **turn)
    yield "match_table/text", partial(interp.match_table, s.model, **on_text, **turn)
    yield "diagonal_preference", partial(interp.diagonal_preference, s.model, **on_text, **turn)
    yield "previous_token_match", partial(interp.previous_token_match, s.model, **on_text, **turn)
    composed = partial(interp.composition_scores, s.model, n_rotations=N_RANDOM, **turn)
    yield "composition_scores", lambda: composed().sel(measure="score").values
    baseline = ["excess", "spread", "p_corrected"]
    yield "composition_scores/baseline", lambda: Loose(composed().sel(measure=baseline))
    # Three rotations may differ by little, and a z-value divides by that.
    yield "composition_scores/z", lambda: Loose(composed().sel(measure="z").values, 1e-3)


def of_reads(reads: interp.analysis.Reads) -> dict[str, Any]:
    """Maps, the lengths of constants, and scales."""
    constants = {name: float(x.norm()) for name, x in reads.constants.items()}
    return {"maps": reads.maps, "constants": constants, "scales": dict(reads.scales)}


def lags(s: Subject) -> Iterator[Question]:
    """Convolutions and smeared keys."""
    head = s.heads[-1]
    frequencies = torch.arange(1, 1 + s.model.config.d_vocab, dtype=torch.float64)
    frequencies /= frequencies.sum()
    yield "lag_circuits", lambda: of_lags(interp.lag_circuits(s.model, head, s.tokens[:1]))
    yield "lag_pair_shares", partial(interp.lag_pair_shares, s.model, s.tokens)
    yield "without_lag_pair", lambda: under(s, interp.without_lag_pair(s.model, head, (0, 1)))
    yield "detect_smeared_keys", partial(interp.detect_smeared_keys, s.model)
    yield "detect_smeared_keys/text", partial(interp.detect_smeared_keys, s.model, s.tokens)
    yield (
        "detect_smeared_keys/frequencies",
        partial(interp.detect_smeared_keys, s.model, frequencies=frequencies),
    )
    yield "conv_lags", partial(interp.conv_lags, s.model)
    for layer in s.convolutions:
        yield f"conv_weights/L{layer}", partial(interp.conv_weights, s.model, layer)
        yield f"conv_singular_values/L{layer}", partial(interp.conv_singular_values, s.model, layer)


def of_lags(circuits: interp.analysis.LagCircuits) -> dict[str, Any]:
    """The size of every pair's circuit and every lag's, and what they come to on the tokens."""
    sizes = {f"qk {i} {j}": float(pair.AB.norm()) for (i, j), pair in circuits.qk.items()}
    sizes |= {f"ov {j}": float(lag.AB.norm()) for j, lag in circuits.ov.items()}
    return {"sizes": sizes, "scores": circuits.scores, "outputs": circuits.outputs}


def under(s: Subject, hooks: Any) -> interp.Result:
    """Induction scores while these hooks run."""
    with s.model.hooks(fwd_hooks=hooks):
        return interp.induction_score(s.model, n=s.n, n_sequences=4, seed=1)


def attributions(s: Subject) -> Iterator[Question]:
    """Logits as sums over parts and paths."""
    yield "logit_attribution/heads", partial(interp.logit_attribution, s.model, s.tokens)
    call = partial(interp.logit_attribution, s.model, s.tokens, by="layers", incorrect="mean")
    yield "logit_attribution/layers", partial(call, positions=[4, 8], per_position=False)
    call = partial(interp.path_attribution, s.model, s.tokens)
    yield "path_attribution", partial(call, per_position=False)
    yield "path_attribution/against another", partial(call, s.heads[0], correct=3, incorrect=4)


def interventions(s: Subject) -> Iterator[Question]:
    """Ablation, and patching of every kind."""
    first, last, conv = s.heads[0], s.heads[-1], s.convolutions
    mlp = next((f"L{i}.mlp" for i, one in enumerate(s.model.config.layers) if one.mlp), None)
    paths = [f"{first}->logits", f"embed->{last}.k", f"embed->{last}.v"]
    if conv:
        paths += [f"L{conv[0]}.lag1->{last}.k", f"L{conv[0]}.lag0->{last}.q"]
    if first[1] != last[1]:
        paths += [f"{first}->{last}.v", f"{first}->{last}.q"]
    if mlp:
        paths += [f"{mlp}->logits"]
    single = [last, f"{last}.q", f"{first}@2:5", f"{last}.pattern", f"{first}+{last}", "embed"]
    single += [f"blocks.{last[1]}.attn.hook_z[:, 0]", f"L{last[1]}.resid_pre@3", f"L{last[1]}"]
    repeated = interp.repeated_tokens(
        s.n, d_vocab=s.model.config.d_vocab, bos=0, n_sequences=4, seed=2
    )
    ablate = partial(interp.ablate, s.model, s.tokens, n_random=N_RANDOM, seed=1)
    for method in ("zero", "mean", "resample", "pattern_preserving"):
        yield f"ablate/heads {method}", partial(ablate, "heads", method)
    for units in ("layers", "lags", "positions", "q", "k", "v", "pattern", "mlp_out", "resid_mid"):
        yield f"ablate/{units}", partial(ablate, units, "mean", control="none")
    yield "ablate/single units", partial(ablate, single, "resample", control="none")
    yield "ablate/directions", partial(ablate, [last], "mean", control="directions")
    yield "ablate/paths", partial(ablate, paths, "mean")
    yield "ablate/pairs", partial(ablate, "heads", pairs=True, control="none")
    yield "ablate/cumulative", partial(ablate, "heads", "mean", cumulative=True)
    yield "ablate/loss_per_token", partial(ablate, [last], "mean", "loss_per_token")
    yield (
        "ablate/logit_difference",
        partial(ablate, [last], metric=interp.LogitDifference(3, 4), control="none"),
    )
    for metric in ("second_copy_loss", "in_context_learning_score", interp.InductionScore(last)):
        name = metric if isinstance(metric, str) else "induction_score"
        yield (
            f"ablate/repeated {name}",
            partial(
                interp.ablate, s.model, repeated, [first, last], "mean", metric, control="none"
            ),
        )
    clean, corrupted = s.tokens, s.tokens.flip(0)
    difference = interp.LogitDifference([3, 4, 5, 6], [6, 5, 4, 3])
    inputs: dict[str, Any] = {"clean": clean, "corrupted": corrupted, "metric": difference}
    for units in ("heads", "lags", "resid_pre@*", "k"):
        yield f"patch/{units}", partial(interp.patch, s.model, units=units, **inputs)
    yield "patch/noise", partial(interp.patch, s.model, direction="noise", **inputs)
    yield "patch/paths", partial(interp.patch, s.model, units=paths, **inputs)
    senders = ["embed", first, *(["L*.lag*"] if conv else []), *([mlp] if mlp else [])]
    receivers = [f"{last}.q", f"{last}.k", f"{last}.v", last, "logits"]
    call = partial(interp.path_patch, s.model, senders, receivers)
    yield "path_patch/denoise", partial(call, **inputs)
    yield "path_patch/noise", partial(call, clean, corrupted, "loss", "noise")
    for units in ("heads", "resid_pre@*"):
        yield (
            f"attribution_patch/{units}",
            partial(interp.attribution_patch, s.model, units=units, **inputs),
        )
    yield (
        "attribution_patch/paths",
        partial(interp.attribution_patch, s.model, clean, corrupted, paths, "loss", "noise"),
    )
    sizes: dict[str, Any] = {"n": s.n, "n_sequences": 4, "n_random": N_RANDOM, "most_heads": 1}
    # To be called interp.induction_circuit.
    yield "induction_circuit", lambda: of_circuit(interp.induction_circuit(s.model, **sizes))


def of_circuit(circuit: interp.analysis.InductionCircuit) -> dict[str, Any]:
    """Its heads, and what they, the edges and the pairs of lags do."""
    cells = {
        f"{head} {i} {j}": effect.value
        for head, pairs in circuit.cells.items()
        for (i, j), effect in pairs.items()
    }
    return {
        "found": str(circuit.found),
        "heads": ", ".join(circuit.heads),
        "removed": {head: effect.value for head, effect in circuit.removal.items()},
        "scores": circuit.scores.sel(measure=["score", "unmatched"]),
        "graph": circuit.graph.sel(measure=["score", "score_low", "loss", "loss_random_high"]),
        "cells": cells,
    }


def caches(s: Subject) -> Iterator[Question]:
    """What the cache decomposes the stream into."""
    logits, cache = s.model.run_with_cache(s.tokens)
    streams = [name for name in cache if name.endswith(("resid_pre", "resid_post", "hook_scale"))]
    yield "names", lambda: len(cache)
    yield "streams", lambda: {name: cache[name].square().mean().sqrt().item() for name in streams}
    yield "logits", lambda: logits
    labelled: dict[str, Any] = {"return_labels": True}
    yield "decompose_resid", lambda: by_label(*cache.decompose_resid(**labelled))
    yield (
        "decompose_resid/normed",
        lambda: by_label(*cache.decompose_resid(apply_ln=True, pos_slice=-1, **labelled)),
    )
    yield "accumulated_resid", lambda: by_label(*cache.accumulated_resid(**labelled))
    yield "stack_head_results", lambda: by_label(*cache.stack_head_results(**labelled))
    yield (
        "full decomposition",
        lambda: by_label(*cache.get_full_resid_decomposition(expand_neurons=False, **labelled)),
    )
    yield "logit_attrs", lambda: cache.logit_attrs(cache.decompose_resid(), s.tokens)
    yield "logit_bias", lambda: s.model.logit_bias(s.tokens)


def by_label(stack: torch.Tensor, labels: list[str]) -> interp.Result:
    """The root mean square of each part."""
    sizes = stack.detach().flatten(1).square().mean(1).sqrt()
    return interp.Result("parts", sizes.numpy(), ("part",), {"part": labels})


def of_runs() -> Iterator[Question]:
    """What is asked of curves: a made-up one, the suite's, and three models as one run."""
    steps = (0, 1, 2, 4, 8, 16, 32, 64, 128)
    heads = ("L0H0", "L0H1", "L0H2")
    rng = np.random.default_rng(0)
    rise = 1 / (1 + np.exp(-2 * (np.log2(np.maximum(steps, 0.5)) - 4)))
    values = rise[:, None, None] * [0.9, 0.4, 0.01] + 0.02 * rng.standard_normal((9, 6, 3))
    labels = {"step": steps, "sample": range(6), "head": heads}
    curve = interp.Result("score", values, ("step", "sample", "head"), labels, unit="fraction")
    mean = interp.analysis.over_samples(curve)
    yield "over_samples", lambda: mean
    yield "best_head", partial(interp.best_head, curve)
    yield "phase_change/samples", partial(interp.phase_change, curve, resamples=50)
    yield "phase_change/errors", partial(interp.phase_change, mean, least=0.1, resamples=50)
    induction = partial(interp.analysis.suite, "induction", corpus="docs")
    runs = [interp.best_head(run) for run in induction(member=["conv-attn", "smeared-attn"])]
    yield "suite", lambda: induction(member="conv-attn", seed=0)[0]
    yield "suite/loss", lambda: interp.analysis.suite("second_copy_loss", member="attn", seed=1)[0]
    yield "suite_table", lambda: interp.analysis.suite_table()["value"].to_numpy()
    yield "suite/best_head", lambda: runs[0]
    yield "suite/phase_change", partial(interp.phase_change, runs[0], resamples=50)
    yield "tokens_to_reach", partial(interp.tokens_to_reach, runs, 0.3)
    yield "tokens_to_reach/never", partial(interp.tokens_to_reach, runs, 0.9)
    run = three_models()
    score = partial(interp.induction_score, n=5, n_sequences=3)
    grown = partial(interp.development, run, score, tokens_per_step=64)
    yield "development", grown
    yield "development/samples", partial(grown, samples={"seed": range(3)})


def three_models() -> list[tuple[int, interp.HookedSequenceModel]]:
    """Steps, and models that get farther from the first."""
    models = [subject("lag bias").model for _ in range(3)]
    with torch.no_grad():
        for factor, model in enumerate(models, start=1):
            for parameter in model.parameters():
                parameter.mul_(factor)
    return [(10 * step, model) for step, model in enumerate(models)]
