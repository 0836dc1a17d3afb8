"""Causal language models of `transformers`: their classes by name, fresh ones, and saved ones.

A class is one of the installed `transformers`, and weights are safetensors: nothing that comes with
a checkpoint is executed.
"""

import json
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from functools import cache
from pathlib import Path
from typing import Any, cast

import torch
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.utils import logging

from interp.models.hooks import nearest
from interp.models.hub import CONFIG, WEIGHTS, files_in, read_tokenizer, read_weights

SPECIAL_TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id")


@cache
def class_names() -> frozenset[str]:
    """The names of the causal language models that the installed `transformers` has."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    return frozenset(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values())


def model_class(name: str) -> type[PreTrainedModel]:
    """A class by its name.

    Raises:
        ValueError: the installed `transformers` has no such causal language model.

    >>> model_class("LlamaForCausalLM").__name__
    'LlamaForCausalLM'
    """
    import transformers

    if name not in class_names():
        raise ValueError(
            f"{name!r} is no causal language model of transformers {transformers.__version__}"
            f"{nearest(name, sorted(class_names()))}"
        )
    return getattr(transformers, name)


def fresh(
    name: str,
    given: Mapping[str, Any],
    *,
    d_vocab: int,
    n_ctx: int,
    seed: int = 0,
    tokenizer: Any = None,
) -> PreTrainedModel:
    """A model of `transformers` with random weights, made from its config alone.

    Args:
        name: the class, such as "Lfm2ForCausalLM".
        given: fields of its config.
        d_vocab: tokens in the vocabulary.
        n_ctx: the longest sequence.
        seed: of the initial weights; the global random state is left as it was.
        tokenizer: becomes `model.tokenizer`, and gives the config its special tokens.

    Raises:
        ValueError: no such class, a field that its config does not have, values that make no model,
            or a model that reads the token it is to predict.

    >>> sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    >>> sizes |= {"num_key_value_heads": 1, "intermediate_size": 32}
    >>> model = fresh("LlamaForCausalLM", sizes, d_vocab=50, n_ctx=8)
    >>> type(model).__name__, model.config.vocab_size
    ('LlamaForCausalLM', 50)
    """
    kind = model_class(name)
    make_config = cast(type[PreTrainedConfig], kind.config_class)
    sizes = {"vocab_size": d_vocab, "max_position_embeddings": n_ctx}
    _check_fields(make_config, given, sizes)
    special = {key: getattr(tokenizer, key, None) for key in SPECIAL_TOKENS}
    try:
        # The devices' generators are forked, too: initial weights are drawn on the CPU.
        with torch.random.fork_rng():
            torch.manual_seed(seed)  # noqa: TID251 (its constructors draw from the global state)
            model = kind._from_config(make_config(**{**given, **sizes, **special}))
            _check_reads_no_later_token(model, min(n_ctx, 8))
    # What is wrong with a value shows wherever a constructor or a forward pass first uses it.
    except Exception as error:
        raise ValueError(f"{name} cannot be made from this config: {error}") from error
    cast(Any, model).tokenizer = tokenizer
    return model


def _check_fields(
    config: type[PreTrainedConfig], given: Mapping[str, Any], sizes: Collection[str]
) -> None:
    """Refuse what the config would keep as an attribute that nobody reads, and sizes."""
    synonyms = config.attribute_map
    own = {item.name for item in fields(cast(Any, config))} | set(synonyms)
    set_already = {synonyms.get(name, name) for name in sizes}
    for name in given:
        if synonyms.get(name, name) in set_already:
            raise ValueError(f"{name} is set by d_vocab or n_ctx; leave it out")
        if name not in own:
            raise ValueError(f"{config.__name__} has no field {name!r}{nearest(name, sorted(own))}")


@torch.no_grad()
def _check_reads_no_later_token(model: PreTrainedModel, n_pos: int) -> None:
    """Run two sequences that differ in the last token: a causal model says the same before it."""
    training = model.training
    tokens = torch.zeros(2, n_pos, dtype=torch.long)
    tokens[1, -1] = 1
    one, other = model.eval()(tokens, use_cache=False).logits[:, :-1]
    model.train(training)
    if not torch.allclose(one, other, atol=1e-4):
        raise ValueError(
            "its predictions depend on later tokens (bidirectional attention), so that there is no "
            "next-token loss; where the config has is_decoder, set it to true"
        )


def save(model: PreTrainedModel, directory: str | Path) -> None:
    """Write config and weights (safetensors) as `transformers` does, and the tokenizer."""
    with _no_progress_bar():
        model.save_pretrained(directory)
    tokenizer = getattr(model, "tokenizer", None)
    if tokenizer is not None:
        tokenizer.save_pretrained(directory)


@contextmanager
def _no_progress_bar() -> Iterator[None]:
    """A bar for every snapshot of a run would drown the run's own."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def is_saved_in(directory: str | Path) -> bool:
    """Whether a directory holds a model as `transformers` saves one. Its config tells."""
    path = Path(directory) / CONFIG
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # what is wrong with it, who reads it as ours says
        return False
    return isinstance(config, dict) and "model_type" in config and "architecture" not in config


def load(
    directory: str | Path,
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
) -> PreTrainedModel:
    """The model that `save` wrote, or any other of the kind, in eval mode, with its tokenizer.

    Args:
        directory: its config, weights (safetensors) and tokenizer.
        device: where the weights go.
        dtype: of the weights; as saved by default.

    Raises:
        FileNotFoundError: it holds no weights as safetensors; pickle is never read.
        ValueError: the config names no class of the installed `transformers`, or weights are
            missing, surplus or misshapen; the message names one.
    """
    files = files_in(Path(directory))
    named = json.loads(files[CONFIG].read_text(encoding="utf-8")).get("architectures")
    try:
        kind = model_class(str(named[0] if named else None))
    except ValueError as error:
        raise ValueError(f"{files[CONFIG]}: architectures names {error}") from error
    config = cast(Any, kind.config_class).from_pretrained(directory)
    with _no_progress_bar():
        model, found = cast(Any, kind).from_pretrained(
            None,
            config=config,
            state_dict=read_weights(files[WEIGHTS]),
            dtype=dtype or config.dtype or torch.float32,
            ignore_mismatched_sizes=True,  # they are refused below, by name
            output_loading_info=True,
        )
    for what in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if wrong := sorted(map(str, found[what])):
            raise ValueError(
                f"{directory}: the weights are not this config's: {what.replace('_', ' ')} "
                f"{', '.join(wrong[:4])}"
            )
    model.config._name_or_path = Path(directory).name  # what results call it
    model.tokenizer = read_tokenizer(files)
    return model.to(device).eval()
