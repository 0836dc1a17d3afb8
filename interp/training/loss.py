"""The next-token loss for training, and what else the Trainer asks of a model, whoever wrote it."""

from pathlib import Path
from typing import Any, Self, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from interp.models import HookedSequenceModel, hugging_face
from interp.models.losses import linear_cross_entropy, loss_and_accuracy
from interp.models.shapes import Tokens
from interp.views import wrap


class NextTokenLoss(nn.Module):
    """Our model as the Trainer wants one: a batch in, a dictionary with the loss out.

    It never holds `[batch, pos, vocab]` logits at once, and has no `config`, which the Trainer
    would take for a Hugging Face one and write to.
    """

    model: Any

    def __init__(self, model: Any):
        super().__init__()
        self.model = model

    @staticmethod
    def of(model: "HookedSequenceModel | PreTrainedModel") -> "NextTokenLoss":
        """The loss of a model, of its own kind."""
        kind = CausalLMLoss if isinstance(model, PreTrainedModel) else NextTokenLoss
        return kind(model)

    def forward(self, input_ids: Tokens) -> dict[str, Tensor]:
        """The mean next-token loss of a batch of blocks.

        When evaluating, also `measures` `[batch 2]`: each block's mean loss, and the share of its
        tokens that the model finds the likeliest.
        """
        stream = self.model(input_ids, stop_at_layer=len(self.model.blocks))
        x, targets = self.model.ln_final(stream)[:, :-1], input_ids[:, 1:]
        unembed = self.model.unembed
        if self.training:
            return {"loss": linear_cross_entropy(x, unembed.W_U, unembed.b_U, targets)}
        return _measured(*loss_and_accuracy(x, unembed.W_U, unembed.b_U, targets))

    def save(self, directory: str | Path) -> None:
        """Write the model and its tokenizer as `interp.load` reads them."""
        self.model.save_pretrained(directory)

    def stored(self, directory: str | Path) -> Self:
        """The model that `save` wrote."""
        return type(self)(HookedSequenceModel.from_pretrained(directory))

    @property
    def analysable(self) -> Any:
        """The model as analyses take it."""
        return self.model

    def with_weights(self, state: dict[str, Tensor]) -> Any:
        """A copy of the model with these weights, under the names they have in this module."""
        model = type(self.model).from_config(self.model.config, tokenizer=self.model.tokenizer)
        model.load_state_dict({name.removeprefix("model."): state[name] for name in state})
        return model


class CausalLMLoss(NextTokenLoss):
    """The same for a model of `transformers`, whose forward pass ends in all logits."""

    def forward(self, input_ids: Tokens) -> dict[str, Tensor]:
        """As above."""
        # Behind a cache of keys another path of the code would run, and memory would be held.
        logits = self.model(input_ids, use_cache=False).logits[:, :-1].transpose(1, 2).float()
        targets = input_ids[:, 1:]
        losses = F.cross_entropy(logits, targets, reduction="none")
        if self.training:
            return {"loss": losses.mean()}
        return _measured(losses, (logits.argmax(1) == targets).to(losses))

    def save(self, directory: str | Path) -> None:
        """As `transformers` does, with the tokenizer beside it."""
        hugging_face.save(self.model, directory)

    def stored(self, directory: str | Path) -> Self:
        """The model that `save` wrote."""
        return type(self)(hugging_face.load(directory))

    @property
    def analysable(self) -> Any:
        """The model with hook points."""
        return wrap(self.model, self.model.tokenizer)

    def with_weights(self, state: dict[str, Tensor]) -> PreTrainedModel:
        """A copy of the model with these weights."""
        model = cast(Any, type(self.model))._from_config(self.model.config)
        model.load_state_dict({name.removeprefix("model."): state[name] for name in state})
        model.tokenizer = self.model.tokenizer
        return model


def _measured(losses: Tensor, hits: Tensor) -> dict[str, Tensor]:
    blocks = torch.stack([each.mean(dim=1) for each in (losses, hits)], dim=-1)
    return {"loss": blocks[:, 0].mean(), "measures": blocks}
