"""The study behind docs/recall.md: its task, its scan, its units are what it says they are."""

import importlib.util
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from transformers.models.mamba import modeling_mamba

import interp
from interp.analysis import ar_tokens

HERE = Path(__file__).parents[1] / "docs" / "data"
SPEC = importlib.util.spec_from_file_location("recall_study", HERE / "recall.py")
assert SPEC is not None
assert SPEC.loader is not None
study = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(study)


@pytest.mark.parametrize("n", [1, 2, 3])
@pytest.mark.parametrize("length", [8, 33, 200])
def test_the_last_n_gram_stood_once_before_and_so_went_on(n, length):
    tokens, target = study.ngrams(n, length, 100, seed=3)
    assert tokens.shape == (100, length)
    for row, answer in zip(tokens.tolist(), target.tolist(), strict=True):
        starts = [i for i in range(length - n) if row[i : i + n] == row[-n:]]
        assert len(starts) == 1
        assert starts[0] + n < length - n
        assert row[starts[0] + n] == answer
    assert torch.equal(study.ngrams(n, length, 100, seed=3)[0], tokens)


def test_single_tokens_do_not_give_a_bigrams_continuation_away():
    """The last token alone has stood elsewhere, in sequences as long as those of training."""
    tokens, _ = study.ngrams(2, 32, 200, seed=1)
    again = (tokens[:, :-1] == tokens[:, -1:]).sum(1)
    assert (again > 1).double().mean() > 0.7


@pytest.mark.parametrize("layers", [1, 2])
def test_the_faster_scan_is_that_of_transformers(layers):
    model = study.Mamba(layers).build(seed=1).train()
    tokens = torch.randint(study.D_VOCAB, (3, 12), generator=torch.Generator().manual_seed(2))
    usual = modeling_mamba.mamba_selective_scan

    def outcome():
        model.zero_grad()
        logits = model(tokens).logits
        (logits**2).mean().backward()
        return [logits, *(p.grad for p in model.parameters())]

    expected = [x.detach().clone() for x in outcome()]
    with study.scanned_faster():
        assert modeling_mamba.mamba_selective_scan is study.scan
        found = outcome()
    assert modeling_mamba.mamba_selective_scan is usual
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-7)


def test_without_its_convolution_a_mamba_passes_on_what_each_token_is():
    model = study.Mamba(1, convolution=False).build(seed=0)
    weights = model.backbone.layers[0].mixer.conv1d
    assert not weights.weight.requires_grad
    assert not weights.bias.requires_grad
    x = torch.randn(2, weights.in_channels, 9, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(weights(x)[:, :, :9], x)
    other = study.Mamba(1).build(seed=0)
    torch.testing.assert_close(model.backbone.embeddings.weight, other.backbone.embeddings.weight)


def test_a_pairs_token_is_replaced_by_one_that_the_sequence_does_not_hold():
    probe = ar_tokens(4, 15, d_vocab=study.D_VOCAB, bos=0, n_sequences=10)
    for place, kind in ((3, "keys"), (4, "values")):
        changed = study.with_another(probe.tokens, place, probe)
        first, last = probe.parts[kind]
        differs = changed != probe.tokens
        assert differs[:, place].all()
        assert differs.sum() == len(changed)
        assert ((first <= changed[:, place]) & (changed[:, place] <= last)).all()
        for old, new in zip(probe.tokens.tolist(), changed.tolist(), strict=True):
            assert new[place] not in old


def test_a_unit_at_places_is_what_ablation_reads():
    assert study.units_at(1, [1, 2], [3, 5]) == "L1.lag1@3+L1.lag2@3+L1.lag1@5+L1.lag2@5"
    assert study.units_at(0, [3], [None]) == "L0.lag3"
    model = interp.wrap(study.Mamba(2).build(seed=0))
    tokens = ar_tokens(4, 15, d_vocab=study.D_VOCAB, bos=0, n_sequences=3).tokens
    unit = study.units_at(1, [1], [None])

    def last(logits, tokens):
        return logits[:, -1, 5].double()

    effect = interp.ablate(model, tokens, unit, metric=last, control="none")
    twin = study.Mamba(2).build(seed=0)
    with torch.no_grad():
        before = twin(tokens).logits[:, -1, 5]
        # The weights run from the farthest lag to the current token.
        twin.backbone.layers[1].mixer.conv1d.weight[:, :, -2] = 0.0
        after = twin(tokens).logits[:, -1, 5]
    found = effect.sel(measure="effect").values
    np.testing.assert_allclose(found, float((after - before).mean()), rtol=0, atol=1e-6)


def test_the_table_holds_every_model_seed_and_study():
    table = pd.read_parquet(HERE / "recall.parquet")
    mambas = {(name, seed) for name in study.MAMBAS for seed in study.SEEDS}
    for analysis in ("mqar", "without", "interchange"):
        rows = table[table.analysis == analysis]
        assert set(zip(rows.model, rows.seed, strict=True)) == mambas
    rows = table[table.analysis == "ngrams"]
    expected = {
        (name, seed, n, length)
        for name in study.ATTENTIONS
        for seed in study.SEEDS
        for n in study.N_GRAMS
        for length in study.LENGTHS
    }
    assert set(zip(rows.model, rows.seed, rows.n, rows.length, strict=True)) == expected
    assert rows.value.between(0, 1).all()
