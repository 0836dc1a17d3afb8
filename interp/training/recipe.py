"""A training run, in data: one definition for the TOML file, the command line and the docs."""

import math
import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, cast

import tomli_w

from interp.models.hooks import nearest
from interp.training.toml import bundled, fields_from, read_toml

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from interp.models import HookedSequenceModel

_STEPS = 2000
MATRIX_RATE = 0.02
"""Muon's peak learning rate where a recipe names none: that of its author."""


def _help(text: str, default: Any) -> Any:
    return field(default=default, metadata={"help": text})


@dataclass(frozen=True)
class Recipe:
    """Everything that decides a training run's outcome on a given machine.

    >>> recipe = Recipe(name="tiny", model={"d_model": 32, "n_heads": 2}, steps=10)
    >>> Recipe.from_toml(recipe.to_toml()) == recipe
    True

    Raises:
        ValueError: an unknown key or a value out of its bounds; the message names key, value and
            remedy.
    """

    name: str = _help("what the run, its directory and its model are called", "run")
    architecture: str = _help(
        "the preset to build, or a causal language model of transformers: Lfm2ForCausalLM",
        "HookedConvAttn",
    )
    model: Mapping[str, Any] = field(
        default_factory=dict,
        metadata={
            "help": "the preset's keyword arguments, without d_vocab and n_ctx; with layers, those "
            "of a ModelConfig; for a class of transformers, the fields of its config"
        },
    )
    initial_weights: str = _help(
        '"scaled" by fan-in, or as in the "course": PyTorch\'s own, embeddings standard normal',
        "scaled",
    )
    corpus: str = _help(
        '"python-docs", a path or glob of text files, or "hf:owner/name"', "python-docs"
    )
    held_out: float = _help("share of the documents that are never trained on", 0.02)
    streaming: bool = _help(
        "make blocks while training, of a corpus that is too large to pack", False
    )
    held_out_documents: int = _help("documents to measure on, where the corpus is streamed", 500)
    tokenizer: str = _help("bpe (byte-level), or characters (one token each)", "bpe")
    vocab_size: int = _help("tokens in the vocabulary", 1024)
    n_ctx: int = _help("tokens in a block, BOS included", 256)
    steps: int = _help("optimiser steps", _STEPS)
    epochs: float | None = _help("passes over the training text, instead of steps", None)
    batch_size: int = _help("blocks in one step, over all processes", 8)
    optimizer: str = _help(
        '"adamw", or "muon" for the matrices of the layers and AdamW for everything else', "adamw"
    )
    learning_rate: float = _help("AdamW's peak learning rate", 5e-3)
    matrix_learning_rate: float | None = _help("Muon's peak learning rate, by default 0.02", None)
    warmup_ratio: float = _help(
        "share of the steps in which the rate rises linearly; then a cosine", 0.05
    )
    weight_decay: float = _help("weight decay, of weights only", 0.0)
    adam_beta2: float = _help("AdamW's second-moment decay", 0.95)
    max_grad_norm: float = _help("gradients are clipped to this norm", 1.0)
    held_at_zero: tuple[str, ...] = _help(
        'parameters, or slices of them, that stay zero: "blocks.0.conv.W_conv.1" is lag 1', ()
    )
    seed: int = _help("of the initial weights and of the order of the blocks", 0)
    probe_steps: int = _help("steps between two measurements on held-out text and probes", 200)
    save_steps: int = _help("steps between two checkpoints", 1000)
    snapshots: int = _help(
        "models to keep and measure: at step 0, then from a hundredth of the run to its end in "
        "equal ratios; 0 for none",
        0,
    )
    snapshot_blocks: int = _help("blocks of held-out text that each snapshot is measured on", 256)
    compile: bool = _help("run the model through torch.compile", False)

    def __post_init__(self) -> None:
        self._check_architecture()
        self._require(self.tokenizer in ("bpe", "characters"), "tokenizer", "bpe or characters")
        floor = 258 if self.tokenizer == "bpe" else 4
        self._require(
            self.vocab_size >= floor, "vocab_size", f"at least {floor} (special tokens included)"
        )
        self._require(
            self.n_ctx >= 8, "n_ctx", "at least 8, or there is no room for a repeat to probe with"
        )
        counts = ("steps", "batch_size", "probe_steps", "save_steps", "snapshot_blocks")
        for name in (*counts, "held_out_documents"):
            self._require(getattr(self, name) >= 1, name, "at least 1")
        for name in ("learning_rate", "max_grad_norm"):
            self._require(0 < getattr(self, name) < math.inf, name, "above 0")
        self._require(0 <= self.seed < 2**32, "seed", "0 to 2**32 - 1")
        self._require(0 < self.held_out < 1, "held_out", "between 0 and 1")
        for name in ("warmup_ratio", "adam_beta2"):
            self._require(0 <= getattr(self, name) < 1, name, "in [0, 1)")
        self._require(0 <= self.weight_decay < math.inf, "weight_decay", "at least 0")
        self._check_optimizer()
        self._check_length()
        object.__setattr__(self, "held_at_zero", tuple(self.held_at_zero))

    def _check_architecture(self) -> None:
        ours = _architectures()
        own, initial = ("d_vocab", "n_ctx", "seed", "tokenizer"), ("scaled", "course")
        if self.architecture not in ours:
            from interp.models import hugging_face

            theirs = hugging_face.class_names()
            hint = nearest(self.architecture, [*ours, *sorted(theirs)])
            bound = f"one of {', '.join(ours)}, or a causal language model of transformers{hint}"
            self._require(self.architecture in theirs, "architecture", bound)
            # What its config may hold, and that its initial weights are its authors', `build` says.
            own, initial = (), ("scaled",)
        self._require(
            self.initial_weights in initial,
            "initial_weights",
            f"{' or '.join(initial)} for {self.architecture}",
        )
        for name in own:
            if name in self.model:
                raise ValueError(
                    f"recipe: model.{name} is set by the recipe itself; leave it out of [model]"
                )

    def _check_optimizer(self) -> None:
        self._require(self.optimizer in ("adamw", "muon"), "optimizer", "adamw or muon")
        rate = self.matrix_learning_rate
        if self.optimizer == "adamw":
            self._require(rate is None, "matrix_learning_rate", "left out: optimizer is not muon")
        elif rate is None:
            # Written out, so that a stored recipe says which rate it was.
            object.__setattr__(self, "matrix_learning_rate", MATRIX_RATE)
        else:
            self._require(0 < rate < math.inf, "matrix_learning_rate", "above 0")

    def _check_length(self) -> None:
        self._require(self.epochs is None or 0 < self.epochs < math.inf, "epochs", "above 0")
        if self.epochs is not None and self.steps != _STEPS:
            raise ValueError(
                f"recipe: steps is {self.steps} and epochs is {self.epochs}; give one of them"
            )
        self._require(
            self.epochs is None or not self.streaming, "epochs", "left out: a stream has no length"
        )
        self._require(
            self.snapshots == 0 or self.snapshots >= 2,
            "snapshots",
            "0 for none, or at least 2: the first and the last",
        )

    def _require(self, condition: bool, name: str, bound: str) -> None:
        if not condition:
            raise ValueError(f"recipe: {name} is {getattr(self, name)!r}, but must be {bound}")

    def settled(self, n_blocks: int) -> Self:
        """The recipe with its number of steps, which `epochs` leaves open until blocks are packed.

        Only whole batches are read.

        >>> Recipe(epochs=3, batch_size=8).settled(n_blocks=100).steps
        36
        """
        if self.epochs is None:
            return self
        return self.replace(steps=max(1, round(self.epochs * (n_blocks // self.batch_size))))

    def check(self) -> None:
        """Refuse, before any work, sizes that do not fit together and a corpus that is not there.

        Raises:
            ValueError: the model cannot be built, or the corpus is of no known kind.
            FileNotFoundError: the corpus has no file.
        """
        from interp.data.loading import check_source

        self.build(self.vocab_size)
        try:
            check_source(self.corpus)
        except (ValueError, FileNotFoundError) as error:
            raise type(error)(f"recipe: corpus is {self.corpus!r}: {error}") from error

    def build(self, d_vocab: int, tokenizer: Any = None) -> "HookedSequenceModel | PreTrainedModel":
        """A fresh model for this recipe; sizes that do not fit are refused here."""
        from interp.training.initial import as_in_the_course
        from interp.training.parts import part_of, set_to_zero

        try:
            model = self._build(d_vocab, tokenizer)
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"recipe: [model] does not fit {self.architecture}: {error}"
            ) from error
        if self.initial_weights == "course":
            as_in_the_course(cast(Any, model), self.seed)
        for name in self.held_at_zero:
            set_to_zero(*part_of(model, name))
        return model

    def _build(self, d_vocab: int, tokenizer: Any) -> "HookedSequenceModel | PreTrainedModel":
        from interp.models import ModelConfig

        sizes = {"d_vocab": d_vocab, "n_ctx": self.n_ctx}
        given = {"seed": self.seed, "tokenizer": tokenizer}
        kind = _architectures().get(self.architecture)
        if kind is None:
            from interp.models import hugging_face

            return hugging_face.fresh(self.architecture, self.model, **sizes, **given)
        arguments = {**self.model, **sizes}
        if "layers" in self.model:
            return kind.from_config(ModelConfig.from_dict(arguments), **given)
        if self.architecture == "HookedSequenceModel":
            raise ValueError("it has no layers; give [[model.layers]], or name a preset")
        return kind(**arguments, **given)

    @property
    def tokens(self) -> int:
        """Tokens read in the whole run.

        Raises:
            ValueError: the recipe counts epochs, so this depends on the corpus; see `settled`.
        """
        if self.epochs is not None:
            raise ValueError(f"recipe: epochs is {self.epochs}; the corpus decides on the tokens")
        return self.steps * self.batch_size * self.n_ctx

    def replace(self, **changes: Any) -> Self:
        """The same recipe with some fields changed, checked again; steps replace epochs."""
        if changes.get("epochs") is not None:
            changes = {"steps": _STEPS, **changes}
        elif "steps" in changes:
            changes = {"epochs": None, **changes}
        if changes.get("optimizer", self.optimizer) != self.optimizer:
            changes = {"matrix_learning_rate": None, **changes}
        return replace(self, **changes)

    def to_toml(self) -> str:
        """The recipe as the text of a TOML file."""
        data = {key: value for key, value in asdict(self).items() if value is not None}
        if self.epochs is not None:
            del data["steps"]
        return tomli_w.dumps({**data, "model": dict(data.pop("model"))})

    @classmethod
    def from_toml(cls, text: str) -> Self:
        """The inverse of `to_toml`; an unknown key is named."""
        return cls.from_data(tomllib.loads(text))

    @classmethod
    def from_data(cls, data: Mapping[str, Any]) -> Self:
        """A recipe from what a TOML file holds; unknown keys and wrong types are named."""
        if "epochs" in data and "steps" in data:
            raise ValueError("recipe: both steps and epochs are given; give one of them")
        return cls(**fields_from(data, cls, "recipe"))

    @classmethod
    def load(cls, name: str | Path) -> Self:
        """A recipe by the name of a bundled one, or from a TOML file."""
        path = bundled().get(str(name), Path(name))
        if not path.is_file():
            known = ", ".join(sorted(bundled())) or "none"
            raise FileNotFoundError(
                f"{name} is no TOML file and no bundled recipe; those are {known}"
            )
        data = read_toml(path)
        if "member" in data:
            raise ValueError(f"{name} is a suite of recipes; train it with interp suite {name}")
        return cls.from_data(data)


def _architectures() -> dict[str, Any]:
    """The model classes by name, imported late: they bring PyTorch and TransformerLens along."""
    from interp.models.presets import HubMixin

    return dict(HubMixin.architectures)
