"""Which test runs which blocks of the documentation: tests/docs_blocks.toml, read and checked.

Each page with Python or shell blocks names the test that runs them, how many they are, and each
command that no test runs, with the reason. A block that is added to a page is therefore a problem
until somebody has made its test run it.
"""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
TABLE = ROOT / "tests" / "docs_blocks.toml"
_FENCE = re.compile(r"^[ \t]*```([\w+-]*)[^\n]*\n(.*?)^[ \t]*```", re.DOTALL | re.MULTILINE)
_SHELL = ("sh", "bash", "shell", "console")
_PYTHON = ("python", "python3", "pycon")


@dataclass(frozen=True)
class Blocks:
    """The code of a page.

    Attributes:
        examples: Its Python blocks.
        commands: The commands of its shell blocks, a line each.
        shell_blocks: The number of these blocks.
    """

    examples: list[str]
    commands: list[str]
    shell_blocks: int


@dataclass(frozen=True)
class Entry:
    """What tests/docs_blocks.toml says of a page.

    Attributes:
        test: The file that runs its blocks.
        examples: The number of Python blocks.
        commands: The number of commands, those that are not run included.
        not_run: Command, or the beginning of a Python block → why no test runs it.
    """

    test: str
    examples: int = 0
    commands: int = 0
    not_run: dict[str, str] = field(default_factory=dict)


def read_blocks(text: str) -> Blocks:
    """Return the blocks of a page that a reader may run."""
    found = _FENCE.findall(text)
    shell = [code for language, code in found if language in _SHELL]
    joined = [line for code in shell for line in code.replace("\\\n", " ").splitlines()]
    return Blocks(
        examples=[code for language, code in found if language in _PYTHON],
        commands=[line for line in joined if line.strip() and not line.startswith("#")],
        shell_blocks=len(shell),
    )


def read_pages() -> dict[str, Blocks]:
    """Return the blocks of every page, by its path below docs."""
    paths = sorted(DOCS.rglob("*.md"))
    return {
        path.relative_to(DOCS).as_posix(): read_blocks(path.read_text("utf-8")) for path in paths
    }


def read_entries() -> dict[str, Entry]:
    """Return what the table says, by page."""
    table: dict[str, dict[str, Any]] = tomllib.loads(TABLE.read_text("utf-8"))
    return {page: Entry(**values) for page, values in table.items()}


def find_problems() -> list[str]:
    """Return how pages and table differ: blocks that no test runs, and entries of the past."""
    pages, entries = read_pages(), read_entries()
    problems = [f"{TABLE.name}: there is no page {page}" for page in entries if page not in pages]
    for page, blocks in pages.items():
        if not blocks.examples and not blocks.commands:
            continue
        if page not in entries:
            problems.append(f"docs/{page}: no test runs its blocks; name one in {TABLE.name}")
            continue
        problems += _compare(page, blocks, entries[page])
    return problems


def _compare(page: str, blocks: Blocks, entry: Entry) -> list[str]:
    """Return how one page differs from its entry."""
    problems = []
    test = ROOT / entry.test
    if not test.is_file() or Path(page).name not in test.read_text("utf-8"):
        problems.append(f"{TABLE.name}: {entry.test} does not read docs/{page}")
    for kind, count, expected in (
        ("Python blocks", len(blocks.examples), entry.examples),
        ("commands", len(blocks.commands), entry.commands),
    ):
        if count != expected:
            problems.append(
                f"docs/{page} has {count} {kind}, {TABLE.name} says {expected}: let {entry.test} "
                "run the new ones, then correct the number"
            )
    for line, reason in entry.not_run.items():
        if not any(code.startswith(line) for code in (*blocks.commands, *blocks.examples)):
            problems.append(f"{TABLE.name}: docs/{page} has no {line!r}")
        if len(reason.split()) < 3:
            problems.append(f"{TABLE.name}: docs/{page} gives no reason for {line!r}")
    return problems


def summarise() -> str:
    """Return the number of pages, and of the blocks that the tests run."""
    pages, entries = read_pages(), read_entries()
    examples = sum(len(blocks.examples) for blocks in pages.values())
    commands = sum(len(blocks.commands) for blocks in pages.values())
    left_out = 0
    for page, entry in entries.items():
        codes = (*pages[page].examples, *pages[page].commands)
        left_out += sum(code.startswith(tuple(entry.not_run)) for code in codes)
    return (
        f"{len(pages)} pages; {examples} Python blocks and {commands} commands, run by the tests "
        f"but for {left_out}, each with its reason in tests/{TABLE.name}"
    )
