"""What a reader takes out of a file: texts, tables, and notes on what it had to mend.

What lives here: the values that all readers return, and mending characters that are not valid
Unicode. What does not: reading a format (the modules beside this one) and forming chunks
(`llama.reading`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypeAlias

Metadata: TypeAlias = dict[str, str | int]
"""What a chunk says about its place in the file, such as `page_label`."""


@dataclass(frozen=True)
class Section:
    """A stretch of text: a file's whole text, a page, a slide.

    Attributes:
        text: The text.
        metadata: The place of the section in its file.
    """

    text: str
    metadata: Metadata = field(default_factory=dict)


@dataclass(frozen=True)
class Table:
    """Rows of cells, each as it is written in the file.

    Attributes:
        rows: The rows, the one with the column names first if there is one.
        separator: What stands between two cells in the text.
        title: The table's name, in front of each chunk of it.
        metadata: The place of the table in its file.
    """

    rows: list[list[str]]
    separator: str
    title: str = ""
    metadata: Metadata = field(default_factory=dict)


@dataclass(frozen=True)
class FileContent:
    """All that a reader took out of a file.

    Attributes:
        parts: Sections and tables in the order of the file.
        notes: What the user should know, such as how many pages hold no text.
    """

    parts: list[Section | Table]
    notes: list[str] = field(default_factory=list)


def mend_characters(content: FileContent) -> FileContent:
    """Make all texts valid Unicode, and say so once if a character was lost.

    Two halves of a character (surrogates) that follow each other are joined. A half without the
    other becomes U+FFFD, the replacement character.
    """
    lost = 0
    parts: list[Section | Table] = []
    for part in content.parts:
        metadata = {key: _mend_value(value) for key, value in part.metadata.items()}
        if isinstance(part, Section):
            text, lost_here = _mend(part.text)
            parts.append(Section(text, metadata))
            lost += lost_here
            continue
        rows = []
        for row in part.rows:
            mended = [_mend(cell) for cell in row]
            rows.append([cell for cell, _ in mended])
            lost += sum(lost_here for _, lost_here in mended)
        title, lost_here = _mend(part.title)
        lost += lost_here
        parts.append(Table(rows, part.separator, title, metadata))
    notes = [_mend(note)[0] for note in content.notes]
    if lost:
        notes.append(lost_note(lost))
    return FileContent(parts, notes)


def _mend_value(value: str | int) -> str | int:
    return _mend(value)[0] if isinstance(value, str) else value


def lost_note(count: int) -> str:
    """Return the note about characters that had to be replaced."""
    if count == 1:
        return "1 character is not valid and was replaced by U+FFFD"
    return f"{count:,} characters are not valid and were replaced by U+FFFD"


def _mend(text: str) -> tuple[str, int]:
    """Return a text as valid Unicode, and how many of its characters were replaced."""
    try:
        text.encode()
    except UnicodeEncodeError:
        joined = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
        return joined, joined.count("\ufffd") - text.count("\ufffd")
    return text, 0
