"""The page: everything on it, nothing outside it."""

import re
from pathlib import Path

import pytest
import torch

import interp


@pytest.fixture(scope="module")
def model() -> interp.HookedConvAttn:
    return interp.HookedConvAttn(d_vocab=60, d_model=16, n_heads=2, n_ctx=48)


def test_the_numbers_are_those_of_the_analyses(model: interp.HookedConvAttn, tmp_path: Path):
    found = interp.write_report(model, tmp_path / "page.html", n_sequences=6, seed=3)
    scores = interp.head_scores(model, n=23, n_sequences=6, seed=3)
    assert (found.scores.values == scores.values).all()
    assert found.best_head == scores.sel(score="induction").best()
    assert found.path.read_text().count("<section>") == 4


def test_the_page_asks_nothing_of_the_network(model: interp.HookedConvAttn, tmp_path: Path):
    page = interp.write_report(model, tmp_path / "page.html", n_sequences=2).path.read_text()
    assert "default-src 'none'" in page
    assert not re.search(r"""<(script|link|img|iframe)[^>]+(src|href)=["']?(https?:)?//""", page)


def test_a_planted_result_is_named_in_words(tmp_path: Path):
    model = interp.HookedAttn(d_vocab=60, d_model=16, n_heads=2, n_ctx=48)
    with torch.no_grad():
        model.attn(0).W_Q.zero_()  # every head attends uniformly
        model.attn(0).b_Q.zero_()
    found = interp.write_report(model, tmp_path / "page.html", n_sequences=2)
    assert "no head" in found.sentence().lower()


def test_a_missing_directory_is_refused_before_any_work(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match="there is no directory"):
        interp.write_report("no model at all", tmp_path / "no" / "page.html")


def test_a_directory_is_no_page(tmp_path: Path):
    with pytest.raises(IsADirectoryError, match="give the name of a file"):
        interp.write_report("no model at all", tmp_path)


@pytest.mark.parametrize(("bias", "said"), [(0.0, "; the first copy costs"), (30.0, "too little")])
def test_the_page_says_why_random_tokens_cost_more_than_uniform_guesses(
    tmp_path: Path, bias: float, said: str
):
    """Sure of one token, a model pays more than ln(vocabulary); one that knows nothing does not."""
    model = interp.HookedAttn(d_vocab=60, d_model=16, n_heads=2, n_ctx=48)
    with torch.no_grad():
        model.unembed.W_U.zero_()
        model.unembed.b_U[7] = bias
    page = interp.write_report(model, tmp_path / "page.html", n_sequences=2).path.read_text()
    assert "ln(60) = 4.09" in page
    assert said in page
