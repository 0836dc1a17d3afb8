"""The logit lens ends at the model's own predictions and finds what was planted after its layer."""

import math

import numpy as np
import pytest
import torch

from interp.analysis import repeated_tokens
from interp.analysis.attribution.lens import lens_tokens, logit_lens
from interp.models import HookedConvAttn
from tests.analysis import planted
from tests.analysis.bridges import bridged, hugging_face, probe
from tests.models import zoo

EXACT = {"rtol": 0, "atol": 1e-10}
N, D_VOCAB, N_CTX = 6, 12, 16


def test_the_planted_prediction_is_there_after_the_heads_layer_and_not_before():
    model = planted.induction_conv_attn(d_vocab=D_VOCAB, n_ctx=N_CTX, gain=40.0, logit_gain=3.0)
    tokens = repeated_tokens(N, d_vocab=D_VOCAB, bos=0, n_sequences=3).tokens
    second = range(N + 1, 2 * N)
    lens = logit_lens(model, tokens, positions=second)
    assert lens.labels["layer"] == ("embed", "L0", "L1")
    # One logit of 3 and eleven of 0; before, twelve of 0, none of them above the correct one.
    sure = math.log(1 + (D_VOCAB - 1) * math.exp(-3))
    uniform = math.log(D_VOCAB)
    np.testing.assert_allclose(lens.sel(measure="loss").values, [uniform, uniform, sure], **EXACT)
    np.testing.assert_allclose(
        lens.sel(measure="probability").values, np.exp([-uniform, -uniform, -sure]), **EXACT
    )
    assert lens.sel(measure="rank").values.tolist() == [0, 0, 0]
    assert lens.chance is not None
    np.testing.assert_allclose(lens.chance[:, 0], [uniform, 5.5, 1 / D_VOCAB])
    table = lens_tokens(model, tokens[:1], k=1)
    top = table.provenance["top"][2]
    assert [top[t] for t in second] == [[int(tokens[0, t + 1])] for t in second]


def test_random_weights_predict_nothing_at_any_layer():
    tokens = repeated_tokens(15, d_vocab=60, bos=0, n_sequences=8).tokens
    ranks = []
    for seed in range(20):
        model = HookedConvAttn(d_vocab=60, d_model=24, n_heads=2, n_ctx=32, seed=seed)
        ranks.append(logit_lens(model, tokens, positions=range(16, 30)).sel(measure="rank").values)
    samples = np.array(ranks)
    error = samples.std(0, ddof=1) / np.sqrt(20)
    # The 99 % range of Student's t with 19 degrees of freedom, at three layers.
    assert (np.abs(samples.mean(0) - 29.5) < 3.2 * error).all()


@pytest.mark.parametrize("name", ["three lags", "rms", "no norm", "post", "no residual", "tied"])
def test_it_is_the_last_norm_and_unembedding_of_each_stream(name):
    model, tokens, correct = zoo.build(name), zoo.tokens(), zoo.tokens(seed=8)
    lens = logit_lens(model, tokens, correct=correct, per_position=True)
    table = lens_tokens(model, tokens[:1], k=3)
    with torch.no_grad():
        _, cache = model.run_with_cache(tokens)
        streams = [cache["resid_pre", 0]]
        streams += [cache["resid_post", layer] for layer in range(len(model.blocks))]
        for layer, stream in enumerate(streams):
            logits = model.ln_final(stream) @ model.W_U + model.b_U
            right = logits.gather(-1, correct[..., None])
            shares = logits.softmax(-1)
            loss = -shares.log().gather(-1, correct[..., None])[..., 0]
            expected = [loss, (logits > right).sum(-1).double(), (-loss).exp()]
            for row, measure in enumerate(expected):
                np.testing.assert_allclose(lens.values[row, layer], measure.mean(0), **EXACT)
            best = shares[0].sort(dim=-1, descending=True)
            np.testing.assert_allclose(table.values[layer], best.values[:, :3], **EXACT)
            assert table.provenance["top"][layer] == best.indices[:, :3].tolist()


def test_it_ends_at_the_loss_and_averages_over_sequences(monkeypatch):
    model, tokens, sizes = zoo.build("three lags"), zoo.tokens(batch=5), []
    one_by_one = np.stack([logit_lens(model, row[None]).values for row in tokens])
    at_once = "interp.analysis.attribution.lens.LOGITS_AT_ONCE"
    monkeypatch.setattr(at_once, 2 * zoo.N_CTX * zoo.D_VOCAB)
    model.add_hook("hook_embed", lambda value, hook: sizes.append(len(value)))
    lens = logit_lens(model, tokens)
    assert sizes == [2, 2, 1]
    np.testing.assert_allclose(lens.values, one_by_one.mean(0), **EXACT)
    error = one_by_one.std(0, ddof=1) / np.sqrt(5)
    np.testing.assert_allclose(lens.standard_error, error, **EXACT)
    loss = float(model(tokens, return_type="loss").detach())
    assert float(lens.sel(measure="loss", layer="L1")) == pytest.approx(loss, abs=1e-10)
    assert lens.provenance["n_sequences"] == 5


@pytest.mark.parametrize("kind", ["gpt2", "llama", "neox"])
def test_a_bridges_lens_is_made_of_hugging_faces_own_hidden_states(kind):
    inner, tokens = hugging_face(kind), probe(9)
    base = {"gpt2": ("transformer.ln_f",), "neox": ("gpt_neox.final_layer_norm",)}
    norm = inner.get_submodule(base.get(kind, ("model.norm",))[0])
    with torch.no_grad():
        out = inner(tokens, output_hidden_states=True)
        # The last hidden state has gone through the last norm already.
        streams = [inner.get_output_embeddings()(norm(h)) for h in out.hidden_states[:-1]]
        expected = [
            torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
            for logits in [*streams, out.logits]
        ]
    lens = logit_lens(bridged(hugging_face(kind)), tokens).sel(measure="loss")
    np.testing.assert_allclose(lens.values, expected, rtol=0, atol=1e-5)


def test_what_has_no_lens_is_refused():
    with pytest.raises(ValueError, match="does more to its logits"):
        logit_lens(bridged(hugging_face("gemma2")), probe(9))
    model = zoo.build("rms")
    model.forward = lambda *args, **kwargs: pytest.fail("a forward pass before the refusal")
    with pytest.raises(ValueError, match=r"one sequence of at most 512 tokens"):
        lens_tokens(model, zoo.tokens())
    for k in (0, zoo.D_VOCAB + 1):
        with pytest.raises(ValueError, match=f"k is {k}, but must be 1 to {zoo.D_VOCAB}"):
            lens_tokens(model, zoo.tokens()[:1], k=k)
    with pytest.raises(ValueError, match="positions are"):
        logit_lens(model, zoo.tokens(), positions=[zoo.N_CTX])
