"""NumPy files that grow row by row and are read back while they grow.

What lives here: `.npy` of a length that is known only at the end, rows of unequal length, and
SciPy's `.npz` of a sparse matrix. What does not: which vectors go in (`output`).

Plain reads and writes instead of a memory map that can be written: where a disk is full, a write
raises an error and a write to a memory map kills the process. What is written stays out of this
process's resident memory, too. Readers are free to map the files.
"""

from __future__ import annotations

import contextlib
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, cast

import numpy as np
from numpy.lib import format as npy_format
from numpy.typing import DTypeLike, NDArray

_EARLIEST = (1980, 1, 1, 0, 0, 0)
"""The time that archives carry, so that the same content is the same file."""
_BLOCK_ITEMS = 2**18
_INT32_END = 2**31


class ArrayFile:
    """An array in an `.npy` file, to which rows are appended.

    Args:
        path: The file, which is created or emptied.
        dtype: Of the numbers.
        width: Numbers in a row; None for an array of one dimension.

    Attributes:
        path: The file.
        dtype: Of the numbers.
        length: Rows so far.
    """

    def __init__(self, path: Path, dtype: DTypeLike, width: int | None = None) -> None:
        self.path = path
        self.length = 0
        self.dtype = np.dtype(dtype)
        self._row_shape = () if width is None else (width,)
        self._row_bytes = self.dtype.itemsize * (1 if width is None else width)
        self._file = path.open("w+b", buffering=0)
        self._write_header()
        self._header_bytes = self._file.tell()

    def _write_header(self) -> None:
        # NumPy leaves room in the header for the first number of the shape to grow.
        npy_format.write_array_header_1_0(
            cast("IO[bytes]", self._file),
            {
                "descr": npy_format.dtype_to_descr(self.dtype),
                "fortran_order": False,
                "shape": (self.length, *self._row_shape),
            },
        )

    def append(self, rows: NDArray[np.generic]) -> None:
        """Append rows, (n, width) or (n,)."""
        rows = np.ascontiguousarray(rows, dtype=self.dtype)
        assert rows.shape[1:] == self._row_shape
        self._file.seek(0, 2)
        content = rows.reshape(-1).view(np.uint8).data
        while content:
            content = content[self._file.write(content) :]
        self.length += len(rows)

    def read(self, start: int, stop: int) -> NDArray[np.generic]:
        """Return the rows from `start` to before `stop`."""
        rows = np.empty((stop - start, *self._row_shape), self.dtype)
        content = rows.reshape(-1).view(np.uint8).data
        self._file.seek(self._header_bytes + start * self._row_bytes)
        while content:
            count = self._file.readinto(content)
            if not count:
                raise EOFError(f"{self.path} ends before row {stop}")
            content = content[count:]
        return rows

    def read_blocks(self) -> Iterator[NDArray[np.generic]]:
        """Yield all rows, a block at a time."""
        for start in range(0, self.length, _BLOCK_ITEMS):
            yield self.read(start, min(start + _BLOCK_ITEMS, self.length))

    def close(self) -> None:
        """Write the length into the header, and close the file. Idempotent."""
        if self._file.closed:
            return
        with contextlib.closing(self._file):
            self._file.seek(0)
            self._write_header()
            if self._file.tell() != self._header_bytes:
                raise RuntimeError(f"the header of {self.path} has another length than at first")


class RaggedFile:
    """Rows of unequal length: their numbers one after the other, and where each row starts.

    Args:
        offsets: int64, empty; it gets the n + 1 offsets.
        values: What is cut into rows; of several, all are cut at the same places.
    """

    def __init__(self, offsets: ArrayFile, values: Sequence[ArrayFile]) -> None:
        self.offsets = offsets
        self.values = values
        self._end = 0
        offsets.append(np.zeros(1, np.int64))

    def append(self, rows: Sequence[Sequence[NDArray[np.generic]]]) -> None:
        """Append rows, each with one array for each of the `values`."""
        if not rows:
            return
        lengths = np.array([len(row[0]) for row in rows], dtype=np.int64)
        ends = self._end + np.cumsum(lengths)
        self._end = int(ends[-1])
        self.offsets.append(ends)
        for position, file in enumerate(self.values):
            file.append(np.concatenate([row[position] for row in rows]))

    def read(self, row: int) -> list[NDArray[np.generic]]:
        """Return a row's arrays."""
        start, stop = self.offsets.read(row, row + 2).tolist()
        return [file.read(start, stop) for file in self.values]

    def close(self) -> None:
        """Finish all files. Idempotent."""
        for file in (self.offsets, *self.values):
            file.close()


def write_csr(path: Path, rows: RaggedFile, columns: int) -> None:
    """Write a sparse matrix as `scipy.sparse.load_npz` reads it, uncompressed.

    Args:
        path: The file.
        rows: With the values [indices, data], not closed yet.
        columns: The matrix's columns.
    """
    indices, data = rows.values
    # SciPy wants both kinds of index in one type, and takes the smaller one where it can.
    fits = max(data.length, columns) < _INT32_END
    index_type = np.dtype(np.int32 if fits else np.int64)
    shape = np.array([rows.offsets.length - 1, columns], dtype=np.int64)
    with zipfile.ZipFile(path, "w") as archive:
        _write_member(archive, "indices", indices, index_type)
        _write_member(archive, "indptr", rows.offsets, index_type)
        _write_array(archive, "format", np.array(b"csr"))
        _write_array(archive, "shape", shape)
        _write_member(archive, "data", data, np.dtype(np.float32))


@contextlib.contextmanager
def _open_member(archive: zipfile.ZipFile, name: str) -> Iterator[IO[bytes]]:
    info = zipfile.ZipInfo(f"{name}.npy", date_time=_EARLIEST)
    with archive.open(info, "w", force_zip64=True) as member:
        yield member


def _write_array(archive: zipfile.ZipFile, name: str, array: NDArray[np.generic]) -> None:
    with _open_member(archive, name) as member:
        npy_format.write_array(member, array)


def _write_member(
    archive: zipfile.ZipFile, name: str, file: ArrayFile, dtype: np.dtype[np.generic]
) -> None:
    header = {
        "descr": npy_format.dtype_to_descr(dtype),
        "fortran_order": False,
        "shape": (file.length,),
    }
    with _open_member(archive, name) as member:
        npy_format.write_array_header_1_0(member, header)
        for block in file.read_blocks():
            member.write(block.astype(dtype, copy=False).tobytes())
