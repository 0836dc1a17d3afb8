"""The README and the documentation: what they say is true, and what they name is there.

The pages themselves run when they are built: `make docs` fails if one of their blocks does.
"""

import importlib
import importlib.util
import inspect
import re
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from types import ModuleType

import numpy as np
import pandas as pd
import pytest

import interp

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = sorted((ROOT / "docs").rglob("*.md"))
TEXTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *PAGES]

FENCED = re.compile(r"^```(\w+)[^\n]*\n(.*?)^```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"!?\[[^\]\n]*\]\(([^)\s]+)\)")
PARTS = ("models", "analysis", "data", "training")
DOCUMENTED = re.compile(r"^::: (\S+)", re.MULTILINE)


def module_at(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


facts = module_at(ROOT / "docs" / "_site" / "facts.py")
picture = module_at(ROOT / "docs" / "picture.py")


def without_code(text: str) -> str:
    return FENCED.sub("", text)


def test_the_readme_example_prints_what_it_says():
    (_, code), (kind, output) = FENCED.findall(README)[:2]
    assert kind == "text"
    printed = StringIO()
    with redirect_stdout(printed):
        exec(code, {})
    assert printed.getvalue() == output


def test_the_readme_table_is_what_was_measured():
    expected = facts.reference_models()
    assert expected in README, f"python docs/_site/facts.py prints the table:\n{expected}"


def test_the_readme_names_the_defaults_it_was_measured_with():
    said = r"(\d+) sequences of BOS and\s+twice the same (\d+) random tokens, seed (\d+)"
    numbers = [tuple(map(int, found)) for found in re.findall(said, README)]
    for analysis in (interp.head_scores, interp.repeated_sequence_loss):
        defaults = inspect.signature(analysis).parameters
        assert numbers == [tuple(defaults[name].default for name in ("n_sequences", "n", "seed"))]


def test_the_readme_has_no_other_number_of_a_model():
    """A decimal number in the prose would be one that no test looks at."""
    prose = without_code(README).replace(facts.reference_models(), "")
    assert re.findall(r"\d+\.\d+", prose) == ["3.11"]  # Python


def test_the_picture_shows_the_weights_that_ship():
    image = picture.PICTURE.read_bytes()
    assert len(image) < 200_000
    stamp = picture.KEYWORD + b"\0" + picture.fingerprint()
    assert stamp in image, "the weights have changed since: run python docs/picture.py"


@pytest.mark.parametrize("target", sorted(set(re.findall(r"\bmake ([a-z]+)", README))))
def test_make_has_the_target(target: str):
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE)


def test_the_readme_trains_a_recipe_that_ships():
    from interp.training import Recipe

    names = re.findall(r"interp train (\S+)", README)
    assert names
    for name in names:
        assert Recipe.load(name).name == name


def test_the_readme_names_every_preset_and_no_other():
    from interp.models.hub import HubMixin

    presets = set(HubMixin.architectures) - {"HookedSequenceModel"}
    assert set(re.findall(r"Hooked\w+", README)) == presets


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(path: Path):
    for target in LINK.findall(without_code(path.read_text(encoding="utf-8"))):
        if target.startswith("https://"):
            continue
        file, _, anchor = target.partition("#")
        there = (path.parent / file).resolve() if file else path
        assert there.exists(), f"{path.name} links to {target}"
        if anchor:
            assert anchor in headings(there), f"{path.name} links to {target}"


def headings(path: Path) -> set[str]:
    titles = re.findall(r"^#+ (.*)$", without_code(path.read_text(encoding="utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\s-]", "", title).strip().lower().replace(" ", "-") for title in titles}


def documented() -> list[str]:
    return [name for page in PAGES for name in DOCUMENTED.findall(page.read_text(encoding="utf-8"))]


def resolve(dotted: str) -> object:
    module, _, name = dotted.rpartition(".")
    return getattr(importlib.import_module(module), name)


def test_the_reference_documents_only_what_there_is():
    names = documented()
    assert len(names) == len(set(names))
    for name in names:
        assert inspect.getdoc(resolve(name)), f"{name} has no docstring"


@pytest.mark.parametrize("module", ["interp", *(f"interp.{part}" for part in PARTS)])
def test_every_public_name_is_in_the_reference(module: str):
    there = [resolve(name) for name in documented()]
    public = importlib.import_module(module)
    missing = [name for name in public.__all__ if getattr(public, name) not in there]
    assert not missing


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_pages_refer_to_what_the_reference_documents(path: Path):
    """`[text][interp.x.y]` is a link into the API reference."""
    names = documented()
    for target in re.findall(r"\]\[(interp[\w.]+)\]", path.read_text(encoding="utf-8")):
        assert any(target == name or target.startswith(f"{name}.") for name in names), target
        owner = target if target in names else target.rpartition(".")[0]
        assert owner == target or hasattr(resolve(owner), target.rpartition(".")[2]), target


def test_every_page_is_in_the_navigation():
    navigation = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    for page in PAGES:
        assert str(page.relative_to(ROOT / "docs")) in navigation


def test_errors_over_blocks_of_text_are_over_what_was_sampled():
    blocks = pd.read_parquet(ROOT / "docs" / "data" / "in-context.parquet")
    docs = blocks[(blocks.corpus == "docs") & (blocks.seed == 0)]
    columns = ["seed", "block", "member", "loss"]
    one = docs.loc[docs.member == "conv-attn", columns]
    found = facts.over_blocks(one, "loss").loc[0]
    values = one.sort_values("block").loss.to_numpy(dtype=float)
    means = np.array([part.mean() for part in np.array_split(values, 20)])
    assert found["error"] == pytest.approx(means.std(ddof=1) / np.sqrt(20), rel=0.02)
    assert found["error"] > 2 * values.std(ddof=1) / np.sqrt(len(values))
    assert found["high"] - found["mean"] == pytest.approx(2.093 * found["error"], rel=1e-3)
    # Paired first: what two models share of a block's difficulty is in no difference of theirs.
    paired = facts.beyond(docs[columns], "conv-attn", "attn", "loss").loc[0]
    other = facts.over_blocks(docs.loc[docs.member == "attn", columns], "loss").loc[0]
    assert paired["mean"] == pytest.approx(found["mean"] - other["mean"])
    assert paired["error"] < found["error"]
    named = docs[columns].assign(group=(docs.block // 41).map("file {}".format))
    finer = facts.beyond(named, "conv-attn", "attn", "loss").loc[0]
    assert finer["mean"] == pytest.approx(paired["mean"])
    assert finer["error"] != paired["error"]


STORED = [
    *sorted((ROOT / "docs" / "data").glob("*.parquet")),
    ROOT / "docs" / "data" / "matched-control.csv",
    ROOT / "interp" / "checkpoints" / "suite.parquet",
]
ON_RANDOM_TOKENS = {
    "head_scores",
    "induction_score",
    "repeated_sequence_loss",
    "second_copy_loss",
    *("mqar", "without", "interchange", "ngrams"),  # all of docs/recall.md
    "ablation_effect",  # of induction scores, in smeared-keys and composition
}


def stored(path: Path) -> pd.DataFrame:
    return pd.read_csv(path) if path.suffix == ".csv" else pd.read_parquet(path)


def not_grouped(table: pd.DataFrame) -> pd.Series:
    """Rows that were measured on text, not known to be over groups of it."""
    what = table["metric"] if "metric" in table else table["analysis"]
    n_groups = table["n_groups"] if "n_groups" in table else pd.Series(np.nan, table.index)
    return ~what.isin(ON_RANDOM_TOKENS) & n_groups.isna()


@pytest.mark.parametrize("path", STORED, ids=lambda path: path.name)
def test_a_stored_error_on_text_is_over_groups(path: Path):
    table = stored(path)
    if "standard_error" not in table:
        pytest.skip("a table without errors")
    rows = not_grouped(table)
    assert table.loc[rows, "standard_error"].isna().all()
    assert table.loc[~rows, "standard_error"].notna().any()


def test_a_stored_null_of_alignment_is_that_of_a_turned_stream():
    """The tables that were made before errors were grouped had another formula, too."""
    table = stored(ROOT / "docs" / "data" / "smeared-keys.parquet")
    assert not (table["measure"].eq("alignment_null") & not_grouped(table)).any()


@pytest.mark.slow
def test_the_stored_composition_is_that_of_the_model_that_ships():
    table = stored(ROOT / "docs" / "data" / "composition.parquet")
    last = table[(table.seed == 0) & (table.step == table.step.max())]
    found = interp.composition_scores(interp.load("attn-attn"), n_rotations=1000).to_frame()
    by = ["measure", "kind", "source", "target"]
    both = last[last.analysis == "composition_scores"].merge(found, on=by, suffixes=("", "_now"))
    assert len(both) >= 4 * 27
    # Exact where nothing is drawn; the rotations may be others.
    within = {"score": 1e-6, "excess": 2e-4, "spread": 2e-4, "z": 3, "p_corrected": 0.1}
    for measure, rows in both.groupby("measure"):
        apart = (rows.value - rows.value_now).abs().max()
        assert apart < within[measure], measure
