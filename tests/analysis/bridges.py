"""Small Hugging Face models with random weights, and TransformerBridges around them."""

import torch
import transformers
from transformer_lens.model_bridge.sources import build_bridge_from_module

from interp.analysis import repeated_tokens
from tests.analysis import measured

D_VOCAB, N_CTX, N = 60, 64, 9
SIZES = {
    "vocab_size": D_VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": N_CTX,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": 0,
}
GROUPED = {**SIZES, "num_key_value_heads": 2}
CONFIGS = {
    "gpt2": transformers.GPT2Config(
        vocab_size=D_VOCAB, n_embd=32, n_layer=2, n_head=4, n_positions=N_CTX,
        bos_token_id=0, eos_token_id=0,
    ),
    "llama": transformers.LlamaConfig(**GROUPED),
    "neox": transformers.GPTNeoXConfig(**SIZES),
    "mistral": transformers.MistralConfig(**GROUPED, sliding_window=6),
    "gemma2": transformers.Gemma2Config(**GROUPED, head_dim=8, sliding_window=6),
}  # fmt: skip
"""Learned positions and rotary ones, grouped keys, windows on every layer and on every other."""


def hugging_face(kind, config=None, attention="eager"):
    """A small Hugging Face model with random weights large enough to have preferences."""
    config = config or CONFIGS[kind]
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation=attention)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.3, generator=generator)
    return model.eval()


def bridged(model, name="tiny"):
    return build_bridge_from_module(
        model, architecture=type(model).__name__, hf_config=model.config, model_name=name
    )


@torch.no_grad()
def attentions(model, tokens):
    out = model(tokens, output_attentions=True)
    return measured.heads_of(pattern.double() for pattern in out.attentions), out.logits.double()


def probe(n, copies=2, exclude=()):
    options = {"copies": copies, "exclude": exclude, "n_sequences": 3, "seed": 2}
    return repeated_tokens(n, d_vocab=D_VOCAB, bos=0, **options).tokens
