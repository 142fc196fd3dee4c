"""The files of a bulk job's input: which there are, in what order and format, and how large.

What lives here: finding them. What does not: reading them (`reader`).
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TypeAlias

from unified_embeddings.bulk.object_store import StoredFile, find_stored_files, is_url
from unified_embeddings.bulk.rows import InputFormat, InputOptions
from unified_embeddings.errors import InputError

Source: TypeAlias = "str | Path | Iterable[object]"
"""A file, a folder, a URL of one, "-" for standard input, or mappings and strings from Python."""

STANDARD_INPUT = "-"
_FORMATS: dict[str, InputFormat] = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".jsonlines": "jsonl",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "tsv",
    ".tab": "tsv",
    ".parquet": "parquet",
    ".pq": "parquet",
    ".txt": "txt",
    ".text": "txt",
}
_COMPRESSIONS = {".gz", ".gzip", ".zst", ".zstd"}


@dataclass(frozen=True)
class InputFile:
    """One file of the input.

    Attributes:
        path: Where it is, on this machine or on an object store.
        name: What it is called in problems: its path within the input folder, or its own name.
        format: How its rows are written.
        size: Bytes on disk, compressed ones if it is compressed.
    """

    path: Path | StoredFile
    name: str
    format: InputFormat
    size: int

    def open(self) -> IO[bytes]:
        """Open the file for reading."""
        if isinstance(self.path, StoredFile):
            return self.path.open()
        return self.path.open("rb")


@dataclass(frozen=True)
class InputDescription:
    """What the input consists of.

    Attributes:
        files: In the order in which they are read; none for standard input, pipes and Python.
        left_out: Names of what in the folder is not read, for its extension or as hidden.
        total_bytes: Sum of the sizes; None where it is not known.
    """

    files: tuple[InputFile, ...]
    left_out: tuple[str, ...]
    total_bytes: int | None


def describe_input(source: Source, options: InputOptions | None = None) -> InputDescription:
    """Find the files of an input and their sizes, without reading them.

    Files in a folder are sorted by their path within it, so that the order is the same everywhere.
    Links to folders are not followed.

    Raises:
        InputError: If there are none, or a single one has no known format.
    """
    options = options or InputOptions()
    if not isinstance(source, str | Path) or is_pipe(source):
        return InputDescription(files=(), left_out=(), total_bytes=None)
    if isinstance(source, str) and is_url(source):
        return _describe_stored(source, options)
    path = Path(source)
    try:
        if path.is_dir():
            files, left_out = _find_files(path, options)
        else:
            files, left_out = [_describe_file(path, path.name, options)], []
    except FileNotFoundError:
        raise InputError(f"there is no file or folder {str(path)!r}") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from None
    except ValueError as error:  # e.g. a NUL in the name
        raise InputError(f"{str(path)!r} cannot be the path of a file: {error}") from None
    total = sum(file.size for file in files)
    return InputDescription(files=tuple(files), left_out=tuple(left_out), total_bytes=total)


def is_pipe(source: str | Path) -> bool:
    """Tell whether this is standard input, or a path that can be read only once."""
    if source == STANDARD_INPUT:
        return True
    if is_url(source):
        return False
    try:
        mode = Path(source).stat().st_mode
    except (OSError, ValueError):
        return False
    return stat.S_ISFIFO(mode) or stat.S_ISCHR(mode) or stat.S_ISSOCK(mode)


def find_format(name: str) -> InputFormat | None:
    """Return the format that a file's name tells, None if none."""
    path = Path(name)
    if path.suffix.lower() in _COMPRESSIONS:
        path = path.with_suffix("")
    return _FORMATS.get(path.suffix.lower())


def _describe_stored(url: str, options: InputOptions) -> InputDescription:
    """Find the files at a URL; see `describe_input`."""
    found, is_folder = find_stored_files(url)
    excluded = tuple(f"{place}".rstrip("/") + "/" for place in options.leave_out)
    files: list[InputFile] = []
    left_out: list[str] = []
    for name, stored in found:
        is_hidden = any(piece.startswith(".") for piece in name.split("/"))
        is_output = f"{url.rstrip('/')}/{name}".startswith(excluded)
        if is_folder and (is_hidden or is_output or find_format(name) is None):
            left_out.append(name)
        else:
            files.append(_make_file(stored, name, options, stored.size))
    if not files:
        raise InputError(
            f"{url} holds no file that is read: expected names that end in {', '.join(_FORMATS)}"
        )
    return InputDescription(
        files=tuple(files),
        left_out=tuple(left_out),
        total_bytes=sum(file.size for file in files),
    )


def _describe_file(path: Path, name: str, options: InputOptions) -> InputFile:
    return _make_file(path, name, options, path.stat().st_size)


def _make_file(path: Path | StoredFile, name: str, options: InputOptions, size: int) -> InputFile:
    found = options.format or find_format(name)
    if found is None:
        raise InputError(
            f"the name {name!r} does not tell its format: expected one of {', '.join(_FORMATS)}, "
            "with .gz or .zst after it if it is compressed; or name the format"
        )
    return InputFile(path=path, name=name, format=found, size=size)


def _find_files(folder: Path, options: InputOptions) -> tuple[list[InputFile], list[str]]:
    excluded = {Path(path).resolve() for path in options.leave_out}
    files: list[InputFile] = []
    left_out: list[str] = []
    for parent, folder_names, file_names in os.walk(folder, onerror=_raise):
        for name in list(folder_names):
            path = Path(parent, name)
            if name.startswith(".") or path.is_symlink() or path.resolve() in excluded:
                folder_names.remove(name)
                left_out.append(path.relative_to(folder).as_posix() + "/")
        for name in file_names:
            path = Path(parent, name)
            inner_name = path.relative_to(folder).as_posix()
            if not _is_input(path, options) or path.resolve() in excluded:
                left_out.append(inner_name)
            else:
                files.append(_describe_file(path, inner_name, options))
    left_out.sort()
    if not files:
        seen = f"; it holds {', '.join(left_out[:5])}" if left_out else ""
        raise InputError(
            f"{folder} holds no file that is read: expected names that end in "
            f"{', '.join(_FORMATS)}{seen}"
        )
    return sorted(files, key=_sort_key), left_out


def _is_input(path: Path, options: InputOptions) -> bool:
    """Tell whether a file in the input's folder is read."""
    if path.name.startswith(".") or not path.is_file():
        return False
    # Spark and its kin write files without extension, and "_SUCCESS" beside them.
    is_named = options.format is not None and not path.name.startswith("_")
    return is_named or find_format(path.name) is not None


def _sort_key(file: InputFile) -> list[str]:
    return file.name.split("/")


def _raise(error: OSError) -> None:
    raise error
