"""A short version of the script that kills runs, which `docs/training.md` reports of."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("kill_and_resume.py")


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs a system that forks")
def test_killed_runs_end_with_the_weights_of_the_one_left_alone():
    command = [sys.executable, str(SCRIPT), "--kills", "3"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "got through, all with the weights of the one left alone" in done.stdout
