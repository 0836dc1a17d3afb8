"""Bidirectional models: no next token is predicted, and CLS and SEP stay where they belong."""

from typing import Any

import numpy as np
import pytest
import torch
import transformers
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformer_lens.model_bridge import TransformerBridge

import interp
from interp.analysis.interventions.metrics import InductionScore, LogitDifference
from interp.models import Attention, HookedSequenceModel
from interp.views import view
from tests.analysis import measured
from tests.analysis.bridges import D_VOCAB, N_CTX, SIZES, N, bridged, hugging_face, probe

PAD, UNK, CLS, SEP, MASK = range(5)


def bert(attention="eager"):
    sizes: dict[str, Any] = {**SIZES, "pad_token_id": PAD}
    config = transformers.BertConfig(**sizes)
    return hugging_face_encoder(transformers.BertForMaskedLM, config, attention)


def hugging_face_encoder(kind, config, attention="eager"):
    model = kind._from_config(config, attn_implementation=attention)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.3, generator=generator)
    return model.eval()


def tokenizer_at(path, **special):
    """Saved and loaded again: the bridge wants to know where a tokenizer came from."""
    words = {name: number for number, name in enumerate(("[PAD]", "[UNK]", "[CLS]", "[SEP]"))}
    words |= {"[MASK]": MASK} | {f"w{number}": number for number in range(5, D_VOCAB)}
    made = Tokenizer(WordLevel(words, unk_token="[UNK]"))
    made.pre_tokenizer = Whitespace()
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=made, **special)
    tokenizer.save_pretrained(path)
    return transformers.AutoTokenizer.from_pretrained(path)


BERTS = {
    "unk_token": "[UNK]",
    "pad_token": "[PAD]",
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
    "mask_token": "[MASK]",
}


@pytest.fixture
def booted(tmp_path):
    """As TransformerLens boots it, which gives the tokenizer a BOS that is read as [UNK]."""
    return TransformerBridge.boot_transformers(
        "tiny-bert", hf_model=bert(), tokenizer=tokenizer_at(tmp_path, **BERTS), device="cpu"
    )


# ------------------------------------------------------------------------- what there is not


def not_causal():
    layers = (Attention(n_heads=2, d_head=4, causal=False), Attention(n_heads=2, d_head=4))
    sizes: dict[str, Any] = {"d_vocab": D_VOCAB, "d_model": 8, "n_ctx": N_CTX}
    return HookedSequenceModel.from_config(interp.ModelConfig(layers=layers, **sizes), seed=0)


READERS = {
    "repeated_sequence_loss": lambda m: interp.repeated_sequence_loss(m, n=N, n_sequences=2),
    "loss_by_position": lambda m: interp.loss_by_position(m, probe(N)),
    "in_context_learning_score": lambda m: interp.in_context_learning_score(m, probe(N)),
    "induction_circuit": lambda m: interp.induction_circuit(m, n=N, n_sequences=2),
    "ablate": lambda m: interp.ablate(m, probe(N), ["L1H1"], control="none"),
    "per token": lambda m: interp.ablate(m, probe(N), ["L1H1"], metric="loss_per_token"),
    "second copy": lambda m: interp.ablate(m, probe(N), "heads", metric="second_copy_loss"),
    "context": lambda m: interp.ablate(m, probe(N), "heads", metric="in_context_learning_score"),
    "patch": lambda m: interp.patch(m, probe(N), probe(N).flip(0)),
    "path_patch": lambda m: interp.path_patch(m, "L0H0", "L1H0", probe(N), probe(N).flip(0)),
    "attribution_patch": lambda m: interp.attribution_patch(m, probe(N), probe(N).flip(0)),
    "logit_lens": lambda m: interp.logit_lens(m, probe(N)),
    "logit_attribution": lambda m: interp.logit_attribution(m, probe(N)),
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("kind", ["bert", "ours"])
def test_what_reads_a_next_token_is_refused_with_what_can_be_asked_instead(reader, kind):
    model = bridged(bert()) if kind == "bert" else measured.never_run(not_causal())
    layers = r"\[0, 1\]" if kind == "bert" else r"\[0\]"
    message = rf"predicts no next token: in layers {layers}.*head_scores.*LogitDifference"
    with pytest.raises(ValueError, match=message):
        READERS[reader](model)


def test_path_attribution_and_the_page_are_refused_too(tmp_path):
    with pytest.raises(ValueError, match=r"predicts no next token.*correct"):
        interp.path_attribution(measured.never_run(not_causal()), probe(N))
    with pytest.raises(ValueError, match="predicts no next token"):
        interp.write_report(bridged(bert()), tmp_path / "page.html")
    assert not list(tmp_path.iterdir())


def test_a_fused_kernel_hides_no_encoder():
    with pytest.raises(ValueError, match="predicts no next token"):
        interp.loss_by_position(bridged(bert("sdpa")), probe(N))
    # The layers say that they are not causal, whatever the bridge's config says.
    model = bridged(bert("sdpa"))
    model.cfg.attention_dir = "causal"
    assert not view(model).causal(0)
    fused = bridged(hugging_face("gpt2", attention="sdpa"))
    assert interp.loss_by_position(fused, probe(N)).values.shape == (2 * N,)


def test_causality_is_what_the_layers_do_and_not_what_the_config_says():
    for model, causal in ((bridged(bert()), False), (bridged(hugging_face("gpt2")), True)):
        for said in ("causal", "bidirectional"):
            model.cfg.attention_dir = said
            assert view(model).causal(1) is causal


def test_what_an_encoder_can_be_asked():
    model = bridged(bert())
    for metric in (LogitDifference(7, 8, position=3), lambda logits, tokens: logits[:, 3, 7]):
        effect = interp.ablate(model, probe(N), ["L0H1"], metric=metric, control="none")
        assert effect.sel(measure="effect").values.item() != 0
    scored = interp.ablate(model, probe(N), ["L0H1"], metric=InductionScore("L1H1"), control="none")
    assert scored.sel(measure="effect").values.item() != 0


# ------------------------------------------------------------------------------ CLS and SEP


def test_the_probe_of_an_encoder_stands_between_cls_and_sep(booted):
    viewed = view(booted)
    assert booted.tokenizer.bos_token_id == UNK  # what makes this worth a test
    assert (viewed.bos, viewed.separator) == (CLS, SEP)
    found = interp.head_scores(booted, n=N, n_sequences=3)
    assert (found.provenance["bos"], found.provenance["sep"]) == (CLS, SEP)


def test_the_scores_of_an_encoder_are_those_of_its_own_attentions(booted, monkeypatch):
    given, n = [], 12
    scores = interp.analysis.heads.scores
    monkeypatch.setattr(scores, "measure", recorder(scores.measure, given))
    found = interp.head_scores(booted, n=n, n_sequences=3)
    tokens = given[0]
    assert tokens.shape == (3, 2 * n + 2)
    assert (tokens[:, 0] == CLS).all()
    assert (tokens[:, -1] == SEP).all()
    assert torch.equal(tokens[:, 1 : n + 1], tokens[:, n + 1 : -1])
    assert tokens[:, 1:-1].min() > MASK  # no special token inside
    inner = bert()
    with torch.no_grad():
        attentions = inner(tokens, output_attentions=True).attentions
    patterns = torch.cat(attentions, dim=1).double().mean(0).numpy()
    second, later = np.arange(n + 1, 2 * n + 1), np.arange(1, 2 * n + 2)
    expected = [
        patterns[:, second, second - n + 1].mean(-1),
        patterns[:, later, later - 1].mean(-1),
        patterns[:, second, second - n].mean(-1),
        patterns[:, later, 0].mean(-1),
    ]
    np.testing.assert_allclose(found.values, expected, rtol=0, atol=1e-6)
    np.testing.assert_allclose(np.asarray(found.chance), 1 / (2 * n + 2), rtol=0, atol=1e-12)
    # The metric of the interventions finds the copies between CLS and SEP too.
    metric = InductionScore("L1H2")
    clean = interp.ablate(booted, tokens, ["L0H0"], metric=metric, control="none").sel(
        measure="clean"
    )
    assert clean.values.item() == pytest.approx(float(found.sel(score="induction", head="L1H2")))


def recorder(measure, given):
    def record(viewed, tokens, *rest):
        given.append(tokens)
        return measure(viewed, tokens, *rest)

    return record


def test_a_context_that_cls_and_sep_fill_is_refused_with_the_longest_copy(booted):
    with pytest.raises(ValueError, match=r"BOS and SEP make 66 positions.*at most 31"):
        interp.head_scores(booted, n=32)


@pytest.mark.parametrize(
    ("special", "expected"),
    [
        ({"bos_token": "w7", "eos_token": "w8", **BERTS}, 7),
        ({"unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}, CLS),
        ({"unk_token": "[UNK]", "bos_token": "[UNK]"}, None),
        ({"unk_token": "[UNK]", "bos_token": "[UNK]", "eos_token": "w8"}, 8),
        ({"unk_token": "w9", "bos_token": "w9", "eos_token": "w9"}, 9),  # as GPT-2's has it
        ({"unk_token": "[UNK]"}, None),
    ],
)
def test_a_causal_model_starts_with_its_bos_and_never_with_an_unknown_token(
    special, expected, tmp_path
):
    model = bridged(hugging_face("gpt2"))
    model.tokenizer = tokenizer_at(tmp_path, **special)
    viewed = view(model)
    assert (viewed.bos, viewed.separator) == (expected, None)
    found = interp.head_scores(model, n=N, n_sequences=2)
    assert found.provenance["bos"] == expected
    second = range(N + (expected is not None), 2 * N + (expected is not None))
    chance = np.mean([1 / (t + 1) for t in second])
    np.testing.assert_allclose(np.asarray(found.sel(score="induction").chance), chance, atol=1e-12)
