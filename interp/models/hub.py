"""Saving, loading and sharing, strictly.

A model is config.json, model.safetensors, the tokenizer's files and a model card. Pickle is never
read. A name is looked up among the bundled checkpoints, then as a directory, then on the hub.
"""

import json
from abc import abstractmethod
from importlib import resources
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar, Self, cast

import torch
from huggingface_hub import ModelCard, ModelCardData, PyTorchModelHubMixin, hf_hub_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
)
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from interp.models.checks import require_weights
from interp.models.config import ModelConfig
from interp.models.hooks import nearest

CONFIG, WEIGHTS, TOKENIZER, CARD = "config.json", "model.safetensors", "tokenizer.json", "README.md"
TOKENIZER_CONFIG = "tokenizer_config.json"
DOWNLOAD_OPTIONS = ("revision", "token", "cache_dir", "local_files_only", "force_download")


def bundled() -> dict[str, Path]:
    """The checkpoints that ship with the package, by name."""
    root = Path(str(resources.files("interp"))) / "checkpoints"
    return {path.parent.name: path.parent for path in sorted(root.glob(f"*/{CONFIG}"))}


class HubMixin(PyTorchModelHubMixin, library_name="interp", tags=["mechanistic-interpretability"]):
    """huggingface_hub's mixin with a strict save and load; `push_to_hub` is its own."""

    architectures: ClassVar[dict[str, type["HubMixin"]]] = {}
    config: ModelConfig
    tokenizer: Any
    loaded_from: str | None = None

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        HubMixin.architectures[cls.__name__] = cls

    @classmethod
    @abstractmethod
    def from_config(cls, config: ModelConfig, *, seed: int = 0, tokenizer: Any = None) -> Self:
        """A fresh model of this class for any config, its preset's defaults ignored."""

    def save_pretrained(self, save_directory: str | Path, **options: Any) -> str | None:
        """Write config, weights, tokenizer and, where there is none yet, a model card.

        Everything is written aside and then moved in: a save that fails half-way leaves the model
        that was there before. `options` are huggingface_hub's, `push_to_hub` among them.
        """
        directory = Path(save_directory)
        directory.mkdir(parents=True, exist_ok=True)
        options["repo_id"] = options.get("repo_id") or directory.name
        with TemporaryDirectory(dir=directory, prefix=".unfinished-") as aside:
            url = super().save_pretrained(aside, **options)
            if (directory / CARD).exists():  # somebody may have written it
                (Path(aside) / CARD).unlink()
            for path in list(Path(aside).iterdir()):
                path.replace(directory / path.name)
        if self.tokenizer is None:  # one that another model left would be read as this one's
            for name in (TOKENIZER, TOKENIZER_CONFIG):
                (directory / name).unlink(missing_ok=True)
        return url

    def _save_pretrained(self, save_directory: Path) -> None:
        config = {"architecture": type(self).__name__, **self.config.to_dict()}
        (save_directory / CONFIG).write_text(json.dumps(config, indent=2) + "\n")
        state = {name: tensor.contiguous() for name, tensor in cast(Any, self).state_dict().items()}
        save_file(state, save_directory / WEIGHTS, metadata={"format": "pt"})
        if self.tokenizer is not None:
            self.tokenizer.save_pretrained(save_directory)

    def generate_model_card(self, *args: Any, **kwargs: Any) -> ModelCard:
        """A card that says what the model is and how to load it.

        A recipe's card says how it was trained, too.
        """
        data = ModelCardData(library_name="interp", tags=["mechanistic-interpretability"])
        layers = "\n".join(f"- layer {i}: `{layer}`" for i, layer in enumerate(self.config.layers))
        size = sum(parameter.numel() for parameter in cast(Any, self).parameters())
        text = (
            f"---\n{data.to_yaml()}\n---\n\n# {type(self).__name__}\n\n"
            f"{size:,} parameters, vocabulary {self.config.d_vocab:,}, "
            f"context {self.config.n_ctx}, width {self.config.d_model}.\n\n{layers}\n\n"
            "```python\nimport interp\n\nmodel = interp.load('path/or/repository')\n```\n"
        )
        return ModelCard(text)

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path,
        *,
        device: str | torch.device = "cpu",
        dtype: torch.dtype | None = None,
        **download: Any,
    ) -> Self:
        """A saved model, in eval mode: a bundled name, then a directory, then a hub repository.

        Args:
            pretrained_model_name_or_path: for example "conv-attn", "runs/my-model" or
                "someone/my-model".
            device: where the weights go.
            dtype: of the weights; as saved by default.
            download: `revision`, `token`, `cache_dir`, `local_files_only`, `force_download` for the
                hub.

        Raises:
            FileNotFoundError: no such name, or a directory that lacks a file.
            ValueError: a file that is corrupt, truncated, foreign or pickled, or weights that are
                not this config's; the message names the file or the weight.
            TypeError: an option that is none of these.
        """
        if unknown := sorted(set(download) - set(DOWNLOAD_OPTIONS)):
            raise TypeError(
                f"from_pretrained has no option {unknown[0]!r}; besides device and dtype it takes "
                f"{', '.join(DOWNLOAD_OPTIONS)}"
            )
        source = str(pretrained_model_name_or_path)
        files = _find_files(source, download)
        architecture, config = _read_config(files[CONFIG])
        kind = HubMixin.architectures.get(architecture)
        if kind is None:
            known = ", ".join(sorted(HubMixin.architectures))
            raise ValueError(f"{source}: architecture {architecture!r} is not one of {known}")
        if not issubclass(kind, cls):
            raise ValueError(
                f"{source} holds a {architecture}, not a {cls.__name__}; "
                f"use interp.load({source!r})"
            )
        state = read_weights(files[WEIGHTS])
        model = kind.from_config(config, tokenizer=read_tokenizer(files))
        expected = cast(Any, model).state_dict()
        require_weights(state, {n: x.shape for n, x in expected.items()}, source, "weight")
        for name, tensor in state.items():
            if not tensor.is_floating_point():
                raise ValueError(
                    f"{source}: weight {name!r} is {tensor.dtype}, but must be floating"
                )
        stored = next(iter(state.values())).dtype
        cast(Any, model).to(device=device, dtype=dtype or stored).load_state_dict(state)
        model.loaded_from = Path(source).name
        return cast(Any, model).eval()


def _find_files(source: str, download: dict[str, Any]) -> dict[str, Path]:
    directory = bundled().get(source, Path(source))
    if directory.is_dir():
        return files_in(directory)
    if directory.exists():
        raise ValueError(f"{source} is a file; give the directory that save_pretrained wrote")
    if "/" not in source:  # a hub repository is called owner/name
        raise FileNotFoundError(
            f"{source!r} is no bundled checkpoint and no directory{nearest(source, bundled())}; "
            f"the bundled checkpoints are {', '.join(bundled()) or 'none'}"
        )
    return _download(source, download)


def _download(source: str, download: dict[str, Any]) -> dict[str, Path]:
    names = f"the bundled checkpoints are {', '.join(bundled()) or 'none'}"
    files = {}
    for name in (CONFIG, WEIGHTS, TOKENIZER, TOKENIZER_CONFIG):
        try:
            files[name] = Path(hf_hub_download(source, name, **download))
        except LocalEntryNotFoundError as error:
            if name not in (CONFIG, WEIGHTS):
                continue  # offline, and this optional file was not there when the rest was cached
            raise FileNotFoundError(
                f"{source!r} is no bundled checkpoint and no directory, and the hub cannot be "
                f"reached; {names}"
            ) from error
        except EntryNotFoundError as error:
            if name in (CONFIG, WEIGHTS):
                raise FileNotFoundError(f"the hub repository {source!r} holds no {name}") from error
        except (HFValidationError, HfHubHTTPError) as error:
            raise FileNotFoundError(
                f"{source!r} is no bundled checkpoint, no directory and no repository that the hub "
                f"gives; {names}"
            ) from error
    return files


def files_in(directory: Path) -> dict[str, Path]:
    """A saved model's files by name; without config or weights it is refused."""
    for name in (CONFIG, WEIGHTS):
        if not (directory / name).is_file():
            pickled = sorted(
                p.name for p in directory.iterdir() if p.suffix in (".bin", ".pt", ".pth", ".pkl")
            )
            hint = f" ({pickled[0]} is a pickle, which is never read)" if pickled else ""
            raise FileNotFoundError(
                f"{directory} holds no {name}{hint}; save with model.save_pretrained"
            )
    names = (CONFIG, WEIGHTS, TOKENIZER, TOKENIZER_CONFIG)
    return {name: directory / name for name in names if (directory / name).is_file()}


def _read_config(path: Path) -> tuple[str, ModelConfig]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    if not isinstance(data, dict) or not isinstance(data.get("architecture"), str):
        raise ValueError(
            f"{path} is not an interp config: it names no architecture. A model of transformers "
            "is saved without one: interp.load gives one from a directory"
        )
    architecture = data.pop("architecture")
    try:
        return architecture, ModelConfig.from_dict(data)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file; what is anything else is refused."""
    try:
        return load_file(path)
    except SafetensorError as error:
        with path.open("rb") as file:
            head = file.read(2)
        if head == b"PK" or head[:1] == b"\x80":
            raise ValueError(
                f"{path} is a pickle under another name; pickle is never read, since it can run "
                "code"
            ) from error
        raise ValueError(
            f"{path} is corrupt or truncated ({error}); download or save it again"
        ) from error


def read_tokenizer(files: dict[str, Path]) -> Any:
    """The tokenizer among a saved model's files, or None."""
    if TOKENIZER not in files:
        return None
    from transformers import PreTrainedTokenizerFast

    try:
        return PreTrainedTokenizerFast.from_pretrained(files[TOKENIZER].parent)
    except Exception as error:  # tokenizers raises a bare Exception for a broken file
        raise ValueError(f"{files[TOKENIZER]} cannot be read as a tokenizer: {error}") from error
