"""What does it cost to read a model that one downloads? Against one forward pass of its own.

    python benchmarks/wrapped.py

The model has the shape of `LiquidAI/LFM2-350M` (16 layers, ten of them gated short convolutions,
width 1,024, 16 heads and 8 of keys) and random weights; its vocabulary is cut from 65,536 to 4,096,
which makes the forward pass that we are measured against cheaper. `lag_circuits` of a head of layer
14, above a gated convolution, and the scores of all heads, on one sequence of 513 tokens, have to
take at most 3 times a forward pass of Hugging Face's class, and at most twice the memory of the
process that runs it. On one core of an AMD EPYC we measured 1.1 and 1.0 times its time, 1.3 and 1.1
times its memory, what was found out when the model was wrapped included in the latter.
"""

import os
import subprocess
import sys
from functools import partial
from typing import Any

import torch
import transformers
from rivals.memory import megabytes
from rivals.timing import in_turns, ratio, seconds, show

import interp

T = 513
ATTENDING = (2, 5, 8, 10, 12, 14)
HEAD = "L14H3"


def model() -> transformers.Lfm2ForCausalLM:
    """LFM2-350M's shape, with random weights."""
    kinds = ["full_attention" if layer in ATTENDING else "conv" for layer in range(16)]
    config = transformers.Lfm2Config(
        vocab_size=4_096,
        hidden_size=1_024,
        intermediate_size=6_656,
        num_hidden_layers=16,
        num_attention_heads=16,
        num_key_value_heads=8,
        max_position_embeddings=2_048,
        layer_types=kinds,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    torch.manual_seed(0)
    return transformers.Lfm2ForCausalLM(config).eval()


@torch.no_grad()
def forward(hugging_face: Any, tokens: torch.Tensor) -> object:
    """What it is measured against."""
    return hugging_face(tokens, use_cache=False).logits


def questions(hugging_face: Any, tokens: torch.Tensor) -> dict[str, partial[object]]:
    """What is measured, by name."""
    wrapped = interp.wrap(hugging_face)
    return {
        "lag_circuits": partial(interp.lag_circuits, wrapped, HEAD, tokens),
        "head_scores": partial(interp.head_scores, wrapped, n=T // 2, n_sequences=1),
    }


def main() -> None:
    torch.set_num_threads(1)  # a core is a core, on every machine
    hugging_face, tokens = model(), torch.randint(3, 4_096, (1, T))
    asked = questions(hugging_face, tokens)
    times = in_turns({"forward": partial(forward, hugging_face, tokens), **asked}, rounds=3)
    memory = {name: _most(name) for name in times}
    rows = [
        [name, seconds(times, name), f"{ratio(times, name, 'forward'):.2f}", f"{memory[name]:,.0f}"]
        for name in times
    ]
    columns = ["", "time", "forward passes", "MB at most, weights included"]
    show(f"LFM2-350M's shape, random weights, T = {T}", columns, rows)


def _most(name: str) -> float:
    """The most memory that a process of its own holds that asks this once."""
    command = [sys.executable, __file__, name]
    done = subprocess.run(command, check=True, capture_output=True, text=True, env={**os.environ})
    return float(done.stdout.splitlines()[-1])


def once(name: str) -> None:
    """Ask this once, and print the most memory that was held."""
    torch.set_num_threads(1)
    hugging_face, tokens = model(), torch.randint(3, 4_096, (1, T))
    forward(hugging_face, tokens) if name == "forward" else questions(hugging_face, tokens)[name]()
    print(megabytes("VmHWM"))


if __name__ == "__main__":
    once(sys.argv[1]) if len(sys.argv) > 1 else main()
