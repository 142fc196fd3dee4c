"""Packages of a large library that run their `__init__` only if something in them is asked for.

What lives here: the import hook. What does not: when it is used (`search` and `mcp`, ADR 42).

A package's `__init__` often imports all of the library, for those who write `from library import
Name`. A module that imports `library.part` by its own path has to run it all the same, and uses
none of it.
"""

from __future__ import annotations

import contextlib
import importlib
import sys
from collections.abc import Iterator, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from types import ModuleType

_ASKED_FOR = ("__all__", "__version__")
"""Names with underscores that a package's `__init__` gives; the others are the import system's."""


@contextlib.contextmanager
def lazy_packages(library: str) -> Iterator[None]:
    """Import the packages of a library lazily during the block, unless they were imported before.

    Their modules are imported as usual. What a package's `__init__` defines is found when it is
    asked for, during the block or later: the `__init__` is imported then, as Python imports any
    module, so that threads and cycles are treated as usual.

    Args:
        library: The name that the packages have in common: "llama_index" is for `llama_index.core`
            and all packages in it.
    """
    finder = _Finder(f"{library}.")
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)


class _LazyPackage(ModuleType):
    """A package that has the names of its `__init__`, and has not run it yet."""

    def __getattr__(self, name: str) -> object:
        """Return what the package's `__init__` defines."""
        if name.startswith("__") and name not in _ASKED_FOR:
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        # The file is found in the package's own folder, as a module of that name.
        content = importlib.import_module(f"{self.__name__}.__init__")
        return getattr(content, name)


class _LazyLoader(SourceFileLoader):
    """Makes lazy packages; their files are read as usual."""

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """Return the package."""
        return _LazyPackage(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        """Run nothing yet."""


class _Finder(MetaPathFinder):
    """Finds the packages of a library, and leaves modules to the next finder.

    Args:
        prefix: What their names begin with.
    """

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return how to load a package; None for anything else."""
        if not name.startswith(self._prefix):
            return None
        spec = PathFinder.find_spec(name, path, target)
        if spec is None or spec.submodule_search_locations is None:
            return None
        if not isinstance(spec.loader, SourceFileLoader):  # a package without an __init__.py
            return None
        spec.loader = _LazyLoader(name, spec.loader.path)
        return spec
