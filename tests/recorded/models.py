"""The models whose numbers are recorded: the bundled ones, and some of the zoo's, in float64.

A zoo model's weights do not come from the library's initialisation: each parameter is drawn from a
generator seeded by its own name, so that a new order of construction, or a parameter more, changes
no other's. A parameter that is renamed draws other numbers: record again, and say so.
"""

from dataclasses import dataclass
from zlib import crc32

import torch
from torch import Tensor

import interp
from tests.models import zoo

BUNDLED = ("attn", "attn-attn", "conv-attn", "smeared-attn")
ZOO = (
    "lag bias",
    "depthwise, rms, lag bias",
    "rotary, smeared",
    "shortformer, conv",
    "sinusoidal",
    "post",
    "no residual, rms, MLP",
    "tied, no unembedding bias",
    "deep",
    "output taps, MLP's too",
    "key offset, rotary",
)
NAMES = (*BUNDLED, *ZOO)

N_CTX = 16
"""Of the zoo's models here: room for two copies of seven tokens."""

TEXTS = (
    "Return a new list with the items of the given list, in the order in which they were added to "
    "the list. If the list is empty, an empty list is returned.",
    "A generator is a function which returns an iterator. It looks like a normal function except "
    "that it contains yield expressions, and a function is not an iterator.",
    "The method raises a ValueError if the value is not found. If the optional argument is given, "
    "the method returns the value of the argument, and raises no error.",
    "This module provides access to the objects used or maintained by the interpreter, and to "
    "functions that interact with the interpreter. The module is always available.",
)


@dataclass(frozen=True, eq=False)
class Subject:
    """A model, and the tokens that it is asked about.

    Attributes:
        name: of the model.
        model: in float64 and eval mode.
        tokens: `[4 pos]`: text for a bundled model, random tokens for one of the zoo.
        n: how long a copy in a repeated sequence is.
        samples: how many single values of a large answer are recorded; 0 for a model of the zoo.
    """

    name: str
    model: interp.HookedSequenceModel
    tokens: Tensor
    n: int
    samples: int

    @property
    def heads(self) -> list[str]:
        """Every head's label."""
        layers = self.model.config.attention_layers.items()
        return [f"L{layer}H{head}" for layer, spec in layers for head in range(spec.n_heads)]

    @property
    def convolutions(self) -> list[int]:
        """The layers that are convolutions."""
        layers = enumerate(self.model.config.layers)
        return [layer for layer, spec in layers if isinstance(spec, interp.Conv)]


def subject(name: str) -> Subject:
    """One of `NAMES`, the same every time."""
    if name in BUNDLED:
        model = interp.load(name).to(torch.float64).eval()
        tokens = torch.cat([model.to_tokens(text)[:, :20] for text in TEXTS])
        return Subject(name, model, tokens, n=12, samples=2)
    config = zoo.CONFIGS[name].replace(n_ctx=N_CTX)
    model = drawn_by_name(interp.HookedSequenceModel(config).to(torch.float64).eval())
    return Subject(name, model, zoo.tokens(batch=4, pos=12, seed=3), n=6, samples=0)


@torch.no_grad()
def drawn_by_name(model: interp.HookedSequenceModel) -> interp.HookedSequenceModel:
    """Every parameter at random: weights around 0, gains around 1, biases and α far from 0."""
    for name, parameter in model.named_parameters():
        generator = torch.Generator().manual_seed(crc32(name.encode()))
        noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        parameter.copy_(noise * 0.5 + (name.rsplit(".", 1)[-1] == "w"))
    return model
