"""The commands and examples of a page of the documentation, and running them as they are written.

A command of ours runs in this process, which saves the seconds of its imports; what needs a shell
(a pipe, a variable, another program) runs in one.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import tested_blocks
from command import Ended, environment
from unified_embeddings.cli.app import main
from unified_embeddings.stores import opening

DOCS = Path(__file__).resolve().parents[1] / "docs"
_NEEDS_SHELL = re.compile(r"[|&;<>$`*?]|^\w+=")


@dataclass(frozen=True)
class DocsPage:
    """A page of the documentation.

    Attributes:
        text: All of it.
        commands: The lines of its shell blocks.
        examples: Its Python blocks.
    """

    text: str
    commands: list[str]
    examples: list[str]

    def example(self, words: str) -> str:
        """Return the one example with these words."""
        (example,) = [example for example in self.examples if words in example]
        return example


def read_page(name: str) -> DocsPage:
    """Read a page of the folder docs."""
    text = (DOCS / name).read_text("utf-8")
    blocks = re.findall(r"^```sh\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    return DocsPage(
        text=text,
        commands=[line for line in lines if line.strip() and not line.startswith("#")],
        examples=re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE),
    )


def run_page(
    name: str, cwd: Path, *, replaced: tuple[str, str] = ("", ""), **variables: str
) -> dict[str, str]:
    """Run the commands and examples of a page in their order, as a reader would, in a folder.

    A command must succeed; the block `text` after it is what the last one prints, with … for the
    folder. An example must print what the comments behind its `print` say. What tests/
    docs_blocks.toml names as not run is left out.

    Args:
        name: The page's name.
        cwd: The folder.
        replaced: What stands in the examples, and what takes its place.
        **variables: Of the environment.

    Returns:
        Each command and example that ran, with what it printed.
    """
    not_run = tuple(tested_blocks.read_entries()[name].not_run)
    printed: dict[str, str] = {}
    last = ""
    for language, code in re.findall(r"^```(\w+)\n(.*?)^```", read_page(name).text, re.M | re.S):
        if language == "python" and not code.startswith(not_run):
            printed[code] = run_example(code.replace(*replaced), cwd, **variables)
            _close_folders()
            expected = re.findall(r"^ *print\(.*\) {2,}# (.*)$", code, re.MULTILINE)
            assert not expected or printed[code].splitlines() == expected, code
        elif language == "sh":
            for line in tested_blocks.read_blocks(f"```sh\n{code}```").commands:
                if not line.startswith(not_run):
                    ended = run_command(line, cwd, **variables)
                    assert ended.code == 0, f"{line}\n{ended.out}{ended.err}"
                    last = printed[line] = ended.out
        elif language == "text" and last:
            assert last.replace(str(cwd), "…").rstrip() == code.rstrip()
    return printed


def run_command(line: str, cwd: Path, **variables: str) -> Ended:
    """Run a line of a shell block in a folder."""
    words = [] if _NEEDS_SHELL.search(line) else shlex.split(line, comments=True)
    if words[:1] == ["unified-embeddings"]:
        with _in_place(cwd, variables):
            return _run_here(words)
    ours = f"{shlex.quote(sys.executable)} -m unified_embeddings"
    ended = subprocess.run(
        ["sh", "-c", line.replace("unified-embeddings", ours)],
        cwd=cwd,
        env=environment(**variables),
        capture_output=True,
        text=True,
        encoding="utf-8",
    )
    return Ended(ended.returncode, ended.stdout, ended.stderr)


def run_example(code: str, cwd: Path, **variables: str) -> str:
    """Run a Python block in a folder; return what it prints."""
    out = io.StringIO()
    with _in_place(cwd, variables), contextlib.redirect_stdout(out):
        exec(compile(code, "example", "exec"), {"__name__": "example"})
    return out.getvalue()


def _run_here(words: list[str]) -> Ended:
    out, err = io.StringIO(), io.StringIO()
    code: object = 0
    with (
        mock.patch.object(sys, "argv", words),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        try:
            main()
        except SystemExit as ended:
            code = ended.code
    assert "Traceback" not in out.getvalue() + err.getvalue()
    assert code is None or isinstance(code, int)
    return Ended(code or 0, out.getvalue(), err.getvalue())


def _close_folders() -> None:
    """Close the stores of an example, as the end of the reader's process would."""
    for client in list(opening._open_clients.values()):
        client.close()


@contextlib.contextmanager
def _in_place(cwd: Path, variables: dict[str, str]) -> Iterator[None]:
    former = Path.cwd()
    os.chdir(cwd)
    try:
        with mock.patch.dict(os.environ, environment(**variables), clear=True):
            yield
    finally:
        os.chdir(former)
