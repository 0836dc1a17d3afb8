"""Paths into a head: they add up to the head, and say through which lag."""

import numpy as np
import pytest
import torch

from interp.analysis import repeated_tokens
from interp.analysis.attribution.logits import logit_attribution
from interp.analysis.attribution.paths import path_attribution
from interp.models import Attention, Conv, HookedConvAttn
from tests.analysis import planted
from tests.analysis.bridges import bridged, hugging_face, probe
from tests.models import zoo

EXACT = {"rtol": 0, "atol": 1e-10}
N, D_VOCAB, N_CTX = 6, 12, 16
MORE = {
    "conv, attention, attention": zoo.config(Conv(), zoo.HEADS, zoo.HEADS),
    "attention, conv, attention": zoo.config(zoo.HEADS, Conv(lags=3, lag_bias=True), zoo.HEADS),
    "two convs": zoo.config(Conv(lags=3), Conv(depthwise=True), zoo.SMEARED, norm="rms"),
}
LAST_WITH_HEADS = [
    name
    for name, config in zoo.CONFIGS.items()
    if config.attention_layers
    and (
        config.residual or (isinstance(config.layers[-1], Attention) and not config.layers[-1].mlp)
    )
]


def heads_total(paths, head):
    ending = [path for path in paths.labels["path"] if path.endswith(f" > {head}")]
    return paths.sel(path=ending).values.sum(0)


# ----------------------------------------------------------------------- (a) planted by hand


@pytest.mark.parametrize("lag", [0, 1, 2])
def test_a_head_whose_values_read_one_lag_adds_along_that_path_only(lag):
    model = planted.induction_conv_attn(
        d_vocab=D_VOCAB, n_ctx=N_CTX, gain=5.0, logit_gain=3.0, lags=3
    )
    spaces, attn = planted.Subspaces(D_VOCAB), model.attn(1)
    one = torch.eye(D_VOCAB, dtype=torch.float64)
    with torch.no_grad():
        if lag:  # lag 1 fills `previous` for the matching; lag 2 has `output`, read by nobody else
            source = spaces.previous if lag == 1 else spaces.output
            model.conv(0).W_conv[lag, spaces.token, source] = one
            attn.W_V[0].zero_()
            attn.W_V[0, source, :D_VOCAB] = one
            model.unembed.W_U[:] = 0
            attn.W_O[0].zero_()
            attn.W_O[0, :D_VOCAB, spaces.token] = one  # where the conv writes nothing
            model.unembed.W_U[spaces.token] = 3.0 * one
    tokens = repeated_tokens(N, d_vocab=D_VOCAB, bos=0, n_sequences=3).tokens
    queries = np.arange(N + 2, 2 * N)
    correct = tokens.clone()
    correct[:, 1:] = tokens[:, :-1]  # the head attends to the next token's place: lag 1 is here
    wanted = {0: None, 1: tokens, 2: correct}[lag]
    paths = path_attribution(model, tokens, correct=wanted, positions=queries.tolist())
    label = f"embed > lag {lag} > L1H0"
    expected = 3 * np.exp(5.0) / (np.exp(5.0) + queries)
    np.testing.assert_allclose(paths.sel(path=label).values, expected, **EXACT)
    others = [path for path in paths.labels["path"] if path != label]
    assert (paths.sel(path=others).values == 0).all()


def test_what_one_head_writes_and_another_moves_is_a_path():
    model = planted.induction_attn_attn(d_vocab=D_VOCAB, n_ctx=N_CTX, gain=5.0, logit_gain=3.0)
    tokens = repeated_tokens(N, d_vocab=D_VOCAB, bos=0, n_sequences=2).tokens
    paths = path_attribution(model, tokens, "L1H0")
    assert paths.labels["path"][:3] == ("embed > L1H0", "pos_embed > L1H0", "L0H0 > L1H0")
    whole = logit_attribution(model, tokens).sel(part="L1H0").values
    np.testing.assert_allclose(paths.sel(path="embed > L1H0").values, whole, **EXACT)
    spaces = planted.Subspaces(D_VOCAB, N_CTX)
    with torch.no_grad():  # the values now read what L0H0 wrote: the token before
        W_V = model.attn(1).W_V
        W_V[0, spaces.previous] = W_V[0, spaces.token]
        W_V[0, spaces.token] = 0
    paths = path_attribution(model, tokens, "L1H0", correct=tokens)
    queries = np.arange(N + 1, 2 * N + 1)
    expected = 3 * np.exp(5.0) / (np.exp(5.0) + queries)
    moved = paths.sel(path="L0H0 > L1H0", position=queries.tolist()).values
    np.testing.assert_allclose(moved, expected, **EXACT)
    assert (paths.sel(path="embed > L1H0").values == 0).all()


# ------------------------------------------------------------------------- (b) random weights


def test_random_weights_add_nothing_along_any_path():
    tokens = repeated_tokens(15, d_vocab=60, bos=0, n_sequences=8).tokens
    options = {"positions": range(16, 30), "incorrect": "mean", "per_position": False}
    samples = np.array(
        [
            path_attribution(
                HookedConvAttn(d_vocab=60, d_model=24, n_heads=2, n_ctx=32, seed=seed),
                tokens,
                "L1H0",
                **options,
            ).values
            for seed in range(20)
        ]
    )
    error = samples.std(0, ddof=1) / np.sqrt(20)
    # The 99 % range of Student's t with 19 degrees of freedom, for each of some ten paths.
    assert (np.abs(samples.mean(0)) <= 4 * error).all()


# --------------------------------------------------------------------------- (c) brute force


@pytest.mark.parametrize("name", [*LAST_WITH_HEADS, *MORE])
def test_a_heads_paths_add_up_to_the_head(name):
    config = MORE.get(name) or zoo.CONFIGS[name]
    tokens, correct = zoo.tokens(), zoo.tokens(seed=8)
    for dtype, tolerance in ((torch.float64, 1e-10), (torch.float32, 1e-5)):
        model = zoo.from_config(config, dtype)
        whole = logit_attribution(model, tokens, correct=correct, incorrect="mean")
        paths = path_attribution(model, tokens, correct=correct, incorrect="mean")
        for layer in model.attention_layers:
            for index in range(model.attn(layer).W_Q.shape[0]):
                head = f"L{layer}H{index}"
                expected = whole.sel(part=head).values
                assert np.abs(expected).max() > 1e-3
                np.testing.assert_allclose(
                    heads_total(paths, head), expected, rtol=0, atol=tolerance * 10
                )


def test_a_path_is_what_removing_the_token_at_that_lag_takes_away():
    """Pattern and scales frozen, the lag's term zeroed: the head loses that path and no other."""
    model = zoo.build("three lags")
    tokens, correct = zoo.tokens(), zoo.tokens(seed=8)
    _, cache = model.run_with_cache(tokens)
    frozen = [
        (name, lambda x, hook: cache[hook.name])
        for name in ("blocks.1.attn.hook_pattern", "blocks.1.ln1.hook_scale")
    ]

    def without(x, hook):
        x = x.clone()
        x[:, 2] = 0
        return x

    z = {}
    keep = ("blocks.1.attn.hook_z", lambda x, hook: z.update(z=x))
    model.run_with_hooks(tokens, fwd_hooks=[*frozen, ("blocks.0.conv.hook_lags", without), keep])
    lost = cache["blocks.1.attn.hook_z"] - z["z"]
    written = torch.einsum("bphd,hdm->hbpm", lost, model.W_O[0])
    expected = cache.logit_attrs(written, correct).mean(1).detach().numpy()
    paths = path_attribution(model, tokens, correct=correct)
    for head in range(3):
        one = paths.sel(path=[f"embed > lag 2 > L1H{head}", f"pos_embed > lag 2 > L1H{head}"])
        offset = paths.sel(path=f"blocks.0.ln1.b > L1H{head}").values
        without_lag = path_attribution_offset(model, tokens, correct, cache, head)
        np.testing.assert_allclose(one.values.sum(0) + without_lag, expected[head], **EXACT)
        assert np.abs(offset).max() > 1e-4


def path_attribution_offset(model, tokens, correct, cache, head):
    """What the conv's offset adds through lag 2, spelled out."""
    row = model.blocks[0].ln1.b @ model.conv(0).W_conv[2]
    there = row.expand(*tokens.shape, -1).clone()
    there[:, :2] = 0
    norm = model.blocks[1].ln1
    read = (there - there.mean(-1, keepdim=True)) / cache["blocks.1.ln1.hook_scale"] * norm.w
    written = cache["pattern", 1][:, head] @ (read @ model.W_V[0, head]) @ model.W_O[0, head]
    return cache.logit_attrs(written[None], correct)[0].mean(0).detach().numpy()


# ------------------------------------------------------------------------ (d) TransformerLens


def test_paths_between_two_attention_layers_are_transformer_lenss_virtual_heads():
    """L0Hi > L1Hj is z of L1Hj made of L0Hi's result alone: the product of their OV circuits."""
    model = zoo.build("attn-attn: tied, no biases").fold_norms()
    tokens, correct = zoo.tokens(), zoo.tokens(seed=8)
    _, cache = model.run_with_cache(tokens)
    cache.compute_head_results()
    earlier = cache["result", 0] - cache["result", 0].mean(-1, keepdim=True)
    earlier = earlier / cache["blocks.1.ln1.hook_scale"][..., None]
    ov = model.OV[1]  # FactoredMatrix, one per head
    paths = path_attribution(model, tokens, correct=correct)
    for i in range(3):
        for j in range(3):
            written = cache["pattern", 1][:, j] @ earlier[:, :, i] @ ov[j].AB
            expected = cache.logit_attrs(written[None], correct)[0].mean(0).detach().numpy()
            path = paths.sel(path=f"L0H{i} > L1H{j}").values
            np.testing.assert_allclose(path, expected, **EXACT)


# ------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("name", "heads", "message"),
    [
        ("three lags", "L0H0", "layer 0 is conv and has no heads"),
        ("three lags", ["L1H0", "L1H3"], "there is no head L1H3"),
        ("three lags", "head 1", 'a head is written "L1H3"'),
        ("no residual, rms, MLP", "L1H0", "a later layer replaces what the head writes"),
    ],
)
def test_a_head_without_paths_is_refused_before_any_forward(name, heads, message):
    model = zoo.build(name)
    model.forward = lambda *args, **kwargs: pytest.fail("a forward pass before the refusal")
    with pytest.raises(ValueError, match=message):
        path_attribution(model, zoo.tokens(), heads)


def test_a_bridge_is_refused():
    with pytest.raises(ValueError, match=r"which biases its heads have.*logit_attribution"):
        path_attribution(bridged(hugging_face("gpt2")), probe(9))
