"""What a bulk job is, and which of its parts are done.

What lives here: the job's description, its folder, the manifest of finished parts, and resuming.
What does not: computing a part (`worker`), cutting rows into parts (`planning`).

A part is done when its line stands in the manifest, and the line is written after the part's file
is published. After a crash there may be a file without a line, which is removed, and half a line,
which is ignored; both parts are computed again.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from unified_embeddings.errors import InputError, UnifiedEmbeddingsError
from unified_embeddings.system.files import (
    FileLock,
    LockHeldError,
    LockUnsupportedError,
    make_folder,
    remove_litter,
    replace_file,
    scratch_folder,
    sync_folder,
)

FORMAT = 1
"""Version of the folder's layout. A folder of another version is refused."""
_DESCRIPTION = "job.json"
_LOCK = ".lock"
_MANIFEST = "manifest.jsonl"
_BLOCK = 1 << 20


@dataclass(frozen=True)
class PartLine:
    """One line of the manifest: a finished part.

    Attributes:
        part: Its number, from 0.
        first_row: Number of its first row in the input, from 0.
        rows: How many rows it covers.
        rows_digest: Of what stands in those rows, and of which repeat earlier ones, as hex digits.
        sha256: Of its file.
        bytes: Size of its file.
        computed: Rows whose vectors were computed in it.
        failed: Rows without vectors.
        tokens: Tokens that ran through the model.
        truncated: Texts that were cut.
        seconds: Spent computing.
    """

    part: int
    first_row: int
    rows: int
    rows_digest: str
    sha256: str
    bytes: int
    computed: int
    failed: int
    tokens: int
    truncated: int
    seconds: float


@dataclass
class Totals:
    """The sums over the finished parts.

    Attributes:
        rows: Rows that they cover.
        computed: Rows whose vectors were computed.
        failed: Rows without vectors.
        tokens: Tokens that ran through the model.
        truncated: Texts that were cut.
        seconds: Spent computing, over all workers.
    """

    rows: int = 0
    computed: int = 0
    failed: int = 0
    tokens: int = 0
    truncated: int = 0
    seconds: float = 0.0

    @property
    def repeated(self) -> int:
        """Return the rows that share another row's vectors."""
        return self.rows - self.computed - self.failed

    def add(self, line: PartLine, sign: int = 1) -> None:
        """Add a part to the sums, or with -1 take it out."""
        self.rows += sign * line.rows
        self.computed += sign * line.computed
        self.failed += sign * line.failed
        self.tokens += sign * line.tokens
        self.truncated += sign * line.truncated
        self.seconds += sign * line.seconds


class OtherJobError(UnifiedEmbeddingsError):
    """The folder belongs to another job, or the input has changed."""


class JobFolder:
    """The folder of a bulk job, held by one process at a time.

    Args:
        folder: Where outputs go; made if it is missing.

    Raises:
        InputError: If it cannot be made or written to, or another run holds it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            make_folder(folder)
            self._lock = FileLock(folder / _LOCK)
        except LockHeldError:
            raise InputError(
                f"another run is working in {folder}; wait for it, or give another --output"
            ) from None
        except LockUnsupportedError as error:
            raise InputError(
                f"{folder} is on a file system without locks ({error}); give another --output"
            ) from None
        except OSError as error:
            raise InputError(
                f"cannot write to {folder}: {error.strerror or error}; give another --output"
            ) from None
        remove_litter(folder)

    def __enter__(self) -> JobFolder:
        return self

    def __exit__(self, *_: object) -> None:
        self._lock.release()

    def has_parts(self, name: str) -> bool:
        """Tell whether there are parts of a model."""
        return (self._parts_folder / name / _DESCRIPTION).exists()

    def drop_parts(self, name: str) -> None:
        """Remove a model's parts: all of them or, if the process is killed, none."""
        with scratch_folder(self.folder) as scratch:
            (self._parts_folder / name).rename(scratch / name)
            sync_folder(self._parts_folder)
        with contextlib.suppress(OSError):  # Other models' parts are in it.
            self._parts_folder.rmdir()

    def find_failures(self) -> dict[str, list[Path]]:
        """Return the parts in which rows failed, in order, of each model in the folder."""
        found: dict[str, list[Path]] = {}
        for folder in sorted(self._parts_folder.glob("*")):
            with contextlib.suppress(OSError, ValueError, KeyError):
                model = json.loads((folder / _DESCRIPTION).read_text("utf-8"))["model"]
                lines = read_manifest(folder / _MANIFEST)
                numbers = sorted(number for number, line in lines.items() if line.failed)
                found[model] = [folder / part_name(number) for number in numbers]
        return found

    @property
    def _parts_folder(self) -> Path:
        return self.folder / "parts"

    def open_model(self, name: str, description: Mapping[str, object]) -> Journal:
        """Open the parts of one model, to begin or to resume.

        Args:
            name: The model's name as its files have it.
            description: All that decides what its parts hold; plain JSON values.

        Raises:
            OtherJobError: If the folder holds parts of another job.
        """
        return Journal(self._parts_folder / name, description)


class Journal:
    """The finished parts of one model.

    Args:
        folder: Of its parts; made if it is missing.
        description: All that decides what the parts hold.

    Raises:
        OtherJobError: If the folder holds parts that were made otherwise.
    """

    def __init__(self, folder: Path, description: Mapping[str, object]) -> None:
        self.folder = folder
        make_folder(folder)
        remove_litter(folder)
        self._manifest = folder / _MANIFEST
        _require_same_job(folder / _DESCRIPTION, {"format": FORMAT, **description})
        self._lines = read_manifest(self._manifest)
        self.totals = Totals()
        for line in self._lines.values():
            self.totals.add(line)
        self._handle = self._open_manifest()
        self.damaged = self._drop_orphans()

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._handle)

    @property
    def lines(self) -> tuple[PartLine, ...]:
        """Return the finished parts, in the order of their rows."""
        return tuple(self._lines[number] for number in sorted(self._lines))

    def line(self, number: int) -> PartLine:
        """Return a finished part's line."""
        return self._lines[number]

    def part_path(self, number: int) -> Path:
        """Return the path of a part's file."""
        return self.folder / part_name(number)

    def is_done(self, number: int, rows_digest: str) -> bool:
        """Tell whether a part is finished, and its file is what was written.

        Raises:
            OtherJobError: If it is finished, but its rows were others.
        """
        line = self._lines.get(number)
        if line is None:
            return False
        if line.rows_digest != rows_digest:
            raise OtherJobError(
                f"the input has changed since {self.folder} was begun: rows {line.first_row} to "
                f"{line.first_row + line.rows - 1} are others now. Give another --output, or "
                "delete that folder to begin anew"
            )
        return True

    def add(self, line: PartLine) -> None:
        """Write down that a part is finished; its file is published by now.

        Raises:
            OSError: If the disk is full. The line then does not count.
            UnifiedEmbeddingsError: If the folder was removed meanwhile.
        """
        status = os.fstat(self._handle)
        if not status.st_nlink:
            raise UnifiedEmbeddingsError(
                f"{self.folder} was removed while the job ran, and what was finished with it; run "
                "the same command to begin anew"
            )
        size = status.st_size
        data = (json.dumps(dataclasses.asdict(line)) + "\n").encode()
        try:
            if os.write(self._handle, data) != len(data):
                raise OSError(28, "No space left on device")
            os.fsync(self._handle)
        except OSError:
            with contextlib.suppress(OSError):
                os.ftruncate(self._handle, size)
            raise
        self._lines[line.part] = line
        self.totals.add(line)

    def forget(self, numbers: Sequence[int]) -> None:
        """Forget parts, so that they are computed again."""
        if not numbers:
            return
        for number in numbers:
            self.totals.add(self._lines.pop(number), sign=-1)
        content = "".join(json.dumps(dataclasses.asdict(line)) + "\n" for line in self.lines)
        os.close(self._handle)
        replace_file(self._manifest, content.encode())
        self._handle = self._open_manifest()
        for number in numbers:
            self.part_path(number).unlink(missing_ok=True)

    def _open_manifest(self) -> int:
        handle = os.open(self._manifest, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        # Half a line of a write that was cut off would swallow the next one.
        size = os.fstat(handle).st_size
        if size and os.pread(handle, 1, size - 1) != b"\n":
            os.write(handle, b"\n")
        sync_folder(self.folder)
        return handle

    def _drop_orphans(self) -> tuple[int, ...]:
        """Remove parts without a line, and forget lines whose file is not what it was.

        Returns:
            The numbers of the parts whose file is damaged or gone.
        """
        known = {self.part_path(number).name for number in self._lines}
        for file in self.folder.glob("part-*"):
            if file.name not in known:
                file.unlink()
        damaged = []
        for line in self.lines:
            if not _is_whole(self.part_path(line.part), line):
                damaged.append(line.part)
        self.forget(damaged)
        return tuple(damaged)


def read_manifest(path: Path) -> dict[int, PartLine]:
    """Return a manifest's whole lines by their parts; what was cut off by a crash is none."""
    lines: dict[int, PartLine] = {}
    if not path.exists():
        return lines
    for text in path.read_text("utf-8", errors="replace").splitlines():
        with contextlib.suppress(ValueError, TypeError):
            line = PartLine(**json.loads(text))
            lines[line.part] = line
    return lines


def part_name(number: int) -> str:
    """Return the name of a part's file."""
    return f"part-{number:08d}.npz"


def sha256_of(path: Path) -> str:
    """Return a file's SHA-256 as hex digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        for block in _blocks(file.fileno()):
            digest.update(block)
    return digest.hexdigest()


def _blocks(handle: int) -> Iterator[bytes]:
    while block := os.read(handle, _BLOCK):
        yield block


def _is_whole(path: Path, line: PartLine) -> bool:
    try:
        return path.stat().st_size == line.bytes and sha256_of(path) == line.sha256
    except OSError:
        return False


def _require_same_job(file: Path, description: Mapping[str, object]) -> None:
    """Write a job's description down, or compare it with the one that is there.

    Raises:
        OtherJobError: If that is another; what differs is named.
    """
    wanted = json.loads(json.dumps(description))
    if not file.exists():
        replace_file(file, json.dumps(wanted, indent=1, ensure_ascii=False).encode())
        return
    try:
        there = json.loads(file.read_text("utf-8"))
    except ValueError:
        raise OtherJobError(f"{file} is damaged; delete {file.parent} to begin anew") from None
    differences = []
    for key in sorted({*wanted, *there}):
        if wanted.get(key) != there.get(key):
            differences.append(f"{key} is {wanted.get(key)!r:.60}, was {there.get(key)!r:.60}")
    if differences:
        raise OtherJobError(
            f"{file.parent} holds parts of another job: {'; '.join(differences)}. Give another "
            "--output, or delete that folder to begin anew"
        )
