"""A pass of somebody else's model that begins above its lower layers is the whole pass's end."""

from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

import interp
from interp.views import Start, view
from interp.views.foreign import _can_start
from tests.analysis.bridges import bridged, hugging_face, probe


def models(kind):
    return [bridged(hugging_face(kind)), interp.wrap(hugging_face(kind))]


class Counter:
    """How often anything inside a model's lowest layer ran."""

    def __init__(self, viewed):
        self.calls = 0
        for module in list(viewed._blocks[0].modules())[1:]:
            module.register_forward_hook(self.count)

    def count(self, *_):
        self.calls += 1

    def during(self, question):
        before = self.calls
        return question(), self.calls - before


@pytest.mark.parametrize("number", [0, 1], ids=["bridge", "wrapped"])
@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_layers_below_a_change_do_not_run_and_no_answer_moves(kind, number):
    tokens, units = probe(9), ["L1H0", "L1H1", "L1.mlp"]
    model = models(kind)[number]
    viewed = view(model)
    assert viewed.starts_anywhere
    counter = Counter(viewed)
    ask = partial(interp.ablate, model, tokens, units, control="none", max_batch=len(tokens))
    ask()  # whatever is found out about a model once is known now

    def asked():
        """The answer, and how much ran for it, the masks aside that every view reads."""
        answer, calls = counter.during(ask)
        return answer, calls - counter.during(partial(view(model).causal, 0))[1]

    quick, few = asked()
    _can_start[model] = False
    whole, many = asked()
    np.testing.assert_allclose(quick.values, whole.values, rtol=0, atol=1e-6)
    np.testing.assert_allclose(quick.standard_error, whole.standard_error, rtol=0, atol=1e-6)
    assert many - few == len(units) * counter.during(partial(viewed.logits, tokens))[1]
    assert not any("forward" in vars(block) for block in viewed._blocks)


def test_the_end_alone_runs_from_the_last_stream():
    for model in models("llama"):
        viewed, tokens = view(model), probe(9)
        last = f"blocks.{viewed.n_layers - 1}.hook_resid_post"
        stream = viewed.capture(tokens, [last])[last]
        end = viewed.outputs(tokens, start=Start(viewed.n_layers, stream)).logits()
        torch.testing.assert_close(end, viewed.outputs(tokens).logits())


class Keeping(nn.Module):
    """Layers that read what the first of them has kept."""

    class Layer(nn.Module):
        def __init__(self, owner, first):
            super().__init__()
            self.owner, self.first = [owner], first
            self.inner = nn.Linear(16, 16)

        def forward(self, x):
            if self.first:
                self.owner[0].kept = self.inner(x)
            return x + self.inner(x) * self.owner[0].kept

    def __init__(self):
        super().__init__()
        self.embed, self.head = nn.Embedding(30, 16), nn.Linear(16, 30)
        self.layers = nn.ModuleList(self.Layer(self, number == 0) for number in range(3))

    def forward(self, tokens):
        x = self.embed(tokens)
        for layer in self.layers:
            x = layer(x)
        return self.head(x)


def test_a_model_whose_layers_read_what_others_kept_runs_as_a_whole():
    torch.manual_seed(0)
    model = interp.wrap(Keeping(), n_ctx=32)
    assert not view(model).starts_anywhere
