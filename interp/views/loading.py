"""Saved models, ready to be analysed."""

from pathlib import Path
from typing import Any

from interp.models import hugging_face
from interp.models.hub import bundled
from interp.models.sequence import HookedSequenceModel
from interp.views.wrapping import wrap


def load(name: str | Path, **kwargs: Any) -> Any:
    """A saved model as the class it was saved from, whatever it is.

    A causal language model of `transformers`, bundled or in a directory, comes with hook points
    (`interp.wrap`).

    Args:
        name: a bundled checkpoint (see `available`), a directory, or a hub repository of ours,
            looked up in this order.
        kwargs: `device`, `dtype`, and the hub's `revision`, `token`, `cache_dir`,
            `local_files_only`, `force_download`.

    Raises:
        FileNotFoundError: no such name, or a directory that lacks a file.
        ValueError: a file that is corrupt, foreign or pickled, or weights of another config.

    >>> type(load("conv-attn")).__name__
    'HookedConvAttn'
    """
    directory = bundled().get(str(name), Path(name))
    if not hugging_face.is_saved_in(directory):
        return HookedSequenceModel.from_pretrained(name, **kwargs)
    model: Any = hugging_face.load(directory, **kwargs)
    return wrap(model, model.tokenizer)
