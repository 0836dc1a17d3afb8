"""Paths that are removed together add at what receives them, in whatever order they are written."""

import itertools
import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import interp
from interp.analysis import LogitDifference, ablate, attribution_patch, patch, path_patch
from interp.analysis.interventions.controls import rotation
from interp.models import MLP, Attention, Conv, HookedSequenceModel, ModelConfig
from tests.analysis import measured
from tests.analysis.bridges import bridged, hugging_face, probe
from tests.analysis.interventions import by_hand, edges
from tests.analysis.interventions.by_hand import head, held_patterns, logits_under, put, tokens_for

ALL = slice(None)
CLOSE = {"rtol": 0, "atol": 1e-10}
DIFFERENCE = LogitDifference(3, 5)
HEADS = Attention(n_heads=2, d_head=4, mlp=MLP(12))
LAYERS = {
    **{kind: measured.LAYERS[kind] for kind in ("conv-attn", "attn-attn", "rotary", "shortformer")},
    "deep": {"layers": (HEADS, Conv(lags=2, mlp=MLP(12)), HEADS)},
    "output taps": {"layers": (measured.WRITES_LATER, Conv(), measured.OFFSET)},
    "deep rotary": {"layers": (HEADS,) * 3, "positions": "rotary", "norm": "rms"},
}


def build(kind: str) -> HookedSequenceModel:
    """Small, in float64, and with attention that no softmax has saturated."""
    layers = LAYERS.get(kind) or measured.LAYERS[kind]
    model = HookedSequenceModel(ModelConfig(d_vocab=40, d_model=8, n_ctx=16, **layers)).double()
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.copy_(0.5 * noise + 1.0 * (parameter == 1))
    return model


def difference(logits):
    return (logits[:, -1, 3] - logits[:, -1, 5]).numpy()


def effects(result, measure="effect"):
    return result.sel(measure=measure).values


def parsed(members):
    """The edges and the whole writers that a joint unit is."""
    pairs = [tuple(member.split("->")) for member in members if "->" in member]
    return pairs, [member for member in members if "->" not in member]


def by_edges(model, tokens, members, other=None):
    removed, whole = parsed(members)
    after = edges.logits(model, tokens, removed, whole, other)
    return (difference(after) - difference(edges.logits(model, tokens))).mean()


def pool_of(model):
    """Writers, readers' parts that can be replaced, and all the paths between them."""
    order = []
    for layer in range(len(model.blocks)):
        labels = [x for x in edges.expanded(model, f"L{layer}") if not x.endswith("mlp")]
        readers = [*labels, *dict.fromkeys(x.rpartition(".")[0] for x in labels if "H" in x)]
        readers.append(f"L{layer}.{'attn' if layer in model.attention_layers else 'conv'}")
        writers = [x for x in readers if ("lag" in x) or ("H" in x and "." not in x)]
        order += [([f"L{layer}.resid_pre"], []), (readers, writers)]
        if model.blocks[layer].mlp is not None:
            order.append(([f"L{layer}.mlp"], [f"L{layer}.mlp"]))
            order.append(([f"L{layer}"], []))
    order.append((["logits"], []))
    pool = [writer for _, writers in order for writer in writers]
    pool += [reader for readers, _ in order for reader in readers if reader[-2:] in (".q", ".k")]
    for i, (_, writers) in enumerate(order):
        for readers, _ in order[i + 1 :]:
            for sender, receiver in itertools.product(writers, readers):
                if not (sender.endswith("mlp") and receiver == sender.partition(".")[0]):
                    pool.append(f"{sender}->{receiver}")
    return [path for path in pool if not _from_within(path)]


def _from_within(path):
    """From a layer's own heads into all of the layer: no path, as it comes after only a part."""
    sender, _, receiver = path.partition("->")
    return receiver.isalnum() and "H" not in receiver and sender.startswith(receiver)


@pytest.mark.parametrize("kind", LAYERS)
def test_any_units_joined_are_the_model_without_these_edges(kind):
    """Of any kinds: heads, lags, MLPs, queries, streams, the end, and paths between all of them."""
    model = build(kind)
    tokens = tokens_for(model, n_pos=7)
    pool, draw = pool_of(model), random.Random(0)
    joints = [draw.sample(pool, draw.choice([1, 2, 2, 3, 3, 5])) for _ in range(24)]
    joints = list({frozenset(members): members for members in joints}.values())
    expected = [by_edges(model, tokens, members) for members in joints]
    result = ablate(
        model, tokens, ["+".join(members) for members in joints], metric=DIFFERENCE, control="none"
    )
    np.testing.assert_allclose(effects(result), expected, **CLOSE)
    assert (np.abs(expected) > 1e-4).mean() > 0.6
    shuffled = ["+".join(draw.sample(members, len(members))) for members in joints]
    again = ablate(model, tokens, shuffled, metric=DIFFERENCE, control="none")
    np.testing.assert_allclose(effects(again), effects(result), rtol=0, atol=1e-13)


@settings(max_examples=8)
@given(st.data())
def test_the_order_of_writing_never_matters(data):
    model = build("deep")
    clean, corrupted = tokens_for(model, 2, 6), tokens_for(model, 2, 6, seed=1)
    members = data.draw(
        st.lists(st.sampled_from(pool_of(model)), min_size=2, max_size=4, unique=True)
    )
    orders = ["+".join(members), "+".join(data.draw(st.permutations(members)))]
    found = []
    for text in orders:
        of = attribution_patch(model, clean, corrupted, [text], DIFFERENCE)
        mean = ablate(model, clean, [text], "mean", DIFFERENCE, control="none")
        found.append([*effects(of, "exact"), *effects(of, "estimate"), *effects(mean)])
    np.testing.assert_allclose(*found, rtol=0, atol=1e-12)
    other = by_hand.activations(model, clean)
    expected = by_edges(model, corrupted, members, other)
    assert found[0][0] == pytest.approx(expected, abs=1e-10)


JOINTS = {
    "conv-attn": ["L0.lag0->L1H1.k", "L0.lag1->L1H1.k"],
    "attn-attn": ["L0H0->L1H2.q", "L0H1->L1H2.q"],
    "deep": ["L0H0->L2H0.v", "L1.lag1->L2H0.v", "L0.mlp->L2H0.v"],
    "deep rotary": ["L0H0->L2H1.k", "L1H1->L2H1.k"],
}


@pytest.mark.parametrize("kind", JOINTS)
def test_paths_into_one_receiver_in_every_kind_of_removal(kind):
    model, members = build(kind), JOINTS[kind]
    tokens, corrupted = tokens_for(model), tokens_for(model, seed=1)
    whole = by_edges(model, tokens, members)
    alone = [by_edges(model, tokens, [member]) for member in members]
    assert min(abs(whole - one) for one in alone) > 1e-4
    pairs = ablate(model, tokens, members, metric=DIFFERENCE, pairs=True, control="none")
    both = [[by_edges(model, tokens, {a, b}) for a in members] for b in members]
    np.testing.assert_allclose(effects(pairs), both, **CLOSE)
    beyond = both[0][1] - alone[0] - alone[1]
    assert effects(pairs, "interaction")[0, 1] == pytest.approx(beyond, abs=1e-10)
    steps = ablate(model, tokens, members, metric=DIFFERENCE, cumulative=True, control="none")
    assert effects(steps)[-1] == pytest.approx(whole, abs=1e-10)
    other = by_hand.activations(model, tokens)
    expected = by_edges(model, corrupted, members, other)
    text = "+".join(members)
    assert effects(patch(model, tokens, corrupted, [text], DIFFERENCE)) == pytest.approx(expected)
    of = attribution_patch(model, tokens, corrupted, [text, *members], DIFFERENCE)
    assert effects(of, "exact")[0] == pytest.approx(expected)
    sender = "+".join(member.partition("->")[0] for member in members)
    receiver = members[0].partition("->")[2]
    sent = path_patch(model, [sender], receiver, tokens, corrupted, DIFFERENCE)
    assert effects(sent) == pytest.approx(expected)


@pytest.mark.parametrize("kind", ["gpt", "attn-attn", "deep", "sees its future"])
def test_all_paths_out_of_a_head_are_the_head(kind):
    """Whatever the norms do: also where the stream is normalised after each write."""
    model = build(kind)
    tokens = tokens_for(model)
    readers = []
    for layer, block in enumerate(model.blocks):
        readers += edges.expanded(model, f"L{layer}") if layer else []
        readers += ["L0.mlp"] if not layer and block.mlp is not None else []
    paths = [f"L0H1->{reader}" for reader in (*readers, "logits")]
    result = ablate(model, tokens, ["L0H1", "+".join(paths), "+".join(paths[::-1])],
                    metric=DIFFERENCE, control="none")  # fmt: skip
    whole, *joined = effects(result)
    assert joined == pytest.approx([whole] * 2, abs=1e-10)
    assert abs(whole) > 1e-3


def test_a_receiver_of_a_post_norm_model_sees_both_removed():
    model = build("gpt")
    tokens = tokens_for(model)
    cache = by_hand.activations(model, tokens)
    kept = {}
    held = put("blocks.0.hook_mlp_out", (ALL,), cache["blocks.0.hook_mlp_out"])
    keep = ("blocks.1.attn.hook_k", lambda a, hook: kept.__setitem__("k", a.clone()))
    logits_under(model, tokens, head(0, 0), head(0, 1), held, keep)
    hook = put("blocks.1.attn.hook_k", (ALL, ALL, 0), kept["k"])
    clean = difference(logits_under(model, tokens))
    expected = (difference(logits_under(model, tokens, hook)) - clean).mean()
    result = ablate(model, tokens, ["L0H0->L1H0.k+L0H1->L1H0.k"], metric=DIFFERENCE, control="none")
    assert effects(result) == pytest.approx(expected, abs=1e-10)
    assert abs(expected) > 1e-4


def test_the_shipped_attn_attn():
    """What was once -0.118: the last path alone."""
    model = interp.load("attn-attn").double().eval()
    tokens = torch.randint(1, 1024, (5, 40), generator=torch.Generator().manual_seed(0))
    paths = ["L0H0->L1H2.q", "L0H1->L1H2.q"]
    result = ablate(
        model, tokens, ["+".join(paths), "+".join(paths[::-1])],
        metric=LogitDifference(3, 7), control="none",
    )  # fmt: skip
    kept = {}
    keep = ("blocks.1.attn.hook_q", lambda a, hook: kept.__setitem__("q", a.clone()))
    logits_under(model, tokens, head(0, 0), head(0, 1), keep)
    hook = put("blocks.1.attn.hook_q", (ALL, ALL, 2), kept["q"])
    logits = [logits_under(model, tokens, *hooks)[:, -1] for hooks in ([], [hook])]
    before, after = ((x[:, 3] - x[:, 7]).mean().item() for x in logits)
    assert effects(result) == pytest.approx([after - before] * 2, abs=1e-10)
    assert after - before == pytest.approx(0.318, abs=1e-3)


def test_entries_of_one_receiver_each_have_the_senders_that_name_them():
    """At some positions, and through a hook point's own index."""
    model = build("attn-attn")
    tokens = tokens_for(model)
    name = "blocks.1.attn.hook_k"
    cache = by_hand.activations(model, tokens)

    def keys(*heads):
        kept = {}
        keep = (name, lambda a, hook: kept.__setitem__("k", a.clone()))
        logits_under(model, tokens, *(head(0, h) for h in heads), keep)
        return kept["k"]

    clean = difference(logits_under(model, tokens))
    at = {"L0H0->L1H0.k": (ALL, ALL, 0), "L0H0->L1H0.k@3:6": (ALL, slice(3, 6), 0),
          f"L0H0->{name}[2:8]": (ALL, slice(2, 8))}  # fmt: skip
    for first, where in at.items():
        value = cache[name].clone()
        value[:, :, 0] = keys(1)[:, :, 0]
        mine = torch.zeros_like(value, dtype=torch.bool)
        mine[where] = True
        other = torch.zeros_like(mine)
        other[:, :, 0] = True
        value = torch.where(mine & other, keys(0, 1), torch.where(mine, keys(0), value))
        hook = put(name, (ALL,), value)
        expected = (difference(logits_under(model, tokens, hook)) - clean).mean()
        for text in (f"{first}+L0H1->L1H0.k", f"L0H1->L1H0.k+{first}"):
            result = ablate(model, tokens, [text], metric=DIFFERENCE, control="none")
            assert effects(result) == pytest.approx(expected, abs=1e-10), text


def test_what_is_put_in_stands_whatever_reaches_it():
    model = build("attn-attn")
    tokens = tokens_for(model)
    paths = ("L0H0->L1H0.k", "L0H0->L1H0", "L0H0->L1.attn@4")
    alone, *joined = effects(
        ablate(
            model, tokens, ["L1.attn", *(f"L1.attn+{path}" for path in paths)],
            metric=DIFFERENCE, control="none",
        )
    )  # fmt: skip
    assert joined == pytest.approx([alone] * 3, abs=1e-12)


@pytest.mark.parametrize("kind", ["conv-attn", "deep"])
def test_units_that_write_through_one_hook_point(kind):
    model = build(kind)
    tokens = tokens_for(model)
    conv = {"conv-attn": 0, "deep": 1}[kind]
    attn = conv + 1
    lags = [put(f"blocks.{conv}.conv.hook_lags", (ALL, lag), 0.0) for lag in (0, 1)]
    out = put(f"blocks.{attn}.hook_attn_out", (ALL,), 0.0)
    cases = {
        f"L{conv}.lag0+L{conv}.lag1": lags,
        f"L{attn}H0+L{attn}.attn": [out],
        f"L{attn}.attn+L{attn}H0": [out],
        f"L{conv}.lag1+L{conv}.conv": [put(f"blocks.{conv}.hook_conv_out", (ALL,), 0.0)],
        f"L{attn}H0+L{attn}H1+L{conv}.lag0": [head(attn, 0), head(attn, 1), lags[0]],
        f"L{attn}H0+L{attn}H0@3": [head(attn, 0)],
    }
    clean = difference(logits_under(model, tokens))
    expected = [
        (difference(logits_under(model, tokens, *h)) - clean).mean() for h in cases.values()
    ]
    result = ablate(model, tokens, list(cases), metric=DIFFERENCE, control="none")
    np.testing.assert_allclose(effects(result), expected, **CLOSE)


def test_estimates_count_what_is_written_over_once():
    """Without a norm and attention that moves, patching is linear and the estimate exact."""
    config = ModelConfig(
        d_vocab=40, d_model=8, n_ctx=16, norm="none",
        layers=(Conv(lags=2), Conv(lags=2), Conv(lags=3)),
    )  # fmt: skip
    model = HookedSequenceModel(config).double()
    clean, corrupted = tokens_for(model), tokens_for(model, seed=1)
    units = [
        "L0.lag0+L1.lag1",
        "L0.conv+L0.lag0",
        "L0.lag0+L1.resid_pre",
        "L0.lag1->L2.lag1+L1.lag0->L2.lag1",
        "L0.lag0->L1.lag1+L0.lag0->L2.conv",
        "L0.lag0->L1.resid_pre+L0.lag0->logits",
    ]
    result = attribution_patch(model, clean, corrupted, units, DIFFERENCE)
    np.testing.assert_allclose(effects(result, "error"), 0, atol=1e-10)
    assert np.abs(effects(result, "exact")).min() > 1e-6


def test_patterns_stay_held_for_what_a_head_receives():
    model = build("attn-attn")
    tokens = tokens_for(model)
    cache = by_hand.activations(model, tokens)
    frozen = held_patterns(cache)
    kept = {}
    keep = ("blocks.1.attn.hook_z", lambda a, hook: kept.__setitem__("z", a.clone()))
    logits_under(model, tokens, *frozen, head(0, 0), head(0, 1), keep)
    hook = put("blocks.1.attn.hook_z", (ALL, ALL, 2), kept["z"])
    clean = difference(logits_under(model, tokens))
    expected = (difference(logits_under(model, tokens, hook)) - clean).mean()
    result = ablate(
        model, tokens, ["L0H0->L1H2+L0H1->L1H2"], "pattern_preserving", DIFFERENCE, control="none"
    )
    assert effects(result) == pytest.approx(expected, abs=1e-10)


# ---------------------------------------------------------------------------------------- controls


def turned(model, layer, heads, turn, cache):
    """Hooks that take heads out of what a layer writes, in other directions."""
    z, W_O = cache[f"blocks.{layer}.attn.hook_z"], model.attn(layer).W_O
    change = -sum(z[:, :, h] @ W_O[h] for h in heads) @ turn

    def write(out, hook):
        return out + change

    return f"blocks.{layer}.hook_attn_out", write


def test_every_part_of_a_joint_unit_is_turned():
    model = build("attn-attn")
    tokens = tokens_for(model)
    cache = by_hand.activations(model, tokens)
    clean = difference(logits_under(model, tokens))
    drawn = []
    for draw in range(4):
        turn = rotation(8, 0, draw)
        kept = {}
        keep = ("blocks.1.attn.hook_v", lambda a, hook, kept=kept: kept.__setitem__("v", a.clone()))
        logits_under(model, tokens, turned(model, 0, (0, 1), turn, cache), keep)
        received = put("blocks.1.attn.hook_v", (ALL, ALL, 2), kept["v"])
        hooks = [turned(model, 0, (1,), turn, cache), received]
        drawn.append((difference(logits_under(model, tokens, *hooks)) - clean).mean())
    for unit in ("L0H1+L0H0->L1H2.v", "L0H0->L1H2.v+L0H1"):
        result = ablate(model, tokens, [unit], metric=DIFFERENCE, control="directions", n_random=4)
        for measure, summary in (("random", np.mean), ("random_low", min), ("random_high", max)):
            assert effects(result, measure)[0] == pytest.approx(summary(drawn), abs=1e-10)
        assert min(drawn) < max(drawn)


@pytest.mark.parametrize("kind", ["attn-attn", "deep"])
def test_turned_units_do_not_depend_on_the_order_of_writing(kind):
    model = build(kind)
    tokens = tokens_for(model, n_pos=6)
    pool = [u for u in pool_of(model) if u.partition("->")[0][-2:] not in (".q", ".k")]
    draw = random.Random(1)
    joints = [draw.sample(pool, 3) for _ in range(4)]
    found = [
        ablate(model, tokens, units, metric=DIFFERENCE, control="directions", n_random=2).values
        for units in (["+".join(x) for x in joints], ["+".join(x[::-1]) for x in joints])
    ]
    np.testing.assert_allclose(*found, rtol=0, atol=1e-12)


def test_a_unit_written_in_another_order_is_no_control_of_itself():
    model = build("attn-attn")
    tokens = tokens_for(model)
    units = ["L0H0+L1H0", "L1H0+L0H0"]
    result = ablate(model, tokens, units, metric=DIFFERENCE, control="units", n_random=3)
    low, high = effects(result, "random_low"), effects(result, "random_high")
    assert not np.isclose(effects(result)[:, None], [low, high]).any()


# ----------------------------------------------------------------------------------------- bridges


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_paths_add_on_a_bridge(kind):
    bridge = bridged(hugging_face(kind).double())
    tokens, name = probe(4), "blocks.1.attn.hook_k"
    kept = {}
    held = by_hand.activations(bridge, tokens)["blocks.0.hook_mlp_out"]
    z = put("blocks.0.attn.hook_z", (ALL, ALL, slice(0, 2)), 0.0)
    keep = (name, lambda a, hook: kept.__setitem__("k", a.clone()))
    logits_under(bridge, tokens, z, put("blocks.0.hook_mlp_out", (ALL,), held), keep)
    hook = put(name, (ALL, ALL, 1), kept["k"])
    clean, after = (difference(logits_under(bridge, tokens, *h)) for h in ([], [hook]))
    paths = ["L0H0->L1H1.k", "L0H1->L1H1.k"]
    units = ["+".join(paths), "+".join(paths[::-1])]
    result = ablate(bridge, tokens, units, metric=DIFFERENCE, control="none")
    assert effects(result) == pytest.approx([(after - clean).mean()] * 2, abs=1e-9)
    assert np.abs(after - clean).max() > 1e-4


# ---------------------------------------------------------------------------------------- refusals


def test_a_unit_is_not_joined_with_itself():
    model = measured.never_run(build("attn-attn"))
    tokens = tokens_for(model)
    for text, named in (("L1H0+L1H0", "L1H0"), ("L0H0->L1H0.k+L1H1+L0H0->L1H0.k", "L0H0->L1H0.k")):
        with pytest.raises(ValueError, match=f"joins {named} with itself; write it once"):
            ablate(model, tokens, [text])
