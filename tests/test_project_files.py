"""The files around the code: they parse, agree with each other, and name what exists."""

from __future__ import annotations

import importlib.util
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
GITHUB = ROOT / ".github"
WORKFLOWS = GITHUB / "workflows"
TEMPLATES = GITHUB / "ISSUE_TEMPLATE"
PAGES = ("CONTRIBUTING.md", "SECURITY.md", "CODE_OF_CONDUCT.md")
SCHEMAS = {
    "vendor.github-workflows": sorted(WORKFLOWS.glob("*.yml")),
    "vendor.github-issue-forms": [TEMPLATES / "bug.yml", TEMPLATES / "feature.yml"],
    "vendor.github-issue-config": [TEMPLATES / "config.yml"],
    "vendor.citation-file-format": [ROOT / "CITATION.cff"],
}
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]

pytestmark = pytest.mark.skipif(not GITHUB.is_dir(), reason="not a checkout")


def read_yaml(path: Path) -> Any:
    return yaml.safe_load(path.read_text("utf-8"))


def steps_of(workflow: str) -> list[dict[str, Any]]:
    jobs = read_yaml(WORKFLOWS / workflow)["jobs"]
    return [step for job in jobs.values() for step in job["steps"]]


@pytest.mark.skipif(
    importlib.util.find_spec("check_jsonschema") is None,
    reason="check-jsonschema, which brings the schemas, is not installed",
)
@pytest.mark.parametrize("schema", SCHEMAS)
def test_files_keep_to_their_published_schema(schema: str) -> None:
    files = [str(file) for file in SCHEMAS[schema]]
    checked = subprocess.run(
        [sys.executable, "-m", "check_jsonschema", "--builtin-schema", schema, *files],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert checked.returncode == 0, checked.stdout + checked.stderr


@pytest.mark.parametrize("path", sorted(WORKFLOWS.glob("*.yml")), ids=lambda path: path.name)
def test_workflows_have_few_rights_and_an_end(path: Path) -> None:
    workflow = read_yaml(path)
    assert workflow["permissions"] == {"contents": "read"}
    for name, job in workflow["jobs"].items():
        assert job["timeout-minutes"] <= 120, name
        for step in job["steps"]:
            assert ("uses" in step) != ("run" in step), (name, step)
            if step.get("uses", "").startswith("actions/checkout@"):
                assert step["with"]["persist-credentials"] is False, name
            # What others write, as the title of a pull request, must not become a command.
            assert "${{" not in step.get("run", ""), (name, step)


def test_the_matrix_has_every_system_and_python_of_the_metadata() -> None:
    matrix = read_yaml(WORKFLOWS / "matrix.yml")["jobs"]["test"]["strategy"]["matrix"]
    assert {system.split("-")[0] for system in matrix["system"]} == {"ubuntu", "macos", "windows"}
    pythons = re.findall(r":: Python :: (3\.\d+)", "\n".join(PROJECT["classifiers"]))
    assert matrix["python"] == pythons
    assert pythons == ["3.10", "3.11", "3.12", "3.13", "3.14"]
    assert PROJECT["requires-python"] == ">=3.10,<3.15"


def test_workflows_install_extras_that_exist() -> None:
    for path in WORKFLOWS.glob("*.yml"):
        for extras in re.findall(r"-e '\.\[([\w,-]+)\]'", path.read_text("utf-8")):
            assert set(extras.split(",")) <= set(PROJECT["optional-dependencies"])


def test_a_release_is_tested_attested_and_published_without_a_token() -> None:
    workflow = read_yaml(WORKFLOWS / "release.yml")
    jobs = workflow["jobs"]
    assert workflow[True] == {"push": {"tags": ["v*"]}}  # YAML 1.1 reads the key `on` as a boolean
    assert set(jobs["attest"]["needs"]) == {"build", "sbom", "test"}
    assert jobs["publish"]["needs"] == "attest"
    assert jobs["publish"]["permissions"] == {"id-token": "write"}
    assert jobs["publish"]["environment"] == "pypi"
    used = [step.get("uses", "").split("@")[0] for step in steps_of("release.yml")]
    assert "actions/attest-build-provenance" in used
    assert "actions/attest-sbom" in used
    assert "pypa/gh-action-pypi-publish" in used
    assert "secrets." not in (WORKFLOWS / "release.yml").read_text("utf-8")
    named = [
        word
        for step in steps_of("release.yml")
        for word in step.get("run", "").split()
        if word.startswith("tools/")
    ]
    assert named == ["tools/add_project_urls.py"]
    assert (ROOT / named[0]).is_file()


def test_a_release_publishes_each_integration_after_the_package_that_it_needs() -> None:
    jobs = read_yaml(WORKFLOWS / "release.yml")["jobs"]
    projects = sorted(path.parent.name for path in ROOT.glob("integrations/*/pyproject.toml"))
    job = jobs["publish-integrations"]
    assert job["needs"] == "publish"
    assert job["strategy"]["matrix"] == {"project": projects}
    assert job["environment"] == "pypi-${{ matrix.project }}"
    assert job["permissions"] == {"id-token": "write"}
    assert jobs["github"]["needs"] == "publish-integrations"
    folders = [
        step["with"]["packages-dir"]
        for step in steps_of("release.yml")
        if step.get("uses", "").startswith("pypa/gh-action-pypi-publish@")
    ]
    assert folders == ["dist/unified-embeddings", "dist/${{ matrix.project }}"]
    checked = [step["run"] for step in steps_of("release.yml") if "twine check" in str(step)]
    assert checked == ["python -m twine check --strict dist/*/*"]
    (provenance,) = [
        step
        for step in steps_of("release.yml")
        if step.get("uses", "").startswith("actions/attest-build-provenance@")
    ]
    assert provenance["with"] == {"subject-path": "dist/*/*"}


def test_the_citation_is_of_this_version() -> None:
    citation = read_yaml(ROOT / "CITATION.cff")
    assert citation["version"] == PROJECT["version"]
    assert citation["license"] == PROJECT["license"]
    assert citation["title"] == PROJECT["name"]
    assert citation["authors"]


def test_the_hooks_are_the_checks_of_make_check() -> None:
    (repository,) = read_yaml(ROOT / ".pre-commit-config.yaml")["repos"]
    assert repository["repo"] == "local"
    entries = {hook["id"]: hook["entry"] for hook in repository["hooks"]}
    assert list(entries) == ["ruff", "ruff-format", "mypy"]
    for entry in entries.values():
        python, _, tool, *_ = shlex.split(entry)
        assert python == "python"
        assert importlib.util.find_spec(tool) is not None, tool
    (mypy,) = (hook for hook in repository["hooks"] if hook["id"] == "mypy")
    assert re.search(mypy["files"], "src/unified_embeddings/fusion.py")
    assert not re.search(mypy["files"], "tests/test_fusion.py")


def test_the_container_makes_what_make_makes() -> None:
    container = json.loads((ROOT / ".devcontainer" / "devcontainer.json").read_text("utf-8"))
    assert container["image"]
    target = container["postCreateCommand"].removeprefix("make ")
    makefile = (ROOT / "Makefile").read_text("utf-8")
    assert f"INSTALLED := {target}\n" in makefile


@pytest.mark.parametrize("page", PAGES)
def test_pages_link_to_files_that_exist(page: str) -> None:
    text = (ROOT / page).read_text("utf-8")
    for target in re.findall(r"\]\(([^)#]+)", text):
        assert (ROOT / target).exists(), target
    assert "@" not in text, "an address of a person"


def test_contributing_names_tests_that_exist() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
    commands = re.findall(r"^pytest (.+?)\s+#", text, re.MULTILINE)
    assert len(commands) >= 4
    for command in commands:
        for word in shlex.split(command):
            if word.startswith("tests/"):
                assert (ROOT / word).exists(), word
    targets = re.findall(r"\bmake (\w+)", text)
    for target in {"demo", "check", "test"} & set(targets):
        assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE)
    assert {"demo", "check", "test"} <= set(targets)


def test_contributing_lists_every_room_in_its_order() -> None:
    from test_architecture import ROOMS

    text = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
    rows = [
        set(re.findall(r"`(\w+)`", line.split("|")[1]))
        for line in text.splitlines()
        if line.startswith("| `")
    ]
    assert rows == ROOMS


class TestProjectUrls:
    @pytest.fixture
    def tool(self) -> Any:
        spec = importlib.util.spec_from_file_location(
            "add_urls", ROOT / "tools/add_project_urls.py"
        )
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    def test_they_are_added_and_nothing_else_changes(self, tool: Any) -> None:
        paths = tool.find_projects()
        assert len(paths) == 3
        for path in paths:
            text = path.read_text("utf-8")
            before = tomllib.loads(text)
            assert "urls" not in before["project"], "the file names no address of its own"
            changed = tomllib.loads(tool.add_urls(text, "https://git.example/them/theirs/"))
            assert changed["project"].pop("urls") == {
                "Repository": "https://git.example/them/theirs",
                "Documentation": "https://git.example/them/theirs/tree/HEAD/docs",
                "Changelog": "https://git.example/them/theirs/blob/HEAD/CHANGELOG.md",
                "Issues": "https://git.example/them/theirs/issues",
            }
            assert changed == before

    @pytest.mark.parametrize("address", ["", "git.example/a/b", "https://git.example/a", "$(x)"])
    def test_what_is_no_address_is_refused(self, tool: Any, address: str) -> None:
        with pytest.raises(ValueError, match="expected https://HOST/OWNER/NAME"):
            tool.add_urls("[project]", address)

    def test_they_are_not_added_twice(self, tool: Any) -> None:
        once = tool.add_urls("[project]\n", "https://git.example/a/b")
        with pytest.raises(ValueError, match="without"):
            tool.add_urls(once, "https://git.example/a/b")
