"""A package runs its `__init__` when something in it is asked for, and then gives all of it."""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib import resources
from pathlib import Path
from typing import Any

import pytest

from unified_embeddings.system.lazy_packages import lazy_packages

LIBRARY = "library_of_a_test"
FILES = {
    "core/__init__.py": "from .large import Large\nfrom . import part\n__version__ = '1.2'\n"
    "__all__ = ['Large', 'SIZE']\nSIZE = part.SMALL + 1\n_log = []\n_log.append('run')\n",
    "core/part.py": "SMALL = 1\n",
    # It asks for its own package, as LlamaIndex's modules do.
    "core/large.py": f"import {LIBRARY}.core\nfrom {LIBRARY}.core.part import SMALL\n\n"
    f"class Large:\n    def size(self):\n        return {LIBRARY}.core.SIZE\n",
    "core/inner/__init__.py": f"from {LIBRARY}.core import Large\n",
    "core/inner/leaf.py": "LEAF = 'leaf'\n",
    "core/broken/__init__.py": "raise ImportError('a part is not installed')\n",
    "core/broken/leaf.py": "LEAF = 'leaf'\n",
    "core/facts.txt": "a fact",
    "space/leaf.py": "LEAF = 'leaf'\n",
}


@pytest.fixture(autouse=True)
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Make a library that can be imported, and forget it afterwards."""
    for name, text in FILES.items():
        path = tmp_path / LIBRARY / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield
    for name in list(sys.modules):
        if name.partition(".")[0] == LIBRARY:
            del sys.modules[name]


def lazily(name: str) -> Any:
    """Import a module of the library lazily."""
    with lazy_packages(LIBRARY):
        return importlib.import_module(f"{LIBRARY}.{name}")


def is_imported(name: str) -> bool:
    return f"{LIBRARY}.{name}" in sys.modules


def test_a_module_is_imported_without_its_packages_contents() -> None:
    assert lazily("core.inner.leaf").LEAF == "leaf"
    assert not is_imported("core.large")


def test_what_is_asked_for_later_is_there() -> None:
    lazily("core.part")
    core = importlib.import_module(f"{LIBRARY}.core")
    assert not is_imported("core.large")
    assert core.SIZE == 2
    assert core.Large().size() == 2
    assert core.Large is importlib.import_module(f"{LIBRARY}.core.large").Large
    assert core.__version__ == "1.2"


def test_all_forms_of_import_find_it() -> None:
    lazily("core.part")
    names: dict[str, Any] = {}
    exec(f"from {LIBRARY}.core import Large as first", names)
    exec(f"from {LIBRARY}.core import *", names)
    exec(f"import {LIBRARY}.core as core", names)
    exec(f"from {LIBRARY}.core.inner import Large as inner", names)
    assert names["first"] is names["Large"] is names["core"].Large is names["inner"]
    assert names["SIZE"] == 2


def test_the_contents_are_run_once_whoever_asks() -> None:
    core = lazily("core")
    with ThreadPoolExecutor(8) as threads:
        logs = list(threads.map(lambda _: core._log, range(32)))
    assert all(log is logs[0] for log in logs)
    assert logs[0] == ["run"]


def test_a_name_that_nobody_defines_is_an_error_as_usual() -> None:
    core = lazily("core")
    with pytest.raises(AttributeError, match="Nothing"):
        _ = core.Nothing
    with pytest.raises(ImportError, match="Nothing"):
        exec(f"from {LIBRARY}.core import Nothing")


def test_a_package_that_cannot_be_imported_says_why_when_it_is_asked() -> None:
    assert lazily("core.broken.leaf").LEAF == "leaf"
    broken = importlib.import_module(f"{LIBRARY}.core.broken")
    with pytest.raises(ImportError, match="a part is not installed"):
        _ = broken.Large


def test_files_beside_it_are_found() -> None:
    core = lazily("core")
    assert resources.files(core).joinpath("facts.txt").read_text() == "a fact"
    assert Path(core.__file__).name == "__init__.py"
    assert "class Large" in inspect.getsource(core.Large)


def test_a_package_without_contents_is_as_usual() -> None:
    assert lazily("space.leaf").LEAF == "leaf"
    space = importlib.import_module(f"{LIBRARY}.space")
    assert getattr(space, "__file__", None) is None


def test_packages_imported_before_or_after_the_block_are_as_usual() -> None:
    eager = importlib.import_module(f"{LIBRARY}.core")
    assert lazily("core") is eager
    assert "Large" in vars(eager)
    importlib.import_module(f"{LIBRARY}.core.inner")
    assert "Large" in vars(sys.modules[f"{LIBRARY}.core.inner"])
    assert not [finder for finder in sys.meta_path if "lazy_packages" in type(finder).__module__]
