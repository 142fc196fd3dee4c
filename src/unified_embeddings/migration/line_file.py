"""Append-only files of JSON lines, of which a crash can cost the last line only."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from unified_embeddings.system.files import make_folder


def append_lines(path: Path, lines: Sequence[Mapping[str, object]]) -> None:
    """Append objects to a file of JSON lines, durably; the file and its folder are made if missing.

    All lines are one write at the file's end, so that two processes may append at once. Half a line
    that a killed process has left is ended first, so that it costs no line but itself.

    Raises:
        OSError: If they cannot be written.
    """
    if not lines:
        return
    make_folder(path.parent)
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    # Half a character, as in a name whose bytes are no UTF-8, is written as JSON escapes it.
    content = text.encode(errors="backslashreplace")
    with path.open("ab+", buffering=0) as file:
        if not _ends_with_line(path):
            content = b"\n" + content
        # A disk that becomes full takes a part and says so only when asked for the rest.
        while content:
            content = content[file.write(content) :]
        os.fsync(file.fileno())


def read_lines(path: Path) -> Iterator[dict[str, object]]:
    """Yield the objects of a file of JSON lines in order; none if the file is missing.

    What a killed process has left of a line is passed over.

    Raises:
        OSError: If the file cannot be read.
    """
    if not path.exists():
        return
    with path.open("rb") as file:
        for line in file:
            try:
                value = json.loads(line)
            except ValueError:
                continue
            if isinstance(value, dict):
                yield value


def _ends_with_line(path: Path) -> bool:
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        if size == 0:
            return True
        file.seek(size - 1)
        return file.read(1) == b"\n"
