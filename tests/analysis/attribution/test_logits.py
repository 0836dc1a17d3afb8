"""Direct logit attribution: its sum, its parts, what was planted, and TransformerLens's numbers."""

import re

import numpy as np
import pytest
import torch
import transformer_lens

from interp.analysis import repeated_tokens
from interp.analysis.attribution.logits import logit_attribution
from interp.models import HookedAttn, HookedAttnAttn, HookedConvAttn
from tests.analysis import planted
from tests.analysis.bridges import CONFIGS, bridged, hugging_face, probe
from tests.models import zoo

EXACT = {"rtol": 0, "atol": 1e-10}
N, D_VOCAB, N_CTX = 6, 12, 16
PLANTED = {
    "conv-attn": (planted.induction_conv_attn, "L1H1"),
    "smeared-attn": (planted.induction_smeared_attn, "L0H1"),
    "attn-attn": (planted.induction_attn_attn, "L1H1"),
}


def ours(label):
    """What we call a component of TransformerLens's, or of our cache's."""
    label = re.sub(r"^(\d+)_conv_lag(\d+)$", r"L\1.lag\2", label)
    return re.sub(r"^(\d+)_(attn|conv|mlp)_out$", r"L\1.\2", label)


def logits_of(model, tokens, correct):
    with torch.no_grad():
        return model(tokens).double().gather(-1, correct[..., None])[..., 0].numpy()


# ----------------------------------------------------------------------- (a) planted by hand


@pytest.mark.parametrize("kind", PLANTED)
def test_the_planted_head_adds_the_logit_and_nothing_else_does(kind):
    build, head = PLANTED[kind]
    model = build(d_vocab=D_VOCAB, n_ctx=N_CTX, head=1, gain=5.0, logit_gain=3.0)
    tokens = repeated_tokens(N, d_vocab=D_VOCAB, bos=0, n_sequences=3).tokens
    parts = logit_attribution(model, tokens)
    # The next token of a query t in the second copy is at t - (n - 1), which gets E / (E + t). Of
    # the first copy only the last query, which attends alike to all, has seen its next token.
    t, e = np.arange(2 * N), np.exp(5.0)
    expected = np.where(t > N, 3 * e / (e + t), np.where(t == N, 3 / (N + 1), 0))
    np.testing.assert_allclose(parts.sel(part=head).values, expected, **EXACT)
    others = [name for name in parts.labels["part"] if name != head]
    assert len(others) > 2
    assert (parts.sel(part=others).values == 0).all()
    np.testing.assert_allclose(parts.sel(part=head).standard_error, 0, **EXACT)


# ------------------------------------------------------------------------- (b) random weights


@pytest.mark.parametrize("preset", [HookedConvAttn, HookedAttnAttn, HookedAttn])
def test_random_weights_add_nothing_to_the_repeat(preset):
    tokens = repeated_tokens(15, d_vocab=60, bos=0, n_sequences=8).tokens
    options = {"positions": range(16, 30), "incorrect": "mean", "per_position": False}
    means = []
    for seed in range(20):
        model = preset(d_vocab=60, d_model=24, n_heads=2, n_ctx=32, seed=seed)
        parts = logit_attribution(model, tokens, **options)
        heads = [name for name in parts.labels["part"] if "H" in name]
        means.append(parts.sel(part=heads).values)
    samples = np.array(means)
    error = samples.std(0, ddof=1) / np.sqrt(20)
    # The 99 % range of Student's t with 19 degrees of freedom, for each of at most four heads.
    assert (np.abs(samples.mean(0)) < 3.5 * error).all()


# --------------------------------------------------------------------------- (c) brute force


@pytest.mark.parametrize("by", ["heads", "layers"])
@pytest.mark.parametrize("name", zoo.CONFIGS)
def test_the_parts_of_any_model_add_up_to_its_logits(name, by):
    tokens, correct = zoo.tokens(), zoo.tokens(seed=8)
    for dtype, tolerance in ((torch.float64, 1e-10), (torch.float32, 1e-5)):
        model = zoo.build(name, dtype)
        logits = logits_of(model, tokens, correct)
        total = logit_attribution(model, tokens, correct=correct, by=by).values.sum(0)
        scale = max(1.0, np.abs(logits).max())
        np.testing.assert_allclose(total, logits.mean(0), rtol=0, atol=tolerance * scale)


@pytest.mark.parametrize("name", ["three lags", "rms", "no norm", "post", "no residual", "deep"])
def test_a_part_is_what_its_removal_takes_from_the_logit(name):
    """Zeroing a part that only the last norm reads, its scale frozen, takes just that away."""
    model, tokens, correct = zoo.build(name), zoo.tokens(), zoo.tokens(seed=8)
    parts = logit_attribution(model, tokens, correct=correct)
    last = len(model.blocks) - 1
    mlp = model.blocks[last].mlp is not None
    _, cache = model.run_with_cache(tokens)
    scales = [key for key in cache.keys() if key.endswith("hook_scale")]  # noqa: SIM118
    frozen = [(key, lambda scale, hook: cache[hook.name]) for key in scales]
    place = f"blocks.{last}.hook_mlp_out" if mlp else f"blocks.{last}.attn.hook_z"
    for index in range(1 if mlp else model.attn(last).W_Q.shape[0]):

        def remove(x, hook, index=index):
            kept = torch.ones_like(x)
            kept[..., index, :] = 0
            return torch.zeros_like(x) if mlp else x * kept

        with model.hooks([*frozen, (place, remove)]):
            without = logits_of(model, tokens, correct)
        expected = (logits_of(model, tokens, correct) - without).mean(0)
        label = f"L{last}.mlp" if mlp else f"L{last}H{index}"
        np.testing.assert_allclose(parts.sel(part=label).values, expected, **EXACT)
        assert np.abs(expected).max() > 1e-3


def test_differences_are_between_two_tokens_logits_or_to_the_mean():
    model, tokens = zoo.build("three lags"), zoo.tokens()
    with torch.no_grad():
        logits = model(tokens).numpy()
    right, wrong = torch.tensor([1, 2, 3]), torch.tensor([4, 5, 6])
    rows = np.arange(3)
    for incorrect, other in (
        (wrong, logits[rows, :, wrong]),
        (7, logits[..., 7]),
        (zoo.tokens(seed=9), np.take_along_axis(logits, zoo.tokens(seed=9)[..., None].numpy(), -1)),
        ("mean", logits.mean(-1)),
    ):
        parts = logit_attribution(model, tokens, correct=right, incorrect=incorrect)
        expected = logits[rows, :, right] - other.reshape(3, -1)
        np.testing.assert_allclose(parts.values.sum(0), expected.mean(0), **EXACT)


def test_positions_are_those_asked_for_and_the_error_is_over_sequences(monkeypatch):
    model, tokens, sizes = zoo.build("rms"), zoo.tokens(batch=5), []
    whole = logit_attribution(model, tokens)
    assert whole.labels["position"] == tuple(range(zoo.N_CTX - 1))
    one_by_one = np.stack([logit_attribution(model, row[None]).values for row in tokens])
    error = one_by_one.std(0, ddof=1) / np.sqrt(5)
    monkeypatch.setattr("interp.analysis.attribution.logits.TOKENS_AT_ONCE", 2 * zoo.N_CTX)
    model.add_hook("hook_embed", lambda value, hook: sizes.append(len(value)))
    some = logit_attribution(model, tokens, positions=[-2, 1])
    assert sizes == [2, 2, 1]
    assert some.labels["position"] == (zoo.N_CTX - 2, 1)
    np.testing.assert_allclose(some.values, one_by_one.mean(0)[:, [-1, 1]], **EXACT)
    np.testing.assert_allclose(some.standard_error, error[:, [-1, 1]], **EXACT)
    mean = logit_attribution(model, tokens, positions=[2, 3], per_position=False)
    samples = one_by_one[..., 2:4].mean(-1)
    np.testing.assert_allclose(mean.values, samples.mean(0), **EXACT)
    error = samples.std(0, ddof=1) / np.sqrt(5)
    np.testing.assert_allclose(mean.standard_error, error, **EXACT)
    assert mean.axes == ("part",)
    assert mean.provenance["n_sequences"] == 5
    assert mean.provenance["positions"] == "2 to 3"


def test_no_logit_is_computed_and_no_pattern():
    model, tokens = zoo.build("three lags"), zoo.tokens()

    def never(*args):
        raise AssertionError

    model.unembed.forward = model.blocks[1].attn._spelled_out = never
    logit_attribution(model, tokens)


# ------------------------------------------------------------------------ (d) TransformerLens


@pytest.mark.parametrize("name", ["narrow heads", "no biases", "rms", "shortformer, conv"])
def test_it_is_the_logit_attrs_of_our_own_cache(name):
    model, tokens, correct = zoo.build(name), zoo.tokens(), zoo.tokens(seed=8)
    _, cache = model.run_with_cache(tokens)
    stack, labels = cache.get_full_resid_decomposition(expand_neurons=False, return_labels=True)
    expected = cache.logit_attrs(stack, correct).mean(1).detach().numpy()
    parts = logit_attribution(model, tokens, correct=correct)
    for label, row in zip(labels, expected, strict=True):
        if label == "bias":
            biases = [c for c in parts.labels["part"] if c.startswith("blocks.")]
            row = row - parts.sel(part=biases).values.sum(0) if biases else row * 0
            np.testing.assert_allclose(row, 0, **EXACT)
        else:
            np.testing.assert_allclose(parts.sel(part=ours(label)).values, row, **EXACT)


def test_it_is_transformer_lenss_own_logit_attrs_of_two_attention_layers():
    """TransformerLens's base class knows nothing of our overrides; the norms are folded for it."""
    model = zoo.randomise(
        HookedAttnAttn(d_vocab=23, d_model=12, n_heads=3, n_ctx=8).double()
    ).fold_norms()
    tokens, correct = zoo.tokens(), zoo.tokens(seed=8)
    _, cache = model.run_with_cache(tokens)
    theirs = transformer_lens.ActivationCache(cache.cache_dict, model)
    heads, labels = theirs.stack_head_results(return_labels=True)
    expected = theirs.logit_attrs(heads, correct).mean(1).detach().numpy()
    parts = logit_attribution(model, tokens, correct=correct)
    np.testing.assert_allclose(parts.sel(part=map(ours, labels)).values, expected, **EXACT)
    layers, labels = theirs.decompose_resid(return_labels=True)
    expected = theirs.logit_attrs(layers, correct).mean(1).detach().numpy()
    parts = logit_attribution(model, tokens, correct=correct, by="layers")
    np.testing.assert_allclose(parts.sel(part=map(ours, labels)).values, expected, **EXACT)


@pytest.mark.parametrize("kind", ["gpt2", "llama", "neox", "mistral"])
def test_a_bridges_parts_add_up_to_hugging_faces_logits(kind):
    model, tokens = hugging_face(kind), probe(9)
    with torch.no_grad():
        logits = model(tokens).logits[:, :-1].gather(-1, tokens[:, 1:, None])[..., 0]
    for by in ("heads", "layers"):
        parts = logit_attribution(bridged(hugging_face(kind)), tokens, by=by)
        np.testing.assert_allclose(parts.values.sum(0), logits.mean(0), rtol=0, atol=1e-5)


@pytest.mark.parametrize(("kind", "norm"), [("gpt2", "transformer.ln_f"), ("llama", "model.norm")])
def test_a_bridges_parts_are_transformer_lenss_logit_attrs(kind, norm):
    inner, tokens = hugging_face(kind), probe(9)
    with torch.no_grad():
        inner.get_submodule(norm).weight.fill_(1)  # TransformerLens leaves the gain out
    model = bridged(inner)
    _, cache = model.run_with_cache(tokens)
    parts = logit_attribution(model, tokens)
    stack, labels = cache.stack_head_results(return_labels=True)
    attributions = cache.logit_attrs(stack[:, :, :-1], tokens[:, 1:], pos_slice=(0, -1))
    expected = attributions.mean(1).detach().numpy()
    np.testing.assert_allclose(
        parts.sel(part=map(ours, labels)).values, expected, rtol=0, atol=1e-6
    )


@pytest.mark.parametrize(
    ("by", "why"),
    [("heads", "layer 0: what its heads attended to, through W_O, misses"),
     ("layers", "parts miss the logit by")],
)  # fmt: skip
def test_a_bridge_whose_logits_are_no_such_sum_is_refused(by, why):
    with pytest.raises(ValueError, match=f"Gemma2.*{why}"):
        logit_attribution(bridged(hugging_face("gemma2")), probe(9), by=by)
    assert set(CONFIGS) == {"gpt2", "llama", "neox", "mistral", "gemma2"}


# ------------------------------------------------------------------------------------- refusals


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"by": "neurons"}, "by is 'neurons'; choose one of heads, layers"),
        ({"positions": []}, "positions are \\[\\]"),
        ({"positions": [zoo.N_CTX - 1]}, "the last has no next token"),
        ({"positions": [1, 1]}, "different ones"),
        ({"positions": [zoo.N_CTX], "correct": 1}, f"0 to {zoo.N_CTX - 1} of a sequence"),
        ({"correct": zoo.D_VOCAB}, f"token {zoo.D_VOCAB}, which is outside the vocabulary"),
        ({"incorrect": -1}, "incorrect holds token -1"),
        ({"correct": torch.zeros(2, dtype=torch.long)}, "correct has shape \\(2,\\)"),
        ({"correct": torch.zeros(3, 2, dtype=torch.long)}, "correct has shape \\(3, 2\\)"),
    ],
)
def test_a_wrong_question_is_refused_before_any_forward(arguments, message):
    model = zoo.build("rms")
    model.forward = lambda *args, **kwargs: pytest.fail("a forward pass before the refusal")
    with pytest.raises(ValueError, match=message):
        logit_attribution(model, zoo.tokens(), **arguments)


@pytest.mark.usefixtures("unchecked")
def test_tokens_that_are_no_ids_are_refused():
    for wrong in (1.5, torch.zeros(3), "mode"):
        with pytest.raises((TypeError, ValueError), match="incorrect"):
            logit_attribution(zoo.build("rms"), zoo.tokens(), incorrect=wrong)
