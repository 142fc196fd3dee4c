"""The page of the reference that lists every subcommand with its arguments and options."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from typing import Any

import typer

from unified_embeddings.cli.app import app


def describe_command() -> str:
    """Return the page, made from the help texts of the command itself."""
    lines = [
        "# The command",
        "",
        "What `unified-embeddings COMMAND --help` says, for every command.",
        "",
    ]
    for words, command in list_commands(typer.main.get_group(app), ()):
        lines += _describe(words, command)
    return "\n".join(lines) + "\n"


def list_commands(group: Any, words: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yield each command of a group with the words that call it; inner groups too."""
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from list_commands(command, (*words, name))
        elif not command.hidden:
            yield (*words, name), command


def _describe(words: tuple[str, ...], command: Any) -> list[str]:
    """Return the section of one command."""
    arguments = [each for each in command.params if each.param_type_name == "argument"]
    options = [each for each in command.params if each.param_type_name == "option"]
    shown = " ".join(_placeholder(each) for each in arguments)
    title = " ".join(words)
    lines = [f"## {title}", "", _in_html(inspect.cleandoc(command.help or "")), ""]
    lines += ["```text", f"unified-embeddings {title} [OPTIONS] {shown}".rstrip(), "```", ""]
    if options or arguments:
        lines += ["| | |", "|---|---|"]
    for each in arguments:
        lines.append(f"| `{_placeholder(each)}` | {_cell(each.help)} |")
    for each in options:
        names = ", ".join(f"`{name}`" for name in (*each.opts, *each.secondary_opts))
        lines.append(f"| {names} | {_cell(each.help)}{_default(each)} |")
    return [*lines, ""]


def _placeholder(argument: Any) -> str:
    """Return an argument as a usage line shows it: in brackets if it may be left out."""
    name: str = argument.metavar or argument.name.upper()
    if argument.nargs == -1:
        name += "..."
    return name if argument.required else f"[{name}]"


def _default(option: Any) -> str:
    """Return what an option is where it is not given, unless that goes without saying."""
    value = option.default
    if callable(value) or value in (None, False, True, (), []):
        return ""
    return f" Default: `{value}`."


def _cell(text: str | None) -> str:
    """Return a help text as one cell of a table."""
    return _in_html(re.sub(r"\s+", " ", text or "")).replace("|", r"\|")


def _in_html(text: str) -> str:
    """Return a text whose angle brackets are no markup."""
    return text.replace("<", "&lt;")
