"""Whatever a label holds is shown letter by letter, in every picture that there is."""

import json
import re

import numpy as np
import pytest

from interp.analysis import Result
from interp.plots import AttentionView, figure
from interp.plots.composition import MEASURES
from interp.plots.development import training
from interp.plots.figures import pictures
from interp.plots.phases import shaded
from interp.plots.registry import Order, draws
from interp.plots.runs import runs

EVIL = '<a href="https://evil.example">x</a><img src=x onerror=y> <i>& $z$'
OURS = {"b", "br", "span", "extra"}
"""The tags that figures use themselves."""
LAGS = ("lag 0", "lag 1", f"c {EVIL}")


def evil(n: int, lead: str = "") -> tuple[str, ...]:
    """Different labels, none of them harmless."""
    return tuple(f"{lead}{number} {EVIL}" for number in range(n))


def of(
    unit: str | dict[str, str] = EVIL,
    name: str = EVIL,
    provenance: dict | None = None,
    values: np.ndarray | None = None,
    **labels: tuple,
) -> Result:
    """A result over these axes, with a name, a unit and an origin of the same kind."""
    shape = tuple(len(names) for names in labels.values())
    values = np.random.default_rng(0).normal(size=shape) if values is None else values
    known = {"model": EVIL, "variant": EVIL, "head": EVIL, **(provenance or {})}
    return Result(
        name, values, tuple(labels), labels, standard_error=np.full(shape, 0.1),
        chance=np.full(shape, 0.05), unit=unit, provenance=known,
    )  # fmt: skip


STEPS = (1, 10, 100)
HEADS = ("L0H0", "L1H1")
EDGE = [
    name + end
    for name in ("score", "loss")
    for end in ("", "_low", "_high", "_random_low", "_random_high")
]
TOP = [[[word, word] for word in evil(3)] for _ in range(2)]


def smeared() -> Result:
    measures = evil(2)
    why = {f"{EVIL} {EVIL} {measures[0]}": EVIL}
    values = np.full((1, 1, 2), np.nan)
    values[..., 1] = 3.0
    return of(provenance={"undefined": why}, values=values, channel=(EVIL,), head=(EVIL,),
              measure=measures)  # fmt: skip


def composed(kind: str = EVIL) -> Result:
    values = np.full((len(MEASURES), 1, 2, 2), 3.0)
    values[MEASURES.index("p_corrected")] = 0.01
    return of("", values=values, measure=MEASURES, kind=(kind,), source=(f"L0 {EVIL}", "L0H1"),
              target=(f"L1 {EVIL}", "L1H1"))  # fmt: skip


CASES = {
    "heads": of(score=evil(2), head=HEADS),
    "units of heads": of(dict(zip(evil(2), evil(2), strict=True)), measure=evil(2), head=HEADS),
    "curves": of(model=evil(2), position=(0, 1, 2)),
    "bars": of(dict(zip(evil(2), evil(2), strict=True)), model=evil(2), measure=evil(2)),
    "rows": of(component=evil(9), measure=("estimate", "exact", EVIL)),
    "removed": of(removed=evil(3), measure=("effect", "clean")),
    "grid": of(sender=evil(3), receiver=evil(3), measure=("effect", EVIL)),
    "grid of positions": of(component=evil(3), position=(0, 1), measure=("effect",)),
    "development": of(step=STEPS, score=evil(2), head=evil(9)),
    "development of measures": of(dict.fromkeys(evil(2), EVIL), step=STEPS, measure=evil(2)),
    "map": of(step=STEPS, position=(1, 2, 3)),
    "windows": of(head=evil(2), interval=("estimate", "low", "high"), measure=("start", "end"),
                  values=np.ones((2, 3, 2))),
    "reached": of(member=evil(2), interval=("estimate", "low", "high"), values=np.ones((2, 3)),
                  provenance={"measure": EVIL, "score": 0.3, "each": {
                      name: {EVIL: 3.0, "b": None} for name in evil(2)}}),
    "circuit": of(edge=("L0H0->L1H0.k", f"L1H0->{EVIL.replace('.', '')}"),
                  measure=(*EDGE, "composition", "composition_z"),
                  provenance={"heads": {"L1H0": 0.5}, "helpers": {EVIL: (EVIL, 0.5)}, "layers": {
                      "L0H0": 0, "L1H0": 1, EVIL.replace(".", ""): 2}}),
    "parts": of(part=evil(3)),
    "paths at positions": of(path=evil(3), position=evil(3)),
    "lens": of(dict.fromkeys(evil(2), EVIL), measure=evil(2), layer=evil(3)),
    "lens at positions": of(layer=evil(3), position=evil(3)),
    "lens of tokens": of(layer=evil(2), position=(0, 1, 2), choice=(0, 1),
                         values=np.full((2, 3, 2), 0.4),
                         provenance={"words": evil(3), "top_words": TOP}),
    "lag pairs": of(head=evil(2), query_lag=evil(2), key_lag=evil(2), measure=evil(2)),
    "split scores": of(query_lag=LAGS, key_lag=LAGS, query=(0, 1, 2), key=(0, 1, 2),
                       provenance={"words": evil(3)}),
    "value lags": of(value_lag=evil(2), head=HEADS),
    "split outputs": of(value_lag=LAGS, query=(0, 1, 2), d_model=(0, 1),
                        provenance={"words": evil(3)}),
    "convolutions": of(conv=evil(2), lag=evil(2), measure=evil(2)),
    "spectra": of(lag=evil(2), rank=(1, 2)),
    "weights": of(lag=evil(2), input=evil(3), output=evil(3)),
    "depthwise weights": of(lag=evil(2), channel=evil(3)),
    "smears": smeared(),
    "tokens": of(query_token=evil(3), key_token=evil(3),
                 provenance={"query_lag": EVIL, "distance": EVIL}),
    "sources": of(source_token=evil(3), predicted_token=evil(2)),
    "positions": of(query_position=evil(3), key_position=evil(2)),
    "distances": of(term=("positions", "tokens"), distance=(0, 1, 2)),
    "recall": of(dict(zip(evil(2), evil(2), strict=True)), measure=evil(2), query=(1, 2)),
    "composition": composed(),
    "attention": of(head=evil(2), query=(0, 1), key=(0, 1), values=np.full((2, 2, 2), 0.5),
                    provenance={"words": evil(2)}),
}  # fmt: skip


def texts(part: object) -> list[str]:
    """All strings of a figure, however deep."""
    if isinstance(part, str):
        return [part]
    parts = part.values() if isinstance(part, dict) else part if isinstance(part, list) else ()
    return [text for inner in parts for text in texts(inner)]


def assert_harmless(drawn) -> None:
    shown = texts(json.loads(drawn.to_json()))
    assert any("&lt;a href" in text for text in shown)
    for text in shown:
        assert set(re.findall(r"<\s*/?\s*([^\s/>]*)", text)) <= OURS, text
        assert "$" not in text, text


@pytest.mark.parametrize("name", [name for name in CASES if name != "attention"])
def test_a_label_is_never_markup_a_link_or_a_formula(name):
    assert_harmless(figure(CASES[name]))


def test_an_attention_view_hands_words_on_as_data():
    shown = figure(CASES["attention"])
    assert isinstance(shown, AttentionView)
    html = shown.html(include_bundle=False)
    assert "<a" not in html
    assert "<img" not in html


def test_pictures_of_several_results_escape_too():
    one = of("nats", step=STEPS, provenance={"architecture": EVIL, "run": EVIL})
    assert_harmless(runs({EVIL: [one]}, title=EVIL))
    window = of("steps", interval=("estimate", "low", "high"), measure=("start", "end"),
                values=np.full((3, 2), np.nan), provenance={"no_change": EVIL})  # fmt: skip
    assert_harmless(shaded(one, window))
    units = dict(zip(evil(2), evil(2), strict=True))
    assert_harmless(training(of(units, step=STEPS, measure=evil(2))))


def test_every_picture_is_among_them():
    def chosen(result: Result):
        return next(picture.draw for picture in pictures() if picture.axes <= set(result.axes))

    assert {chosen(result) for result in CASES.values()} == {one.draw for one in pictures()}


def test_an_axis_has_one_picture():
    with pytest.raises(
        ValueError, match=r"'edge' is drawn by interp\.plots\.induction_circuit\.graph"
    ):
        draws("edge")(figure)


def test_the_first_of_a_results_axes_in_the_order_decides():
    orders = [picture.order for picture in pictures()]
    assert orders == sorted(orders)
    assert orders[0] is Order.CLOCK
    assert "scatter" in {trace.type for trace in figure(CASES["development"]).data}
