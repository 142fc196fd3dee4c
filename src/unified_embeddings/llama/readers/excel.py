"""Excel files into tables whose cells read as the sheet shows them.

What lives here: sheets, shared strings, and which number format a cell has. What does not: writing
a number in that format (`excel_numbers`), and the archive that such a file is (`zipped_xml`).
"""

from __future__ import annotations

import re
from typing import NamedTuple

from unified_embeddings.llama.readers.content import FileContent, Section, Table
from unified_embeddings.llama.readers.excel_numbers import builtin_format, format_number
from unified_embeddings.llama.readers.office import main_part, office_text
from unified_embeddings.llama.readers.zipped_xml import ZippedFile

_SEPARATOR = " | "
_REFERENCE = re.compile(r"([A-Z]{1,3})\d+")
_ESCAPED = re.compile(r"_x([0-9A-Fa-f]{4})_")
"""How Excel writes a character that XML cannot hold."""


class _Sheet(NamedTuple):
    name: str
    part: str


def read_xlsx(data: bytes) -> FileContent:
    """Read an Excel file: a table for each sheet, then text boxes and comments.

    A cell with a formula reads as its last result, or as the formula if there is none.

    Raises:
        InputError: If it is not an Excel file.
    """
    file = ZippedFile(data, "an Excel file")
    main = main_part(file, "an Excel file", "xl/workbook.xml")
    workbook = _Workbook()
    file.parse(main, workbook)
    strings = _SharedStrings()
    for part in file.related(main, "sharedStrings"):
        file.parse(part, strings)
    styles = _Styles()
    for part in file.related(main, "styles"):
        file.parse(part, styles)
    parts: list[Section | Table] = []
    relations = file.relations(main)
    for name, relation_id in workbook.sheets:
        kind, part = relations.get(relation_id, ("", ""))
        if kind != "worksheet" or part not in file.names:
            continue
        cells = _SheetCells(strings.texts, styles.formats, from_1904=workbook.from_1904)
        file.parse(part, cells)
        parts.append(Table(cells.table(), _SEPARATOR, name, {"sheet_name": name}))
        for other in file.related(part, "drawing", "comments"):
            parts.append(Section(office_text(file, other), {"sheet_name": name}))
    return FileContent(parts, file.notes)


def _unescape(text: str) -> str:
    """Return a text with `_x000D_` and the like replaced by the characters they stand for."""
    if "_x" not in text:
        return text
    return _ESCAPED.sub(_escaped_character, text)


def _escaped_character(match: re.Match[str]) -> str:
    return chr(int(match[1], 16))


def _column_number(letters: str) -> int:
    number = 0
    for letter in letters:
        number = number * 26 + ord(letter) - ord("A") + 1
    return number


class _Workbook:
    """Collects the sheets' names and relations, and the day from which dates count."""

    def __init__(self) -> None:
        self.sheets: list[_Sheet] = []
        self.from_1904 = False

    def start(self, name: str, attributes: dict[str, str]) -> None:
        if name == "sheet":
            self.sheets.append(_Sheet(attributes.get("name", ""), attributes.get(":id", "")))
        elif name == "workbookPr":
            self.from_1904 = attributes.get("date1904", "0") in ("1", "true")

    def end(self, name: str) -> None:
        pass

    def data(self, text: str) -> None:
        pass


class _SharedStrings:
    """Collects the texts that cells refer to by number."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self._pieces: list[str] = []
        self._in_text = False
        self._in_pronunciation = False

    def start(self, name: str, attributes: dict[str, str]) -> None:  # noqa: ARG002
        if name == "si":
            self._pieces = []
        elif name == "rPh":
            self._in_pronunciation = True
        elif name == "t":
            self._in_text = not self._in_pronunciation

    def data(self, text: str) -> None:
        if self._in_text:
            self._pieces.append(text)

    def end(self, name: str) -> None:
        if name == "t":
            self._in_text = False
        elif name == "rPh":
            self._in_pronunciation = False
        elif name == "si":
            self.texts.append(_unescape("".join(self._pieces)))


class _Styles:
    """Collects the number format of each cell style."""

    def __init__(self) -> None:
        self.formats: list[str] = []
        self._own_formats: dict[str, str] = {}
        self._in_cell_styles = False

    def start(self, name: str, attributes: dict[str, str]) -> None:
        if name == "numFmt":
            self._own_formats[attributes.get("numFmtId", "")] = attributes.get("formatCode", "")
        elif name == "cellXfs":
            self._in_cell_styles = True
        elif name == "xf" and self._in_cell_styles:
            number = attributes.get("numFmtId", "0")
            self.formats.append(self._own_formats.get(number) or builtin_format(number))

    def end(self, name: str) -> None:
        if name == "cellXfs":
            self._in_cell_styles = False

    def data(self, text: str) -> None:
        pass


class _SheetCells:
    """Collects the cells of a sheet.

    Args:
        strings: The shared strings.
        formats: The number format of each cell style.
        from_1904: Whether dates count from 1904, as in files of old Macs, not from 1900.
    """

    def __init__(self, strings: list[str], formats: list[str], *, from_1904: bool) -> None:
        self._strings = strings
        self._formats = formats
        self._from_1904 = from_1904
        self._rows: list[dict[int, str]] = []
        self._column = 0
        self._type = ""
        self._format = ""
        self._value: list[str] = []
        self._formula: list[str] = []
        self._target: list[str] | None = None
        self._in_pronunciation = False

    def start(self, name: str, attributes: dict[str, str]) -> None:
        if name == "row":
            self._rows.append({})
            self._column = 0
        elif name == "c":
            self._start_cell(attributes)
        elif name == "rPh":
            self._in_pronunciation = True
        elif name == "v" or (name == "t" and not self._in_pronunciation):
            self._target = self._value
        elif name == "f":
            self._target = self._formula

    def data(self, text: str) -> None:
        if self._target is not None:
            self._target.append(text)

    def end(self, name: str) -> None:
        if name in ("v", "t", "f"):
            self._target = None
        elif name == "rPh":
            self._in_pronunciation = False
        elif name == "c" and self._rows:
            text = self._cell_text("".join(self._value), "".join(self._formula))
            if text:
                self._rows[-1][self._column] = text

    def table(self) -> list[list[str]]:
        """Return the rows and columns that are not empty, all rows of the same width."""
        columns = sorted({column for row in self._rows for column in row})
        return [[row.get(column, "") for column in columns] for row in self._rows if row]

    def _start_cell(self, attributes: dict[str, str]) -> None:
        reference = _REFERENCE.fullmatch(attributes.get("r", ""))
        # Some programs leave the reference out: the cell then follows the one before.
        self._column = _column_number(reference[1]) if reference else self._column + 1
        self._type = attributes.get("t", "n")
        style = attributes.get("s", "")
        self._format = ""
        if style.isdecimal() and int(style) < len(self._formats):
            self._format = self._formats[int(style)]
        self._value = []
        self._formula = []

    def _cell_text(self, value: str, formula: str) -> str:
        if self._type == "s":
            number = value.strip()
            known = number.isdecimal() and int(number) < len(self._strings)
            return self._strings[int(number)] if known else value
        if self._type in ("str", "inlineStr"):
            text = _unescape(value)
        elif self._type == "b":
            text = {"1": "TRUE", "0": "FALSE"}.get(value.strip(), value)
        elif self._type == "n":
            text = format_number(value.strip(), self._format, from_1904=self._from_1904)
        else:  # an error such as #N/A, or a date in ISO 8601
            text = value
        if not text and formula:
            return f"={formula}"
        return text
