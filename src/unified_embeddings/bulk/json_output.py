"""Vectors and failures as JSON lines.

What lives here: document 004's line per row, and the line per failed row. What does not: which
files there are (`output`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from unified_embeddings.bulk.parts import PartFileError
from unified_embeddings.bulk.row_blocks import RowBlock
from unified_embeddings.types import FloatArray

OUTPUT_FIELDS = ("embedding", "sparse", "colbert", "model", "error")
"""Fields that this package writes; an input's field of such a name gets a prefix."""
_PREFIX = "input_"
_DIGITS = {np.dtype(np.float32): 9, np.dtype(np.float16): 5}
"""So many decimal digits bring back the same number."""


def rename_fields(fields: Mapping[str, object]) -> dict[str, object]:
    """Return an input's fields, "embedding" as "input_embedding" and so on, so that none is lost.

    Example:
        >>> rename_fields({"paper_id": 1, "model": "old"})
        {'paper_id': 1, 'input_model': 'old'}
    """
    renamed: dict[str, object] = {}
    for name, value in fields.items():
        new_name = name
        if name in OUTPUT_FIELDS:
            new_name = _PREFIX + name
            while new_name in fields:
                new_name = _PREFIX + new_name
        renamed[new_name] = value
    return renamed


class JsonLinesFile:
    """Document 004's JSON lines: the kept fields, the vectors, the model.

    A failed row has null in place of its vectors, and its problem as "error".

    Args:
        path: The file, which is created or emptied.
        model: What each line names as its model.
        with_colbert: Whether ColBERT vectors are written, which takes much room.
    """

    def __init__(self, path: Path, model: str, *, with_colbert: bool) -> None:
        self.path = path
        self._file = path.open("wb", buffering=2**20)
        self._model = f'"model": {to_json(model)}'
        self._with_colbert = with_colbert

    def append(self, block: RowBlock) -> None:
        """Write a block's rows."""
        for position, record in enumerate(block.records):
            parts = []
            if record.fields:
                parts.append(to_json(rename_fields(record.fields))[1:-1])
            parts += self._vectors(block, position)
            parts.append(self._model)
            if not block.is_embedded[position]:
                parts.append(f'"error": {to_json(record.problem)}')
            line = "{" + ", ".join(parts) + "}\n"
            self._file.write(line.encode())

    def _vectors(self, block: RowBlock, position: int) -> list[str]:
        row = block.first_row + position
        is_embedded = bool(block.is_embedded[position])
        parts = []
        if block.dense is not None:
            numbers = "null"
            if is_embedded:
                numbers = list_numbers(block.dense[position], row)
            parts.append(f'"embedding": {numbers}')
        if block.sparse is not None:
            pair = "null"
            if is_embedded:
                indices, values = block.sparse[position]
                pair = f'{{"indices": {indices.tolist()}, "values": {list_numbers(values, row)}}}'
            parts.append(f'"sparse": {pair}')
        if block.colbert is not None and self._with_colbert:
            rows = "null"
            if is_embedded:
                vectors = [list_numbers(vector, row) for vector in block.colbert[position]]
                rows = f"[{', '.join(vectors)}]"
            parts.append(f'"colbert": {rows}')
        return parts

    def close(self) -> None:
        """Finish the file. Idempotent."""
        self._file.close()


class RowsFile:
    """JSON lines of the rows besides their vectors: line k belongs to row k of an array.

    Args:
        path: The file, which is created or emptied.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = path.open("wb", buffering=2**20)

    def append(self, block: RowBlock) -> None:
        """Write a block's rows, each with its number and what is kept of it."""
        for position, record in enumerate(block.records):
            line: dict[str, object] = {"row": block.first_row + position}
            line["fields"] = dict(record.fields)
            if not block.is_embedded[position]:
                line["error"] = record.problem
            self._file.write(f"{to_json(line)}\n".encode())

    def close(self) -> None:
        """Finish the file. Idempotent."""
        self._file.close()


def failure_line(row: int, problem: str, models: list[str], fields: Mapping[str, object]) -> bytes:
    """Return the line that tells of a failed row."""
    line = {"row": row, "problem": problem, "models": models, "fields": dict(fields)}
    return f"{to_json(line)}\n".encode()


def to_json(value: object) -> str:
    """Return JSON that can be encoded, with escapes only where there is no other way."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    try:
        text.encode()
    except UnicodeEncodeError:  # half a character in a field
        text = json.dumps(value, allow_nan=False)
    return text


def list_numbers(numbers: FloatArray, row: int) -> str:
    """Return a JSON list from which the same float32 or float16 numbers come back."""
    if not np.isfinite(numbers).all():
        raise PartFileError(f"the vectors of row {row} are not finite numbers")
    if not len(numbers):
        return "[]"
    one_number = f"%.{_DIGITS[numbers.dtype]}g, "
    return f"[{(one_number * len(numbers))[:-2] % tuple(numbers.tolist())}]"
