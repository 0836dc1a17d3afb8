"""Which view a model has."""

from typing import Any

from interp.models.sequence import HookedSequenceModel
from interp.views.bridge import BridgeView
from interp.views.ours import OurView
from interp.views.protocol import View
from interp.views.wrapped import WrappedView
from interp.views.wrapping import WrappedModel


def view(model: Any) -> View:
    """The view of a model; a TypeError says what can be viewed."""
    if isinstance(model, HookedSequenceModel):
        return OurView(model)
    # A compiled model answers for the one inside it: reading activations needs no compiled graph.
    if isinstance(inner := getattr(model, "_orig_mod", None), HookedSequenceModel):
        return OurView(inner)
    if isinstance(model, WrappedModel):
        return WrappedView(model)
    _refuse_inputs(model)
    if all(hasattr(model, name) for name in ("cfg", "blocks", "run_with_hooks", "hook_dict")):
        return BridgeView(model)
    raise TypeError(
        f"{type(model).__name__} cannot be analysed; give an interp model, such as "
        "interp.load('conv-attn'), boot a Hugging Face model with "
        "transformer_lens.TransformerBridge.boot_transformers(...), or wrap any module: "
        "interp.wrap(model)"
    )


def _refuse_inputs(model: Any) -> None:
    """Refuse a Hugging Face model, in a bridge or not, that one sequence of tokens cannot run."""
    inner = getattr(model, "original_model", model)
    config = getattr(inner, "config", None)
    remedy = "give a model that reads one sequence of tokens, such as GPT-2, Llama or BERT"
    if getattr(config, "is_encoder_decoder", False):
        raise TypeError(
            f"{type(inner).__name__} is an encoder-decoder, and those cannot be analysed yet; "
            f"{remedy}"
        )
    reads = getattr(inner, "main_input_name", "input_ids")
    if (
        config is not None
        and isinstance(reads, str)
        and reads not in ("input_ids", "inputs_embeds")
    ):
        raise TypeError(
            f"{type(inner).__name__} reads {reads} (images or sound) and no tokens, so it cannot "
            f"be analysed; {remedy}"
        )
