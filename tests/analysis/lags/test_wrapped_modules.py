"""What heads of wrapped modules read at which lag: against ours, and against Hugging Face's hooks.

The same weights in one of our models give the same numbers; cells are those that the modules' own
activations give, spelled out per architecture; and what is planted is found in its place.
"""

from functools import cache

import numpy as np
import pytest
import torch
from torch import nn
from transformers.models.lfm2.modeling_lfm2 import Lfm2ShortConv

import interp
from interp.analysis import lag_circuits, lag_pair_shares, without_lag_pair
from interp.models import MLP, Attention, GatedConv, HookedSequenceModel, ModelConfig
from interp.views import view
from tests.analysis.architectures import (
    CONFIGS,
    D_VOCAB,
    N_CTX,
    WIDTH,
    Block,
    built,
    own,
    text,
)
from tests.analysis.bridges import bridged

SPLIT = ["own", "gated", "lfm2", "inkling", "zaya"]
D_HEAD = 8


class Gated(nn.Module):
    """LFM2's short convolution in a layer of its own, behind a LayerNorm."""

    def __init__(self):
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.conv = Lfm2ShortConv(CONFIGS["lfm2"](), 0)
        self.conv.in_proj.bias = nn.Parameter(torch.zeros(3 * WIDTH))
        self.conv.out_proj.bias = nn.Parameter(torch.zeros(WIDTH))

    def forward(self, x):
        return x + self.conv(self.norm(x))


def gated(seed=0):
    """Two such layers in a row below one that attends."""
    kinds = iter([Gated, Gated, Block])
    model = own(seed, n_layers=3, block=lambda: next(kinds)())
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for layer in model.layers:
            if isinstance(layer, Gated):
                for bias in (layer.conv.in_proj.bias, layer.conv.out_proj.bias):
                    bias.normal_(0, 0.5, generator=generator)
    return model


def module_of(kind, dtype=torch.float32):
    if kind in ("own", "gated"):
        return {"own": own, "gated": gated}[kind]().to(dtype)
    return built(kind, dtype)


@cache
def wrapped(kind, dtype=torch.float32):
    return interp.wrap(module_of(kind, dtype))


# ------------------------------------------------------------ the same weights in one of our models


@torch.no_grad()
def ours(module):
    """Our model with the weights of somebody's own, in float64."""
    layers = tuple(
        GatedConv(lags=3)
        if isinstance(layer, Gated)
        else Attention(4, D_HEAD, taps_k=3, mlp=MLP(2 * WIDTH))
        for layer in module.layers
    )
    config = ModelConfig(D_VOCAB, WIDTH, N_CTX, layers, unembed_bias=False)
    weights = {
        "embed.W_E": module.tokens.weight,
        "pos_embed.W_pos": module.positions.weight,
        "ln_final.w": module.norm.weight,
        "ln_final.b": module.norm.bias,
        "unembed.W_U": module.head.weight.T,
    }
    for number, layer in enumerate(module.layers):
        named = _gated(layer) if isinstance(layer, Gated) else _attending(layer)
        weights |= {f"blocks.{number}.{name}": x for name, x in named.items()}
    model = HookedSequenceModel(config).double()
    model.load_state_dict(weights, strict=True)
    return model.eval()


def _gated(layer):
    names = ("B", "C", "X")
    maps = zip(names, layer.conv.in_proj.weight.chunk(3), strict=True)
    biases = zip(names, layer.conv.in_proj.bias.chunk(3), strict=True)
    return {
        "ln1.w": layer.norm.weight,
        "ln1.b": layer.norm.bias,
        **{f"conv.W_{name}": x.T for name, x in maps},
        **{f"conv.b_{name}": x for name, x in biases},
        "conv.W_conv": layer.conv.conv.weight[:, 0].flip(-1).T,
        "conv.W_out": layer.conv.out_proj.weight.T,
        "conv.b_conv": layer.conv.out_proj.bias,
    }


def _attending(layer):
    reading = {"Q": layer.q, "K": layer.k, "V": layer.v}
    return {
        **{f"ln{n}.w": norm.weight for n, norm in ((1, layer.n1), (2, layer.n2))},
        **{f"ln{n}.b": norm.bias for n, norm in ((1, layer.n1), (2, layer.n2))},
        **{
            f"attn.W_{c}": one.weight.unflatten(0, (4, D_HEAD)).transpose(1, 2)
            for c, one in reading.items()
        },
        **{f"attn.b_{c}": one.bias.unflatten(0, (4, D_HEAD)) for c, one in reading.items()},
        "attn.W_O": layer.o.weight.T.unflatten(0, (4, D_HEAD)),
        "attn.b_O": layer.o.bias,
        "attn.taps_K": layer.short.weight[:, 0].flip(-1).T.unflatten(1, (4, D_HEAD)),
        "mlp.W_in": layer.ff[0].weight.T,
        "mlp.b_in": layer.ff[0].bias,
        "mlp.W_out": layer.ff[2].weight.T,
        "mlp.b_out": layer.ff[2].bias,
    }


TOKENS = text(6, 12)
QUESTIONS = {
    "lag_pair_shares": lambda m: lag_pair_shares(m, TOKENS),
    "detect_smeared_keys": lambda m: interp.detect_smeared_keys(m, TOKENS),
    "head_scores": lambda m: interp.head_scores(m, n=9, n_sequences=3),
    "ablate": lambda m: interp.ablate(m, TOKENS, "heads", control="none"),
    "lags": lambda m: interp.ablate(m, TOKENS, ["L0.lag1", "L1.lag2"], control="none"),
    "outputs": lambda m: lag_circuits(m, "L2H1", TOKENS[:1]).outputs,
    "scores": lambda m: lag_circuits(m, "L2H1", TOKENS[:1]).scores,
}
SPLIT_UP = {
    "path": lambda m: interp.path_attribution(m, TOKENS[:2], "L2H1"),
    "part": lambda m: interp.logit_attribution(m, TOKENS),
}


def check_equal(found, expected):
    assert found.axes == expected.axes
    for axis in found.axes:
        assert found.labels[axis] == expected.labels[axis]
    np.testing.assert_allclose(found.values, expected.values, rtol=1e-8, atol=1e-9)
    assert np.nanstd(found.values) > 0


@pytest.mark.parametrize("question", QUESTIONS)
def test_numbers_are_those_of_the_same_weights_in_one_of_our_models(question):
    module = gated().double()
    check_equal(*(QUESTIONS[question](model) for model in (interp.wrap(module), ours(module))))


@pytest.mark.parametrize("axis", SPLIT_UP)
def test_parts_are_those_of_ours_where_positions_are_a_part_of_what_is_embedded(axis):
    module = gated().double()
    found, expected = (SPLIT_UP[axis](model) for model in (interp.wrap(module), ours(module)))
    assert set(found.labels[axis]) < set(expected.labels[axis])
    for label in found.labels[axis]:
        both = label, label.replace("embed", "pos_embed")
        there = [one for one in dict.fromkeys(both) if one in expected.labels[axis]]
        total = sum(expected.sel(**{axis: one}).values for one in there)
        np.testing.assert_allclose(found.sel(**{axis: label}).values, total, atol=1e-9)
    np.testing.assert_allclose(found.values.sum(0), expected.values.sum(0), atol=1e-9)


def test_taps_as_they_stand_are_those_of_ours():
    module = gated().double()
    found, expected = (interp.conv_lags(model) for model in (interp.wrap(module), ours(module)))
    assert found.labels["conv"] == ("L0", "L1", "L2")  # alone in its layer
    assert expected.labels["conv"] == ("L0", "L1", "L2.k")
    np.testing.assert_allclose(found.values, expected.values, rtol=1e-12)


OF_WEIGHTS = {
    "copying_score": lambda m: interp.copying_score(m),
    "match_table": lambda m: interp.match_table(m),
    "detect_smeared_keys": lambda m: interp.detect_smeared_keys(m),
    "diagonal_preference": lambda m: interp.diagonal_preference(m),
    "composition_scores": lambda m: interp.composition_scores(m),
    "positional_circuit": lambda m: interp.positional_circuit(m, "L0H1"),
}


@pytest.mark.parametrize("question", OF_WEIGHTS)
def test_weights_are_read_as_those_of_our_attention_with_taps(question):
    module = own(n_layers=2 if question == "composition_scores" else 1).double()
    check_equal(*(OF_WEIGHTS[question](model) for model in (interp.wrap(module), ours(module))))


def test_logits_are_those_of_the_same_weights_in_one_of_our_models():
    module = gated().double()
    torch.testing.assert_close(interp.wrap(module)(TOKENS), ours(module)(TOKENS))


# -------------------------------------------------------------------------------- cells and sums


def scores_of(model, head, tokens):
    """The model's own, `[query key]`, and what the head wrote."""
    viewed = view(model)
    layer, index = viewed.head(head)
    names = [f"blocks.{layer}.attn.hook_{name}" for name in ("attn_scores", "z")]
    found = viewed.capture(tokens, names)
    (sublayer,) = [one for one in viewed.sublayers(layer) if one.attending is not None]
    written = sublayer.terms[index].written(found[names[1]])
    return found[names[0]][0, index].double().numpy(), written[0].detach().double().numpy()


@pytest.mark.parametrize(("dtype", "within"), [(torch.float32, 1e-6), (torch.float64, 1e-12)])
@pytest.mark.parametrize("kind", SPLIT)
def test_cells_add_up_to_the_models_own_scores_and_outputs(kind, dtype, within):
    model, tokens = wrapped(kind, dtype), text(1, 17)
    for head in lag_pair_shares(model, tokens).labels["head"]:
        found = lag_circuits(model, head, tokens)
        scores, written = scores_of(model, head, tokens)
        total, seen = found.scores.values.sum((0, 1)), np.tril(np.ones((17, 17), bool))
        assert np.isnan(total[~seen]).all()
        size = np.abs(scores[seen]).max()
        np.testing.assert_allclose(total[seen], scores[seen], rtol=0, atol=within * max(size, 1))
        outputs = found.outputs.values.sum(0)
        size = np.abs(written).max()
        np.testing.assert_allclose(outputs, written, rtol=0, atol=within * max(size, 1))


@pytest.mark.parametrize("kind", SPLIT)
def test_shares_add_up_and_are_those_of_the_cells(kind):
    model, tokens = wrapped(kind, torch.float64), text(2, 14)
    shares = lag_pair_shares(model, tokens)
    np.testing.assert_allclose(shares.values.sum((1, 2)), 1, atol=1e-10)
    head = shares.labels["head"][-1]
    expected, seen = [], np.tril(np.ones((14, 14), bool))
    for row in tokens:
        cells = lag_circuits(model, head, row[None]).scores
        parts = np.where(seen, cells.values, 0)
        total = parts.sum((0, 1))
        means = total.sum(-1, keepdims=True) / seen.sum(-1, keepdims=True)
        deviations = (total - means) * seen
        share = np.einsum("qk,ijqk->ij", deviations, parts) / (deviations**2).sum()
        expected.append(share)
        assert (deviations**2).sum() > 1e-6
    found = shares.sel(head=head)
    names = cells.labels["query_lag"], cells.labels["key_lag"]
    for i, query in enumerate(names[0]):
        for j, key in enumerate(names[1]):
            if query in found.labels["query_lag"] and key in found.labels["key_lag"]:
                value = float(found.sel(query_lag=query, key_lag=key))
                assert value == pytest.approx(np.mean(expected, axis=0)[i, j], abs=1e-9)


@pytest.mark.parametrize("kind", SPLIT)
def test_a_pair_that_is_removed_takes_its_cell_and_nothing_else(kind):
    model, tokens = wrapped(kind, torch.float64), text(1, 14)
    viewed = view(model)
    head = lag_pair_shares(model, tokens).labels["head"][-1]
    layer, index = viewed.head(head)
    site, pair = f"blocks.{layer}.attn.hook_attn_scores", (0, 1)
    before = viewed.capture(tokens, [site])[site]
    with viewed.hooked(without_lag_pair(model, head, pair)):
        after = viewed.capture(tokens, [site])[site]
    cell = lag_circuits(model, head, tokens).scores.sel(query_lag="lag 0", key_lag="lag 1").values
    seen = torch.ones(14, 14).tril().bool()
    np.testing.assert_allclose(
        (before - after)[0, index][seen].numpy(), cell[seen.numpy()], atol=1e-11
    )
    others = [other for other in range(before.shape[1]) if other != index]
    assert torch.equal(before[:, others], after[:, others])
    assert np.nanmax(np.abs(cell)) > 1e-3


# --------------------------------------------------------- by Hugging Face's hooks, spelled out


def captured(module, paths, tokens):
    """What modules were given and gave."""
    found, handles = {}, []
    for path in paths:

        def keep(m, args, kwargs, out, path=path):
            given = next(x for x in (*args, *kwargs.values()) if isinstance(x, torch.Tensor))
            found[path] = given, out

        one = module.get_submodule(path)
        handles.append(one.register_forward_hook(keep, with_kwargs=True))
    with torch.no_grad():
        module(tokens)
    for handle in handles:
        handle.remove()
    return found


def moved(x, lag):
    """x of the token that far back, nothing where there is none; `[... pos d]`."""
    out = torch.zeros_like(x)
    out[..., lag:, :] = x[..., : x.shape[-2] - lag, :]
    return out


def cells_of(queries, keys, scale):
    """`[query_lag key_lag query key]` of `[lag pos d_head]` each."""
    return (torch.einsum("iqd,jkd->ijqk", queries, keys) * scale).double().numpy()


def turned(x, table):
    """By rotary positions, as Llama pairs channels."""
    cos, sin = (one[0] for one in table)
    first, second = x.chunk(2, -1)
    return x * cos + torch.cat([-second, first], -1) * sin


@torch.no_grad()
def lfm2_cells(module, head, tokens):
    """Of layer 2, above two gated convolutions in a row, each with an MLP behind it."""
    paths = ["model.layers.2.self_attn.q_layernorm", "model.layers.2.self_attn.k_layernorm"]
    for layer in (0, 1):
        paths += [f"model.layers.{layer}.{name}" for name in ("conv.in_proj", "feed_forward")]
        paths += [f"model.layers.{layer}.operator_norm"]
    seen = captured(module, [*paths, "model.layers.2.operator_norm", "model.rotary_emb"], tokens)

    def normed(path, x):
        """A norm held at the scale of its own run."""
        given, _ = seen[path]
        norm = module.get_submodule(path)
        scale = (given[0].pow(2).mean(-1, keepdim=True) + norm.variance_epsilon).sqrt()
        return x / scale * norm.weight

    parts = {"lag 0": seen["model.layers.0.operator_norm"][0][0]}
    for layer in (0, 1):
        block = module.model.layers[layer]
        before, after, _ = seen[f"model.layers.{layer}.conv.in_proj"][1][0].chunk(3, -1)
        W_u = block.conv.in_proj.weight.chunk(3)[2]
        written = {}
        for name, x in parts.items():
            u = normed(f"model.layers.{layer}.operator_norm", x) @ W_u.T
            for lag in range(3):
                taps = block.conv.conv.weight[:, 0, 2 - lag]
                term = (after * taps * moved(before * u, lag)) @ block.conv.out_proj.weight.T
                far = f"lag {int(name[4:]) + lag}" if name.startswith("lag") else name
                written[far] = written.get(far, 0) + term
        for name, x in written.items():
            parts[name] = parts.get(name, 0) + x
        parts[f"L{layer}.mlp"] = seen[f"model.layers.{layer}.feed_forward"][1][0]
    names = [*(f"lag {lag}" for lag in range(5)), "L0.mlp", "L1.mlp"]
    n = torch.stack([normed("model.layers.2.operator_norm", parts[name]) for name in names])
    attn, table = module.model.layers[2].self_attn, seen["model.rotary_emb"][1]

    def end(proj, norm, index):
        given, _ = seen[f"model.layers.2.self_attn.{norm}"]
        module_ = getattr(attn, norm)
        scale = (given[0, :, index].pow(2).mean(-1, keepdim=True) + module_.variance_epsilon).sqrt()
        x = n @ proj.weight[index * D_HEAD : (index + 1) * D_HEAD].T
        return turned(x / scale * module_.weight, table)

    queries = end(attn.q_proj, "q_layernorm", head)
    keys = end(attn.k_proj, "k_layernorm", head // 2)
    return cells_of(queries, keys, D_HEAD**-0.5), names, names


@torch.no_grad()
def inkling_cells(module, head, tokens):
    """Of layer 1: a convolution with a residual path on keys, norms, and a bias of the scores."""
    prefix = "model.layers.1.self_attn"
    names = ("q_proj", "k_proj", "q_norm", "k_norm", "rel_logits_proj")
    seen = captured(module, [f"{prefix}.{name}" for name in names], tokens)
    attn, kv = module.get_submodule(prefix), head // 2

    def factor(name, index):
        given, out = seen[f"{prefix}.{name}"]
        return (out / given)[0, :, index]

    q = seen[f"{prefix}.q_proj"][1][0].unflatten(-1, (4, D_HEAD))[:, head]
    k = seen[f"{prefix}.k_proj"][1][0].unflatten(-1, (2, D_HEAD))[:, kv]
    taps = attn.k_sconv.conv1d.weight[kv * D_HEAD : (kv + 1) * D_HEAD, 0]
    keys = [taps[:, 3 - lag] * moved(k, lag) + (k if lag == 0 else 0) for lag in range(4)]
    keys = torch.stack(keys) * factor("k_norm", kv)
    cells = cells_of((q * factor("q_norm", head))[None], keys, 1 / D_HEAD)
    bias = seen[f"{prefix}.rel_logits_proj"][1][0, head].double().numpy()
    cells = np.pad(cells, ((0, 1), (0, 1), (0, 0), (0, 0)))
    cells[-1, -1] = bias
    lags = [f"lag {lag}" for lag in range(4)]
    return cells, ["lag 0", "bias of the score"], [*lags, "bias of the score"]


@torch.no_grad()
def zaya_cells(module, head, tokens):
    """Of layer 1: two convolutions in a row on queries and keys, beside a residual path."""
    prefix = "model.layers.1.self_attn"
    names = ("qkv_proj.q_proj", "qkv_proj.k_proj", "qk_norm")
    paths = [f"{prefix}.{name}" for name in names]
    seen = captured(module, [*paths, "model.rotary_emb"], tokens)
    attn, kv = module.get_submodule(prefix), head // 2
    projected = torch.cat([seen[path][1][0] for path in paths[:2]], -1)
    depthwise, grouped = (
        getattr(attn.qkv_proj, f"conv_qk_{name}").weight for name in ("depthwise", "grouped")
    )
    width, n_heads = D_HEAD, 4
    made = torch.zeros(3, *projected.shape)
    for i in range(2):
        for j in range(2):
            once = depthwise[:, 0, 1 - i] * moved(projected, i + j)
            by_group = once.unflatten(-1, (-1, width))
            kernel = grouped[:, :, 1 - j].unflatten(0, (-1, width))
            made[i + j] += torch.einsum("pgc,goc->pgo", by_group, kernel).flatten(1)
    q = seen[paths[0]][1][0].unflatten(-1, (n_heads, width))
    k = seen[paths[1]][1][0].unflatten(-1, (2, width)).repeat_interleave(2, dim=1)
    past = (q + k) / 2
    queries = made[..., : n_heads * width].unflatten(-1, (n_heads, width))[:, :, head]
    keys = made[..., n_heads * width :].unflatten(-1, (2, width))[:, :, kv]
    queries[0] += past[:, head]
    keys[0] += past.unflatten(1, (2, 2)).mean(2)[:, kv]
    return queries, keys, kv, seen, attn


def test_cells_of_lfm2_are_those_of_hugging_faces_modules():
    module, tokens = built("lfm2"), text(1, 15)
    for head in (0, 3):
        expected, query_names, key_names = lfm2_cells(module, head, tokens)
        found = lag_circuits(interp.wrap(built("lfm2")), f"L2H{head}", tokens).scores
        check_cells(found, expected, query_names, key_names)


def test_cells_of_inkling_are_those_of_hugging_faces_modules_and_the_bias_is_one_of_its_own():
    module, tokens = built("inkling"), text(1, 15)
    for head in (0, 3):
        expected, query_names, key_names = inkling_cells(module, head, tokens)
        found = lag_circuits(interp.wrap(built("inkling")), f"L1H{head}", tokens).scores
        check_cells(found, expected, query_names, key_names)
        assert np.abs(expected[-1, -1]).max() > 1e-4


def check_cells(found, expected, query_names, key_names):
    assert found.labels["query_lag"] == tuple(query_names)
    assert found.labels["key_lag"] == tuple(key_names)
    seen = np.tril(np.ones(expected.shape[-2:], bool))
    size = np.abs(expected[..., seen]).max()
    np.testing.assert_allclose(
        found.values[..., seen], expected[..., seen], rtol=0, atol=3e-6 * size
    )
    nothing = np.abs(expected[..., seen]).max(-1) < 1e-9
    assert not nothing[: len(query_names) - 1, 0].any()


def test_queries_and_keys_of_zaya_are_mixed_as_its_code_says():
    module, tokens = built("zaya"), text(1, 15)
    for head in (0, 3):
        queries, keys, kv, seen, attn = zaya_cells(module, head, tokens)
        ends = {"q": queries, "k": keys}
        total = {name: x.sum(0) for name, x in ends.items()}
        normed = {
            name: x * D_HEAD**0.5 / total[name].norm(dim=-1, keepdim=True)
            for name, x in ends.items()
        }
        normed["k"] = normed["k"] * attn.qk_norm.temp[kv].detach()
        table = seen["model.rotary_emb"][1]
        q, k = (partly_turned(normed[name], table) for name in "qk")
        expected = cells_of(q, k, attn.scaling)
        found = lag_circuits(interp.wrap(built("zaya")), f"L1H{head}", tokens).scores
        lags = ["lag 0", "lag 1", "lag 2"]
        check_cells(found, expected, lags, lags)


def partly_turned(x, table):
    """The first channels turn, the others stay."""
    width = table[0].shape[-1]
    return torch.cat([turned(x[..., :width], table), x[..., width:]], -1)


# --------------------------------------------------------------------------------------- planted


def taps(kind, generator):
    """Taps on keys `[channel lag]`, the current token first."""
    drawn = torch.randn(WIDTH, 2, generator=generator)
    half = (torch.arange(WIDTH) % D_HEAD < D_HEAD // 2).float()
    return {
        "smear": torch.tensor([0.7, 0.3]).expand(WIDTH, 2),
        "offset": torch.stack([half, 1 - half], 1),
        "unrelated": drawn,
        "none": torch.tensor([1.0, 0.0]).expand(WIDTH, 2),
    }[kind]


@torch.no_grad()
def with_taps(kind, seed=0):
    """One layer of random weights, no positions, and these taps on its keys."""
    model = own(seed, n_layers=1, block=lambda: Block(lags=2))
    generator = torch.Generator().manual_seed(seed + 1)
    model.positions.weight.zero_()
    model.layers[0].short.weight[:, 0] = taps(kind, generator).flip(-1)
    return model.double()


def measured(model, measure):
    return interp.detect_smeared_keys(interp.wrap(model)).sel(channel="k", measure=measure).values


def test_a_literal_smear_in_a_wrapped_module_is_called_one():
    model = with_taps("smear")
    np.testing.assert_allclose(measured(model, "alignment"), 1, atol=1e-9)
    np.testing.assert_allclose(measured(model, "smear"), 0.7, atol=1e-9)
    np.testing.assert_allclose(measured(model, "smear_fit"), 1, atol=1e-9)


def test_keys_without_a_lag_have_a_share_of_nothing_at_it():
    with pytest.raises(ValueError, match=r"none reads an earlier token"):
        interp.detect_smeared_keys(interp.wrap(with_taps("none")))


@pytest.mark.parametrize("kind", ["offset", "unrelated"])
def test_an_offset_and_unrelated_taps_are_no_smear(kind):
    """Over 8 draws: the two maps are as unrelated as random ones, and no literal smear is."""
    found = np.concatenate([measured(with_taps(kind, seed), "alignment") for seed in range(8)])
    assert abs(found.mean()) < 3 * found.std() / len(found) ** 0.5
    assert np.abs(found).max() < 0.9
    shares = [
        interp.detect_smeared_keys(interp.wrap(with_taps(kind, seed))).sel(
            channel="k", measure="lag_share_1"
        )
        for seed in range(3)
    ]
    assert 0.2 < np.mean([one.values for one in shares]) < 0.8


@torch.no_grad()
def planted(lag=1, strength=6.0):
    """An induction head in LFM2's class, weights set by hand.

    The convolution of layer 0, its gates open, writes the token of one lag into the second half of
    the stream; layer 1 matches the current token with what stands there, on pairs of channels that
    hardly turn, and has nothing to do with lags itself.
    """
    width, n_half = 64, 32
    model = built(
        "lfm2",
        hidden_size=width,
        num_hidden_layers=2,
        layer_types=["conv", "full_attention"],
        num_attention_heads=1,
        num_key_value_heads=1,
        conv_bias=True,
        rope_parameters={"rope_type": "default", "rope_theta": 1e9},
    )
    for name, weight in model.named_parameters():
        if "norm" not in name:
            weight.zero_()
        else:
            weight.fill_(1)
    rows = torch.randn(D_VOCAB, n_half, generator=torch.Generator().manual_seed(2))
    # Turned pairs are (c, c + width / 2): tokens stand in the slow half of either side.
    slow = torch.cat([torch.arange(16, 32), torch.arange(48, 64)])
    fast = torch.cat([torch.arange(16), torch.arange(32, 48)])
    model.model.embed_tokens.weight[:, slow] = rows
    conv, attn = model.model.layers[0].conv, model.model.layers[1].self_attn
    conv.in_proj.bias[: 2 * width] = 1  # both gates
    conv.conv.bias = None
    conv.in_proj.weight[2 * width :] = torch.eye(width)
    conv.conv.weight[:, 0, 2 - lag] = 1
    conv.out_proj.weight[fast, slow] = 1
    attn.q_proj.weight[slow, slow] = 1
    attn.k_proj.weight[slow, fast] = 1  # only what the convolution has written
    attn.v_proj.weight.copy_(torch.eye(width))
    attn.out_proj.weight.copy_(torch.eye(width))
    attn.q_layernorm.weight.fill_(strength)
    return model


def test_a_planted_gated_convolution_is_found_in_its_cell_and_nowhere_else():
    n = 12
    model = interp.wrap(planted())
    tokens = interp.repeated_tokens(n, d_vocab=D_VOCAB, n_sequences=4, exclude=(0, 1, 2)).tokens
    shares = lag_pair_shares(model, tokens)
    assert float(shares.sel(head="L1H0", query_lag="lag 0", key_lag="lag 1")) == pytest.approx(1)
    scores = interp.induction_score(model, n=n, n_sequences=4)
    assert float(scores.sel(head="L1H0")) > 0.9
    with view(model).hooked(without_lag_pair(model, "L1H0", (0, 1))):
        left = interp.induction_score(model, n=n, n_sequences=4)
    assert float(left.sel(head="L1H0")) < 2 * float(left.sel(head="L1H0").chance)
    ablated = interp.ablate(
        model, tokens, "L0.lag1", metric=interp.InductionScore("L1H0"), control="none"
    )
    assert float(ablated.sel(measure="effect").values.item()) < -0.8


@pytest.mark.parametrize("lag", [0, 2])
def test_through_another_lag_the_planted_head_is_none(lag):
    model = interp.wrap(planted(lag))
    scores = interp.induction_score(model, n=12, n_sequences=4)
    assert float(scores.sel(head="L1H0")) < 0.2
    tokens = text(4, 20)
    shares = lag_pair_shares(model, tokens)
    cell = shares.sel(head="L1H0", query_lag="lag 0", key_lag=f"lag {lag}")
    assert float(cell) == pytest.approx(1)


@pytest.mark.slow
def test_random_weights_hold_no_induction_head():
    """Inside the range of 20 draws, LFM2 and Inkling attend to what follows as to anything."""
    for kind in ("lfm2", "inkling"):
        found = []
        for seed in range(20):
            scores = interp.induction_score(interp.wrap(built(kind, seed=seed)), n=9, n_sequences=4)
            found.append(scores.values - scores.chance)
        found = np.concatenate(found)
        assert abs(found.mean()) < 3 * found.std() / len(found) ** 0.5 + 1e-3
        assert np.abs(found).max() < 0.1


# ------------------------------------------------------------------------- attribution, refusals


PARTS = {
    "lfm2": {"embed", "L0.lag0", "L0.lag1", "L0.lag2", "L0.mlp", "L2H0"},
    "mamba": {"embed", "L0.conv", "L1.conv"},
    "mamba2": {"embed", "L0.conv", "L1.conv"},
    "inkling": {"embed", "L0H0", "L0.mlp", "L1H3"},
}


@pytest.mark.parametrize("kind", PARTS)
def test_attribution_has_the_convolutions_parts_and_sums_to_the_logit(kind):
    module, tokens = module_of(kind), text(2, 12)
    found = interp.logit_attribution(interp.wrap(module), tokens)
    assert set(found.labels["part"]) >= PARTS[kind]
    with torch.no_grad():
        logits = module(tokens).logits[:, :-1].gather(-1, tokens[:, 1:, None])[..., 0]
    size = np.abs(found.values).max()
    np.testing.assert_allclose(
        found.values.sum(0), logits.double().mean(0).numpy(), rtol=0, atol=3e-6 * size
    )
    for part in PARTS[kind]:
        assert np.abs(found.sel(part=part).values).max() > 1e-4 * size


def test_a_bridges_heads_above_convolutions_are_refused():
    bridge = bridged(built("lfm2"))
    for ask in (
        lambda: lag_circuits(bridge, "L2H0", text(1)),
        lambda: lag_pair_shares(bridge, text()),
        lambda: interp.detect_smeared_keys(bridge, text()),
        lambda: without_lag_pair(bridge, "L2H0", (0, 1)),
    ):
        with pytest.raises((TypeError, ValueError), match=r"interp\.wrap"):
            ask()
