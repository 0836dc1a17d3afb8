"""A training run, in data: one definition for the TOML file, the command line and the docs."""

import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import tomli_w

if TYPE_CHECKING:
    from interp.models import HookedSequenceModel


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
    architecture: str = _help("the preset to build", "HookedConvAttn")
    model: Mapping[str, Any] = field(
        default_factory=dict,
        metadata={"help": "the preset's keyword arguments, without d_vocab and n_ctx"},
    )
    corpus: str = _help(
        '"python-docs", a path or glob of text files, or "hf:owner/name"', "python-docs"
    )
    held_out: float = _help("share of the documents that are never trained on", 0.02)
    tokenizer: str = _help("bpe (byte-level), or characters (one token each)", "bpe")
    vocab_size: int = _help("tokens in the vocabulary", 1024)
    n_ctx: int = _help("tokens in a block, BOS included", 256)
    steps: int = _help("optimiser steps", 2000)
    batch_size: int = _help("blocks in one step, over all processes", 8)
    learning_rate: float = _help("AdamW's peak learning rate", 5e-3)
    warmup_ratio: float = _help(
        "share of the steps in which the rate rises linearly; then a cosine", 0.05
    )
    weight_decay: float = _help("AdamW's weight decay", 0.0)
    adam_beta2: float = _help("AdamW's second-moment decay", 0.95)
    max_grad_norm: float = _help("gradients are clipped to this norm", 1.0)
    seed: int = _help("of the initial weights and of the order of the blocks", 0)
    probe_steps: int = _help("steps between two measurements on held-out text and probes", 200)
    save_steps: int = _help("steps between two checkpoints", 1000)
    compile: bool = _help("run the model through torch.compile", False)

    def __post_init__(self) -> None:
        presets = [name for name in _architectures() if name != "HookedSequenceModel"]
        self._require(self.architecture in presets, "architecture", f"one of {', '.join(presets)}")
        self._require(self.tokenizer in ("bpe", "characters"), "tokenizer", "bpe or characters")
        floor = 258 if self.tokenizer == "bpe" else 4
        self._require(
            self.vocab_size >= floor, "vocab_size", f"at least {floor} (special tokens included)"
        )
        self._require(
            self.n_ctx >= 8, "n_ctx", "at least 8, or there is no room for a repeat to probe with"
        )
        for name in ("steps", "batch_size", "probe_steps", "save_steps"):
            self._require(getattr(self, name) >= 1, name, "at least 1")
        for name in ("learning_rate", "max_grad_norm"):
            self._require(getattr(self, name) > 0, name, "above 0")
        self._require(0 < self.held_out < 1, "held_out", "between 0 and 1")
        for name in ("warmup_ratio", "adam_beta2"):
            self._require(0 <= getattr(self, name) < 1, name, "in [0, 1)")
        self._require(self.weight_decay >= 0, "weight_decay", "at least 0")
        for name in ("d_vocab", "n_ctx", "seed", "tokenizer"):
            if name in self.model:
                raise ValueError(
                    f"recipe: model.{name} is set by the recipe itself; leave it out of [model]"
                )

    def _require(self, condition: bool, name: str, bound: str) -> None:
        if not condition:
            raise ValueError(f"recipe: {name} is {getattr(self, name)!r}, but must be {bound}")

    def build(self, d_vocab: int, tokenizer: Any = None) -> "HookedSequenceModel":
        """A fresh model for this recipe; sizes that do not fit are refused here."""
        preset = _architectures()[self.architecture]
        try:
            return preset(
                d_vocab=d_vocab, n_ctx=self.n_ctx, seed=self.seed, tokenizer=tokenizer, **self.model
            )
        except TypeError as error:
            raise ValueError(
                f"recipe: [model] does not fit {self.architecture}: {error}"
            ) from error

    @property
    def tokens(self) -> int:
        """Tokens read in the whole run."""
        return self.steps * self.batch_size * self.n_ctx

    def replace(self, **changes: Any) -> Self:
        """The same recipe with some fields changed, checked again."""
        return replace(self, **changes)

    def to_toml(self) -> str:
        """The recipe as the text of a TOML file."""
        data = asdict(self)
        return tomli_w.dumps({**data, "model": dict(data.pop("model"))})

    @classmethod
    def from_toml(cls, text: str) -> Self:
        """The inverse of `to_toml`; an unknown key is named."""
        from interp.models.hooks import nearest

        data = tomllib.loads(text)
        known = [item.name for item in fields(cls)]
        for key in data:
            if key not in known:
                raise ValueError(f"recipe: unknown key {key!r}{nearest(key, known)}")
        try:
            return cls(**data)
        except TypeError as error:
            raise ValueError(f"recipe: {error}") from error

    @classmethod
    def load(cls, name: str | Path) -> Self:
        """A recipe by the name of a bundled one, or from a TOML file."""
        path = _bundled().get(str(name), Path(name))
        if not path.is_file():
            bundled = ", ".join(sorted(_bundled())) or "none"
            raise FileNotFoundError(
                f"{name} is no TOML file and no bundled recipe; those are {bundled}"
            )
        try:
            return cls.from_toml(path.read_text(encoding="utf-8"))
        except tomllib.TOMLDecodeError as error:
            raise ValueError(f"{path} is not TOML: {error}") from error


def _architectures() -> dict[str, Any]:
    """The model classes by name, imported late: they bring PyTorch and TransformerLens along."""
    from interp.models.presets import HubMixin

    return dict(HubMixin.architectures)


def _bundled() -> dict[str, Path]:
    root = Path(str(resources.files("interp"))) / "training" / "recipes"
    return {path.stem: path for path in sorted(root.glob("*.toml"))}
