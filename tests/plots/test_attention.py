"""The attention view holds what it was given, in safe code, and asks nothing of the network."""

import json
import re
import socket
from importlib import resources

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from interp.plots import attention

TOKENS = ["<bos>", " a", "\n"]
PATTERN = np.array([[[1.0, 0.0, 0.0], [0.25, 0.75, 0.0], [0.125, 0.5, 0.375]]])


def props(html: str) -> dict:
    found = re.search(r"CircuitsVis\.AttentionHeads, (.*)\);</script>", html)
    assert found
    return json.loads(found[1])


def test_it_shows_what_it_was_given():
    shown = props(attention.view(TOKENS, PATTERN, ["L1H3"]).html(include_bundle=False))
    assert shown["attention"] == PATTERN.tolist()
    assert shown["attentionHeadNames"] == ["L1H3"]
    assert shown["tokens"] == ["<bos>", " a", "↵"]
    assert (shown["minValue"], shown["maxValue"]) == (0, 1)


def test_only_causal_attention_has_its_future_greyed():
    causal = attention.view(TOKENS, PATTERN, ["L1H3"])
    both_ways = attention.view(TOKENS, PATTERN.transpose(0, 2, 1), ["L1H3"])
    assert props(causal.html(include_bundle=False))["maskUpperTri"] is True
    assert props(both_ways.html(include_bundle=False))["maskUpperTri"] is False


@given(st.lists(st.text(min_size=1), min_size=3, max_size=3))
def test_a_token_can_hold_anything(texts):
    tokens = [texts[0] + "</script>", "<!--<script>" + texts[1], "\u2028&\"'" + texts[2]]
    html = attention.view(tokens, PATTERN, ["L1H3"]).html(include_bundle=False)
    assert html.count("<script") == html.count("</script") == 1
    assert "<!--" not in html
    visible = [token.replace("\n", "↵").replace("\t", "⇥") for token in tokens]
    assert props(html)["tokens"] == visible


@pytest.mark.parametrize(
    ("token", "shown"), [(" ", "␣"), ("   ", "␣␣␣"), ("\t", "⇥"), (" x", " x")]
)
def test_blank_tokens_are_made_visible(token, shown):
    html = attention.view([token], np.ones((1, 1, 1)), ["L0H0"]).html(include_bundle=False)
    assert props(html)["tokens"] == [shown]


def test_the_bundle_is_the_installed_one_and_ends_no_script_early():
    (code,) = re.findall(r"<script>(.*?)</script>", attention.bundle(), flags=re.DOTALL)
    installed = (resources.files("circuitsvis") / "dist/cdn/iife.js").read_text(encoding="utf-8")
    assert installed.startswith(code.replace("<\\/script", "</script"))
    assert len(installed) - len(code) < 100
    assert "sourceMappingURL" not in code


def test_the_bundle_comes_once_and_only_if_wanted():
    shown = attention.view(TOKENS, PATTERN, ["L1H3"])
    assert shown.html().count("var CircuitsVis=") == 1
    assert "var CircuitsVis=" not in shown.html(include_bundle=False)
    assert shown._repr_html_().count("var CircuitsVis=") == 1


def test_two_views_of_one_page_have_places_of_their_own():
    shown = attention.view(TOKENS, PATTERN, ["L1H3"])
    places = re.findall(r'id="([^"]+)"', shown.html(False) + shown.html(False))
    assert len(set(places)) == 2


def test_nothing_is_looked_up(monkeypatch):
    def refuse(*_: object) -> None:
        raise AssertionError("a connection was opened")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    assert attention.view(TOKENS, PATTERN, ["L1H3"])._repr_html_()


@pytest.mark.parametrize(
    ("tokens", "pattern", "names", "message"),
    [
        (TOKENS[:2], PATTERN, ["L1H3"], r"shape \(1, 3, 3\).*\(1, 2, 2\)"),
        (TOKENS, PATTERN, ["L1H3", "L1H4"], r"expected|= \(2, 3, 3\)"),
        (TOKENS, PATTERN[0], ["L1H3"], r"shape \(3, 3\)"),
        (TOKENS, PATTERN - 0.5, ["L1H3"], "between 0 and 1"),
        (TOKENS, PATTERN * np.nan, ["L1H3"], "between 0 and 1"),
        (TOKENS, PATTERN * 2, ["L1H3"], "between 0 and 1"),
    ],
)
def test_what_is_no_pattern_is_refused(tokens, pattern, names, message):
    with pytest.raises(ValueError, match=message):
        attention.view(tokens, pattern, names)
