"""Every lag of every depthwise convolution is a unit: taking it out zeroes a tap of the weights."""

import copy
import re

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import interp
from interp.analysis.interventions.units import Catalogue
from interp.views import view
from interp.views.convolutions import find_convolutions
from tests.analysis.architectures import (
    CONVOLVED,
    D_VOCAB,
    ON_BRIDGES,
    built,
    own,
    text,
)
from tests.analysis.bridges import bridged

PLACES = {
    "lfm2": {f"L{layer}": f"model.layers.{layer}.conv.conv" for layer in (0, 1, 3)},
    "mamba": {f"L{layer}": f"backbone.layers.{layer}.mixer.conv1d" for layer in (0, 1)},
    "mamba2": {f"L{layer}": f"backbone.layers.{layer}.mixer.conv1d" for layer in (0, 1)},
    "falconh1": {f"L{layer}": f"model.layers.{layer}.mamba.conv1d" for layer in (0, 1)},
    "jamba": {"L0": "model.layers.0.mamba.conv1d"},
    "qwen3next": {"L0": "model.layers.0.linear_attn.conv1d"},
    "recurrentgemma": {"L0": "model.layers.0.temporal_block.conv_1d"},
    "inkling": {
        f"L{layer}.{site}": f"model.layers.{layer}.{path}"
        for layer in (0, 1)
        for site, path in {
            "k": "self_attn.k_sconv.conv1d",
            "v": "self_attn.v_sconv.conv1d",
            "attn": "attn_sconv.conv1d",
            "mlp": "mlp_sconv.conv1d",
        }.items()
    },
    "zaya": {
        f"L{layer}": f"model.layers.{layer}.self_attn.qkv_proj.conv_qk_depthwise"
        for layer in (0, 1)
    },
    "lfm3": {f"L{layer}": f"model.layers.{layer}.conv.conv" for layer in (0, 2)},
    "kimi": {"L0": "model.layers.0.self_attn.conv1d"},
    "own": {f"L{layer}": f"layers.{layer}.short" for layer in (0, 1)},
}
"""Where the convolutions of an architecture are, by its code, and what they are called here."""

VIEWS = [(kind, "bridge") for kind in ON_BRIDGES] + [
    (kind, "wrapped") for kind in (*CONVOLVED, "own")
]


def module_of(kind, dtype=torch.float32):
    return own().to(dtype) if kind == "own" else built(kind, dtype)


def viewed_as(kind, how):
    model = module_of(kind)
    return bridged(model) if how == "bridge" else interp.wrap(model)


def without_tap(model, path, lag):
    """The same module with weights of 0 for what is so many tokens back."""
    model = copy.deepcopy(model)
    weight = model.get_submodule(path).weight
    assert weight.shape[1] == 1
    weight.data[..., weight.shape[-1] - 1 - lag] = 0
    return model


@torch.no_grad()
def logits_of(model, tokens):
    out = model(tokens)
    return out if isinstance(out, torch.Tensor) else out.logits


def without_unit(model, label, tokens):
    """Logits where what a unit adds is zero."""
    viewed = view(model)
    (unit,) = Catalogue.of(viewed, tokens.shape[1]).units(label)

    def at(index):
        def zero(activation, hook):
            activation = activation.clone()
            activation[index] = 0
            return activation

        return zero

    places = [part.site.place for part in unit.parts]
    hooks = [(place.hook, at((slice(None), place.index[0]))) for place in places]
    with viewed.hooked(hooks):
        return viewed.logits(tokens)


@pytest.mark.parametrize(("kind", "how"), VIEWS)
def test_without_a_lag_logits_are_those_of_weights_with_that_tap_zeroed(kind, how):
    tokens, model = text(), viewed_as(kind, how)
    clean = logits_of(module_of(kind), tokens)
    for label, path in PLACES[kind].items():
        expected = logits_of(without_tap(module_of(kind), path, 1), tokens)
        found = without_unit(model, f"{label}.lag1", tokens)
        size = float(clean.abs().max())
        assert float((expected - clean).abs().max()) > 1e-3 * size
        assert float((found - expected).abs().max()) <= 1e-6 * size


@pytest.mark.parametrize("kind", [*CONVOLVED, "own"])
def test_in_float64_they_are_so_to_the_last_digits(kind):
    tokens = text()

    def logits(model, label):
        """With a hook on the convolution, so that what the module casts to float32 is not cast."""
        return without_unit(model, label, tokens)

    for label, path in PLACES[kind].items():
        model = module_of(kind, torch.float64)
        zeroed = interp.wrap(without_tap(model, path, 1))
        expected = logits(zeroed, f"{label}.lag1")  # nothing is left to take out
        found = logits(interp.wrap(model), f"{label}.lag1")
        assert found.dtype == torch.float64
        assert float((found - expected).abs().max()) <= 1e-12 * float(expected.abs().max())


def measured(logits, tokens):
    """A number that depends on all logits."""
    weights = torch.randn(D_VOCAB, generator=torch.Generator().manual_seed(5))
    return (logits @ weights.to(logits)).double().square().mean(1).sqrt()


def effect_of(module, paths, lag, tokens):
    """What zeroing a tap of each of these does to that number, and how large it is."""
    clean = measured(logits_of(module, tokens), tokens)
    for path in paths:
        module = without_tap(module, path, lag)
    return float((measured(logits_of(module, tokens), tokens) - clean).mean()), float(clean.mean())


@pytest.mark.parametrize(("kind", "how"), VIEWS)
def test_every_lag_of_every_convolution_can_be_ablated_by_its_label(kind, how):
    tokens, module = text(), module_of(kind)
    lags = {path: module.get_submodule(path).weight.shape[-1] for path in PLACES[kind].values()}
    labels = {
        f"{label}.lag{lag}": (path, lag)
        for label, path in PLACES[kind].items()
        for lag in range(lags[path])
    }
    model = viewed_as(kind, how)
    found = interp.ablate(model, tokens, list(labels), metric=measured, control="none")
    for label, (path, lag) in labels.items():
        expected, size = effect_of(module, [path], lag, tokens)
        effect = float(found.sel(measure="effect", component=label))
        assert effect == pytest.approx(expected, abs=2e-6 * size)


def test_a_lag_of_a_layer_with_several_convolutions_is_that_of_all_of_them():
    tokens, module = text(), module_of("inkling")
    model = interp.wrap(module_of("inkling"))
    found = interp.ablate(model, tokens, "lags", metric=measured, control="none")
    assert found.labels["component"] == tuple(f"L{i}.lag{lag}" for i in (0, 1) for lag in range(4))
    paths = [path for label, path in PLACES["inkling"].items() if label.startswith("L0.")]
    expected, size = effect_of(module, paths, 1, tokens)
    effect = float(found.sel(measure="effect", component="L0.lag1"))
    assert effect == pytest.approx(expected, abs=2e-6 * size)
    assert abs(expected) > 1e-3 * size


# ------------------------------------------------------------------------------------- refusals


class Convolved(nn.Module):
    """A layer that adds what a convolution makes of the stream."""

    def __init__(self, conv=None):
        super().__init__()
        self.conv = conv or nn.Conv1d(8, 8, 3, groups=8, padding=2)

    def mixed(self, x):
        return self.conv(x)[..., : x.shape[-1]]

    def forward(self, x):
        return x + self.mixed(x.transpose(1, 2)).transpose(1, 2)


def found_in(*blocks):
    def run():
        x = torch.randn(2, 9, 8, generator=torch.Generator().manual_seed(0))
        for block in blocks:
            x = block(x)

    return find_convolutions(blocks, run)


class Padded(Convolved):
    """The tokens before the first are put in by hand."""

    def __init__(self, dilation=1, stride=1, padding=0):
        options = {"groups": 8, "dilation": dilation, "stride": stride, "padding": padding}
        super().__init__(nn.Conv1d(8, 8, 3, **options))

    def mixed(self, x):
        return self.conv(F.pad(x, (2 * self.conv.dilation[0], 0)))


def test_a_convolution_is_causal_whichever_way_it_is_padded():
    for block, step in ((Convolved(), 1), (Padded(), 1), (Padded(dilation=2), 2)):
        (conv,) = found_in(block).convolutions
        assert (conv.lags, conv.path, conv.step) == (3, "conv", step)
        torch.testing.assert_close(conv.taps[2], block.conv.weight[:, 0, 0].detach())


class Twice(Convolved):
    def mixed(self, x):
        return super().mixed(super().mixed(x))


class Bypassed(Convolved):
    """As a fused kernel does: the weight is used, and no function of PyTorch's sees it."""

    def mixed(self, x):
        padded = F.pad(x, (2, 0)).unfold(-1, 3, 1)
        return (padded * self.conv.weight[:, 0, None]).sum(-1) + self.conv.bias[:, None]


class Computed(Convolved):
    """A kernel that depends on the sequence."""

    def mixed(self, x):
        weight = x[:, :, :3].mean(0)[:, None]
        return F.conv1d(x, weight, groups=8, padding=2)[..., : x.shape[-1]]


@pytest.mark.parametrize(
    ("block", "why"),
    [
        (Convolved(nn.Conv1d(8, 8, 3, padding=2)), r"mixes channels \(groups=1 for 8"),
        (Convolved(nn.Conv1d(8, 8, 3, groups=4, padding=2)), "mixes channels"),
        (
            Convolved(nn.Conv1d(8, 8, 3, groups=8, padding=1)),
            r"not causal \(kernel 3, padding=\(1,\)\): .*pad with kernel - 1 = 2 and cut",
        ),
        (Convolved(nn.Conv1d(8, 8, 3, groups=8, padding="same")), "not causal"),
        (Twice(), "runs 2 times in one pass of its layer"),
        (Bypassed(), r"not computed by F\.conv1d.*use_mamba_kernels=False"),
        (Computed(), "its weight is computed as the model runs"),
    ],
)
def test_a_convolution_that_has_no_lags_is_refused_with_the_reason(block, why):
    found = found_in(block)
    assert found.convolutions == ()
    assert any(re.search(why, one.why) for one in found.refused)
