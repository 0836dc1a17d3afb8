"""Tiny random models of architectures that mix tokens by convolutions, and of some that do not.

They are built from their config classes, with weights large enough to have preferences, norms whose
gains differ, and taps of a convolution's kernel that are all of a size.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, nn

D_VOCAB, N_CTX, WIDTH = 60, 64, 32
SPECIAL = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
STATES = {"vocab_size": D_VOCAB, "hidden_size": WIDTH, **SPECIAL}
PLACED = {**STATES, "intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2}
GROUPED = {**PLACED, "max_position_embeddings": N_CTX}
LFM2_LAYERS = ["conv", "conv", "full_attention", "conv", "full_attention"]

CONFIGS: dict[str, Callable[[], transformers.PretrainedConfig]] = {
    "llama": lambda: transformers.LlamaConfig(**GROUPED, num_hidden_layers=2),
    "gpt2": lambda: transformers.GPT2Config(
        vocab_size=D_VOCAB, n_embd=WIDTH, n_layer=2, n_head=4, n_positions=N_CTX, **SPECIAL
    ),
    "lfm2": lambda: transformers.Lfm2Config(
        **GROUPED, num_hidden_layers=5, layer_types=LFM2_LAYERS, block_auto_adjust_ff_dim=False
    ),
    "mamba": lambda: transformers.MambaConfig(**STATES, num_hidden_layers=2, state_size=8),
    "mamba2": lambda: transformers.Mamba2Config(
        **STATES, num_hidden_layers=2, state_size=8, num_heads=8, head_dim=8, n_groups=2, expand=2,
        chunk_size=16,
    ),
    "falconh1": lambda: transformers.FalconH1Config(
        **GROUPED, num_hidden_layers=2, mamba_d_ssm=32, mamba_n_heads=4, mamba_d_head=8,
        mamba_n_groups=1, mamba_d_state=8, mamba_chunk_size=16,
    ),
    "jamba": lambda: transformers.JambaConfig(
        **PLACED, num_hidden_layers=2, attn_layer_period=2, attn_layer_offset=1,
        expert_layer_period=2, expert_layer_offset=1, num_experts=2, num_experts_per_tok=1,
        mamba_d_state=8, mamba_dt_rank=8, use_mamba_kernels=False,
    ),
    "qwen3next": lambda: transformers.Qwen3NextConfig(
        **GROUPED, num_hidden_layers=2, head_dim=8, linear_num_key_heads=2,
        linear_num_value_heads=4, linear_key_head_dim=8, linear_value_head_dim=8, num_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=16, shared_expert_intermediate_size=16,
        layer_types=["linear_attention", "full_attention"],
    ),
    "recurrentgemma": lambda: transformers.RecurrentGemmaConfig(
        **PLACED, num_hidden_layers=2, lru_width=32, attention_window_size=16,
        block_types=["recurrent", "attention"],
    ),
    "inkling": lambda: transformers.InklingTextConfig(
        **PLACED, num_hidden_layers=2, head_dim=8, swa_num_attention_heads=4,
        swa_num_key_value_heads=4, swa_head_dim=8, conv_kernel_size=4, rel_extent=64,
        sliding_window_size=64, layer_types=["hybrid"] * 2, mlp_layer_types=["dense"] * 2, d_rel=8,
    ),
    "zaya": lambda: transformers.ZayaConfig(
        **{**GROUPED, "num_hidden_layers": 2, "head_dim": 8, "moe_intermediate_size": 16},
        num_experts=2, num_experts_per_tok=1, router_hidden_size=16,
    ),
    "lfm3": lambda: transformers.Lfm3Config(
        **GROUPED, num_hidden_layers=4, head_dim=8, sliding_window=8, conv_L_cache=5,
        layer_types=["conv", "full_attention", "conv", "sliding_attention"],
    ),
    "kimi": lambda: transformers.KimiLinearConfig(
        **{**GROUPED, "num_key_value_heads": 4}, num_hidden_layers=2, moe_intermediate_size=16,
        kv_lora_rank=16, qk_rope_head_dim=8, qk_nope_head_dim=8, v_head_dim=8, num_local_experts=4,
        num_experts_per_tok=2, mlp_layer_types=["dense", "sparse"], linear_head_dim=8,
        linear_num_heads=4, layer_types=["linear_attention", "full_attention"],
    ),
    "distilbert": lambda: transformers.DistilBertConfig(
        vocab_size=D_VOCAB, dim=WIDTH, n_heads=4, n_layers=2, hidden_dim=48,
        max_position_embeddings=N_CTX, pad_token_id=2,
    ),
    "clip": lambda: transformers.CLIPTextConfig(
        vocab_size=D_VOCAB, hidden_size=WIDTH, num_attention_heads=4, num_hidden_layers=2,
        intermediate_size=48, max_position_embeddings=N_CTX, **SPECIAL,
    ),
}  # fmt: skip

CLASSES = {
    "distilbert": transformers.DistilBertForMaskedLM,
    "clip": transformers.CLIPTextModel,
    "inkling": transformers.InklingForCausalLM,
}
"""Where it is no causal language model that its config is for, or is not registered as one."""

ON_BRIDGES = ("lfm2", "mamba", "mamba2", "falconh1", "jamba", "qwen3next", "recurrentgemma")
"""Architectures with convolutions that TransformerLens can boot."""

CONVOLVED = (*ON_BRIDGES, "inkling", "zaya", "lfm3", "kimi")


def built(kind: str, dtype: torch.dtype = torch.float32, seed: int = 0, **changed) -> nn.Module:
    """A tiny random model."""
    config = CONFIGS[kind]()
    for name, value in changed.items():
        setattr(config, name, value)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        kind_of = CLASSES.get(kind)
        model = (
            transformers.AutoModelForCausalLM.from_config(config)
            if kind_of is None
            else kind_of(config)
        )
        randomised(model)
    return model.eval().to(dtype)


@torch.no_grad()
def randomised(model: nn.Module) -> None:
    """Larger matrices, gains and offsets that differ, taps of one size."""
    for name, weight in model.named_parameters():
        if "conv" in name and weight.ndim == 3:
            weight.normal_(0, 0.5)
        elif weight.ndim == 1 and "norm" in name:
            weight.add_(0.2 * torch.randn_like(weight))
        elif weight.ndim >= 2 and "A_log" not in name:
            weight.mul_(2)


def text(n: int = 2, n_pos: int = 12, seed: int = 3) -> Tensor:
    """Ordinary tokens."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, D_VOCAB, (n, n_pos), generator=generator)


@torch.no_grad()
def logits_of(model: nn.Module, tokens: Tensor) -> Tensor:
    """The module's own, under the functions that a wrapped one calls."""
    return model(tokens).logits


class Block(nn.Module):
    """Attention with a depthwise causal convolution on its keys, and an MLP: somebody's own."""

    def __init__(self, width: int = WIDTH, heads: int = 4, lags: int = 3):
        super().__init__()
        self.n1, self.n2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.q, self.k, self.v = (nn.Linear(width, width) for _ in range(3))
        self.o, self.heads = nn.Linear(width, width), heads
        self.ff = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))
        self.short = nn.Conv1d(width, width, lags, groups=width, padding=lags - 1, bias=False)

    def mixed(self, keys: Tensor) -> Tensor:
        """Keys with earlier ones in them."""
        return self.short(keys.transpose(1, 2))[..., : keys.shape[1]].transpose(1, 2)

    def split(self, x: Tensor) -> Tensor:
        """By head."""
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """What heads attend to."""
        return F.scaled_dot_product_attention(q, k, v, is_causal=True)

    def forward(self, x: Tensor) -> Tensor:
        """The stream after it."""
        n = self.n1(x)
        ends = self.q(n), self.mixed(self.k(n)), self.v(n)
        z = self.attend(*map(self.split, ends))
        x = x + self.o(z.transpose(1, 2).flatten(2))
        return x + self.ff(self.n2(x))


class Own(nn.Module):
    """A language model of such blocks, with learned positions."""

    def __init__(self, n_layers: int = 2, block: Callable[[], nn.Module] = Block):
        super().__init__()
        self.tokens, self.positions = nn.Embedding(D_VOCAB, WIDTH), nn.Embedding(N_CTX, WIDTH)
        self.layers = nn.ModuleList(block() for _ in range(n_layers))
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, D_VOCAB, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits."""
        x = self.tokens(tokens) + self.positions(torch.arange(tokens.shape[1]))
        for layer in self.layers:
            x = layer(x)
        return self.head(self.norm(x))


def own(seed: int = 0, **options) -> Own:
    """One with random weights."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = Own(**options)
        randomised(model)
        for block in model.layers:
            if hasattr(block, "short"):
                block.short.weight.data.normal_(0, 0.5)
    return model.eval()
