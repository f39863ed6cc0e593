"""Files that other programs read: the workflow, the issue forms, the commit hooks."""

import os
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SETUP = (ROOT / "setup.py").read_text("utf-8")
FORMS = ("bug_report", "feature_request")


def read(name):
    yaml = pytest.importorskip("yaml", reason="PyYAML comes with the extra test")
    return yaml.safe_load((ROOT / name).read_text("utf-8"))


def test_the_workflow_runs_the_checks_that_contributors_run():
    workflow = read(".github/workflows/ci.yml")
    (job,) = workflow["jobs"].values()
    assert [step["run"] for step in job["steps"] if "run" in step] == [".ci/run"]
    assert os.access(ROOT / ".ci" / "run", os.X_OK)
    assert job["timeout-minutes"] == 90
    assert workflow["permissions"] == {"contents": "read"}
    # YAML 1.1, which PyYAML reads, takes the key `on` for a truth value.
    assert set(workflow[True]) == {"push", "pull_request"}


def test_the_workflow_has_the_lowest_and_the_highest_python():
    (job,) = read(".github/workflows/ci.yml")["jobs"].values()
    pythons = job["strategy"]["matrix"]["python"]
    # As a number 3.10 would be 3.1.
    assert all(isinstance(version, str) for version in pythons)
    lowest, above = re.search(r'python_requires=">=3\.(\d+),<3\.(\d+)"', SETUP).groups()
    assert pythons == [f"3.{lowest}", f"3.{int(above) - 1}"]
    used = [step.get("with", {}).get("python-version") for step in job["steps"]]
    assert "${{ matrix.python }}" in used


@pytest.mark.parametrize("name", FORMS)
def test_issue_forms_have_what_github_requires(name):
    form = read(f".github/ISSUE_TEMPLATE/{name}.yml")
    assert form["name"] and form["description"]
    ids = [field["id"] for field in form["body"]]
    assert len(set(ids)) == len(ids)
    for field in form["body"]:
        assert field["type"] in {"input", "textarea", "dropdown", "checkboxes"}
        assert field["attributes"]["label"]
        assert isinstance(field["validations"]["required"], bool)


def test_a_bug_report_must_have_a_command_messages_and_the_environment():
    form = read(".github/ISSUE_TEMPLATE/bug_report.yml")
    required = {
        field["id"]: field["attributes"]["label"]
        for field in form["body"]
        if field["validations"]["required"]
    }
    assert set(required) == {"command", "message", "expected", "environment"}
    assert "`vfnet env`" in required["environment"]
    config = read(".github/ISSUE_TEMPLATE/config.yml")
    assert isinstance(config["blank_issues_enabled"], bool)


def test_commit_hooks_check_as_make_lint_does_with_the_same_ruff():
    (repository,) = read(".pre-commit-config.yaml")["repos"]
    assert repository["repo"] == "local"
    hooks = repository["hooks"]
    (pinned,) = re.findall(r'"(ruff[^"]*)"', SETUP)
    assert re.fullmatch(r"ruff==[\d.]+", pinned)
    assert [hook["additional_dependencies"] for hook in hooks] == [[pinned], [pinned]]
    makefile = (ROOT / "Makefile").read_text("utf-8")
    commands = re.search(r"^lint:.*\n((?:\t.*\n)+)", makefile, re.MULTILINE)[1]
    linted = re.findall(r"\$\(BIN\)/(ruff .*) \.$", commands, re.MULTILINE)
    # pre-commit names the files, also those that pyproject.toml excludes.
    assert [hook["entry"].replace(" --force-exclude", "") for hook in hooks] == linted
