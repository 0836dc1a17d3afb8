"""What writes to the stream of a Hugging Face model: all of it is there, or the call is refused.

Every family of models either gives what plain PyTorch gives, or is refused by name.
"""

import copy
import dataclasses
from functools import cache

import numpy as np
import pytest
import torch
import transformers

import interp
from interp.views import view
from interp.views.bridge import BridgeView
from tests.analysis.bridges import D_VOCAB, GROUPED, N_CTX, SIZES, bridged, hugging_face, probe

SPECIAL = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
PLACED = {name: size for name, size in GROUPED.items() if name != "max_position_embeddings"}
STATES = {"vocab_size": D_VOCAB, "hidden_size": 32, "num_hidden_layers": 2, **SPECIAL}

CONFIGS = {
    "gpt2": lambda: transformers.GPT2Config(
        vocab_size=D_VOCAB, n_embd=32, n_layer=2, n_head=4, n_positions=N_CTX, **SPECIAL
    ),
    "neox": lambda: transformers.GPTNeoXConfig(**SIZES),
    "llama": lambda: transformers.LlamaConfig(**GROUPED),
    "gemma2": lambda: transformers.Gemma2Config(
        **GROUPED, head_dim=8, sliding_window=6, final_logit_softcapping=None
    ),
    "phi3": lambda: transformers.Phi3Config(**GROUPED),
    "opt": lambda: transformers.OPTConfig(
        vocab_size=D_VOCAB, hidden_size=32, num_attention_heads=4, num_hidden_layers=2, ffn_dim=48,
        max_position_embeddings=N_CTX, word_embed_proj_dim=32, **SPECIAL,
    ),
    "bloom": lambda: transformers.BloomConfig(
        vocab_size=D_VOCAB, hidden_size=32, n_head=4, n_layer=2, **SPECIAL
    ),
    "mamba": lambda: transformers.MambaConfig(**STATES, state_size=8),
    "mamba2": lambda: transformers.Mamba2Config(
        **STATES, state_size=8, num_heads=8, head_dim=8, n_groups=2, expand=2, chunk_size=16
    ),
    "lfm2": lambda: transformers.Lfm2Config(
        **GROUPED | {"num_hidden_layers": 3}, layer_types=["conv", "full_attention", "conv"],
        block_auto_adjust_ff_dim=False,
    ),
    "recurrentgemma": lambda: transformers.RecurrentGemmaConfig(
        **PLACED, lru_width=32, attention_window_size=16, block_types=["recurrent", "attention"]
    ),
    "falconh1": lambda: transformers.FalconH1Config(
        **GROUPED | {"num_hidden_layers": 3}, mamba_d_ssm=32, mamba_n_heads=4, mamba_d_head=8,
        mamba_n_groups=1, mamba_d_state=8, mamba_chunk_size=16,
        embedding_multiplier=2.0, attention_out_multiplier=0.7, ssm_out_multiplier=1.3,
    ),
    "jamba": lambda: transformers.JambaConfig(
        **PLACED, attn_layer_period=2, attn_layer_offset=1, expert_layer_period=2,
        expert_layer_offset=1, num_experts=2, num_experts_per_tok=1, mamba_d_state=8,
        mamba_dt_rank=8, use_mamba_kernels=False,
    ),
    "qwen3next": lambda: transformers.Qwen3NextConfig(
        **GROUPED, head_dim=8, linear_num_key_heads=2, linear_num_value_heads=4,
        linear_key_head_dim=8, linear_value_head_dim=8, num_experts=4, num_experts_per_tok=2,
        moe_intermediate_size=16, shared_expert_intermediate_size=16,
        layer_types=["linear_attention", "full_attention"],
    ),
    "olmo2": lambda: transformers.Olmo2Config(**GROUPED),
    "granite": lambda: transformers.GraniteConfig(
        **GROUPED, residual_multiplier=0.4, embedding_multiplier=3.0, attention_multiplier=0.3
    ),
}  # fmt: skip
"""Attention beside, before and instead of MLPs, convolutions, state spaces, linear attention and
experts; norms before, behind and around sublayers; factors on what they write."""

OPAQUE = {"recurrentgemma"}
"""The bridge shows nothing of what is inside a layer."""

BLOCKS = {
    "gpt2": "transformer.h", "bloom": "transformer.h", "neox": "gpt_neox.layers",
    "opt": "model.decoder.layers", "mamba": "backbone.layers", "mamba2": "backbone.layers",
}  # fmt: skip

BENT = {"gemma2", "olmo2", "granite"}
"""A norm or a factor stands behind the heads' outputs, so they are no terms of the stream."""

TERMS = {
    "mamba": ["L0.mamba", "L1.mamba"],
    "mamba2": ["L0.mamba", "L1.mamba"],
    "lfm2": ["L0.conv", "L0.mlp", "L1.attn", "L1.mlp", "L2.conv", "L2.mlp"],
    "falconh1": [f"L{i}.{kind}" for i in range(3) for kind in ("attn", "mamba", "mlp")],
    "jamba": ["L0.mamba", "L0.mlp", "L1.attn", "L1.mlp"],
    "qwen3next": ["L0.linear_attn", "L0.mlp", "L1.attn", "L1.mlp"],
}
"""What writes, where it is not attention and an MLP."""


@cache
def models(kind):
    """A Hugging Face model whose mixers write as much as each other, and a bridge around a copy."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        inner = transformers.AutoModelForCausalLM.from_config(
            CONFIGS[kind](), attn_implementation="eager"
        )
        with torch.no_grad():
            for name, weight in inner.named_parameters():
                if weight.ndim == 1 and "norm" in name:
                    weight.add_(0.2 * torch.randn_like(weight))
                elif weight.ndim >= 2 and "A_log" not in name:
                    weight.mul_(4)
    return inner.eval(), bridged(copy.deepcopy(inner).eval(), f"tiny-{kind}")


@pytest.fixture(params=CONFIGS)
def kind(request):
    return request.param


@torch.no_grad()
def logits_without(inner, kind, layer, tokens):
    """What is predicted if a layer passes on what it reads."""

    def skip(module, args, kwargs, out):
        stream = args[0] if args else kwargs["hidden_states"]
        return (stream, *out[1:]) if isinstance(out, tuple) else stream

    block = inner.get_submodule(f"{BLOCKS.get(kind, 'model.layers')}.{layer}")
    handle = block.register_forward_hook(skip, with_kwargs=True)
    try:
        return inner(tokens).logits
    finally:
        handle.remove()


def loss_of(logits, tokens):
    return torch.nn.functional.cross_entropy(logits[:, :-1].mT.double(), tokens[:, 1:]).item()


def test_a_layer_is_all_that_it_writes(kind):
    inner, bridge = models(kind)
    tokens = probe(9)
    if kind in OPAQUE:
        for units in ("layers", "L1", "L0.resid_pre->L1.resid_post"):
            with pytest.raises(ValueError, match=r"tiny-.*layer \d adds is not known"):
                interp.ablate(bridge, tokens, units, control="none")
        return
    ablated = interp.ablate(bridge, tokens, "layers", control="none")
    n_layers = inner.config.num_hidden_layers
    assert ablated.labels["component"] == tuple(f"L{layer}" for layer in range(n_layers))
    found = ablated.sel(measure="effect").values + ablated.sel(measure="clean").values
    expected = [
        loss_of(logits_without(inner, kind, layer, tokens), tokens) for layer in range(n_layers)
    ]
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
    with torch.no_grad():
        assert np.abs(np.array(expected) - loss_of(inner(tokens).logits, tokens)).min() > 1e-3


@pytest.mark.parametrize("by", ["heads", "layers"])
def test_the_parts_of_a_logit_are_all_that_writes(kind, by):
    inner, bridge = models(kind)
    tokens = probe(9)
    if kind in OPAQUE or (kind in BENT and by == "heads"):
        with pytest.raises(ValueError, match=r"tiny-.*(not known|by='layers')"):
            interp.logit_attribution(bridge, tokens, by=by)
        return
    parts = interp.logit_attribution(bridge, tokens, by=by)
    writers = TERMS.get(kind, ["L0.attn", "L0.mlp", "L1.attn", "L1.mlp"])
    split = {label for label in writers if by == "heads" and label.endswith("attn")}
    split -= {"L0.linear_attn"}
    named = [label for label in parts.labels["part"] if "." in label and label[0] == "L"]
    assert named == [label for label in writers if label not in split]
    heads = [label for label in parts.labels["part"] if "H" in label]
    assert len(heads) == 4 * len(split)
    with torch.no_grad():
        logits = inner(tokens).logits[:, :-1].double()
    expected = logits.gather(-1, tokens[:, 1:, None])[..., 0].mean(0).numpy()
    off = np.abs(parts.values.sum(0) - expected)
    assert (off <= 1e-5 * np.abs(parts.values).sum(0)).all()


def test_each_writer_is_a_unit_and_removing_it_moves_the_loss(kind):
    _, bridge = models(kind)
    if kind in OPAQUE:
        return
    labels = [writer.label for writer in view(bridge).writers if writer.layer >= 0]
    ablated = interp.ablate(bridge, probe(9), labels, control="directions", n_random=1)
    assert (np.abs(ablated.sel(measure="effect").values) > 1e-5).all()
    assert np.isfinite(ablated.sel(measure="random").values).all()


# ------------------------------------------------------------------------------------ path patching


@torch.no_grad()
def carried(bridge, tokens, other, held):
    """The queries of L2H1 when L0H0 alone is another run's, and these hook points stay."""
    _, clean = bridge.run_with_cache(tokens)
    _, changed = bridge.run_with_cache(other)
    kept = {}

    def put(z, hook):
        z = z.clone()
        z[:, :, 0] = changed["blocks.0.attn.hook_z"][:, :, 0]
        return z

    def keep(q, hook):
        kept["q"] = q.clone()

    hooks = [(name, lambda x, hook, name=name: clean[name]) for name in held]
    hooks = [("blocks.0.attn.hook_z", put), *hooks, ("blocks.2.attn.hook_q", keep)]
    bridge.run_with_hooks(tokens, fwd_hooks=hooks)

    def arrive(q, hook):
        q = q.clone()
        q[:, :, 1] = kept["q"][:, :, 1]
        return q

    return bridge.run_with_hooks(
        tokens, fwd_hooks=[("blocks.2.attn.hook_q", arrive)], return_type="logits"
    )


def test_a_path_leaks_through_no_mixer():
    _, bridge = models("falconh1")
    tokens = probe(9)
    other = tokens.flip(0)
    held = ["blocks.0.hook_mlp_out", "blocks.1.hook_mlp_out", "blocks.1.hook_attn_out"]
    mamba = "blocks.1.mamba.hook_out"
    patched = interp.path_patch(bridge, "L0H0", "L2H1.q", tokens, other, "loss", "noise")
    found = (patched.sel(measure="clean").values + patched.sel(measure="effect").values).item()
    exact = loss_of(carried(bridge, tokens, other, [*held, mamba]), tokens)
    leaking = loss_of(carried(bridge, tokens, other, held), tokens)
    assert found == pytest.approx(exact, abs=1e-7)
    assert abs(leaking - exact) > 1e-5


# ------------------------------------------------------------------------------------- the check


def forgetting(monkeypatch, label):
    """Views of bridges that do not know of one writer."""
    whole = BridgeView.writers.func
    known = property(lambda self: tuple(w for w in whole(self) if w.label != label))
    monkeypatch.setattr(BridgeView, "writers", known)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("kind", "label"), [("falconh1", "L1.mamba"), ("lfm2", "L0.conv"), ("llama", "L1.mlp")]
)
def test_a_writer_that_is_forgotten_is_missed(monkeypatch, kind, label, dtype):
    bridge = bridged(copy.deepcopy(models(kind)[0]).to(dtype))
    tokens, layer = probe(9), label[:2]
    interp.ablate(bridge, tokens, layer, control="none")  # all is well, in either precision
    forgetting(monkeypatch, label)
    with torch.no_grad():
        next(bridge.parameters()).mul_(1)  # weights that have changed are looked at again
    calls = [
        lambda: interp.ablate(bridge, tokens, layer, control="none"),
        lambda: interp.ablate(bridge, tokens, "layers", control="none"),
        lambda: interp.logit_attribution(bridge, tokens, by="layers"),
        lambda: interp.path_patch(bridge, "embed", "logits", tokens, tokens.flip(0)),
    ]
    for call in calls:
        with pytest.raises(ValueError, match=rf"layer {label[1]} adds is not known: L.* miss"):
            call()


def test_little_that_is_forgotten_is_missed_too(monkeypatch):
    """Relative to what the layer adds, not to the stream: the embedding is 1,000 times as large."""
    inner = copy.deepcopy(models("lfm2")[0])
    with torch.no_grad():
        inner.get_input_embeddings().weight.mul_(1_000)
        inner.get_submodule("model.layers.0.conv.out_proj").weight.mul_(0.01)
    bridge = bridged(inner)
    interp.logit_attribution(bridge, probe(9))
    forgetting(monkeypatch, "L0.conv")
    with torch.no_grad():
        next(bridge.parameters()).mul_(1)
    with pytest.raises(ValueError, match="layer 0 adds is not known"):
        interp.logit_attribution(bridge, probe(9))


def test_mixers_that_read_each_other_are_refused(monkeypatch):
    """An MLP taken for a mixer beside attention: a path from one to the other would be denied."""
    whole = BridgeView.writers.func
    flat = property(lambda self: tuple(dataclasses.replace(w, is_mlp=False) for w in whole(self)))
    monkeypatch.setattr(BridgeView, "writers", flat)
    bridge = bridged(copy.deepcopy(models("llama")[0]))
    with pytest.raises(ValueError, match=r"L0\.mlp reads what L0\.attn writes"):
        interp.ablate(bridge, probe(9), "L0", control="none")


def test_hooks_of_others_are_left_alone_and_do_not_mislead_the_check():
    bridge = bridged(copy.deepcopy(models("llama")[0]))
    tokens, calls = probe(9), []

    def steer(stream, hook):
        calls.append(len(stream))
        return stream + 1

    with bridge.hooks(fwd_hooks=[("blocks.0.hook_resid_post", steer)]):
        view(bridge).check_writers(range(-1, 2))
        assert not calls
        bridge(tokens)
        assert calls == [len(tokens)]


@torch.no_grad()
def test_layers_may_differ_in_their_number_of_heads():
    """A head is removed by zeroing its rows of the output map."""
    config = transformers.LagunaConfig(
        **GROUPED, head_dim=8, num_attention_heads_per_layer=[4, 8], num_experts=2,
        num_experts_per_tok=1, moe_intermediate_size=16,
    )  # fmt: skip
    inner, tokens = hugging_face("laguna", config), probe(9)
    ablated = interp.ablate(bridged(copy.deepcopy(inner)), tokens, "heads", control="none")
    heads = [f"L{layer}H{head}" for layer, n in ((0, 4), (1, 8)) for head in range(n)]
    assert ablated.labels["head"] == tuple(heads)
    with pytest.raises(ValueError, match=r"layer 1: W_O is not to be had.* ask by='layers'"):
        interp.logit_attribution(bridged(copy.deepcopy(inner)), tokens)
    before = loss_of(inner(tokens).logits, tokens)
    inner.get_submodule("model.layers.1.self_attn.o_proj").weight[:, 7 * 8 :] = 0
    effect = loss_of(inner(tokens).logits, tokens) - before
    assert ablated.sel(measure="effect", head="L1H7").values == pytest.approx(effect, abs=1e-5)


def test_a_number_of_heads_that_is_not_that_of_a_layer_is_refused(monkeypatch):
    monkeypatch.setattr(BridgeView, "heads", property(lambda self: {0: 4, 1: 2}))
    bridge = bridged(copy.deepcopy(models("llama")[0]))
    for call in (
        lambda: interp.ablate(bridge, probe(9), "heads", control="none"),
        lambda: interp.logit_attribution(bridge, probe(9)),
    ):
        with pytest.raises(ValueError, match=r"layer 1.* 4 heads, .* 2"):
            call()
    with pytest.raises(ValueError, match="layer 1: it computes 4 heads, and its description has 2"):
        view(bridge).check_heads([0, 1])


def test_a_mixer_is_called_mamba_only_where_it_is_one():
    config = transformers.NemotronHConfig(
        **GROUPED, head_dim=8, layers_block_type=["mamba", "attention"], mamba_num_heads=8,
        mamba_head_dim=8, n_groups=1, ssm_state_size=8, chunk_size=16,
    )  # fmt: skip
    labels = [writer.label for writer in view(bridged(hugging_face("nemotron", config))).writers]
    assert labels == ["embed", "L0.mamba", "L1.mixer"]


# -------------------------------------------------------------------------------------- messages


def test_what_a_bridge_has_no_answer_to_is_said_truly():
    tokens = probe(9)
    with pytest.raises(TypeError, match=r"convolutions through which this analysis cannot read"):
        interp.detect_smeared_keys(models("lfm2")[1])
    with pytest.raises(ValueError, match=r"it has no heads; embed, L0\.mamba, L1\.mamba write"):
        interp.ablate(models("mamba")[1], tokens, control="none")
    with pytest.raises(ValueError, match=r"describes layers 0, 1 as a whole"):
        interp.head_scores(models("recurrentgemma")[1], n=9, n_sequences=2)
    with pytest.raises(ValueError, match=r"L1H0 writes nothing .*a norm stands.*'units'"):
        interp.ablate(models("gemma2")[1], tokens, "L1H0", control="directions")
