"""Commands that messages suggest, completed so that they can be pasted as they are.

What lives here: repeating, in a suggested command, the place and the model that this run was given;
and how an argument is given that looks like an option. What does not: the messages, which name the
command and what is special about it.
"""

from __future__ import annotations

import contextlib
import logging
import re
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import typer
from typer.core import TyperGroup

from unified_embeddings.errors import hide_passwords

if TYPE_CHECKING:
    # Typer's own copy of Click; its classes are not those of the package click.
    from typer.core import TyperCommand

_REPEATED = (
    "--path",
    "--url",
    "--collection",
    "--model",
    "--sparse-model",
    "--model-url",
    "--adopt",
)
"""Options that say where the collection is and which model made it. Keys are never repeated."""
_ELSEWHERE = {"migrate plan": ("--model", "--sparse-model")}
"""Options that mean another thing in some command: there, the model to move to."""
_PROGRAM = "unified-embeddings"
_QUOTED = r"""(?:(?<=[\s'"])(?:'[^'\n]*'|"[^"\n]*"))"""
"""A word, or a part of one, as `shlex.quote` writes it: it may hold what ends a clause."""
_SUGGESTION = re.compile(
    rf"(?<![`/\\\w.-]){_PROGRAM} (?P<command>migrate [a-z-]+|[a-z][a-z-]*)"
    rf"(?P<rest>(?:{_QUOTED}|[^`,;()\n])*?)(?=\.(?:\s|$)|[`,;()\n]|$)"
)
"""A command in a message, to the end of its clause. What stands in backquotes is named, not
suggested; what follows a slash is part of a path."""


_apps: list[typer.Typer] = []
"""The command whose subcommands are known; it imports this module, and not the other way round."""


def know_commands(app: typer.Typer) -> None:
    """Take the subcommands that messages may suggest."""
    _apps.append(app)


def complete_hints(text: str) -> str:
    """Add the options that this run was given to the commands that a text suggests.

    Args:
        text: A message for the user.
    """
    if f"{_PROGRAM} " not in text:
        return text
    given = _given_options(sys.argv[1:])

    def complete(match: re.Match[str]) -> str:
        words = match["command"].split()
        taken = _options_of(words)
        told = set(re.findall(r"(?<!\S)--?[a-z][a-z-]*", match["rest"]))
        more = ""
        for option, value in given.items():
            is_other = option in _ELSEWHERE.get(match["command"], ())
            if option in taken and not is_other and not told & taken[option]:
                more += f" {option} {shlex.quote(value)}"
        return f"{_PROGRAM} {match['command']}{match['rest']}{more}"

    return _SUGGESTION.sub(complete, text)


class CompletedHints(logging.Filter):
    """Completes the commands that a library's warning suggests, and hides passwords."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Rewrite the record's message; it is always printed."""
        # A library's message may not fit its arguments. The handler reports that; a filter that
        # raises would end the library's call.
        with contextlib.suppress(Exception):
            record.msg, record.args = hide_passwords(complete_hints(record.getMessage())), ()
        return True


class DashGroup(TyperGroup):
    """Commands that say how an argument is given that begins with a dash, as an option does."""

    def invoke(self, ctx: typer.Context) -> object:  # type: ignore[override]
        """Run the command that was called."""
        try:
            return super().invoke(ctx)
        except Exception as error:
            if type(error).__name__ == "NoSuchOption":  # Typer does not export the class.
                _explain_dash(error)
            raise


def _explain_dash(error: Exception) -> None:
    """Add to an error about an unknown option that it may have been meant as an argument.

    Where an option of a similar name exists, the error names that.
    """
    context: typer.Context | None = getattr(error, "ctx", None)
    if context is None or getattr(error, "possibilities", None):
        return
    names = [
        str(parameter.name)
        for parameter in context.command.params
        if parameter.param_type_name == "argument"
    ]
    message: str = getattr(error, "message", str(error))
    if names:
        error.message = (  # type: ignore[attr-defined]
            f"{message}. If it is meant as {names[0].upper()}, put -- before it: "
            f"{context.command_path} [OPTIONS] -- {names[0].upper()}"
        )


def _given_options(arguments: list[str]) -> dict[str, str]:
    """Return the repeated options that a command line gives, by their long names.

    Args:
        arguments: Without the program's name.
    """
    found = _find_command(arguments)
    if found is None:
        return {}
    command, rest = found
    elsewhere = _ELSEWHERE.get(" ".join(arguments[: len(arguments) - len(rest)]), ())
    # A stray word or a missing value is an error of its own, told before.
    context = command.make_context(command.name, rest, resilient_parsing=True)
    given = {}
    for parameter in command.params:
        names = [name for name in parameter.opts if name in _REPEATED and name not in elsewhere]
        source = context.get_parameter_source(str(parameter.name))
        value = context.params.get(str(parameter.name))
        is_given = source is not None and source.name == "COMMANDLINE"
        if names and is_given and isinstance(value, str | Path):
            given[names[0]] = str(value)
    return given


def _options_of(words: list[str]) -> dict[str, set[str]]:
    """Return the repeated options that a command takes, each with all its names."""
    found = _find_command(words)
    if found is None:
        return {}
    taken = {}
    for parameter in found[0].params:
        for name in parameter.opts:
            if name in _REPEATED:
                taken[name] = set(parameter.opts)
    return taken


def _find_command(arguments: list[str]) -> tuple[TyperCommand, list[str]] | None:
    """Return the command that a command line calls, and its arguments; None if there is none."""
    if not _apps:
        return None
    command: TyperGroup | TyperCommand = typer.main.get_command(_apps[-1])  # type: ignore[assignment]
    rest = list(arguments)
    while hasattr(command, "commands"):
        if not rest or rest[0] not in command.commands:
            return None
        command = command.commands[rest.pop(0)]  # type: ignore[assignment]
    return command, rest
