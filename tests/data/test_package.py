"""`interp.data` itself: four names, loaded when asked for."""

import subprocess
import sys

import pytest

import interp.data


def test_importing_it_loads_nothing_heavy():
    heavy = ("torch", "transformers", "datasets", "tokenizers", "pyarrow", "numpy")
    code = f"import interp.data, sys; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_public_name_is_there():
    assert dir(interp.data) == ["Corpus", "load_corpus", "pack", "train_tokenizer"]
    assert [getattr(interp.data, name).__name__ for name in dir(interp.data)] == dir(interp.data)


def test_another_name_is_an_error():
    with pytest.raises(AttributeError, match=r"'interp\.data' has no attribute 'load_corpse'"):
        _ = interp.data.load_corpse
