"""The hub, which a stand-in plays here, and the checkpoints that ship."""

import shutil
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import HfApi, errors
from torch.testing import assert_close

import interp
from interp.models import HookedConvAttn, hub
from interp.views import WrappedModel, view
from tests.models import zoo
from tests.models.test_text import tokenizer
from tests.models.zoo import files

KIND = "conv-attn: as it comes"


class Hub:
    """A stand-in for the hub: repositories are directories."""

    def __init__(self, root: Path):
        self.root = root
        self.asked: list[tuple[str, str, dict[str, Any]]] = []

    def download(self, repo_id: str, filename: str, **options: Any) -> str:
        self.asked.append((repo_id, filename, options))
        path = self.root / repo_id / filename
        if not path.parent.is_dir():
            raise errors.RepositoryNotFoundError("404", response=_response())
        if not path.is_file():
            raise errors.RemoteEntryNotFoundError("404", response=_response())
        return str(path)

    def upload(self, repo_id: str, folder_path: Path, **options: Any) -> str:
        shutil.copytree(folder_path, self.root / repo_id)
        return f"commit of {repo_id}"


def _response() -> Any:
    import httpx

    return httpx.Response(404, request=httpx.Request("GET", "http://hub"))


@pytest.fixture
def remote(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Hub:
    stand_in = Hub(tmp_path / "hub")
    monkeypatch.setattr(hub, "hf_hub_download", stand_in.download)
    monkeypatch.setattr(
        HfApi, "create_repo", lambda self, repo_id, **options: type("Url", (), {"repo_id": repo_id})
    )
    monkeypatch.setattr(HfApi, "upload_folder", lambda self, **options: stand_in.upload(**options))
    return stand_in


def test_pushed_and_loaded_back(remote: Hub) -> None:
    model = HookedConvAttn(d_vocab=9, d_model=12, n_heads=3, n_ctx=8, tokenizer=tokenizer())
    zoo.randomise(model).eval()
    assert model.push_to_hub("someone/my-model") == "commit of someone/my-model"
    assert files(remote.root / "someone/my-model") == {
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
        "README.md",
    }
    loaded = interp.load("someone/my-model", revision="v1", cache_dir="elsewhere")
    assert type(loaded) is HookedConvAttn
    assert_close(loaded("the cat"), model("the cat"), rtol=0, atol=0)
    repositories, asked, options = zip(*remote.asked, strict=True)
    assert set(repositories) == {"someone/my-model"}
    assert asked == ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")
    assert all(option == {"revision": "v1", "cache_dir": "elsewhere"} for option in options)


def test_saving_can_push_too(remote: Hub, tmp_path: Path) -> None:
    zoo.build(KIND).save_pretrained(tmp_path / "my-model", push_to_hub=True)
    assert "model.safetensors" in files(remote.root / "my-model")
    assert "model.safetensors" in files(tmp_path / "my-model")


def test_a_repository_without_a_tokenizer(remote: Hub) -> None:
    zoo.build(KIND).push_to_hub("someone/bare")
    assert interp.load("someone/bare").tokenizer is None


def test_a_repository_without_weights_or_without_itself(remote: Hub) -> None:
    zoo.build(KIND).push_to_hub("someone/bare")
    (remote.root / "someone/bare/model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"'someone/bare' holds no model\.safetensors"):
        interp.load("someone/bare")
    with pytest.raises(FileNotFoundError, match="'no/body' is no bundled checkpoint, no directory"):
        interp.load("no/body")


def test_what_was_cached_loads_offline_without_a_tokenizer_too(
    monkeypatch: pytest.MonkeyPatch, remote: Hub
) -> None:
    # Offline, the hub's client cannot tell "not cached" from "was never there".
    zoo.build(KIND).push_to_hub("someone/bare")

    def offline(repo_id: str, filename: str, **options: Any) -> str:
        try:
            return remote.download(repo_id, filename, **options)
        except errors.RemoteEntryNotFoundError as error:
            raise errors.LocalEntryNotFoundError("offline") from error

    monkeypatch.setattr(hub, "hf_hub_download", offline)
    assert interp.load("someone/bare").tokenizer is None


def test_an_unknown_name_offline() -> None:
    # tests/conftest.py sets HF_HUB_OFFLINE: this is the real client.
    with pytest.raises(FileNotFoundError, match="the hub cannot be reached; the bundled"):
        interp.load("no-such-owner/no-such-model")
    with pytest.raises(
        FileNotFoundError, match=r"'convattn' is no bundled .*; did you mean 'conv-"
    ):
        interp.load("convattn")
    with pytest.raises(FileNotFoundError, match="is no bundled checkpoint"):
        interp.load("one/two/three")


def test_a_bundled_name_comes_before_a_directory_of_that_name(
    monkeypatch: pytest.MonkeyPatch, saved: Path
) -> None:
    monkeypatch.chdir(saved.parent)
    assert interp.load("saved").W_E.shape == (zoo.D_VOCAB, zoo.D_MODEL)
    monkeypatch.setattr(hub, "bundled", lambda: {"attn": saved})
    (saved.parent / "attn").mkdir()
    assert type(interp.load("attn")) is HookedConvAttn


@pytest.mark.parametrize("name", interp.available())
def test_every_checkpoint_that_ships_loads(name: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = interp.load(name)
    assert view(model).name.startswith(f"{name} (")
    if isinstance(model, WrappedModel):  # its own class generates
        tokens = torch.tensor([model.tokenizer("The ")["input_ids"]])
        text = model.tokenizer.batch_decode(
            model.original_model.generate(tokens, max_new_tokens=5, do_sample=False)
        )
    else:
        text = model.to_string(model.generate(model.to_tokens("The "), 5))
    assert len(text[0]) > 4


def test_available_lists_what_ships() -> None:
    assert set(interp.available()) == set(hub.bundled())
    assert {"conv-attn", "smeared-attn"} <= set(interp.available())
