"""The examples in docstrings: every public class has one, and each runs."""

from __future__ import annotations

import doctest
import importlib
from pathlib import Path

import pytest

import unified_embeddings
from test_architecture import MODULES, PACKAGE
from unified_embeddings.errors import MissingExtraError

FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
CLASSES = [
    name
    for name in unified_embeddings.__all__
    if isinstance(getattr(unified_embeddings, name), type)
]


@pytest.mark.parametrize("module", MODULES)
def test_examples_give_what_they_show(
    module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if ">>>" not in MODULES[module].read_text("utf-8"):
        return
    monkeypatch.chdir(tmp_path)
    try:
        imported = importlib.import_module(f"{PACKAGE}.{module}")
    except MissingExtraError as error:
        pytest.skip(str(error))
    results = doctest.testmod(imported, optionflags=FLAGS, verbose=False)
    assert results.attempted
    assert not results.failed


@pytest.mark.parametrize("name", CLASSES)
def test_every_public_class_has_an_example(name: str) -> None:
    documented = getattr(unified_embeddings, name).__doc__ or ""
    assert ">>>" in documented, f"{name} has no example"
