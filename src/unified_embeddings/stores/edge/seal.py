"""Checksums of a shard's files: written when it is closed, verified before it is next opened.

    shards/<id>/checksums.json          the seal: each file's size and checksum, and how many points
    shards/<id>/checksums-before.json   the last seal, of a shard that was opened since

What lives here: the seal. What does not: what is done about a file that is not as it was (`shard`).

Qdrant's core checks little of what it reads. A damaged file can end the process, keep it busy for
ever, or change vectors and ids without a word. So the files are compared with their seal first. A
shard that is open has no seal, since the core writes to mapped files at any time. After a crash
there is only the last seal, for the files of indexed segments, which are never written to; for the
others, `probe` opens the shard in another process first.

Reading gigabytes takes time. A file whose times and place on disk are those in the seal was not
written since, and only `unified-embeddings check` reads it again: a disk that forgets a bit changes
no times.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import time
import zlib
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from unified_embeddings.system.files import replace_file, sync_file, sync_folder, sync_tree

SEAL = "checksums.json"
_LAST_SEAL = "checksums-before.json"
_FORMAT = 1
_BLOCK = 128 * 2**10
_ZEROS = bytes(_BLOCK)
_INDEXES = "/payload_index/"
"""Part of the paths of all files of payload indexes."""
_COARSEST_CLOCK = 2 * 10**9
"""Nanoseconds within which a file system may give two writes the same time (FAT: two seconds)."""
_LARGE_PARTS = (
    "chunk_", "page_", "matrix", "links", "graph", "inverted_index", "point_to_values",
    "values_to_points",
)  # fmt: skip
"""How the names of files begin that hold the points. Opening and reading do not change them."""
_FIXED_FILES = (
    "id_tracker.mappings", "matrix.dat", "quantized.data", "quantized.offsets.data", "graph.bin",
    "links_compressed.bin", "inverted_index.dat", "quantized.config.json", "quantized.meta.json",
)  # fmt: skip
"""Files of an indexed segment that are never written to: changed points go to another segment."""
_IDS_OF_INDEXED = "/id_tracker.mappings"
"""How the path of the file ends that an indexed segment has, and no other."""
_FIXED_INDEX_FILES = (
    "counts_per_hash.bin", "counts_per_hash_block_index.bin", "data.bin", "data_block_index.bin",
    "deleted.bin", "deleted_points.dat", "histogram_borders.bin", "histogram_config.json",
    "mmap_field_index_config.json", "point_to_tokens_count.dat", "point_to_values.bin",
    "points_map.bin", "points_map_block_index.bin", "points_map_ids.bin", "postings.dat",
    "values_to_points.bin", "vocab.dat",
)  # fmt: skip
"""Files of an indexed segment's payload indexes, which change only if an index is made anew.

The two of what is deleted are of points without a value when the index was made. What is deleted
later stands in `id_tracker.deleted` alone.
"""
_FIXED_VECTOR_FOLDERS = ("offsets", "store", "vectors")
"""Folders of an indexed segment's sparse vectors and multi-vectors that are never written to."""
_LASTING_FILES = (
    *_FIXED_FILES, "version.info", "segment.json", "mutable_id_tracker.mappings", "chunk_0.mmap",
    "page_0.dat", "tracker.dat",
)  # fmt: skip
"""Files that are there as long as their segment. Without some of them the core loads it empty."""


@dataclass(frozen=True)
class FileRecord:
    """What a seal knows of one file.

    Attributes:
        size: Its length in bytes.
        checksum: CRC-32 of its content, see `_checksum`.
        state: What the file system says of it (see `_state`); None if it was written so shortly
            before that its times would not tell a later change.
    """

    size: int
    checksum: int
    state: tuple[int, ...] | None

    def has_content_of(self, other: FileRecord | None) -> bool:
        """Tell whether two records are of the same content."""
        return other is not None and (self.size, self.checksum) == (other.size, other.checksum)


@dataclass(frozen=True)
class Seal:
    """The checksums of a shard's files.

    Attributes:
        points: How many points it holds.
        files: Path relative to the shard's folder → its record.
        core: The version of Qdrant's core that wrote the files; "" if it was not recorded.
    """

    points: int
    files: Mapping[str, FileRecord] = field(default_factory=dict)
    core: str = field(default_factory=lambda: version("qdrant-edge-py"))


def write_seal(folder: Path, points: int, *, unchanged: Seal | None = None) -> Seal:
    """Seal a closed shard, durably.

    Args:
        folder: The shard's folder; nobody writes to it.
        points: How many points it holds.
        unchanged: The last seal, if nothing was written since. Files with points whose state is
            in it are then not read again. None reads all but those of indexed segments, which
            are never written to.

    Raises:
        OSError: If a file cannot be read, or the seal not be written.
    """
    now = time.time_ns()
    last = unchanged or _read(folder / _LAST_SEAL) or Seal(points=0)
    lasting_parts = _FIXED_FILES if unchanged is None else (*_LARGE_PARTS, *_FIXED_FILES)
    # A seal that outlives a loss of power must not speak of files that did not.
    if unchanged is None:
        sync_tree(folder)
    records = {}
    for name in _file_names(folder):
        file = folder / name
        stat = file.stat()
        record = last.files.get(name)
        is_known = record is not None and record.state == _state(stat)
        if not is_known or not file.name.startswith(lasting_parts):
            state = _state(stat) if _is_settled(stat, now) else None
            record = FileRecord(stat.st_size, _checksum(file), state)
            if not record.has_content_of(last.files.get(name)):
                sync_file(file)
                sync_folder(file.parent)
        assert record is not None
        records[name] = record
    seal = Seal(points=points, files=records)
    replace_file(folder / SEAL, _to_json(seal).encode())
    forget_last_seal(folder)
    return seal


def read_seal(folder: Path) -> Seal | None:
    """Return a shard's seal; None if it has none, or one that is damaged itself."""
    return _read(folder / SEAL)


def break_seal(folder: Path) -> None:
    """Take a shard's seal off, durably, before its files change.

    Raises:
        OSError: If it cannot be taken off.
    """
    with contextlib.suppress(FileNotFoundError):
        (folder / SEAL).replace(folder / _LAST_SEAL)
    sync_folder(folder)


def forget_last_seal(folder: Path) -> None:
    """Remove what is left of a seal that was taken off, since files change that never do."""
    (folder / _LAST_SEAL).unlink(missing_ok=True)


def forget_indexes(folder: Path) -> None:
    """Remove the payload indexes from a seal that was taken off, durably, before they change.

    Raises:
        OSError: If it cannot be written.
    """
    seal = _read(folder / _LAST_SEAL)
    if seal is None:
        return
    others = {name: record for name, record in seal.files.items() if _INDEXES not in name}
    if len(others) < len(seal.files):
        changed = Seal(points=seal.points, files=others, core=seal.core)
        replace_file(folder / _LAST_SEAL, _to_json(changed).encode())


def find_damage(folder: Path, seal: Seal, *, read_all: bool = False) -> list[str]:
    """Return what is not as it was when the seal was written, one line per file.

    Args:
        folder: The shard's folder.
        seal: Its seal.
        read_all: Whether to read files too that nobody has written to since.

    Raises:
        OSError: If the folder cannot be read.
    """
    problems = []
    existing = set(_file_names(folder))
    for name, record in sorted(seal.files.items()):
        if name not in existing:
            problems.append(f"{name} is missing")
            continue
        problems += _compare(folder, name, record, read_all=read_all)
    problems += [f"{name} is new" for name in sorted(existing - set(seal.files))]
    return problems


def find_damage_after_crash(folder: Path, *, read_all: bool = False) -> list[str]:
    """Return what is wrong with a shard that was not closed, by its last seal; see `find_damage`.

    That is which files of indexed segments have changed, and which files of any segment are gone.
    Another version of the core may have written such files in another form, so then it is nothing.
    """
    seal = _read(folder / _LAST_SEAL)
    problems: list[str] = []
    if seal is None or seal.core != version("qdrant-edge-py"):
        return problems
    indexed_segments = {
        name.removesuffix(_IDS_OF_INDEXED) for name in seal.files if name.endswith(_IDS_OF_INDEXED)
    }
    for name, record in sorted(seal.files.items()):
        file = folder / name
        is_of_index = _INDEXES in name  # which may have been dropped
        is_fixed = _is_fixed(name, indexed_segments)
        if not file.exists():
            if (is_fixed or file.name in _LASTING_FILES) and not is_of_index:
                problems.append(f"{name} is missing")
        elif is_fixed:
            problems += _compare(folder, name, record, read_all=read_all)
    return problems


def _is_fixed(name: str, indexed_segments: Collection[str]) -> bool:
    """Tell whether a file is never written to."""
    *folders, file_name = name.split("/")
    if file_name in _FIXED_FILES:
        return True
    if "/".join(folders[:2]) not in indexed_segments:
        return False
    if _INDEXES in name:
        return file_name in _FIXED_INDEX_FILES
    return folders[-1] in _FIXED_VECTOR_FOLDERS


def _read(file: Path) -> Seal | None:
    try:
        content = json.loads(file.read_text("utf-8"))
        if content["format"] != _FORMAT or content["checksum"] != _digest(content):
            return None
        return _from_content(content)
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return None


def _compare(folder: Path, name: str, record: FileRecord, *, read_all: bool) -> list[str]:
    """Return what is wrong with a file; it is read unless it was not written to since."""
    stat = (folder / name).stat()
    if stat.st_size != record.size:
        return [f"{name} has {stat.st_size} bytes instead of {record.size}"]
    was_left_alone = record.state is not None and record.state == _state(stat)
    if was_left_alone and not read_all:
        return []
    try:
        checksum = _checksum(folder / name)
    except OSError as error:
        return [f"{name} cannot be read: {error.strerror or error}"]
    return [] if checksum == record.checksum else [f"{name} has another content"]


def _file_names(folder: Path) -> list[str]:
    """Return the paths of a shard's files, but for the seal and what file managers leave."""
    names = []
    for file in folder.rglob("*"):
        path = file.relative_to(folder)
        is_hidden = any(part.startswith(".") for part in path.parts)
        if file.is_file() and not is_hidden and path.name not in (SEAL, _LAST_SEAL):
            names.append(path.as_posix())
    return names


def _state(stat: os.stat_result) -> tuple[int, ...]:
    """Return what a file system changes whenever a file is written, replaced or restored."""
    return (stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino, stat.st_size)


def _is_settled(stat: os.stat_result, now: int) -> bool:
    """Tell whether a later write would get a later time than the file has now."""
    return max(stat.st_mtime_ns, stat.st_ctime_ns) + _COARSEST_CLOCK < now


def _checksum(file: Path) -> int:
    """Return the CRC-32 of a file's blocks that are not all zeros, each with its position.

    The core's files are mostly holes. They read as zeros and take no time here, and a copy that
    fills them has the same checksum.
    """
    checksum = 0
    with file.open("rb", buffering=0) as reading:
        for start in _block_positions(reading.fileno()):
            reading.seek(start)
            block = reading.read(_BLOCK)
            if block != _ZEROS[: len(block)]:
                checksum = zlib.crc32(block, zlib.crc32(start.to_bytes(8, "little"), checksum))
    return checksum


def _block_positions(handle: int) -> Iterator[int]:
    """Yield where the blocks of an open file begin, without those that the file system skips."""
    size = os.fstat(handle).st_size
    position = 0
    while position < size:
        data = position
        if hasattr(os, "SEEK_DATA"):
            try:
                data = os.lseek(handle, position, os.SEEK_DATA)
            except OSError as error:
                if error.errno == errno.ENXIO:
                    return  # nothing but a hole up to the end
        position = max(position, data // _BLOCK * _BLOCK)
        yield position
        position += _BLOCK


def _to_json(seal: Seal) -> str:
    files = {
        name: [record.size, record.checksum, record.state] for name, record in seal.files.items()
    }
    content: dict[str, Any] = {
        "format": _FORMAT, "core": seal.core, "points": seal.points, "files": files
    }  # fmt: skip
    content["checksum"] = _digest(content)
    return json.dumps(content)


def _digest(content: dict[str, Any]) -> str:
    """Return the SHA-256 of a seal's content in one fixed spelling, without the digest itself."""
    described = {name: value for name, value in content.items() if name != "checksum"}
    return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()


def _from_content(content: dict[str, Any]) -> Seal:
    files = {}
    for name, (size, checksum, state) in content["files"].items():
        files[name] = FileRecord(size, checksum, None if state is None else tuple(state))
    return Seal(points=content["points"], files=files, core=content.get("core", ""))
