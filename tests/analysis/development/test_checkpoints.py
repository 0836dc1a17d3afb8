"""Where the models of a run come from: its directory, a hub repository (played here), pairs."""

import json
import shutil
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from huggingface_hub.errors import RemoteEntryNotFoundError, RepositoryNotFoundError
from torch.testing import assert_close
from transformer_lens.model_bridge import TransformerBridge

from interp.analysis import development, induction_score
from interp.models import HookedConvAttn, hub
from interp.views import Checkpoints, revisions
from tests.analysis.bridges import bridged, hugging_face

STEPS = (0, 2, 10, 100)
SHORT = partial(induction_score, n=9, n_sequences=2)
RECIPE = """
name = "conv-attn"
architecture = "HookedConvAttn"
corpus = "python-docs"
batch_size = 4
n_ctx = 64
seed = 3
"""


def model(step: int) -> HookedConvAttn:
    return HookedConvAttn(d_vocab=60, d_model=8, n_heads=2, n_ctx=64, seed=step)


@pytest.fixture
def run(tmp_path):
    for step in STEPS:
        model(step).save_pretrained(tmp_path / "my-run" / "snapshots" / f"step{step}")
    (tmp_path / "my-run" / "recipe.toml").write_text(RECIPE)
    (tmp_path / "my-run" / "snapshots" / ".unfinished-step200").mkdir()
    return tmp_path / "my-run"


# ------------------------------------------------------------------------------------- directories


def test_a_run_is_its_snapshots_in_the_order_of_their_steps(run):
    checkpoints = Checkpoints.from_run(run)
    assert checkpoints.steps == STEPS
    assert len(checkpoints) == 4
    for step, loaded in checkpoints:
        assert_close(loaded.state_dict(), model(step).state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize("kind", [str, lambda path: path])
def test_development_reads_a_run_by_the_name_of_its_directory(run, kind):
    grown = development(kind(run), SHORT)
    assert grown.labels["step"] == STEPS
    for step in STEPS:
        assert (grown.sel(step=step).values == SHORT(model(step)).values).all()
    origin = dict(grown.provenance)
    assert origin["model"] == origin["run"] == "my-run"
    assert origin["tokens_per_step"] == 4 * 64
    facts = (origin["architecture"], origin["corpus"], origin["training_seed"], origin["seed"])
    assert facts == ("HookedConvAttn", "python-docs", 3, 0)


def test_what_the_caller_says_of_tokens_goes_before_the_recipe(run):
    grown = development(Checkpoints.from_run(run).at([2, 100]), SHORT, tokens_per_step=7.5)
    assert grown.labels["step"] == (2, 100)
    assert grown.provenance["tokens_per_step"] == 7.5


def test_a_run_without_a_recipe_has_steps_and_a_name(run):
    (run / "recipe.toml").unlink()
    assert Checkpoints.from_run(run).origin == {"run": "my-run"}


@pytest.mark.parametrize("steps", [[7], [2, 7], [2, 200]])
def test_an_unknown_step_is_refused_before_any_work(run, steps):
    with pytest.raises(ValueError, match=rf"no step {steps[-1]}; its steps are 0, 2, 10, 100"):
        Checkpoints.from_run(run).at(steps)


@pytest.mark.parametrize("steps", [[10, 2], [2, 2], []])
def test_chosen_steps_are_in_order_too(run, steps):
    with pytest.raises(ValueError, match=r"step|checkpoints"):
        Checkpoints.from_run(run).at(steps)


def test_a_directory_without_snapshots_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"holds no snapshots/step<N>.*keeps snapshots"):
        development(tmp_path, SHORT)
    with pytest.raises(FileNotFoundError, match="nothing-there is no directory"):
        development("nothing-there", SHORT)


def test_a_snapshot_that_lacks_a_file_is_refused_before_any_work(run, monkeypatch):
    (run / "snapshots" / "step100" / "model.safetensors").unlink()
    monkeypatch.setattr(hub, "load_file", lambda path: pytest.fail("work before the refusal"))
    with pytest.raises(FileNotFoundError, match=r"step100 holds no model\.safetensors"):
        development(run, SHORT)


def test_a_recipe_that_is_no_toml_is_refused(run):
    (run / "recipe.toml").write_text("steps = = 3")
    with pytest.raises(ValueError, match=r"recipe\.toml is not TOML"):
        development(run, SHORT)


# --------------------------------------------------------------------------------------------- hub


class Hub:
    """A stand-in for the hub: a repository's revisions are directories."""

    def __init__(self, root, branches, tags=()):
        self.root, self.branches, self.tags = root, branches, tags
        self.loaded: list[str] = []

    def refs(self, repository):
        if not (self.root / repository).is_dir():
            raise RepositoryNotFoundError("404", response=_response())
        named = [[SimpleNamespace(name=n) for n in names] for names in (self.branches, self.tags)]
        return SimpleNamespace(branches=named[0], tags=named[1])

    def download(self, repository, name, revision, **options):
        path = self.root / repository / revision / name
        if not path.is_file():
            raise RemoteEntryNotFoundError("404", response=_response())
        if name == "model.safetensors":
            self.loaded.append(revision)
        return str(path)


def _response():
    import httpx

    return httpx.Response(404, request=httpx.Request("GET", "http://hub"))


@pytest.fixture
def remote(monkeypatch, tmp_path):
    stand_in = Hub(tmp_path / "hub", ["main", "step10", "step0", "step100", "step2-fix"], ["step2"])
    monkeypatch.setattr(revisions, "list_repo_refs", stand_in.refs)
    monkeypatch.setattr(revisions, "hf_hub_download", stand_in.download)
    monkeypatch.setattr(hub, "hf_hub_download", stand_in.download)
    return stand_in


@pytest.fixture
def ours(remote, run):
    shutil.copytree(run / "snapshots", remote.root / "someone/my-run")
    return remote


def test_a_repository_of_ours_is_its_revisions(ours):
    grown = development("someone/my-run", SHORT)
    assert grown.labels["step"] == STEPS
    assert ours.loaded == ["step0", "step2", "step10", "step100"]
    for step in STEPS:
        assert (grown.sel(step=step).values == SHORT(model(step)).values).all()
    assert grown.provenance["model"] == "someone/my-run"
    assert "tokens_per_step" not in grown.provenance


def test_only_the_steps_that_were_chosen_are_loaded(ours):
    chosen = Checkpoints.from_hub("someone/my-run", tokens_per_step=99).at([2, 100])
    assert ours.loaded == []
    assert development(chosen, SHORT).provenance["tokens_per_step"] == 99
    assert ours.loaded == ["step2", "step100"]
    with pytest.raises(ValueError, match=r"no step 143000; its steps are 0, 2, 10, 100"):
        Checkpoints.from_hub("someone/my-run").at([143000])


def test_dtype_and_device_reach_the_model(ours):
    run = Checkpoints.from_hub("someone/my-run", dtype=torch.float64)
    assert run.load(2).W_E.dtype == torch.float64


@pytest.fixture
def pythia(remote, monkeypatch):
    """A repository of somebody else's: Hugging Face models, one for each revision."""
    for revision in ("step0", "step2", "step10", "step100"):
        folder = remote.root / "EleutherAI/pythia" / revision
        folder.mkdir(parents=True)
        (folder / "config.json").write_text(json.dumps({"model_type": "gpt_neox"}))
    booted = []

    def boot(name, *, revision, device, dtype):
        booted.append((name, revision, device, dtype))
        return bridged(hugging_face("neox"), name)

    monkeypatch.setattr(TransformerBridge, "boot_transformers", staticmethod(boot))
    return booted


def test_any_other_repository_is_read_through_a_bridge(pythia):
    run = Checkpoints.from_hub("EleutherAI/pythia", tokens_per_step=2_097_152).at([0, 10])
    assert pythia == []
    grown = development(run, SHORT)
    assert [(name, revision) for name, revision, *_ in pythia] == [
        ("EleutherAI/pythia", "step0"),
        ("EleutherAI/pythia", "step10"),
    ]
    assert pythia[0][2:] == ("cpu", torch.float32)
    assert (grown.sel(step=10).values == SHORT(bridged(hugging_face("neox"))).values).all()
    assert grown.provenance["tokens_per_step"] == 2_097_152


def test_stanfords_names_are_read_too(remote, run):
    shutil.copytree(run / "snapshots" / "step2", remote.root / "someone/gpt" / "checkpoint-400")
    remote.branches = ["main", "checkpoint-400"]
    remote.tags = []
    assert Checkpoints.from_hub("someone/gpt").steps == (400,)


def test_a_repository_without_steps_is_refused(ours):
    ours.branches, ours.tags = ["main", "v1"], []
    with pytest.raises(ValueError, match=r"no revision called step<N>.*revisions are main, v1"):
        development("someone/my-run", SHORT)


def test_a_revision_without_a_model_is_refused(ours):
    shutil.rmtree(ours.root / "someone/my-run" / "step0")
    with pytest.raises(FileNotFoundError, match=r"holds no config\.json at revision 'step0'"):
        development("someone/my-run", SHORT)


def test_a_repository_that_is_not_there_is_refused(remote):
    with pytest.raises(FileNotFoundError, match="'no/such' is no directory and no repository"):
        development("no/such", SHORT)


def test_the_hub_out_of_reach_is_an_error_of_its_own(monkeypatch):
    def unreachable(repository):
        raise ConnectionError("no route to host")

    monkeypatch.setattr(revisions, "list_repo_refs", unreachable)
    with pytest.raises(FileNotFoundError, match="no route to host"):
        development("someone/my-run", SHORT)
