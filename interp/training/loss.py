"""The next-token loss for training: never `[batch, pos, vocab]` logits at once."""

import torch
from torch import Tensor, nn

from interp.models import HookedSequenceModel
from interp.models.losses import linear_cross_entropy, loss_and_accuracy
from interp.models.shapes import Tokens


class NextTokenLoss(nn.Module):
    """Our model as the Trainer wants one: a batch in, a dictionary with the loss out.

    It has no `config`, which the Trainer would take for a Hugging Face one and write to.
    """

    def __init__(self, model: HookedSequenceModel):
        super().__init__()
        self.model = model

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
        measures = loss_and_accuracy(x, unembed.W_U, unembed.b_U, targets)
        blocks = torch.stack([each.mean(dim=1) for each in measures], dim=-1)
        return {"loss": blocks[:, 0].mean(), "measures": blocks}
