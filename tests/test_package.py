"""The package as its users meet it: what it costs to import, what it offers, what it ships."""

import ast
import importlib
import json
import re
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import packages_distributions
from pathlib import Path
from types import ModuleType

import jaxtyping
import pytest
import torch
from hatchling.builders.wheel import WheelBuilder

import interp

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
SOURCES = sorted(
    path
    for folder in ("interp", "tests", "examples", "benchmarks")
    for path in (ROOT / folder).rglob("*.py")
)
SUBPACKAGES = ("analysis", "data", "models", "plots", "report", "results", "training", "views")
OFFERING = ("interp.analysis", "interp.data", "interp.models", "interp.training")


def in_a_new_process(program: str) -> str:
    """What the program prints, in an interpreter that has imported nothing yet."""
    here = f"import sys; sys.path.insert(0, {str(ROOT)!r})\n"
    run = [sys.executable, "-I", "-c", here + program]
    return subprocess.run(run, check=True, capture_output=True, text=True).stdout


IMPORT_AND_LOOK = """
import json, sys, time
before = set(sys.modules)
start = time.perf_counter()
import interp
seconds = time.perf_counter() - start
print(json.dumps([seconds, sorted(set(sys.modules) - before)]))
"""


def test_import_loads_the_standard_library_only():
    _, modules = json.loads(in_a_new_process(IMPORT_AND_LOOK))
    assert "interp" in modules
    assert {name.split(".")[0] for name in modules} - sys.stdlib_module_names == {"interp"}


def test_import_takes_less_than_a_fifth_of_a_second():
    seconds = [json.loads(in_a_new_process(IMPORT_AND_LOOK))[0] for _ in range(3)]
    assert min(seconds) < 0.2


@pytest.mark.parametrize("name", interp.__all__)
def test_every_public_name_is_there(name: str):
    assert getattr(interp, name).__name__ == name


def test_dir_shows_public_names_and_subpackages_only():
    listed = eval(in_a_new_process("import interp; print(dir(interp))"))
    assert listed == dir(interp)
    assert sorted({*listed} - {*interp.__all__}) == sorted([*SUBPACKAGES, "__version__"])
    folders = {path.parent.name for path in (ROOT / "interp").glob("*/__init__.py")}
    assert folders == {*SUBPACKAGES} - {"report"}


@pytest.mark.parametrize("package", [name for name in SUBPACKAGES if name != "report"])
def test_dir_of_a_subpackage_shows_what_it_offers_and_its_own_packages(package: str):
    module = importlib.import_module(f"interp.{package}")
    folders = {path.parent.name for path in (ROOT / "interp" / package).glob("*/__init__.py")}
    assert sorted(dir(module)) == sorted({*module.__all__} | folders)
    assert not [name for name in dir(module) if name.startswith("_")]


@pytest.mark.parametrize("package", OFFERING)
def test_what_a_package_offers_interp_offers(package: str):
    module = importlib.import_module(package)
    assert module.__all__
    assert {*module.__all__} <= {*dir(module)}
    for name in module.__all__:
        assert getattr(interp, name) is getattr(module, name)


@pytest.mark.parametrize("part", SUBPACKAGES)
def test_a_subpackage_is_there_after_importing_interp(part: str):
    output = in_a_new_process(f"import interp; print(interp.{part}.__name__)")
    assert output.split() == [f"interp.{part}"]


@pytest.mark.parametrize(
    "first",
    [
        "import interp",
        "import interp.analysis",
        "import interp; interp.head_scores; interp.analysis.tokens_to_reach",
        "from interp.analysis.development.comparison import tokens_to_reach; import interp",
        "import interp.analysis.development.phases; import interp",
    ],
)
def test_development_is_the_function_and_not_the_package_of_that_name(first: str):
    asked = "print(interp.development.__name__, interp.analysis.development is interp.development)"
    assert in_a_new_process(f"{first}\n{asked}").split() == ["development", "True"]


def test_a_name_is_added_by_one_line(tmp_path: Path):
    package = tmp_path / "offering"
    (package / "inner").mkdir(parents=True)
    (package / "inner" / "values.py").write_text("here = 1\nhidden = 2\n")
    (package / "inner" / "__init__.py").write_text(
        "from offering.inner.values import here as here\nfrom offering.inner.values import hidden\n"
    )
    (package / "__init__.py").write_text(
        "from typing import TYPE_CHECKING\n"
        "if TYPE_CHECKING:\n"
        "    from offering.inner import *\n"
        "    from . import inner as inner\n"
        "else:\n"
        "    from interp.public import attach\n"
        "    __getattr__, __dir__, __all__ = attach(__name__, renamed={'there': 'here'})\n"
    )
    program = f"""
import sys; sys.path.insert(0, {str(tmp_path)!r})
import offering
print(offering.__all__, "offering.inner" in sys.modules, offering.here, offering.inner.__name__)
"""
    assert in_a_new_process(program) == "['here'] False 1 offering.inner\n"


@pytest.mark.slow
def test_type_checkers_see_the_names_that_the_interpreter_finds(tmp_path: Path):
    names = [*interp.__all__, *(f"analysis.{name}" for name in interp.analysis.__all__)]
    lines = [f"reveal_type(interp.{name})" for name in names]
    program = tmp_path / "names.py"
    program.write_text("\n".join(["import interp", *lines, "interp.indution_score", ""]))
    options = ["--outputjson", "--pythonpath", sys.executable]
    run = [sys.executable, "-m", "pyright", *options, str(program)]
    output = json.loads(subprocess.run(run, capture_output=True, text=True, cwd=ROOT).stdout)
    [error] = [one for one in output["generalDiagnostics"] if one["severity"] == "error"]
    assert '"indution_score" is not a known attribute' in error["message"]
    types = [one["message"] for one in output["generalDiagnostics"] if one is not error]
    assert len(types) == len(names)
    assert not [one for one in types if re.search(r'is "(Unknown|Any|Module)', one)]


@pytest.mark.parametrize("module", [interp, interp.analysis])
def test_a_name_of_before_says_what_it_is_called_now(module: ModuleType):
    with pytest.raises(AttributeError, match=r"'circuit'\. It is called 'induction_circuit' now"):
        module.circuit  # noqa: B018


@pytest.mark.parametrize(
    ("typo", "meant"),
    [("indution_score", "induction_score"), ("hookedconvattn", "HookedConvAttn")],
)
def test_a_typo_gets_the_nearest_name(typo: str, meant: str):
    with pytest.raises(AttributeError, match=f"{typo}.*Did you mean '{meant}'"):
        getattr(interp, typo)


def test_a_name_like_no_other_gets_no_suggestion():
    with pytest.raises(AttributeError) as caught:
        interp.zzzzzz  # noqa: B018
    assert str(caught.value) == "module 'interp' has no attribute 'zzzzzz'"


def test_the_tests_hold_every_call_to_its_signature():
    with pytest.raises(jaxtyping.TypeCheckError):
        interp.load(3)


def test_version_is_the_one_in_pyproject():
    assert interp.__version__ == PROJECT["version"]


def test_a_provenance_names_the_versions_that_ran():
    from interp.results.result import versions

    assert versions()["torch"] == torch.__version__
    assert versions()["interp"] == interp.__version__


def imported_by(path: Path) -> set[str]:
    """The top-level packages that one of our files imports, wherever in the file it does so."""
    names: list[str] = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.append(node.module)
    return {name.split(".")[0] for name in names}


def test_the_dependencies_are_what_is_used():
    files = [path for path in SOURCES if path.relative_to(ROOT).parts[0] in ("interp", "examples")]
    modules = set.union(*map(imported_by, files)) - sys.stdlib_module_names - {"interp"}
    homes = packages_distributions()
    used = {homes[module][0] for module in modules}
    used |= {"accelerate"}  # the Trainer does not start without it
    used |= {"circuitsvis"}  # read for its JavaScript
    declared = [re.match(r"[\w-]+", line)[0] for line in PROJECT["dependencies"]]
    assert sorted(map(plain, declared)) == sorted(map(plain, used))


def plain(distribution: str) -> str:
    """The name as package indexes compare it."""
    return distribution.lower().replace("_", "-")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    folder = tmp_path_factory.mktemp("wheel")
    [path] = WheelBuilder(str(ROOT)).build(directory=str(folder), versions=["standard"])
    return set(zipfile.ZipFile(path).namelist())


def test_the_wheel_is_typed(wheel: set[str]):
    assert "interp/py.typed" in wheel


@pytest.mark.parametrize("model", ["conv-attn", "smeared-attn"])
def test_the_wheel_holds_the_reference_models(wheel: set[str], model: str):
    folder = f"interp/checkpoints/{model}/"
    shipped = {name.removeprefix(folder) for name in wheel if name.startswith(folder)}
    assert shipped >= {"config.json", "model.safetensors", "tokenizer.json", "README.md"}
    assert any(name.endswith(".toml") for name in shipped), "the recipe is missing"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_file_is_named_for_its_topic(path: Path):
    assert not {"utils", "helpers", "misc", "common"} & set(path.stem.split("_"))
