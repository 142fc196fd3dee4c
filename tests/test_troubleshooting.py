"""docs/troubleshooting.md quotes messages that the package still gives."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

import unified_embeddings
from docs_page import read_page

PAGE = read_page("troubleshooting.md")
QUOTED = [
    line
    for block in re.findall(r"^```text\n(.*?)^```", PAGE.text, re.DOTALL | re.MULTILINE)
    for line in block.splitlines()
]
SOURCES = sorted(Path(unified_embeddings.__file__).parent.rglob("*.py"))


def template(node: ast.AST) -> str:
    """Return a string of the source with … for each part that is filled in; "" for other code."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return re.sub("…+", "…", "".join(template(part) or "…" for part in node.values))
    return ""


@pytest.fixture(scope="module")
def messages() -> list[str]:
    trees = [ast.parse(path.read_text("utf-8")) for path in SOURCES]
    return [text for tree in trees for node in ast.walk(tree) if (text := template(node))]


@pytest.mark.parametrize("quoted", QUOTED)
def test_the_message_is_given(quoted: str, messages: list[str]) -> None:
    assert any(quoted in message for message in messages)


def test_the_page_goes_through_every_kind_of_error() -> None:
    assert len(QUOTED) >= 25
    assert len(set(QUOTED)) == len(QUOTED)
