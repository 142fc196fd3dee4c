"""One row of a bulk job's input, and what the caller says about all of them.

What lives here: `Row`, `InputOptions`, and how a record (a mapping, or a bare text) becomes a row.
What does not: where records come from (`records`, `parquet_records`, `reader`).
"""

from __future__ import annotations

import base64
import datetime
import decimal
import math
import pathlib
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np

from unified_embeddings.errors import InputError

InputFormat: TypeAlias = Literal["jsonl", "json", "json-map", "csv", "tsv", "parquet", "txt"]
Compression: TypeAlias = Literal["none", "gzip", "zstd"]

TEXT_FIELDS = (
    "text",
    "paragraph",
    "content",
    "body",
    "passage",
    "document",
    "sentence",
    "abstract",
)
"""Where a text is looked for, in this order, if the caller names no field."""

ID_FIELDS = ("id", "_id")
"""Where an id is looked for, in this order, if the caller asks to look for one."""

_MIB = 2**20


@dataclass(frozen=True)
class InputOptions:
    """What the caller says about the input.

    Attributes:
        text_field: The field that holds the text; None looks for one of TEXT_FIELDS in the first
            rows. Lines of a text file and bare strings have no fields.
        id_field: A field that each row must have, always kept; None if rows need none.
        find_id: Whether one of ID_FIELDS that each of the first rows has is the id field, if none
            is named.
        keep_fields: The fields to keep; None keeps all but the text.
        format: The format of all files; None goes by each file's extension. In a folder, files
            of any name are read if it is given, but those that begin with "_" or ".".
        compression: The compression of all files; None goes by each file's first bytes.
        delimiter: What separates the cells of a CSV file; None takes a comma, or a tab for TSV.
        max_row_bytes: A longer row is a problem, and is not held in memory.
        leave_out: Files and folders that are not input, such as an output folder in the input's.
    """

    text_field: str | None = None
    id_field: str | None = None
    find_id: bool = False
    keep_fields: tuple[str, ...] | None = None
    format: InputFormat | None = None
    compression: Compression | None = None
    delimiter: str | None = None
    max_row_bytes: int = 32 * _MIB
    leave_out: tuple[Path | str, ...] = ()


@dataclass(frozen=True)
class Row:
    """One row of the input: a text, or what is wrong with it.

    Attributes:
        number: Its position in the whole input, from 0.
        text: Valid Unicode; None if there is a problem.
        problem: Why it cannot be embedded, with its place; None if it can.
        fields: What is kept of the row, fit for JSON.
        place: Where it stands, such as "papers.jsonl, line 7".
    """

    number: int
    text: str | None
    problem: str | None
    fields: dict[str, object] = field(default_factory=dict)
    place: str = ""


class BrokenInputError(InputError):
    """The input cannot be read to its end: it is cut off, damaged or gone.

    Attributes:
        rows_read: How many rows came before.
    """

    def __init__(self, problem: str, *, rows_read: int) -> None:
        self.rows_read = rows_read
        super().__init__(f"{problem}; {rows_read:,} rows were read before")


class UnfitValueError(ValueError):
    """A value has no form in JSON."""


def build_row(number: int, record: object, place: str, options: InputOptions) -> Row:
    """Build a row from a record; never raise for what the record holds.

    Args:
        number: The row's position in the whole input.
        record: A mapping with the text under `options.text_field`, or the bare text.
        place: Where it stands, for the problem.
        options: With `text_field` set, unless the record is a bare text.
    """
    if isinstance(record, str):
        problem = find_text_problem(record)
        if options.id_field is not None:
            problem = f"is a text without the id field {options.id_field!r}"
        text = record if problem is None else None
        return Row(number, text, with_place(place, problem), place=place)
    if not isinstance(record, Mapping):
        problem = f"expected an object with fields, got {_type_name(record)}"
        return Row(number, None, with_place(place, problem), place=place)
    fields, problem = _keep_fields(record, options)
    if options.text_field is None:
        problem = "is an object, but the first rows are bare texts; name the text field"
    elif options.text_field not in record:
        problem = f"there is no field {options.text_field!r}; {list_fields(record)}"
    else:
        text_problem = find_text_problem(record[options.text_field])
        if text_problem is not None:
            problem = f"field {options.text_field!r} {text_problem}"
    if problem is not None:
        return Row(number, None, with_place(place, problem), fields, place)
    text = record[options.text_field]
    return Row(number, str(text), None, fields, place)


def problem_row(number: int, problem: str, place: str) -> Row:
    """Build the row for a record that cannot be read at all."""
    return Row(number, None, with_place(place, problem), place=place)


def find_text_problem(value: object) -> str | None:
    """Return why a value cannot be embedded, or None if it is a str of valid Unicode."""
    if not isinstance(value, str):
        return f"is not a text but {_type_name(value)}"
    try:
        value.encode()
    except UnicodeEncodeError as error:
        return f"holds a lone surrogate at character {error.start}, which is not valid Unicode"
    return None


def list_fields(record: Mapping[str, object]) -> str:
    """Return the names of a record's fields as a clause for messages."""
    if not record:
        return "the row has no fields"
    names = [repr(name) for name in record]
    shown = ", ".join(names[:20])
    rest = len(names) - 20
    return f"the fields are {shown}" + (f" and {rest} more" if rest > 0 else "")


def to_json_value(value: object) -> object:
    """Return a value in a form that JSON has.

    Numbers that JSON lacks (NaN, infinities) become None. Dates, times, decimals, UUIDs and paths
    become text; bytes become base64; NumPy's values become Python's.

    Raises:
        UnfitValueError: If it is something else, such as a set or an object.
    """
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {_to_key(key): to_json_value(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_json_value(item) for item in value]
    if isinstance(value, np.generic | np.ndarray):
        return _from_numpy(value)
    if isinstance(value, datetime.datetime | datetime.date | datetime.time):
        return value.isoformat()
    if isinstance(value, bytes | bytearray | memoryview):
        return base64.b64encode(value).decode("ascii")
    if isinstance(value, decimal.Decimal | uuid.UUID | pathlib.PurePath | datetime.timedelta):
        return str(value)
    raise UnfitValueError(f"{_type_name(value)} has no form in JSON")


def _from_numpy(value: np.generic | np.ndarray[tuple[int, ...], np.dtype[np.generic]]) -> object:
    array = np.asarray(value)
    if array.dtype.kind == "M":
        return to_json_value(np.datetime_as_string(array).tolist())
    item = array.astype(str).tolist() if array.dtype.kind == "m" else array.tolist()
    if isinstance(item, np.generic):  # e.g. longdouble, which Python has no type for
        item = float(item)
    return to_json_value(item)


def _to_key(key: object) -> str:
    if isinstance(key, str):
        return key
    raise UnfitValueError(f"the key {key!r:.40} of an object is not a text")


def _keep_fields(
    record: Mapping[str, object], options: InputOptions
) -> tuple[dict[str, object], str | None]:
    """Return what is kept of a record, and what is wrong with it."""
    names: list[str] = []
    if options.keep_fields is None:
        names = [name for name in record if name != options.text_field]
    else:
        names = [name for name in options.keep_fields if name in record]
    problem = None
    if options.id_field is not None:
        if record.get(options.id_field) is None:
            problem = f"there is no id: field {options.id_field!r} is missing or null"
        elif options.id_field not in names:
            names.insert(0, options.id_field)
    fields: dict[str, object] = {}
    for name in names:
        try:
            fields[_to_key(name)] = to_json_value(record[name])
        except (UnfitValueError, RecursionError) as error:
            reason = "is nested too deeply" if isinstance(error, RecursionError) else str(error)
            problem = f"field {name!r} cannot be kept: {reason}"
    return fields, problem


def with_place(place: str, problem: str | None) -> str | None:
    """Return a problem after the place it is at; None if there is none."""
    if problem is None or not place:
        return problem
    return f"{place}: {problem}"


def _type_name(value: object) -> str:
    """Return what a value is in JSON's words where it has some."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return f"a boolean ({value})"
    if isinstance(value, int | float):
        return f"a number ({value!r:.40})"
    if isinstance(value, list):
        return "a list"
    if isinstance(value, Mapping):
        return "an object"
    return f"a {type(value).__name__}"
