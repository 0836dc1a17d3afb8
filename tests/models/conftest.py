"""Fixtures of the model tests: the zoo, one model at a time."""

from collections.abc import Iterator
from pathlib import Path

import jaxtyping
import pytest

from interp.models import HookedSequenceModel
from tests.models import zoo


@pytest.fixture(params=zoo.NAMES)
def model(request: pytest.FixtureRequest) -> HookedSequenceModel:
    """Every model of the zoo in turn: float64, eval mode, nothing at its initial value."""
    return zoo.build(request.param)


@pytest.fixture
def unchecked() -> Iterator[None]:
    """Shape checks off: as users run the library, and as torch.compile can read it."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A directory with a saved conv-attn and nothing else."""
    zoo.build("conv-attn: as it comes").save_pretrained(tmp_path / "saved")
    return tmp_path / "saved"
