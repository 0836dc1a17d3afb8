"""The circuit as a graph: every box and label has a place of its own, every line an end."""

import itertools

import numpy as np
import pytest

import interp
from interp.analysis import Result
from interp.plots import figure, induction_circuit
from interp.plots.layered import HEIGHT, LABEL_ROOM, WIDTH, Link, layered
from tests.analysis import planted

CHANNELS = ("q", "k", "v")
ENDS = ("", "_low", "_high", "_random_low", "_random_high")
EFFECTS = [name + end for name in ("score", "loss") for end in ENDS]
MEASURES = (*EFFECTS, "composition", "composition_z")
LABEL_WIDTH = 36
NAN = float("nan")


def circuit_of(edges, heads=(), helpers=(), **more) -> Result:
    """A graph with these edges: label, change of the score, change of the loss."""
    values = [
        [score, score - 0.1, score + 0.1, NAN, NAN, loss, loss - 0.2, loss + 0.2, 0.0, 0.5, 0.1, 7]
        for _, score, loss in edges
    ]
    return Result(
        "induction_circuit",
        np.array(values).reshape(len(edges), len(MEASURES)),
        ("edge", "measure"),
        labels={"edge": tuple(label for label, *_ in edges), "measure": MEASURES},
        provenance={
            "model": "m",
            "heads": dict(heads),
            "helpers": dict(helpers),
            "layers": layers_of([label for label, *_ in edges]),
            **more,
        },
    )


def layers_of(edges) -> dict[str, int]:
    ends = {
        end.partition(".")[0] if n else end for e in edges for n, end in enumerate(e.split("->"))
    }
    return {end: int(end[1]) if end[0] == "L" else -1 for end in ends if end != "logits"}


PAIR = [
    ("embed->L0H2.v", -0.6, 2.0),
    ("L0H1->L1H3.q", -0.3, 1.0),
    ("L0H2->L1H3.k", -0.6, 2.0),
    ("embed->L1H3.v", NAN, 1.5),
    ("L1H3->logits", NAN, 3.0),
]


def pair():
    return circuit_of(PAIR, {"L1H3": 0.61}, {"L0H2": ("previous token", 0.88)})


def lines(drawn):
    return [trace for trace in drawn.data if trace.mode == "lines"]


def labels(drawn):
    return [trace for trace in drawn.data if trace.mode == "text"]


def test_boxes_say_what_their_part_does():
    texts = [note.text for note in figure(pair()).layout.annotations if len(note.text) > 1]
    assert texts == [
        "<b>embed</b><br>current token",
        "<b>L0H2</b><br>previous 0.88",
        "<b>L0H1</b>",
        "<b>L1H3</b><br>induction 0.61",
        "<b>logits</b><br>prediction",
    ]
    edges = [("L0.lag1->L1H0.k", -0.5, 1.0), ("L0.lag3->L1H0.k", -0.5, 1.0)]
    lag = figure(circuit_of(edges, lags={"L0.lag1": 1, "L0.lag3": 3}))
    assert {note.text for note in lag.layout.annotations} >= {
        "<b>L0.lag1</b><br>token before",
        "<b>L0.lag3</b><br>3 tokens back",
    }


def test_a_part_without_a_layer_is_refused():
    with pytest.raises(ValueError, match=r"no layer of 'embed' under 'layers'.*find the circuit"):
        figure(circuit_of(PAIR, layers={"L0H1": 0, "L0H2": 0, "L1H3": 1}))


def test_what_a_heads_own_keys_add_stands_below_it():
    edges = [("taps.lag1->L0H1.k", -0.5, 1.0), ("taps.lag2->L0H1.k", -0.5, 1.0)]
    more = {"layers": {"taps.lag1": -1, "taps.lag2": -1, "L0H1": 0}}
    drawn = figure(circuit_of(edges, keys={"taps.lag1": 1, "taps.lag2": 2}, **more))
    assert {note.text for note in drawn.layout.annotations} >= {
        "<b>taps.lag1</b><br>key before",
        "<b>taps.lag2</b><br>2 keys back",
    }


def test_a_line_is_as_wide_as_what_it_changes_and_of_its_channels_colour():
    drawn = figure(pair())
    widths = [line.line.width for line in lines(drawn)[::2]]
    thin, wide = induction_circuit.NARROWEST_LINE, induction_circuit.WIDEST_LINE
    half = (thin + wide) / 2
    assert widths == pytest.approx([wide, half, wide, half, wide])
    colours = [line.line.color for line in lines(drawn)[::2]]
    assert colours == [induction_circuit.COLOURS[channel] for channel in ("v", "q", "k", "v", "")]


def test_a_label_is_the_change_of_the_score_or_of_the_loss():
    assert [label.text[0] for label in labels(figure(pair()))] == [
        "−0.60", "−0.30", "−0.60", "+1.50", "+3.00",
    ]  # fmt: skip


def test_hovering_tells_the_interval_and_what_random_directions_do():
    hover = labels(figure(pair()))[0].hovertext[0].split("<br>")
    assert hover == [
        "<b>embed-&gt;L0H2.v</b>",
        "induction score: −0.600 (95 %: −0.700 to −0.500)",
        "loss, nats: +2.000 (95 %: +1.800 to +2.200)",
        "as many random directions: +0.000 to +0.500",
        "weights compose 7 deviations above random rotations",
    ]
    without_score = labels(figure(pair()))[3].hovertext[0]
    assert "induction score" not in without_score


def test_a_line_begins_at_its_sender_and_ends_at_its_receivers_foot():
    drawn = figure(pair())
    boxes = {}
    for shape, note in zip(
        drawn.layout.shapes, [n for n in drawn.layout.annotations if len(n.text) > 1], strict=True
    ):
        boxes[note.text.split("</b>")[0].removeprefix("<b>")] = shape
    halves = zip(lines(drawn)[::2], lines(drawn)[1::2], strict=True)
    for (below, above), (label, *_) in zip(halves, PAIR, strict=True):
        sender, receiver = label.partition(".")[0].split("->")
        assert below.y[0] == boxes[sender].y1
        assert boxes[sender].x0 < below.x[0] < boxes[sender].x1
        assert above.y[-1] == boxes[receiver].y0
        assert boxes[receiver].x0 < above.x[-1] < boxes[receiver].x1


def test_channels_stand_in_their_order_and_a_box_without_any_has_none():
    notes = figure(pair()).layout.annotations
    letters = [note.text for note in notes if len(note.text) == 1]
    assert letters == ["q", "k", "v"] * 2  # L0H2 and L1H3
    across = [note.x for note in notes if len(note.text) == 1]
    assert across[:3] == sorted(across[:3])
    assert across[3:] == sorted(across[3:])


def test_no_circuit_is_drawn_as_an_empty_graph():
    drawn = figure(circuit_of([]))
    assert len(drawn.data) == 0
    assert drawn.layout.width == induction_circuit.NARROWEST


def dense(n_layers, n_heads):
    """Every head reads every head of all layers below, through every channel."""
    names = [[f"L{layer}H{head}" for head in range(n_heads)] for layer in range(n_layers)]
    return [
        Link(sender, receiver, channel)
        for upper, lower in itertools.combinations(range(n_layers)[::-1], 2)
        for receiver in names[upper]
        for sender in names[lower]
        for channel in CHANNELS
    ]


def by_layer(name):
    return int(name[1])


@pytest.mark.parametrize(("n_layers", "n_heads"), [(2, 1), (2, 3), (3, 2), (4, 2)])
def test_boxes_lie_apart_and_labels_do_not_touch(n_layers, n_heads):
    places = layered(dense(n_layers, n_heads), by_layer, CHANNELS)
    boxes = list(places.boxes.values())
    for one, other in itertools.combinations(boxes, 2):
        beside = abs(one.x - other.x) >= (one.width + other.width) / 2
        assert beside or abs(one.y - other.y) >= HEIGHT
    for (x, y), (u, v) in itertools.combinations([line.label for line in places.lines], 2):
        assert abs(x - u) >= LABEL_WIDTH or abs(y - v) >= 15
    assert all(box.width / 2 <= box.x <= places.width - box.width / 2 for box in boxes)
    assert max(box.y for box in boxes) + HEIGHT / 2 == places.height
    assert min(box.width for box in boxes) >= WIDTH


@pytest.mark.parametrize(("n_layers", "n_heads"), [(3, 2), (4, 2)])
def test_a_line_past_a_row_touches_none_of_its_boxes(n_layers, n_heads):
    links = dense(n_layers, n_heads)
    places = layered(links, by_layer, CHANNELS)
    for link, line in zip(links, places.lines, strict=True):
        for name, box in places.boxes.items():
            if name in (link.sender, link.receiver):
                continue
            inside = np.abs(line.below - [box.x, box.y]) < [box.width / 2, HEIGHT / 2]
            assert not inside.all(1).any(), (link, name)


def test_a_line_is_open_where_its_label_stands():
    for line in layered(dense(2, 2), by_layer, CHANNELS).lines:
        x, y = line.label
        assert line.below[-1].tolist() == [x, y - LABEL_ROOM]
        assert line.above[0].tolist() == [x, y + LABEL_ROOM]


def test_rows_are_sorted_so_that_fewer_lines_cross():
    links = [Link("L0H0", "L1H0", "v"), Link("L0H1", "L1H0", "q"), Link("L0H2", "L1H0", "k")]
    boxes = layered(links, by_layer, CHANNELS).boxes
    assert boxes["L0H1"].x < boxes["L0H2"].x < boxes["L0H0"].x


def test_the_real_thing_draws_and_where_there_is_none_the_scores_do():
    model = planted.induction_conv_attn(d_vocab=30, n_ctx=22)
    found = interp.induction_circuit(model, n=10, n_sequences=3, n_random=2)
    assert len(labels(found.plot())) == len(found.edges) == 4
    none = interp.induction_circuit(
        planted.induction_conv_attn(d_vocab=30, n_ctx=22, lags=1), n=10, n_sequences=3, n_random=2
    )
    assert none.plot().layout.title.text.startswith("<b>induction candidates</b>")
