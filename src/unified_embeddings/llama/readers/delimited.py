"""CSV and TSV files into tables whose cells are as written: nothing is guessed about types.

What lives here: parsing, and which character separates the cells. What does not: forming chunks of
rows (`llama.chunking`).
"""

from __future__ import annotations

import re

from unified_embeddings.llama.readers.content import FileContent, Table
from unified_embeddings.llama.readers.plain_text import decode_text

_OTHER_DELIMITERS = ";\t|"
_CERTAIN_ROWS = 8
"""Rows of equal width that make another delimiter than the comma certain."""
_SAMPLE_CHARACTERS = 100_000
"""How much of a file is looked at for its delimiter."""
_NAMED_DELIMITER = re.compile(r'"?sep=([^"\r\n])"?\r?\n', re.IGNORECASE)
"""A first line by which a file tells Excel its delimiter; it is not a row."""
_COMMA_OF_COLUMNS = re.compile(r"(?<!\d),|,(?!\d)")
"""A comma that is no decimal comma."""


def read_csv(data: bytes) -> FileContent:
    """Read comma-separated values, or those of a file that clearly uses another delimiter.

    Raises:
        InputError: If the file is not text.
    """
    text, notes = _decode(data)
    named = _NAMED_DELIMITER.match(text)
    if named is not None:
        return FileContent([_parse_table(text[named.end() :], named[1])], notes)
    return FileContent([_parse_table(text, choose_delimiter(text))], notes)


def read_tsv(data: bytes) -> FileContent:
    """Read tab-separated values.

    Raises:
        InputError: If the file is not text.
    """
    text, notes = _decode(data)
    return FileContent([_parse_table(text, "\t")], notes)


def parse_rows(text: str, delimiter: str) -> list[list[str]]:
    """Return the rows of delimited text as Python's csv module reads them, without blank lines.

    The module itself limits the length of a cell by a setting of the whole process, and older
    versions refuse NUL.

    Args:
        text: The text; cells may be quoted and hold line ends.
        delimiter: One character.
    """
    mark = re.escape(delimiter)
    # A quoted cell may be followed by more text; a quote within an unquoted cell is a character.
    cell_pattern = re.compile(rf'(?:"((?:[^"]+|"")*)(?:"([^{mark}\r\n]*)|\Z)|([^{mark}\r\n]*))')
    rows: list[list[str]] = []
    row: list[str] = []
    position = 0
    while position < len(text):
        match = cell_pattern.match(text, position)
        assert match is not None  # it matches the empty cell
        quoted, rest, plain = match.groups()
        if quoted is None:
            row.append(plain)
        else:
            row.append(quoted.replace('""', '"') + (rest or ""))
        position = match.end()
        if text.startswith(delimiter, position):
            position += 1
            if position < len(text):
                continue
            row.append("")  # after a delimiter at the end there is one more, empty cell
        is_blank_line = row == [""] and quoted is None
        if not is_blank_line:
            rows.append(row)
        row = []
        position += 2 if text.startswith("\r\n", position) else 1
    return rows


def choose_delimiter(text: str) -> str:
    """Return the character that separates the cells: the comma unless another one is certain.

    Another one is certain if it gives many rows of one width, and the comma does not, or is a
    decimal comma wherever it occurs.
    """
    sample = _sample(text)
    has_comma_columns = _are_even(parse_rows(sample, ","))
    if has_comma_columns and _COMMA_OF_COLUMNS.search(sample):
        return ","
    for delimiter in _OTHER_DELIMITERS:
        if delimiter in sample and _are_even(parse_rows(sample, delimiter)):
            return delimiter
    return ","


def _separator(text: str, delimiter: str) -> str:
    """Return what stands between cells in the text: a blank as well, so that words are words.

    Where another character may be what separates the cells, nothing is put between them that is
    not in the file: `3,5` stays `3,5`.
    """
    if delimiter == "\t":
        return delimiter
    may_be_another = delimiter == "," and any(other in text for other in _OTHER_DELIMITERS)
    if may_be_another and not _are_even(parse_rows(_sample(text), ",")):
        return delimiter
    return f"{delimiter} "


def _sample(text: str) -> str:
    if len(text) <= _SAMPLE_CHARACTERS:
        return text
    return text[: text.rfind("\n", 0, _SAMPLE_CHARACTERS) + 1]


def _are_even(rows: list[list[str]]) -> bool:
    """Tell whether rows look like a table: many, of one width, and of more than one cell."""
    widths = {len(row) for row in rows}
    return len(rows) >= _CERTAIN_ROWS and len(widths) == 1 and widths != {1}


def _decode(data: bytes) -> tuple[str, list[str]]:
    text, notes = decode_text(data)
    return text.removeprefix("\ufeff"), notes


def _parse_table(text: str, delimiter: str) -> Table:
    return Table(parse_rows(text, delimiter), _separator(text, delimiter))
