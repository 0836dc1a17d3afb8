"""The induction circuit of somebody else's model; nothing is disturbed; what is refused."""

import math
from functools import partial

import numpy as np
import pytest
import torch
import transformers

from interp.analysis import induction_circuit, repeated_sequence_loss, repeated_tokens
from interp.analysis.induction.candidates import induction_candidates
from interp.analysis.induction.decision import Removal, averaged
from interp.analysis.induction.edges import Patches
from interp.models import Conv, HookedSequenceModel, ModelConfig
from interp.views import view
from tests.analysis import planted
from tests.analysis.bridges import bridged, hugging_face
from tests.analysis.measured import never_run

D_VOCAB, N, SEQUENCES, GAIN = 30, 10, 6, 20.0
N_POS = 2 * N + 1
SMALL = {"n": N, "n_sequences": SEQUENCES, "n_random": 2}

# ------------------------------------------------------------------------- a model of Hugging Face


def planted_gpt2(logit_gain=10.0):
    """The circuit of `planted.induction_attn_attn` in a GPT-2, whose norms it has to pass.

    Every position holds as many ones, two in layer 0 and three in layer 1: the norm divides all of
    them by the same number, and what it takes off shifts all keys of a query alike.
    """
    spaces = planted.Subspaces(D_VOCAB, N_POS)
    d_model = spaces.d_model + spaces.d_model % 2
    config = transformers.GPT2Config(
        vocab_size=D_VOCAB, n_positions=N_POS, n_embd=d_model, n_layer=2, n_head=2,
        bos_token_id=0, eos_token_id=0, tie_word_embeddings=False, layer_norm_epsilon=1e-12,
    )  # fmt: skip
    model = transformers.GPT2LMHeadModel._from_config(config, attn_implementation="eager")
    model = model.double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        body = model.transformer
        for norm in (body.h[0].ln_1, body.h[0].ln_2, body.h[1].ln_1, body.h[1].ln_2, body.ln_f):
            norm.weight.fill_(1.0)
        body.wte.weight[:, spaces.token] = torch.eye(D_VOCAB).double()
        body.wpe.weight[:, spaces.position] = torch.eye(N_POS).double()
        model.lm_head.weight[:, spaces.output] = logit_gain * torch.eye(D_VOCAB).double()
        start, stop = spaces.position.start, spaces.position.start + N_POS
        here, before = slice(start + 1, stop), slice(start, stop - 1)
        _head(body.h[0].attn, 2, planted.SURE, here, before, spaces.token, spaces.previous)
        _head(body.h[1].attn, 3, GAIN, spaces.token, spaces.previous, spaces.token, spaces.output)
    return model


def _head(attn, ones, gain, query, key, source, target):
    """Head 0 of a layer in which every position holds so many ones."""
    d_model = attn.c_attn.weight.shape[0]
    variance = ones / d_model - (ones / d_model) ** 2
    width = query.stop - query.start
    eye = torch.eye(width).double()
    attn.c_attn.weight[query, :width] = gain * variance * math.sqrt(d_model / 2) * eye
    attn.c_attn.weight[key, d_model : d_model + width] = eye
    copied = torch.eye(D_VOCAB).double() * math.sqrt(variance)
    attn.c_attn.weight[source, 2 * d_model : 2 * d_model + D_VOCAB] = copied
    attn.c_proj.weight[:D_VOCAB, target] = torch.eye(D_VOCAB).double()


@pytest.fixture(scope="module")
def of_gpt2():
    return induction_circuit(bridged(planted_gpt2(), "planted"), **SMALL)


def test_a_circuit_planted_in_a_gpt2_is_found_through_a_bridge(of_gpt2):
    assert of_gpt2.heads == ("L1H0",)
    labels = [edge.label for edge in of_gpt2.edges]
    assert labels == [
        "embed->L0H0.v", "embed->L1H0.q", "L0H0->L1H0.k", "embed->L1H0.v", "L1H0->logits",
    ]  # fmt: skip
    assert "its keys read the previous-token head L0H0" in of_gpt2.sentence
    assert of_gpt2.graph.provenance["helpers"]["L0H0"][0] == "previous token"
    e = math.exp(GAIN)
    score = np.mean([e / (e + t) for t in range(N + 1, N_POS)])
    assert float(of_gpt2.scores.sel(measure="score", head="L1H0")) == pytest.approx(score, abs=1e-7)


def test_a_cut_edge_is_what_hugging_face_computes_without_it(of_gpt2):
    """The keys of layer 1 are read from a stream in which L0H0's part is another sequence's."""
    model = planted_gpt2()
    options = {"d_vocab": D_VOCAB, "bos": 0, "n_sequences": SEQUENCES}
    tokens = repeated_tokens(N, seed=0, **options).tokens
    other = repeated_tokens(2 * N, seed=1, **options).tokens[:, :N_POS]
    generator = torch.Generator().manual_seed(0)
    other = other[torch.randint(SEQUENCES, (SEQUENCES,), generator=generator)]
    block = model.transformer.h[1]
    with torch.no_grad():
        stream, attn_out = _stream_and_attention(model, tokens)
        _, other_out = _stream_and_attention(model, other)
        mixed = block.attn.c_attn(block.ln_1(stream))
        keys = slice(mixed.shape[-1] // 3, mixed.shape[-1] // 2)  # of head 0
        mixed[..., keys] = block.attn.c_attn(block.ln_1(stream - attn_out + other_out))[..., keys]
    handle = block.attn.c_attn.register_forward_hook(lambda *_: mixed)
    patterns = [_patterns(model, tokens)]
    handle.remove()
    patterns.append(_patterns(model, tokens))
    cut, clean = (
        np.mean([pattern[:, 0, t, t - N + 1].mean() for t in range(N + 1, N_POS)])
        for pattern in patterns
    )
    edge = next(edge for edge in of_gpt2.edges if edge.label == "L0H0->L1H0.k")
    assert edge.score.value == pytest.approx(cut - clean, abs=1e-7)
    assert edge.score.value < -0.8


def _stream_and_attention(model, tokens):
    captured = {}
    attn = model.transformer.h[0].attn
    handle = attn.register_forward_hook(lambda module, args, out: captured.update(out=out[0]))
    stream = model.transformer(tokens, output_hidden_states=True).hidden_states[1]
    handle.remove()
    return stream, captured["out"]


@torch.no_grad()
def _patterns(model, tokens):
    return model(tokens, output_attentions=True).attentions[1].numpy()


def test_the_drop_of_a_bridge_and_what_its_head_explains(of_gpt2):
    losses = repeated_sequence_loss(bridged(planted_gpt2()), n=N, n_sequences=SEQUENCES)
    assert of_gpt2.drop.value == pytest.approx(float(losses.sel(measure="drop")), abs=1e-6)
    assert of_gpt2.explained.low > 0.7
    assert of_gpt2.order.low > 1


def test_heads_are_taken_out_of_a_bridge_and_averaged_over():
    viewed = view(bridged(planted_gpt2(), "planted"))
    probe = repeated_tokens(N, d_vocab=D_VOCAB, bos=0, n_sequences=SEQUENCES)
    other = repeated_tokens(2 * N, d_vocab=D_VOCAB, bos=0, n_sequences=SEQUENCES, seed=1)
    patches = Patches(viewed, probe.tokens, other.tokens[:, :N_POS], 0.2, 1, 0)
    removal = Removal(patches, probe)
    scores = induction_candidates(viewed, probe, 1, math.nan, partial(removal.under, ["L0H0"]))
    assert float(scores.sel(measure="score", head="L1H0")) < 0.2
    clean = removal.losses([]).second.mean()
    with averaged(patches, ["L1H0"]):
        averaged_over = Removal(patches, probe).losses([])
    assert clean < 0.1
    assert averaged_over.second.mean() > 2
    assert Removal(patches, probe).losses([]).second.mean() == clean


@pytest.mark.parametrize("kind", ["gpt2", "llama", "mistral"])
def test_random_weights_of_hugging_face_have_none(kind):
    found = induction_circuit(bridged(hugging_face(kind)), **SMALL)
    assert not found.found
    assert np.isnan(found.scores.sel(measure="random_weights").values).all()
    assert "random weights" not in found.sentence


# ---------------------------------------------------------------------------- nothing is disturbed


@pytest.mark.parametrize("error", [None, RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("when", [1, 20])
def test_the_model_is_left_as_it_was_found(error, when):
    model = planted.induction_conv_attn(d_vocab=D_VOCAB, n_ctx=N_POS + 1).train()
    model.blocks[0].eval()
    runs = []

    def interrupt(stream, hook):
        runs.append(hook.name)
        if error is not None and len(runs) == when:
            raise error("in the middle")

    model.add_hook("blocks.1.hook_resid_pre", interrupt)
    modes = [module.training for module in model.modules()]
    state = {name: value.clone() for name, value in model.state_dict().items()}
    random_state = torch.get_rng_state()
    if error is None:
        assert induction_circuit(model, **SMALL).found
        assert len(runs) > 20
    else:
        with pytest.raises(error, match="in the middle"):
            induction_circuit(model, **SMALL)
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert torch.is_grad_enabled()
    assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.equal(torch.get_rng_state(), random_state)
    hooks = {name: len(point.fwd_hooks) for name, point in model.hook_dict.items()}
    assert {name for name, n in hooks.items() if n} == {"blocks.1.hook_resid_pre"}
    assert hooks["blocks.1.hook_resid_pre"] == 1


def test_the_seed_is_all_that_is_random():
    model = planted.induction_conv_attn(d_vocab=D_VOCAB, n_ctx=N_POS + 1)
    first, again = induction_circuit(model, **SMALL), induction_circuit(model, **SMALL)
    assert first.sentence == again.sentence
    np.testing.assert_array_equal(first.graph.values, again.graph.values)
    assert induction_circuit(model, **SMALL, seed=1).graph.values[0, 0] != first.graph.values[0, 0]


# ---------------------------------------------------------------------------------- what it returns


@pytest.fixture(scope="module")
def found():
    return induction_circuit(planted.induction_conv_attn(d_vocab=D_VOCAB, n_ctx=N_POS + 1), **SMALL)


def test_the_graph_holds_each_effect_with_its_interval(found):
    for edge in found.edges:
        row = found.graph.sel(edge=edge.label)
        for name, effect in (("score", edge.score), ("loss", edge.loss)):
            np.testing.assert_equal(float(row.sel(measure=name)), effect.value)
            for end in ("low", "high", "random_low", "random_high"):
                shown = float(row.sel(measure=f"{name}_{end}"))
                np.testing.assert_equal(shown, getattr(effect, end))
            np.testing.assert_equal(float(row.sel(measure=name).standard_error), effect.error)
    composed = found.graph.sel(edge="L0.lag1->L1H0.k", measure="composition")
    assert 0 < float(composed) < 1
    assert found.graph.unit["loss"] == "nats"


def test_the_table_has_a_row_for_each_effect_of_each_edge(found):
    frame = found.to_frame()
    assert [*frame.columns[:4]] == ["sender", "receiver", "channel", "effect_on"]
    rows = [tuple(row) for row in frame[["sender", "receiver", "channel", "effect_on"]].to_numpy()]
    assert rows == [
        ("embed", "L1H0", "q", "score"),
        ("embed", "L1H0", "q", "loss"),
        ("L0.lag1", "L1H0", "k", "score"),
        ("L0.lag1", "L1H0", "k", "loss"),
        ("embed", "L1H0", "v", "loss"),
        ("L1H0", "logits", "", "loss"),
    ]
    assert repr(found).startswith(found.sentence)
    assert "<table" in found._repr_html_()


def test_saved_and_loaded_the_graph_is_the_same(found, tmp_path):
    path = tmp_path / "circuit.parquet"
    found.graph.save(path)
    loaded = type(found.graph).load(path)
    np.testing.assert_array_equal(loaded.values, found.graph.values)
    assert loaded.labels == found.graph.labels


# --------------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_sequences": 1}, "n_sequences=1 is too small; it must be at least 2"),
        ({"most_heads": 0}, "most_heads=0 is too small; it must be at least 1"),
        ({"n_random": 0}, "n_random=0 is too small"),
        ({"least": 0.0}, "least=0.0 must be above 0 and at most 1"),
        ({"share": 1.5}, "share=1.5 must be above 0 and at most 1"),
        ({"n": 40}, "n_ctx"),
        ({"n": 1}, "n"),
    ],
)
def test_sizes_that_do_not_fit_are_refused_before_any_work(options, message):
    model = never_run(planted.induction_conv_attn(d_vocab=D_VOCAB, n_ctx=N_POS + 1))
    with pytest.raises(ValueError, match=message):
        induction_circuit(model, **{**SMALL, **options})


def test_a_model_without_heads_is_refused():
    config = ModelConfig(d_vocab=40, d_model=8, n_ctx=30, layers=(Conv(),))
    with pytest.raises(ValueError, match="head"):
        induction_circuit(never_run(HookedSequenceModel(config)), **SMALL)


def test_a_weight_that_is_nan_is_named():
    model = planted.induction_conv_attn(d_vocab=D_VOCAB, n_ctx=N_POS + 1)
    with torch.no_grad():
        model.attn(1).W_Q[0, 0, 0] = math.nan
    with pytest.raises(ValueError, match="W_Q"):
        induction_circuit(never_run(model), **SMALL)
