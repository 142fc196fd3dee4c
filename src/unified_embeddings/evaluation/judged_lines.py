"""Lines of the files that judged sets come in, and the grades that stand in them.

What lives here: what BEIR's and TREC's files have in common. What does not: what a line holds
(`corpora`, `trec`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from unified_embeddings.errors import InputError

_GRADE = re.compile(r"[+-]?[0-9]{1,9}")
"""Nine digits: no one grades finer, and a number of hundreds is a mistake that overflows."""


def read_lines(path: Path, *, if_missing: str) -> Iterator[tuple[str, str]]:
    """Yield each line that is not blank, after a description of its place for messages.

    A byte order mark and carriage returns, as Windows's editors write them, are left out.

    Args:
        path: A file in UTF-8.
        if_missing: What to do if there is no such file.

    Raises:
        InputError: If the file does not exist or cannot be read as text.
    """
    try:
        # A byte order mark would become part of the first id.
        content = path.read_text("utf-8-sig")
    except FileNotFoundError as error:
        raise InputError(f"{path} does not exist; {if_missing}") from error
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read as text: {error}") from error
    # Not splitlines(), which would also split at separators inside a JSON string, such as U+2028.
    for number, line in enumerate(content.split("\n"), start=1):
        if line.strip():
            yield f"{path}, line {number}", line.rstrip("\r")


def parse_grade(text: str) -> int | None:
    """Return a relevance grade; None if the text is no whole number of at most nine digits."""
    return int(text) if _GRADE.fullmatch(text) else None
