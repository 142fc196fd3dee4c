"""Draw what `unified-embeddings demo` prints, as docs/demo.svg.

    python tools/draw_demo.py

The demo runs as it does in a terminal, and what it prints is drawn by rich; nothing is made up. The
picture ends after the first of its questions, leaves out the lines that stand for the progress bar,
and names no font that would have to be fetched.
"""

from __future__ import annotations

import io
import os
import re
import tempfile
from pathlib import Path

from rich.console import Console
from rich.terminal_theme import MONOKAI
from rich.text import Text

from unified_embeddings.cli import shared
from unified_embeddings.cli.demo import demo

OUT = Path(__file__).resolve().parents[1] / "docs" / "demo.svg"
COLUMNS = 100
COMMAND = "$ make demo"
_PROGRESS = re.compile(r"passages \(\d+%\)")
_QUESTION_ENDS = re.compile(r"for \S*\d+\S* searches")
_FETCHED_FONT = re.compile(r"@font-face \{.*?\}\s*", re.DOTALL)


def main() -> None:
    """Run the demo and draw it."""
    OUT.write_text(draw(record_demo()), "utf-8")
    print(f"{OUT}: {OUT.stat().st_size / 1000:.0f} kB")


def record_demo() -> str:
    """Run the demo in a folder of its own; return what it prints, with its colours."""
    printed = io.StringIO()
    shared.out = Console(file=printed, force_terminal=True, width=COLUMNS)
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        demo(query=None, top_k=5, model="mini-m3", path=shared.DEFAULT_PATH)
        os.chdir(OUT.parent)
    return printed.getvalue()


def draw(printed: str) -> str:
    """Return the coloured text up to the end of the first question as a picture."""
    lines = [line for line in printed.splitlines() if not _PROGRESS.search(line)]
    end = next(number for number, line in enumerate(lines) if _QUESTION_ENDS.search(line))
    shown = lines[: end + 1]
    console = Console(record=True, file=io.StringIO(), width=COLUMNS, force_terminal=True)
    console.print(Text(COMMAND, style="bold"))
    console.print(Text.from_ansi("\n".join(shown)))
    svg = console.export_svg(title="unified-embeddings", theme=MONOKAI)
    return _FETCHED_FONT.sub("", svg)


if __name__ == "__main__":
    main()
