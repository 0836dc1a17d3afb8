"""What a circuit is asked: its largest entries, its diagonal, chosen tokens; at any size."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import PreTrainedTokenizerFast

from interp.analysis.circuits.factored import Circuit, Side
from interp.analysis.circuits.matching import match_table
from interp.analysis.circuits.qk_ov import ov_circuit, qk_circuit
from interp.models import HookedAttn
from tests.analysis import haar
from tests.models import zoo


def words(d_vocab: int) -> PreTrainedTokenizerFast:
    """Tokens that read "w0", "w1", ..., but for two that read alike."""
    names = {f"w{token}": token for token in range(d_vocab)}
    backend = Tokenizer(WordLevel(names, unk_token="w0"))
    backend.decoder = decoders.Replace("w4", "w3")
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="w0")


def product(circuit: Circuit) -> np.ndarray:
    return (circuit.A.double() @ circuit.B.double()).numpy()


@pytest.mark.parametrize(("rows", "columns", "width"), [(40, 40, 3), (7, 90, 8), (300, 11, 1)])
@pytest.mark.parametrize("k", [1, 5, 60])
@pytest.mark.parametrize("largest", [True, False])
def test_top_pairs_are_those_of_the_whole_product(monkeypatch, rows, columns, width, k, largest):
    monkeypatch.setattr("interp.analysis.circuits.factored.ENTRIES_AT_ONCE", 150)
    generator = torch.Generator().manual_seed(rows + k)
    A = torch.randn(rows, width, generator=generator) * torch.rand(rows, 1, generator=generator)
    B = torch.randn(width, columns, generator=generator)
    circuit = a_circuit(A, B)
    found = circuit.top_pairs(k, largest=largest)
    whole = (A.double() @ B.double()).flatten()
    best = whole.topk(k, largest=largest).values
    np.testing.assert_allclose(found["value"], best, rtol=1e-6)
    places = found["query_id"] * columns + found["key_id"]
    np.testing.assert_allclose(whole[places.tolist()], best, rtol=1e-6)
    assert places.is_unique


def a_circuit(A, B):
    query, key = Side("query", "token"), Side("key", "token")
    origin = {"head": "L0H0", "model": "none"}
    return Circuit(A, B, name="qk_circuit", rows=query, columns=key, unit="", provenance=origin)


def test_equal_and_zero_entries_are_ranked_too():
    circuit = a_circuit(torch.zeros(4, 2), torch.zeros(2, 5))
    assert circuit.top_pairs(20)["value"].tolist() == [0.0] * 20
    with pytest.raises(ValueError, match="1 to the 20 entries"):
        circuit.top_pairs(21)


def test_the_diagonal_preference_is_that_of_the_standardised_product():
    model = zoo.build("rms")
    circuit = qk_circuit(model, "L1H1", basis="vocabulary")
    whole = product(circuit)
    standing = (np.diag(whole) - whole.mean(1)) / whole.std(1)
    found = circuit.diagonal_preference()
    assert float(found.sel(measure="diagonal_preference")) == pytest.approx(standing.mean(), 1e-5)
    rows = (whole - whole.mean(1, keepdims=True)) / whole.std(1, keepdims=True)
    # Hoeffding's variance of the sum of a shuffled diagonal, of n numbers.
    n = len(rows)
    variance = ((rows - rows.mean(0)) ** 2).sum() / (n - 1) / n**2
    assert float(found.sel(measure="shuffled")) == pytest.approx(variance**0.5, rel=1e-5)


@pytest.mark.parametrize("ask", [qk_circuit, ov_circuit])
def test_the_rotated_deviation_is_that_of_haar_rotations_of_what_the_columns_read(ask):
    circuit = ask(zoo.build("rms"), "L1H1", basis="vocabulary")
    assert circuit.columns.reads is not None
    table, reads = circuit.columns.reads
    torch.testing.assert_close((table @ reads).T, circuit.B)
    values, vectors = torch.linalg.eigh(torch.cov(table.detach().T, correction=0))
    root, inverse = (vectors * values**power @ vectors.T for power in (0.5, -0.5))
    # No rotation changes how much a row varies: the preference is linear in the rotation.
    deviation = (circuit.A @ circuit.B).std(1, correction=0)

    def squared(rotation):
        whole = circuit.A @ (table @ inverse @ rotation @ root @ reads).T
        return ((whole.diagonal() - whole.mean(1)) / deviation).mean() ** 2

    found = circuit.diagonal_preference()
    expected = haar.average(squared, len(root)) ** 0.5
    assert float(found.sel(measure="rotated")) == pytest.approx(expected, rel=1e-6)
    value, shuffled, rotated, z = found.values
    assert z == pytest.approx(value / max(shuffled, rotated))


def test_the_diagonal_preference_of_queries_and_keys_is_the_cell_of_the_match_table():
    model = zoo.build("three lags")
    table = match_table(model).sel(head="L1H1", query_lag="lag 0", key_lag="lag 2")
    circuit = qk_circuit(model, "L1H1", basis="vocabulary", lags=(0, 2))
    np.testing.assert_allclose(circuit.diagonal_preference().values[:3], table.values, rtol=1e-9)


def test_centred_rows_have_no_mean_and_the_same_preferences():
    circuit = qk_circuit(zoo.build("rms"), "L1H1", basis="vocabulary")
    centred = circuit.centred()
    whole = product(circuit)
    np.testing.assert_allclose(product(centred), whole - whole.mean(1, keepdims=True), atol=1e-12)
    values = [c.diagonal_preference().values for c in (circuit, centred)]
    np.testing.assert_allclose(*values, rtol=1e-5)
    assert "mean" in centred.provenance["centred"]


# ----------------------------------------------------------------------------- large vocabularies


AT_50_000 = """
import resource, sys
import torch
torch.set_num_threads(1)
from interp.analysis.circuits.qk_ov import ov_circuit, qk_circuit
from interp.models import HookedConvAttn
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
model = HookedConvAttn(d_vocab=50_000, d_model=128, n_heads=2, d_head=64, n_ctx=16)
# A trained circuit's spectrum falls; from a flat one the largest of 2.5 billion take longer.
with torch.no_grad():
    for name in "QKVO":
        weight = getattr(model.attn(1), f"W_{name}")
        fall = (torch.arange(64) + 1.0).pow(-1.5)
        weight *= fall[:, None] if name == "O" else fall
for circuit in (
    qk_circuit(model, "L1H1", basis="vocabulary", lags=(0, 1)),
    ov_circuit(model, "L1H1", basis="vocabulary"),
):
    assert circuit.shape == (50_000, 50_000)
    pairs = circuit.top_pairs(20)
    assert len(pairs) == 20
    assert circuit.S.shape == (64,)
    assert circuit.diagonal_preference().values.shape == (4,)
    assert circuit.subset(range(100)).values.shape == (100, 100)
    float(circuit.norm())
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.slow
def test_at_a_vocabulary_of_50_000_nothing_large_is_ever_held():
    run = subprocess.run(
        [sys.executable, "-c", AT_50_000], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    unit = 1 if sys.platform == "darwin" else 1024
    assert int(run.stdout) * unit < 500_000_000


# ------------------------------------------------------------------------------------------ labels


def test_tokens_are_named_and_found_by_their_text():
    model = HookedAttn(d_vocab=30, d_model=32, n_heads=4, n_ctx=8)
    model.tokenizer = words(30)
    circuit = qk_circuit(model, "L0H1", basis="vocabulary")
    part = circuit.subset(["w3", 4, "w7"], ["w5", 29])
    assert part.axes == ("query_token", "key_token")
    assert part.labels["query_token"] == ("w3 #3", "w3 #4", "w7")
    np.testing.assert_allclose(
        part.values, product(circuit)[np.ix_([3, 4, 7], [5, 29])], atol=1e-12
    )
    np.testing.assert_array_equal(circuit.subset("w5", 4).values, circuit.subset([5], [4]).values)
    pairs = circuit.top_pairs(3)
    assert pairs["query_token"].tolist() == [
        model.tokenizer.decode([token]) for token in pairs["query_id"]
    ]
    written = ov_circuit(model, "L0H1", basis="vocabulary").subset([1], [2])
    assert written.axes == ("source_token", "predicted_token")


@pytest.mark.parametrize(
    ("rows", "message"),
    [(["w1 w2"], "2 tokens"), ([30], "0 to 29"), ([-1], "0 to 29"), ([1, 1], r"\[1\] twice"),
     ([], "none"), (range(2_001), "0 to 29")],
)  # fmt: skip
def test_what_is_no_token_of_the_vocabulary_is_refused(rows, message):
    model = HookedAttn(d_vocab=30, d_model=32, n_heads=4, n_ctx=8)
    model.tokenizer = words(30)
    backend = model.tokenizer.backend_tokenizer
    backend.pre_tokenizer = Whitespace()
    with pytest.raises(ValueError, match=message):
        qk_circuit(model, "L0H1", basis="vocabulary").subset(rows)


def test_without_a_tokenizer_tokens_are_numbers():
    circuit = qk_circuit(
        HookedAttn(d_vocab=30, d_model=32, n_heads=4, n_ctx=8), "L0H1", basis="vocabulary"
    )
    assert circuit.top_pairs(1)["query_token"][0] == str(circuit.top_pairs(1)["query_id"][0])
    with pytest.raises(ValueError, match="no tokenizer"):
        circuit.subset(["the"])


def test_a_view_that_nobody_could_look_at_is_refused():
    circuit = a_circuit(torch.zeros(3_000, 2), torch.zeros(2, 3_000))
    with pytest.raises(ValueError, match="top_pairs"):
        circuit.subset(range(3_000))


def test_directions_of_the_stream_have_no_names():
    circuit = qk_circuit(HookedAttn(d_vocab=30, d_model=32, n_heads=4, n_ctx=8), "L0H1")
    for ask in (circuit.top_pairs, circuit.diagonal_preference):
        with pytest.raises(ValueError, match='basis="vocabulary"'):
            ask()
    assert "32 directions" in repr(circuit)
