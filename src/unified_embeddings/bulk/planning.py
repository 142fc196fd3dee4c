"""Rows into parts: the same rows give the same parts, whenever they are read.

What lives here: cutting rows into parts, finding repeated texts, and the digest of a part's rows.
What does not: reading rows (`reader`), computing them (`worker`).
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import numpy as np

from unified_embeddings.bulk.parts import FAILED, Offsets, Record
from unified_embeddings.bulk.rows import Row
from unified_embeddings.errors import InputError
from unified_embeddings.system.files import scratch_folder


@dataclass(frozen=True, eq=False)
class PartTask:
    """A range of rows to compute.

    Attributes:
        number: Of the part, from 0.
        first_row: Number of its first row.
        records: Its n rows, besides their texts.
        sources: int64 (n,); see `Part`. FAILED for rows that hold no text.
        texts: The u texts to compute, of the rows that are their own source, in order.
        rows_digest: Of all this.
    """

    number: int
    first_row: int
    records: Sequence[Record]
    sources: Offsets
    texts: Sequence[str]
    rows_digest: str


class FirstOccurrences:
    """Which row held a text first, kept on disk so that memory stays flat.

    Args:
        folder: Where the temporary file goes.
        normal_form: Maps texts that get the same vector to the same text.
    """

    def __init__(self, folder: Path, normal_form: Callable[[str], str]) -> None:
        self._normal_form = normal_form
        self._exit = contextlib.ExitStack()
        columns = "texts (digest BLOB PRIMARY KEY, row INTEGER)"
        self._database = self._exit.enter_context(_scratch_database(folder, columns))
        self.repeated = 0

    def __enter__(self) -> FirstOccurrences:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._exit.close()

    def find(self, rows: Sequence[Row]) -> Offsets:
        """Return for each row the number of the first row with its text, int64 (n,).

        Raises:
            OSError: If the disk is full.
        """
        digests: list[bytes | None] = []
        for row in rows:
            digests.append(None if row.text is None else self._digest(row.text))
        pairs = [
            (digest, row.number)
            for digest, row in zip(digests, rows, strict=True)
            if digest is not None
        ]
        self._insert(pairs)
        sources = np.full(len(rows), FAILED, dtype=np.int64)
        for place, digest in enumerate(digests):
            if digest is not None:
                (first,) = self._database.execute(
                    "SELECT row FROM texts WHERE digest = ?", (digest,)
                ).fetchone()
                sources[place] = first
                self.repeated += int(first != rows[place].number)
        return sources

    def _insert(self, pairs: Sequence[tuple[bytes, int]]) -> None:
        with _disk_errors():
            self._database.executemany("INSERT OR IGNORE INTO texts VALUES (?, ?)", pairs)

    def _digest(self, text: str) -> bytes:
        normal = self._normal_form(text)
        return hashlib.blake2b(normal.encode(), digest_size=16).digest()


class UniqueIds:
    """Refuses rows with the id of an earlier row; the ids are on disk, so memory stays flat.

    Args:
        folder: Where the temporary file goes.
        id_field: The field that holds a row's id.
        final_id: Returns the id that a row gets where the vectors go; two ids of rows may become
            one there. None takes the row's own.
    """

    def __init__(
        self, folder: Path, id_field: str, *, final_id: Callable[[Row], object] | None = None
    ) -> None:
        self._id_field = id_field
        self._final_id = final_id
        self._exit = contextlib.ExitStack()
        columns = "ids (id BLOB PRIMARY KEY, row INTEGER, place TEXT)"
        self._database = self._exit.enter_context(_scratch_database(folder, columns))

    def __enter__(self) -> UniqueIds:
        return self

    def __exit__(self, *_: object) -> None:
        self._exit.close()

    def check(self, rows: Iterable[Row]) -> Iterator[Row]:
        """Yield the rows.

        Raises:
            InputError: At the first whose id an earlier one has. In a collection it would replace
                that one.
            OSError: If the disk is full.
        """
        for row in rows:
            if row.problem is None:
                self._add(row)
            yield row

    def _add(self, row: Row) -> None:
        value = row.fields.get(self._id_field)
        key = value if self._final_id is None else self._final_id(row)
        digest = hashlib.blake2b(json.dumps(key, sort_keys=True).encode(), digest_size=16).digest()
        place = row.place.encode("utf-8", "replace").decode()
        with _disk_errors():
            added = self._database.execute(
                "INSERT OR IGNORE INTO ids VALUES (?, ?, ?)", (digest, row.number, place)
            )
        if added.rowcount:
            return
        first, first_place = self._database.execute(
            "SELECT row, place FROM ids WHERE id = ?", (digest,)
        ).fetchone()
        raise InputError(
            f"rows {first} and {row.number} have the same {self._id_field}, {value!r:.60} "
            f"({first_place}; {place}), and would replace each other where their vectors go. Give "
            "an id field that tells rows apart, or none: then a row's number is its id"
        )


@contextlib.contextmanager
def _scratch_database(folder: Path, columns: str) -> Iterator[sqlite3.Connection]:
    """Open a database that each run makes anew, so that it needs no protection from a crash.

    What a killed process leaves behind is removed by the next one.

    Args:
        folder: Where the temporary file goes.
        columns: Its table and the table's columns.

    Raises:
        OSError: If the disk is full.
    """
    with contextlib.ExitStack() as stack:
        scratch = stack.enter_context(scratch_folder(folder))
        database = sqlite3.connect(str(scratch / "rows.db"))
        stack.callback(database.close)
        with _disk_errors():
            database.execute("PRAGMA journal_mode = OFF")
            database.execute("PRAGMA synchronous = OFF")
            database.execute(f"CREATE TABLE {columns} WITHOUT ROWID")
        yield database


@contextlib.contextmanager
def _disk_errors() -> Iterator[None]:
    """Raise SQLite's word for a full disk as the system's."""
    try:
        yield
    except sqlite3.OperationalError as error:
        if "full" not in str(error):
            raise
        raise OSError(errno.ENOSPC, "No space left on device") from error


def plan_parts(
    rows: Iterable[Row],
    part_rows: int,
    occurrences: FirstOccurrences | None,
    *,
    keep_texts: bool = False,
) -> Iterator[PartTask]:
    """Cut rows into parts.

    Args:
        rows: In the order of the input.
        part_rows: Rows of each part; the last may have fewer.
        occurrences: Finds repeated texts; None computes each row.
        keep_texts: Whether the parts hold the texts too.

    Yields:
        The parts, in order; nothing is held beyond one.
    """
    window: list[Row] = []
    number = 0
    for row in rows:
        window.append(row)
        if len(window) == part_rows:
            yield _make_task(number, window, occurrences, keep_texts=keep_texts)
            number += 1
            window = []
    if window:
        yield _make_task(number, window, occurrences, keep_texts=keep_texts)


def digest_input(rows_digests: Iterable[str]) -> str:
    """Return the digest of a whole input, from the digests of its parts' rows in order."""
    digest = hashlib.blake2b(digest_size=16)
    for rows_digest in rows_digests:
        digest.update(rows_digest.encode())
    return digest.hexdigest()


def _make_task(
    number: int, rows: Sequence[Row], occurrences: FirstOccurrences | None, *, keep_texts: bool
) -> PartTask:
    if occurrences is None:
        numbers = [FAILED if row.text is None else row.number for row in rows]
        sources = np.array(numbers, dtype=np.int64)
    else:
        sources = occurrences.find(rows)
    texts = []
    records = []
    digest = hashlib.blake2b(digest_size=16)
    for row, source in zip(rows, sources.tolist(), strict=True):
        if source == row.number and row.text is not None:
            texts.append(row.text)
        kept_text = row.text if keep_texts else None
        records.append(Record(row.fields, row.problem, kept_text))
        fields = json.dumps(row.fields, sort_keys=True, ensure_ascii=False)
        content = json.dumps([row.text, row.problem, source, fields])
        digest.update(content.encode())
    return PartTask(
        number=number,
        first_row=rows[0].number,
        records=records,
        sources=sources,
        texts=texts,
        rows_digest=digest.hexdigest(),
    )
