"""The files that contributors and services read agree with each other and with the program."""

from __future__ import annotations

import re

import pytest
import yaml
from documentation import ROOT

import refcli

WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
FORMS = sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"))
HOME = "https://github.com/refcli/refcli"


@pytest.fixture(scope="module")
def pyproject():
    try:
        import tomllib
    except ImportError:  # Python 3.10, where pytest brings it
        import tomli as tomllib
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


@pytest.fixture
def supported_pythons(pyproject):
    classifiers = pyproject["project"]["classifiers"]
    return [found[1] for each in classifiers if (found := re.fullmatch(r"Programming Language .* :: (3\.\d+)", each))]


def read(path):
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def steps_of(workflow):
    return [step for job in workflow["jobs"].values() for step in job["steps"]]


def test_the_fast_tests_run_on_every_supported_python_and_system(pyproject, supported_pythons):
    matrix = read(ROOT / ".github" / "workflows" / "tests.yml")["jobs"]["fast"]["strategy"]["matrix"]
    assert matrix["python"] == supported_pythons
    assert pyproject["project"]["requires-python"] == f">={supported_pythons[0]}"
    assert matrix["os"] == ["ubuntu-latest", "macos-latest", "windows-latest"]


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_a_workflow_uses_supported_pythons_extras_and_paths_that_exist(path, pyproject, supported_pythons):
    workflow = read(path)
    assert workflow["name"] == path.stem
    assert workflow.get("on", workflow.get(True)), "YAML 1.1 reads the key `on` as true"
    assert workflow["permissions"] == {"contents": "read"}
    for step in steps_of(workflow):
        version = str(step.get("with", {}).get("python-version", supported_pythons[0]))
        assert version in supported_pythons or "matrix.python" in version
        command = step.get("run", "")
        for extras in re.findall(r"\.\[([\w,]+)\]", command):
            assert set(extras.split(",")) <= set(pyproject["project"]["optional-dependencies"])
        for named in re.findall(r"\btests(?:/\w+)+", command):
            assert (ROOT / named).exists(), named


def test_workflows_install_the_cpu_build_of_torch_before_refcli():
    for path in WORKFLOWS:
        for job in read(path)["jobs"].values():
            installs = [step["run"] for step in job["steps"] if step.get("run", "").startswith("pip install")]
            assert not installs or installs[0].endswith("--index-url https://download.pytorch.org/whl/cpu"), path.name


def test_slow_tests_run_every_night():
    workflow = read(ROOT / ".github" / "workflows" / "nightly.yml")
    assert workflow.get("on", workflow.get(True))["schedule"]
    assert any("pytest -m slow" in step.get("run", "") for step in steps_of(workflow))


@pytest.mark.parametrize("path", [path for path in FORMS if path.name != "config.yml"], ids=lambda path: path.name)
def test_an_issue_form_has_the_fields_that_github_needs(path):
    form = read(path)
    assert form["name"] and form["description"]
    identifiers = [field["id"] for field in form["body"]]
    assert len(set(identifiers)) == len(identifiers)
    for field in form["body"]:
        assert field["type"] in {"checkboxes", "dropdown", "input", "textarea"}
        assert field["attributes"]["label"]


def test_a_bug_report_asks_for_version_command_and_error():
    fields = {field["id"]: field for field in read(ROOT / ".github" / "ISSUE_TEMPLATE" / "bug.yml")["body"]}
    assert "refcli --version" in fields["version"]["attributes"]["description"]
    assert all(fields[name]["validations"]["required"] for name in ("version", "command", "error"))


def test_pre_commit_runs_ruff_its_formatter_and_mypy():
    hooks = [hook for repo in read(ROOT / ".pre-commit-config.yaml")["repos"] for hook in repo["hooks"]]
    assert {hook["id"] for hook in hooks} == {"ruff", "ruff-format", "mypy"}


def test_citation_and_project_agree(pyproject):
    citation = read(ROOT / "CITATION.cff")
    project = pyproject["project"]
    assert citation["version"] == project["version"] == refcli.__version__
    assert citation["license"] == project["license"]
    assert citation["repository-code"] == project["urls"]["Homepage"] == HOME


def test_project_urls_lead_to_one_place(pyproject):
    urls = pyproject["project"]["urls"]
    assert set(urls) == {"Homepage", "Documentation", "Issues", "Changelog"}
    assert urls["Issues"].startswith(HOME) and urls["Changelog"].startswith(HOME)
    site = re.search(r"^site_url: (\S+)$", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"), re.M)
    assert site and site[1] == urls["Documentation"]


def test_the_source_distribution_names_files_that_exist(pyproject):
    for name in pyproject["tool"]["hatch"]["build"]["targets"]["sdist"]["include"]:
        assert (ROOT / name).exists(), name
