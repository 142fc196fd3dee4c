"""Every command and option that the pages name exists."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import typer

from unified_embeddings.cli import app as cli

ROOT = Path(__file__).parents[1]
PAGES = [
    page
    for page in (*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"))
    if "unified-embeddings " in page.read_text("utf-8")
]
CODE = re.compile(r"^```\w*\n(.*?)^```|`([^`\n]+)`", re.DOTALL | re.MULTILINE)
NAMED = re.compile(r"(?:^|[\s(])unified-embeddings ([a-z][\w-]*)([^\n|;&#]*)")
OPTION = re.compile(r"(?<![\w-])--[a-z][\w-]+")


COMMANDS: dict[str, Any] = dict(typer.main.get_group(cli.app).commands)


def named_commands(page: Path) -> list[tuple[str, str]]:
    """Return each command that a page's code names, with the rest of its line."""
    text = page.read_text("utf-8")
    named = []
    for block, span in CODE.findall(text):
        named += NAMED.findall((block or span).replace("\\\n", " "))
    return named


def options_of(command: Any) -> set[str]:
    return {option for param in command.params for option in (*param.opts, *param.secondary_opts)}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_and_options_exist(page: Path) -> None:
    for name, rest in named_commands(page):
        assert name in COMMANDS, f"{page.name}: unified-embeddings {name}"
        command = COMMANDS[name]
        if hasattr(command, "commands"):
            inner = next(iter(rest.split()), "--help")
            if inner.startswith("-"):  # the group itself
                continue
            assert inner in command.commands, f"{page.name}: {name} {inner}"
            command = command.commands[inner]
        if name == "serve-query":  # its options are its own parser's
            continue
        known = options_of(command) | {"--help"}
        for option in OPTION.findall(rest):
            if name == "embed":  # takes both spellings
                option = option.replace("_", "-")
            assert option in known, f"{page.name}: unified-embeddings {name}{rest}"


def test_the_readme_names_commands() -> None:
    assert len(named_commands(ROOT / "README.md")) > 12
