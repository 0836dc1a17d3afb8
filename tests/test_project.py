"""What surrounds the code: continuous integration, releases, templates, how to cite it."""

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
GITHUB = ROOT / ".github"
FORMS = sorted(path for path in (GITHUB / "ISSUE_TEMPLATE").glob("*.yml") if path.stem != "config")


def read(path: Path) -> Any:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def steps(workflow: str) -> list[dict[str, Any]]:
    jobs = read(GITHUB / "workflows" / f"{workflow}.yml")["jobs"].values()
    return [step for job in jobs for step in job["steps"]]


def test_every_change_runs_what_a_merge_has_to_pass():
    workflow = read(GITHUB / "workflows" / "ci.yml")
    assert {"push", "pull_request"} <= set(workflow[True])  # YAML reads the key `on` as true
    assert ".ci/run" in [step.get("run") for step in steps("ci")]


def test_the_oldest_python_is_among_those_that_run():
    versions = read(GITHUB / "workflows" / "ci.yml")["jobs"]["run"]["strategy"]["matrix"]["python"]
    assert all(isinstance(version, str) for version in versions)  # 3.10 would be read as 3.1
    assert f">={versions[0]}" == PROJECT["requires-python"]


@pytest.mark.parametrize("workflow", ["ci", "release"])
def test_actions_are_pinned_by_their_major_version(workflow: str):
    actions = [step["uses"] for step in steps(workflow) if "uses" in step]
    assert actions
    assert [a for a in actions if not re.fullmatch(r"[\w./-]+@(release/)?v\d+", a)] == []


def test_only_the_job_that_publishes_may_identify_itself():
    workflow = read(GITHUB / "workflows" / "release.yml")
    may = [
        name for name, job in workflow["jobs"].items() if "id-token" in job.get("permissions", {})
    ]
    assert may == ["publish"]
    assert workflow["permissions"] == {"contents": "read"}
    assert workflow["jobs"]["publish"]["needs"] == "build"


def test_a_release_is_tested_and_built_before_it_is_published():
    runs = [step.get("run", "") for step in steps("release")]
    assert runs.index(".ci/run") < runs.index(".venv/bin/python -m hatchling build")
    assert "pyproject.toml" in runs[2]


def test_commits_are_checked_by_the_same_ruff():
    constraints = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    [pinned] = re.findall(r"^ruff==.*$", constraints, re.MULTILINE)
    [repository] = read(ROOT / ".pre-commit-config.yaml")["repos"]
    assert {hook["id"] for hook in repository["hooks"]} == {"ruff-check", "ruff-format"}
    assert all(hook["additional_dependencies"] == [pinned] for hook in repository["hooks"])


def test_there_is_a_form_for_what_people_come_with():
    assert {path.stem for path in FORMS} == {"bug", "question", "wrong-number"}


@pytest.mark.parametrize("path", FORMS, ids=lambda path: path.stem)
def test_a_form_has_what_it_needs(path: Path):
    form = read(path)
    assert form.keys() >= {"name", "description", "body"}
    identities = [question["id"] for question in form["body"]]
    assert len(set(identities)) == len(identities)
    assert all(question["attributes"]["label"] for question in form["body"])


@pytest.mark.parametrize("name", ["bug", "wrong-number"])
def test_a_mistake_comes_with_what_it_takes_to_see_it(name: str):
    body = read(GITHUB / "ISSUE_TEMPLATE" / f"{name}.yml")["body"]
    required = {q["id"] for q in body if q.get("validations", {}).get("required")}
    assert required >= {"code", "expected", "model", "versions"}


def test_the_citation_is_of_this_version():
    citation = read(ROOT / "CITATION.cff")
    assert citation.keys() >= {
        "cff-version",
        "message",
        "title",
        "authors",
    }  # the schema's required
    assert str(citation["cff-version"]) == "1.2.0"
    assert citation["version"] == PROJECT["version"]
    assert citation["license"] == PROJECT["license"]
