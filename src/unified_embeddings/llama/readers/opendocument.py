"""OpenDocument files (LibreOffice: odt, ods, odp) into text and tables.

What lives here: paragraphs, sheets and slides of `content.xml`. What does not: the archive that
such a file is (`zipped_xml`).
"""

from __future__ import annotations

import re

from unified_embeddings.llama.readers.content import FileContent, Section, Table
from unified_embeddings.llama.readers.zipped_xml import ZippedFile

_SEPARATOR = " | "
_LARGEST_REPEAT = 10_000
"""Cells and spaces are repeated by a count, which a file could set to anything."""
_LEFT_OUT = frozenset(("tracked-changes", "settings", "forms"))
_PARAGRAPHS = frozenset(("p", "h"))
_TEXT_CHARACTERS = {"tab": "\t", "line-break": "\n", "s": " "}
_WHITE_SPACE = re.compile(r"[ \t\r\n]+")


def read_opendocument(data: bytes) -> FileContent:
    """Read a text, a spreadsheet (a table for each sheet) or a presentation.

    Raises:
        InputError: If it is not an OpenDocument file.
    """
    file = ZippedFile(data, "an OpenDocument file")
    content = _Content()
    file.parse("content.xml", content)
    return FileContent(content.finished(), file.notes)


class _Content:
    """Collects text, with the tables of a spreadsheet apart.

    Paragraphs, cells and tables may be nested, so each kind has a stack.
    """

    def __init__(self) -> None:
        self._parts: list[Section | Table] = []
        self._is_spreadsheet = False
        self._slide = 0
        self._blocks: list[list[str]] = [[]]
        self._paragraphs: list[list[str]] = []
        self._tables: list[list[list[str]]] = []
        self._sheet_name = ""
        self._repeats: list[int] = []
        self._left_out = 0

    def start(self, name: str, attributes: dict[str, str]) -> None:
        if self._left_out or name in _LEFT_OUT:
            self._left_out += 1
        elif name in _PARAGRAPHS:
            self._paragraphs.append([])
        elif name in _TEXT_CHARACTERS and self._paragraphs:
            repeats = _count(attributes.get("c"))
            self._paragraphs[-1].append(_TEXT_CHARACTERS[name] * repeats)
        elif name == "spreadsheet":
            self._is_spreadsheet = True
        elif name == "page":
            self._finish_section()
            self._slide += 1
        elif name == "table":
            self._tables.append([])
            if len(self._tables) == 1:
                self._sheet_name = attributes.get("name", "")
        elif name == "table-row" and self._tables:
            self._tables[-1].append([])
        elif name == "table-cell":
            self._blocks.append([])
            self._repeats.append(_count(attributes.get("number-columns-repeated")))
        elif name == "covered-table-cell" and self._tables and self._tables[-1]:
            repeats = _count(attributes.get("number-columns-repeated"))
            self._tables[-1][-1].extend([""] * repeats)

    def data(self, text: str) -> None:
        if self._paragraphs and not self._left_out:
            # Line ends and spaces in a row are the XML's; those of the text have elements.
            self._paragraphs[-1].append(_WHITE_SPACE.sub(" ", text))

    def end(self, name: str) -> None:
        if self._left_out:
            self._left_out -= 1
        elif name in _PARAGRAPHS and self._paragraphs:
            self._blocks[-1].append("".join(self._paragraphs.pop()))
        elif name == "table-cell" and len(self._blocks) > 1:
            cell = "\n".join(self._blocks.pop())
            repeats = self._repeats.pop()
            if self._tables and self._tables[-1]:
                self._tables[-1][-1].extend([cell] * repeats)
        elif name == "table" and self._tables:
            self._finish_table(_trim(self._tables.pop()))

    def finished(self) -> list[Section | Table]:
        """Return all that was collected."""
        self._finish_section()
        return self._parts

    def _finish_table(self, rows: list[list[str]]) -> None:
        if self._is_spreadsheet and not self._tables:
            metadata: dict[str, str | int] = {"sheet_name": self._sheet_name}
            self._parts.append(Table(rows, _SEPARATOR, self._sheet_name, metadata))
        elif rows:
            self._blocks[-1].append("\n".join(_SEPARATOR.join(row) for row in rows))

    def _finish_section(self) -> None:
        text = "\n\n".join(block for block in self._blocks[0] if block.strip())
        self._blocks[0] = []
        if not text:
            return
        metadata: dict[str, str | int] = {"page_label": str(self._slide)} if self._slide else {}
        self._parts.append(Section(text, metadata))


def _count(repeated: str | None) -> int:
    """Return a repeat count from an attribute, within bounds."""
    if repeated is None or not repeated.isdecimal():
        return 1
    return min(int(repeated[:9]), _LARGEST_REPEAT)


def _trim(rows: list[list[str]]) -> list[list[str]]:
    """Return the rows and columns that are not empty, all rows of the same width."""
    used = {column for row in rows for column, cell in enumerate(row) if cell}
    columns = sorted(used)
    trimmed = []
    for row in rows:
        if any(row):
            trimmed.append([row[column] if column < len(row) else "" for column in columns])
    return trimmed
