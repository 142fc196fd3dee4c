"""Batches of rows in another store's layout, as JSON lines.

What lives here: the file of batches, and the check of all rows before anything is computed. What
does not: a row in a store's form (`upsert_layouts`).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from pathlib import Path

from unified_embeddings.bulk.layout_choice import LayoutName, make_layout
from unified_embeddings.bulk.planning import UniqueIds
from unified_embeddings.bulk.row_blocks import RowBlock
from unified_embeddings.bulk.rows import Row
from unified_embeddings.bulk.upsert_layouts import LayoutRow, RowVectors, UpsertLayout


class BatchFile:
    """JSON lines, each a batch that the store takes at once. Rows without vectors are left out.

    Args:
        path: The file, which is created or emptied.
        layout: Of the store.
        id_field: The field that holds a row's id; None if rows have none.
        with_texts: Whether rows go with their texts, which the parts then hold.
    """

    def __init__(
        self, path: Path, layout: UpsertLayout, id_field: str | None, *, with_texts: bool
    ) -> None:
        self.path = path
        self._layout = layout
        self._id_field = id_field
        self._with_texts = with_texts
        self._file = path.open("wb", buffering=2**20)
        self._rows: list[tuple[str, ...]] = []
        self._bytes = 0

    def append(self, block: RowBlock) -> None:
        """Write a block's rows; the last batch stays open."""
        for position, record in enumerate(block.records):
            if not block.is_embedded[position]:
                continue
            row = LayoutRow(
                number=block.first_row + position,
                fields=record.fields,
                text=record.text if self._with_texts else None,
                place="",
                id_field=self._id_field,
            )
            vectors = RowVectors(
                dense=None if block.dense is None else block.dense[position],
                sparse=None if block.sparse is None else block.sparse[position],
            )
            self._add(self._layout.encode(row, vectors))

    def _add(self, pieces: tuple[str, ...]) -> None:
        size = sum(len(piece.encode()) + len(", ") for piece in pieces)
        is_full = len(self._rows) == self._layout.max_rows
        # 100 bytes for the brackets and names around the rows.
        if self._rows and (is_full or self._bytes + size > self._layout.max_bytes - 100):
            self._write_batch()
        self._rows.append(pieces)
        self._bytes += size

    def _write_batch(self) -> None:
        self._file.write(f"{self._layout.join(self._rows)}\n".encode())
        self._rows = []
        self._bytes = 0

    def close(self) -> None:
        """Write the last batch, and close the file. Idempotent."""
        if self._file.closed:
            return
        try:
            if self._rows:
                self._write_batch()
        finally:
            self._file.close()


class LayoutCheck:
    """Refuses rows that a store cannot hold, or that would replace each other in it.

    Args:
        folder: Where the temporary file of ids goes.
        name: Of the store's layout.
        id_field: The field that holds a row's id; None if rows have none.
        with_texts: Whether rows go with their texts.
    """

    def __init__(
        self, folder: Path, name: LayoutName, id_field: str | None, *, with_texts: bool
    ) -> None:
        self._layout = make_layout(name)
        self._id_field = id_field
        self._with_texts = with_texts
        self._exit = contextlib.ExitStack()
        self._ids = None
        if id_field is not None:
            ids = UniqueIds(folder, id_field, final_id=self._final_id)
            self._ids = self._exit.enter_context(ids)

    def __enter__(self) -> LayoutCheck:
        return self

    def __exit__(self, *_: object) -> None:
        self._exit.close()

    def check(self, rows: Iterable[Row]) -> Iterator[Row]:
        """Yield the rows.

        Raises:
            InputError: At the first that is refused; the message has its place.
            OSError: If the disk is full.
        """
        if self._ids is not None:
            rows = self._ids.check(rows)
        for row in rows:
            if row.problem is None:
                self._layout.check(self._to_layout_row(row))
            yield row

    def _final_id(self, row: Row) -> object:
        return self._layout.final_id(self._to_layout_row(row))

    def _to_layout_row(self, row: Row) -> LayoutRow:
        return LayoutRow(
            number=row.number,
            fields=row.fields,
            text=row.text if self._with_texts else None,
            place=row.place,
            id_field=self._id_field,
        )
