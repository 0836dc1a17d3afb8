"""Any module under every analysis: its own numbers, its own state, and refusals with a remedy."""

import copy
import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, nn

import interp
from interp.views import view
from interp.views.foreign import ForeignView
from interp.views.sums import sums_of
from tests.analysis.architectures import (
    CONFIGS,
    D_VOCAB,
    N_CTX,
    WIDTH,
    Block,
    Own,
    built,
    own,
    text,
)
from tests.analysis.bridges import N, attentions, bridged, hugging_face, probe

KINDS = [*CONFIGS, "own"]
ATTENDS = [kind for kind in KINDS if kind not in ("mamba", "mamba2")]
PREDICT = [kind for kind in KINDS if kind != "clip"]


def module_of(kind, dtype=torch.float32):
    return own().to(dtype) if kind == "own" else built(kind, dtype)


@torch.no_grad()
def logits_of(model, tokens):
    out = model(tokens)
    return out if isinstance(out, Tensor) else out.logits


def largest(x):
    return float(x.abs().max())


# ------------------------------------------------------------------------------ its own numbers


@pytest.mark.parametrize("kind", PREDICT)
def test_logits_are_the_modules_own_hooked_or_not(kind):
    module, tokens = module_of(kind), text()
    expected = logits_of(copy.deepcopy(module), tokens)
    wrapped = interp.wrap(module)
    with torch.no_grad():
        assert torch.equal(wrapped(tokens), expected)
        ran = []
        hooks = [(name, lambda x, hook: ran.append(hook.name)) for name in wrapped.hook_dict]
        hooked = wrapped.run_with_hooks(tokens, fwd_hooks=hooks)
    assert largest(hooked - expected) <= 2e-6 * largest(expected)
    assert set(wrapped.hook_dict) - set(ran) == set()


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_put_back_changes_nothing(kind):
    """Every activation replaced by a copy of itself: all of them are on the way."""
    wrapped, tokens = interp.wrap(module_of(kind)), text()
    hooks = [(name, lambda x, hook: x.clone()) for name in wrapped.hook_dict]
    last = f"blocks.{wrapped.cfg.n_layers - 1}.hook_resid_post"
    kept = []
    with torch.no_grad(), wrapped.hooks(fwd_hooks=[*hooks, (last, lambda x, hook: kept.append(x))]):
        wrapped(tokens, return_type=None)
    with torch.no_grad(), wrapped.hooks(fwd_hooks=[(last, lambda x, hook: kept.append(x))]):
        wrapped(tokens, return_type=None)
    assert largest(kept[0] - kept[1]) <= 2e-6 * largest(kept[1])


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_written_adds_up_to_the_stream_or_the_layer_is_named(kind):
    viewed = view(interp.wrap(module_of(kind)))
    known = {layer for layer, plan in enumerate(viewed.plan.layers) if plan.writes}
    wrong = set(sums_of(viewed).layers)
    unknown = {"zaya": {0, 1}, "distilbert": {0, 1}}
    assert wrong == unknown.get(kind, set())
    assert known >= set(range(viewed.n_layers)) - wrong


@pytest.mark.parametrize("kind", ATTENDS)
def test_visible_keys_are_those_that_queries_of_zero_attend_to(kind):
    viewed = view(interp.wrap(module_of(kind)))
    for n_pos in (3, 20):
        expected = ForeignView._measured_visibility(viewed, n_pos)
        assert set(expected) == set(viewed.heads)
        for layer, seen in expected.items():
            assert torch.equal(viewed.visible(layer, n_pos), seen)


# --------------------------------------------------------------------------------- brute force

EAGER = ["llama", "gpt2", "lfm2", "falconh1", "jamba", "qwen3next", "distilbert", "clip", "lfm3"]


@torch.no_grad()
def attentions_of(kind, tokens):
    """Hugging Face's own eager ones, by layer."""
    module = module_of(kind)
    module.set_attn_implementation("eager")
    found = module(tokens, output_attentions=True).attentions
    return [pattern for pattern in found if pattern is not None]


@pytest.mark.parametrize("kind", EAGER)
def test_patterns_are_hugging_faces_own_eager_ones(kind):
    wrapped, tokens = interp.wrap(module_of(kind)), text()
    viewed = view(wrapped)
    expected = attentions_of(kind, tokens)
    assert len(expected) == len(viewed.heads)
    names = [f"blocks.{layer}.attn.hook_pattern" for layer in viewed.heads]
    with torch.no_grad():
        _, cache = wrapped.run_with_cache(tokens, names_filter=names, return_type=None)
    for name, pattern in zip(names, expected, strict=True):
        torch.testing.assert_close(cache[name], pattern, rtol=0, atol=2e-6)
        assert float(pattern.std()) > 1e-3


@pytest.mark.parametrize("kind", ["llama", "gpt2", "neox", "mistral"])
def test_head_scores_are_those_of_a_bridge_and_of_hugging_faces_own_attentions(kind):
    options = {"n": N, "n_sequences": 3, "seed": 2}
    found = interp.head_scores(interp.wrap(hugging_face(kind)), **options)
    bridge = interp.head_scores(bridged(hugging_face(kind)), **options)
    np.testing.assert_allclose(found.values, bridge.values, rtol=0, atol=1e-6)
    np.testing.assert_allclose(found.standard_error, bridge.standard_error, rtol=0, atol=1e-6)
    np.testing.assert_allclose(found.chance, bridge.chance, rtol=0, atol=1e-12)
    patterns, _ = attentions(hugging_face(kind), probe(N))
    second = np.arange(N + 1, 2 * N + 1)
    by_hand = patterns[:, :, second, second - N + 1].mean((0, 2))
    np.testing.assert_allclose(found.sel(score="induction").values, by_hand, rtol=0, atol=1e-6)
    later = np.arange(1, 2 * N + 1)
    by_hand = patterns[:, :, later, later - 1].mean((0, 2))
    np.testing.assert_allclose(found.sel(score="previous_token").values, by_hand, atol=1e-6)
    assert by_hand.std() > 1e-3


@pytest.mark.parametrize(("kind", "attn"), [("llama", "self_attn"), ("lfm2", "self_attn")])
def test_values_and_what_heads_attended_to_are_what_their_maps_give_and_read(kind, attn):
    module, tokens = module_of(kind), text()
    viewed, seen = view(interp.wrap(module)), {}
    layer = max(viewed.heads)
    inner = module.get_submodule(f"model.layers.{layer}.{attn}")
    out = inner.o_proj if kind == "llama" else inner.out_proj
    handles = [
        inner.v_proj.register_forward_hook(lambda m, a, o: seen.setdefault("v", o)),
        out.register_forward_pre_hook(lambda m, a: seen.setdefault("z", a[0])),
    ]
    logits_of(module, tokens)
    for handle in handles:
        handle.remove()
    names = {name: f"blocks.{layer}.attn.hook_{name}" for name in "vz"}
    cache = viewed.capture(tokens, names.values())
    for name, point in names.items():
        torch.testing.assert_close(cache[point].flatten(2), seen[name], rtol=1e-5, atol=1e-6)
    assert cache[names["v"]].shape[2] == viewed.key_heads(layer) == 2
    assert cache[names["z"]].shape[2] == viewed.heads[layer] == 4


def test_somebodys_own_module_attends_as_loops_do():
    """Keys behind a convolution, scores, patterns and what is attended to, by loops in float64."""
    module, tokens = own().double(), text(1, 7)
    wrapped = interp.wrap(module)
    with torch.no_grad():
        _, cache = wrapped.run_with_cache(tokens)
        block, x = module.layers[0], module.tokens(tokens) + module.positions.weight[:7]
        torch.testing.assert_close(cache["blocks.0.hook_resid_pre"], x)
        n = block.n1(x)
        q, k, v = (one(n)[0].unflatten(-1, (4, 8)) for one in (block.q, block.k, block.v))
        kernel = block.short.weight[:, 0].unflatten(0, (4, 8))
        mixed = torch.zeros_like(k)
        for t, lag in itertools.product(range(7), range(3)):
            if t >= lag:
                mixed[t] += kernel[..., 2 - lag] * k[t - lag]
        torch.testing.assert_close(cache["blocks.0.attn.hook_q"][0], q)
        torch.testing.assert_close(cache["blocks.0.attn.hook_k"][0], mixed)
        torch.testing.assert_close(cache["blocks.0.attn.hook_v"][0], v)
        for head, t in itertools.product(range(4), range(7)):
            scores = torch.stack([q[t, head] @ mixed[s, head] / 8**0.5 for s in range(t + 1)])
            found = cache["blocks.0.attn.hook_attn_scores"][0, head, t]
            torch.testing.assert_close(found[: t + 1], scores)
            assert bool((found[t + 1 :] == -torch.inf).all())
            pattern = cache["blocks.0.attn.hook_pattern"][0, head, t]
            torch.testing.assert_close(pattern[: t + 1], scores.softmax(0))
            z = sum(pattern[s] * v[s, head] for s in range(t + 1))
            torch.testing.assert_close(cache["blocks.0.attn.hook_z"][0, t, head], z)
        lags = cache["blocks.0.conv.hook_lags"][0]
        torch.testing.assert_close(lags.sum(0), mixed.flatten(1))
        torch.testing.assert_close(lags[2, 2:], block.short.weight[:, 0, 0] * block.k(n)[0, :5])
        scale = (x.var(-1, correction=0, keepdim=True) + block.n1.eps).sqrt()
        torch.testing.assert_close(cache["blocks.0.ln1.hook_scale"], scale)


# ------------------------------------------------------------------------------------ its state

TEXT = text()
CALLS = {
    "wrap": lambda m: interp.wrap(m),
    "logits": lambda m: interp.wrap(m)(TEXT),
    "cache": lambda m: interp.wrap(m).run_with_cache(TEXT, return_type=None),
    "head_scores": lambda m: interp.head_scores(interp.wrap(m), n=9, n_sequences=2),
    "attention_pattern": lambda m: interp.attention_pattern(interp.wrap(m), TEXT[:1], 1),
    "ablate": lambda m: interp.ablate(interp.wrap(m), TEXT, "L*H0", control="none"),
    "patch": lambda m: interp.patch(interp.wrap(m), TEXT, TEXT.flip(1), "heads"),
    "attribution_patch": lambda m: interp.attribution_patch(
        interp.wrap(m), TEXT, TEXT.flip(1), "heads", exact=None
    ),
    "logit_lens": lambda m: interp.logit_lens(interp.wrap(m), TEXT),
    "composition_scores": lambda m: interp.composition_scores(interp.wrap(m)),
    "copying_score": lambda m: interp.copying_score(interp.wrap(m)),
    "lag_circuits": lambda m: interp.lag_circuits(interp.wrap(m), "L1H1", TEXT[:1]),
    "lag_pair_shares": lambda m: interp.lag_pair_shares(interp.wrap(m), TEXT),
    "detect_smeared_keys": lambda m: interp.detect_smeared_keys(interp.wrap(m), TEXT),
    "conv_lags": lambda m: interp.conv_lags(interp.wrap(m)),
}


def state_of(model):
    """All that a caller could notice, to the bit."""
    config = getattr(model, "config", None)
    modules = dict(model.named_modules())
    return {
        "weights": {name: x.detach().clone() for name, x in model.state_dict().items()},
        "versions": [x._version for x in model.parameters()],
        "gradients": [(x.requires_grad, x.grad is None) for x in model.parameters()],
        "mode": {name: module.training for name, module in modules.items()},
        "hooks": {
            name: (len(m._forward_hooks), len(m._forward_pre_hooks), len(m._backward_hooks))
            for name, m in modules.items()
        },
        "forward": {name: vars(module).get("forward") for name, module in modules.items()},
        "attention": getattr(config, "_attn_implementation", None),
        "experts": getattr(config, "_experts_implementation", None),
        "random": torch.random.get_rng_state(),
        "gradients wanted": torch.is_grad_enabled(),
    }


def check_state(model, before):
    after = state_of(model)
    for name, x in before.pop("weights").items():
        assert torch.equal(after["weights"][name], x), name
    assert torch.equal(before.pop("random"), after.pop("random"))
    for name, value in before.items():
        assert after[name] == value, name


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("kind", ["own", "inkling"])
def test_a_module_is_left_as_it_was(kind, call):
    """In training mode in part, some weights frozen, eager attention, a hook of the user's own."""
    model = module_of(kind)
    model.layers[0].train() if kind == "own" else model.model.layers[0].train()
    next(model.parameters()).requires_grad_(False)
    if kind != "own":
        model.set_attn_implementation("eager")
    ran = []
    list(model.modules())[3].register_forward_hook(lambda *_: ran.append(1))
    before = state_of(model)
    CALLS[call](model)
    check_state(model, before)


class Stop(Exception):  # noqa: N818
    """A user's."""


@pytest.mark.parametrize("kind", ["own", "lfm2", "inkling", "zaya", "falconh1"])
def test_a_module_is_left_as_it_was_when_a_hook_raises(kind):
    model = module_of(kind)
    if kind != "own":
        model.set_attn_implementation("eager")
    before = state_of(model)
    wrapped = interp.wrap(model)

    def stop(x, hook):
        raise Stop

    for name in wrapped.hook_dict:
        with pytest.raises(Stop):
            wrapped.run_with_hooks(TEXT, fwd_hooks=[(name, stop)])
        with pytest.raises(Stop), view(wrapped).hooked([(name, stop)]):
            view(wrapped).logits(TEXT)
        assert not any(point.fwd_hooks for point in wrapped.hook_dict.values())
    check_state(model, before)
    torch.testing.assert_close(wrapped(TEXT), interp.wrap(module_of(kind))(TEXT))


@pytest.mark.parametrize("kind", ["own", "lfm2", "inkling", "zaya"])
def test_a_module_answers_for_itself_while_it_runs(kind):
    """Whatever is found out by a run of its own within a hook of another does not disturb that."""
    tokens = text()
    with torch.no_grad():
        expected, cache = interp.wrap(module_of(kind)).run_with_cache(tokens)
    layer = max(view(interp.wrap(module_of(kind))).heads)

    def asking(x, hook):
        viewed = view(asked)
        viewed.sublayers(layer)[0].attending.channel(1, "k")
        assert viewed.visible(layer, 9).any()
        sums_of(viewed)
        viewed.starts_anywhere  # noqa: B018 - is found out
        if viewed.starts_from_tables:
            assert viewed.embedding.shape == (D_VOCAB, viewed.plan.d_model)

    points = ("hook_resid_pre", "ln1.hook_scale", "attn.hook_q", "attn.hook_attn_scores")
    for name in (f"blocks.{layer}.{point}" for point in points):
        asked, found = interp.wrap(module_of(kind)), {}

        def keep(x, hook, found=found):
            found[hook.name] = x

        hooks = [(name, asking), *((every, keep) for every in cache)]
        with torch.no_grad():
            logits = asked.run_with_hooks(tokens, fwd_hooks=hooks)
        assert torch.equal(logits, expected)
        assert all(torch.equal(found[every], cache[every]) for every in cache)


# ------------------------------------------------------------------------------------- refusals


def test_an_encoder_scores_its_heads_and_predicts_no_next_token():
    wrapped = interp.wrap(built("distilbert"))
    viewed = view(wrapped)
    assert viewed.bidirectional == (0, 1)
    assert interp.head_scores(wrapped, n=9, n_sequences=2).values.shape == (4, 8)
    with pytest.raises(ValueError, match=r"predicts no next token: in layers \[0, 1\]"):
        interp.repeated_sequence_loss(wrapped, n=9, n_sequences=2)


def test_a_model_without_logits_says_what_can_be_asked():
    wrapped = interp.wrap(built("clip"))
    assert interp.head_scores(wrapped, n=9, n_sequences=2).values.shape == (4, 8)
    for ask in (
        lambda: wrapped(TEXT),
        lambda: interp.ablate(wrapped, TEXT, control="none"),
        lambda: interp.loss_by_position(wrapped, TEXT),
    ):
        with pytest.raises(ValueError, match=r"gives no logits.*ask what its heads attend to"):
            ask()
    assert wrapped(TEXT, return_type=None) is None
    with pytest.raises(ValueError, match="return_type is 'loss'"):
        wrapped(TEXT, return_type="loss")


class ByHand(Block):
    """Attention spelled out."""

    def attend(self, q, k, v):
        future = torch.ones(q.shape[2], q.shape[2], dtype=torch.bool).triu(1)
        scores = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
        return scores.masked_fill(future, -torch.inf).softmax(-1) @ v


class Fused(Block):
    """A convolution that goes past `F.conv1d`."""

    def mixed(self, keys):
        taps = self.short.weight[:, 0]
        return sum(F.pad(keys, (0, 0, 2 - j, 0))[:, : keys.shape[1]] * taps[:, j] for j in range(3))


def named(model, **changes):
    for name, value in changes.items():
        setattr(model, name, value)
    return model


def without_layers():
    return nn.Sequential(nn.Embedding(D_VOCAB, WIDTH), nn.Linear(WIDTH, D_VOCAB))


def two_lists():
    return named(own(), others=nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)]))


def unused_list():
    return named(own(), others=nn.ModuleList(nn.Linear(2, 2) for _ in range(5)))


def quantised():
    model = own()
    model.layers[0].q = torch.ao.nn.quantized.dynamic.Linear(WIDTH, WIDTH)
    return model


def packed():
    model = own()
    weight = nn.Parameter(torch.zeros(4, 4, dtype=torch.uint8), requires_grad=False)
    model.layers[1].register_parameter("packed", weight)
    return model


def compiled_inside():
    model = own()
    model.layers[1] = torch.compile(model.layers[1])
    return model


def t5():
    config = transformers.T5Config(
        vocab_size=D_VOCAB, d_model=WIDTH, d_kv=8, d_ff=48, num_layers=2, num_heads=4
    )
    return transformers.T5ForConditionalGeneration(config)


def vit():
    config = transformers.ViTConfig(
        hidden_size=WIDTH, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48,
        image_size=8, patch_size=4,
    )  # fmt: skip
    return transformers.ViTModel(config)


class Numbers(nn.Module):
    """It reads vectors."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([Block(), Block()])

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return x


class Unplaced(Own):
    """Nothing says how long a sequence may be."""

    def __init__(self):
        super().__init__()
        self.positions = None

    def forward(self, tokens):
        x = self.tokens(tokens)
        for layer in self.layers:
            x = layer(x)
        return self.head(self.norm(x))


WRONG = {
    "compiled": (
        lambda: torch.compile(own()), TypeError, r"is compiled.*wrap the module inside.*_orig_mod",
    ),
    "compiled inside": (compiled_inside, TypeError, r"layers\.1 is compiled"),
    "quantised": (
        quantised, TypeError, r"layers\.0\.q is quantised.*load the model without quantisation",
    ),
    "packed": (packed, TypeError, r"layers\.1 is quantised"),
    "encoder-decoder": (t5, TypeError, r"encoder-decoder.*wrap its encoder"),
    "pixels": (vit, TypeError, r"reads pixel_values and no tokens; wrap the part that reads"),
    "vectors": (Numbers, TypeError, r"has no embedding.*reads no tokens"),
    "no layers": (without_layers, ValueError, r"no list of modules.*put its layers into one"),
    "two lists": (
        two_lists, ValueError,
        r"several lists of 2 modules, layers, others; .*wrap\(model, layers=\"layers\"\)",
    ),
    "another list": (
        unused_list, ValueError, r"of the 5 modules in its list of layers 0 ran; .*layers=",
    ),
    "by hand": (
        lambda: own(block=ByHand), ValueError,
        r"layer 0 takes a softmax over keys by itself.*attn_implementation=\"sdpa\"",
    ),
    "fused": (
        lambda: own(block=Fused), ValueError,
        r"short in layer 0: it is not computed by F\.conv1d.*causal_conv1d",
    ),
    "no context": (Unplaced, ValueError, r"how long a sequence may be is not known.*n_ctx=1024"),
    "wrapped": (
        lambda: interp.wrap(own()), TypeError, "has hook points of its own; give it to",
    ),
    "bridged": (lambda: bridged(built("llama")), TypeError, "has hook points of its own"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_wrong_use_is_refused_with_a_remedy(case):
    make, kind, message = WRONG[case]
    model = make()
    with pytest.raises(kind, match=message):
        interp.wrap(model)


def test_the_remedies_work():
    assert view(interp.wrap(two_lists(), layers="layers")).n_layers == 2
    assert view(interp.wrap(unused_list(), layers="layers")).n_layers == 2
    assert interp.wrap(Unplaced(), n_ctx=32).cfg.n_ctx == 32
    assert interp.wrap(torch.compile(own())._orig_mod).cfg.n_ctx == N_CTX
    with pytest.raises(ValueError, match="no list of modules 'layer'; did you mean 'layers'"):
        interp.wrap(own(), layers="layer")
    for n_ctx in (1, -4):
        with pytest.raises(ValueError, match="n_ctx is"):
            interp.wrap(own(), n_ctx=n_ctx)
    with pytest.raises(ValueError, match=r"hook_patern.*did you mean"):
        interp.wrap(own()).add_hook("blocks.0.attn.hook_patern", lambda x, hook: x)


class Mixing(Block):
    """A convolution over all channels."""

    def __init__(self):
        super().__init__()
        self.short = nn.Conv1d(WIDTH, WIDTH, 3, padding=2, bias=False)


class SeesAhead(Block):
    def __init__(self):
        super().__init__()
        self.short = nn.Conv1d(WIDTH, WIDTH, 3, groups=WIDTH, padding=1, bias=False)


class Shared(Block):
    """One convolution for keys and for values."""

    def forward(self, x):
        n = self.n1(x)
        z = self.attend(*map(self.split, (self.q(n), self.mixed(self.k(n)), self.mixed(self.v(n)))))
        x = x + self.o(z.transpose(1, 2).flatten(2))
        return x + self.ff(self.n2(x))


@pytest.mark.parametrize(
    ("block", "why"),
    [(Mixing, "mixes channels"), (SeesAhead, "not causal"), (Shared, "runs 2 times")],
)
def test_a_convolution_that_has_no_lags_leaves_the_heads_and_no_lag(block, why):
    """Scores stay; its lags are no units, and the reason stands in the plan."""
    wrapped = interp.wrap(own(block=block))
    assert why in wrapped.plan.found.refused[0].why
    with pytest.raises(ValueError, match="lag"):
        interp.ablate(wrapped, TEXT, "L0.lag1", control="none")
    assert interp.head_scores(wrapped, n=9, n_sequences=2).values.shape == (4, 8)
