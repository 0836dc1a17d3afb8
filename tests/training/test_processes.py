"""Two processes train the same model as one, and no work is done twice that one can do alone."""

import os
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

import interp
from interp.training import Recipe

SCRIPT = Path(__file__).with_name("launched.py")
TWO = ["--num_processes", "2", "--num_machines", "1", "--main_process_port", "0"]
AS_GIVEN = ["--mixed_precision", "no", "--dynamo_backend", "no"]
COPIES = ["--multi_gpu"]
SHARDS = [
    *("--use_fsdp", "--fsdp_version", "2", "--fsdp_auto_wrap_policy", "TRANSFORMER_BASED_WRAP"),
    *("--fsdp_transformer_layer_cls_to_wrap", "Block"),
]

pytestmark = pytest.mark.slow


def launch(recipe: Recipe, directory: Path, how: list[str]) -> subprocess.CompletedProcess[str]:
    path = directory.with_suffix(".toml")
    path.write_text(recipe.to_toml())
    launcher = [sys.executable, "-m", "accelerate.commands.launch", *how]
    command = [*launcher, *TWO, *AS_GIVEN, SCRIPT, path, directory, directory.with_suffix(".notes")]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    return subprocess.run(
        [str(word) for word in command], env=environment, capture_output=True, text=True
    )


def metrics(run: Path) -> pd.DataFrame:
    table = pd.read_csv(run / "metrics.csv")
    return table.pivot(index="step", columns="metric", values="value")


@pytest.fixture(scope="module", params=[COPIES, SHARDS], ids=["copies", "shards"])
def how(request: pytest.FixtureRequest) -> list[str]:
    """Each process has all weights, or a share of each."""
    return request.param


@pytest.fixture(scope="module")
def two(how: list[str], recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run by two processes."""
    directory = tmp_path_factory.mktemp("launched") / "run"
    done = launch(recipe, directory, how)
    assert done.returncode == 0, done.stderr
    return directory


def test_the_loss_curve_is_that_of_one_process(run: Path, two: Path):
    one, both = metrics(run), metrics(two)
    assert list(one.columns) == list(both.columns)
    for name in ("loss", "eval_loss", "eval_accuracy", "best_induction", "first_copy_loss"):
        np.testing.assert_allclose(both[name], one[name], rtol=0, atol=1e-4, err_msg=name)


def test_one_process_packs_and_one_probes(two: Path):
    notes = two.with_suffix(".notes").read_text().splitlines()
    assert Counter(notes) == {"_prepare 0": 1, "probe 0": 2}  # the recipe evaluates twice


def test_what_it_leaves_is_what_one_process_leaves(run: Path, two: Path):
    assert {path.name for path in two.iterdir()} == {path.name for path in run.iterdir()}
    assert isinstance(interp.load(str(two)), interp.HookedConvAttn)
    assert isinstance(interp.load(str(two / "checkpoints/checkpoint-20")), interp.HookedConvAttn)


def test_shards_resume_to_the_same_weights(
    how: list[str], two: Path, recipe: Recipe, tmp_path: Path
):
    if how is COPIES:
        pytest.skip("test_run.py resumes whole weights")
    shutil.copytree(two, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "checkpoint-40")
    (tmp_path / "run" / "model.safetensors").unlink()
    done = launch(recipe, tmp_path / "run", how)
    assert done.returncode == 0, done.stderr
    one, other = (load_file(path / "model.safetensors") for path in (two, tmp_path / "run"))
    assert all(torch.equal(one[name], other[name]) for name in one)
