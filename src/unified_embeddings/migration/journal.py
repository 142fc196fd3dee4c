"""The record of one migration, in files that survive a crash at any point.

What lives here: the files, their lock and their history. What does not: the record's fields
(`record`), which state may follow which (`states`), and what a step does.

A migration has a folder of its own with three files:

- `migration.json`, the record, replaced as a whole: a crash leaves the old one or the new one;
- `events.jsonl`, what happened and when, appended;
- `failed.jsonl`, the points that could not be embedded and why, appended.

How other modules use it:

- `Journal.create(folder, record)` starts a migration, `Journal.open(folder)` continues it. Both
  hold the folder's lock until `close` (or the end of a `with` block), so that two processes do not
  work on one migration. `journal.record` is the present record, a frozen
  `record.MigrationRecord`.
- `journal.enter(state, **changes)` goes to a state and changes fields of the record, in one write.
  `journal.update(**changes)` changes fields and keeps the state. `journal.note(event, **facts)`
  appends an event.
- `read_record(folder)`, `read_events(folder)` and `append_event(folder, event, **facts)` need no
  lock: an application that reads, writes and asks while a command migrates uses these.
- `record.serving` is the collection that answers: the source until cut-over, then the target.
- `gate`, `overrides` and `traffic` are plain JSON values, for the modules that decide on the
  switch; nothing here reads them.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from types import TracebackType
from typing import cast

from unified_embeddings.errors import UnifiedEmbeddingsError
from unified_embeddings.migration.line_file import append_lines, read_lines
from unified_embeddings.migration.record import (
    Entered,
    MigrationRecord,
    PointId,
    Side,
    record_from_json,
    record_to_json,
)
from unified_embeddings.migration.states import State, require_transition
from unified_embeddings.system.files import FileLock, LockHeldError, make_folder, replace_file

_RECORD_FILE = "migration.json"
_EVENTS_FILE = "events.jsonl"
_FAILED_FILE = "failed.jsonl"
_LOCK_FILE = "migration.lock"
_PLANNED = "planned"


class JournalError(UnifiedEmbeddingsError):
    """A migration's journal is missing, in use, damaged, or cannot be written."""


@dataclass(frozen=True)
class Event:
    """Something that happened during a migration.

    Attributes:
        time: ISO 8601, in UTC.
        event: What happened, in a word.
        facts: What belongs to it, as plain values.
    """

    time: str
    event: str
    facts: Mapping[str, object]


class Journal:
    """A migration's record, open for writing; the folder is locked until `close`.

    Get one from `create` or `open`.

    Attributes:
        folder: The migration's folder.
        record: The present record.

    Example:
        >>> from pathlib import Path
        >>> from unified_embeddings.migration.journal import Journal, read_record
        >>> from unified_embeddings.migration.record import MigrationRecord
        >>> record = MigrationRecord(
        ...     alias="docs", place={"path": "/data"}, source="docs-1", target="docs-2",
        ...     model={"model_choice": "mini-m3"}, model_name="mini-m3", fingerprint="f",
        ... )
        >>> with Journal.create(Path("migrations/docs"), record) as journal:
        ...     journal.enter("backfilling")
        >>> read_record(Path("migrations/docs")).state
        'backfilling'
    """

    def __init__(self, folder: Path, record: MigrationRecord, lock: FileLock) -> None:
        self.folder = folder
        self.record = record
        self._lock = lock
        self._failed = _read_failed(folder)

    @classmethod
    def create(cls, folder: Path, record: MigrationRecord) -> Journal:
        """Start a migration in a folder that holds none, or one that is planned only.

        Raises:
            JournalError: If the folder holds a migration that has begun, is in use, or cannot be
                written.
        """
        lock = _lock(folder, create=True)
        try:
            require_free(folder)
            journal = cls(folder, record, lock)
            journal._failed = {}
            with _writing(folder):
                replace_file(folder / _FAILED_FILE, b"")
            # Noted first: what a former migration here has noted is no evidence for this one.
            journal.note(_PLANNED, source=record.source, target=record.target)
            journal._write(_entering(record, record.state))
        except BaseException:
            lock.release()
            raise
        return journal

    @classmethod
    def open(cls, folder: Path) -> Journal:
        """Continue the migration in a folder.

        Raises:
            JournalError: If there is none, it is in use by another process or thread, or its files
                cannot be read.
        """
        read_record(folder)  # A folder without a migration is not to be locked, hence not made.
        lock = _lock(folder, create=False)
        try:
            return cls(folder, read_record(folder), lock)
        except BaseException:
            lock.release()
            raise

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Release the folder. Idempotent."""
        self._lock.release()

    def enter(self, state: State, **changes: object) -> None:
        """Go to a state, and change fields of the record, in one write.

        Raises:
            MigrationStateError: If the state may not follow; nothing is changed.
            JournalError: If it cannot be written; the record is then as it was.
        """
        require_transition(self.record.state, state)
        changed = dataclasses.replace(self.record, **changes)  # type: ignore[arg-type]
        is_new = state != self.record.state
        self._write(_entering(changed, state) if is_new else changed)
        if is_new:
            self.note("entered", state=state)

    def update(self, **changes: object) -> None:
        """Change fields of the record, in one write.

        Raises:
            JournalError: If it cannot be written; the record is then as it was.
        """
        self._write(dataclasses.replace(self.record, **changes))  # type: ignore[arg-type]

    def note(self, event: str, **facts: object) -> None:
        """Append an event to the history.

        Raises:
            JournalError: If it cannot be written.
        """
        append_event(self.folder, event, **facts)

    @property
    def failed(self) -> Mapping[PointId, str]:
        """Return the points that have no vectors in the target, and why."""
        return self._failed

    def note_failed(self, problems: Mapping[PointId, str | None]) -> None:
        """Record points that cannot be embedded; None where one has been mended or is gone.

        Raises:
            JournalError: If it cannot be written.
        """
        news = {
            point_id: problem
            for point_id, problem in problems.items()
            if self._failed.get(point_id) != problem
        }
        with _writing(self.folder):
            append_lines(
                self.folder / _FAILED_FILE,
                [{"id": point_id, "problem": problem} for point_id, problem in news.items()],
            )
        for point_id, problem in news.items():
            if problem is None:
                del self._failed[point_id]
            else:
                self._failed[point_id] = problem

    def _write(self, record: MigrationRecord) -> None:
        with _writing(self.folder):
            replace_file(self.folder / _RECORD_FILE, record_to_json(record))
        self.record = record


def require_free(folder: Path) -> None:
    """Refuse a folder with a migration that has begun and is not over.

    Raises:
        JournalError: If it holds one.
    """
    if not (folder / _RECORD_FILE).exists():
        return
    former = read_record(folder)
    if former.state not in ("planned", "retired"):
        raise JournalError(
            f"{folder} holds a migration of {former.alias!r} to {former.target!r} that is "
            f"{former.state!r}: continue it (`migrate status` says how), or give another "
            "--journal"
        )


def read_record(folder: Path) -> MigrationRecord:
    """Return the record of the migration in a folder, without a lock.

    Raises:
        JournalError: If there is none, or it cannot be read.
    """
    path = folder / _RECORD_FILE
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise JournalError(
            f"{folder} holds no migration; make one with `unified-embeddings migrate plan`"
        ) from None
    except OSError as error:
        raise JournalError(f"{path} cannot be read: {error}") from error
    try:
        return record_from_json(content)
    except ValueError as error:
        raise JournalError(f"{path} is no record of a migration: {error}") from error


def read_again(folder: Path, known: MigrationRecord) -> MigrationRecord:
    """Return the record of a migration that is known, as it is now; without a lock.

    Raises:
        JournalError: If it cannot be read, or the folder holds another migration by now, whose
            collections are others.
    """
    record = read_record(folder)
    collections = (record.source, record.target, record.fingerprint)
    if collections != (known.source, known.target, known.fingerprint):
        raise JournalError(
            f"{folder} holds another migration by now, from {record.source!r} to "
            f"{record.target!r}; what was opened is for the one from {known.source!r} to "
            f"{known.target!r}. Open it anew"
        )
    return record


def read_events(folder: Path) -> list[Event]:
    """Return what happened during the migration in a folder since it was planned, the first first.

    The file may hold the events of a migration that was there before, which are left out.

    Raises:
        JournalError: If it cannot be read.
    """
    events: list[Event] = []
    try:
        for line in read_lines(folder / _EVENTS_FILE):
            facts = dict(line)
            time = str(facts.pop("time", ""))
            event = str(facts.pop("event", ""))
            if event == _PLANNED:
                events.clear()
            events.append(Event(time=time, event=event, facts=facts))
    except OSError as error:
        raise JournalError(f"{folder / _EVENTS_FILE} cannot be read: {error}") from error
    return events


def read_failed(folder: Path) -> dict[PointId, str]:
    """Return the points of the migration in a folder that have no vectors, and why; without a lock.

    Raises:
        JournalError: If it cannot be read.
    """
    return _read_failed(folder)


def read_unrepaired(folder: Path, side: Side = "target") -> int:
    """Return how many writes a side lacks, since they reached the other side only.

    A dual-writing store records these as the event "dirty". A comparison of both sides mends the
    target; it is the events "sweeping" and "swept". Nothing mends the source, but somebody may
    decide to continue without: the event "discarded".

    Raises:
        JournalError: If it cannot be read.
    """
    unrepaired = since_sweep_began = 0
    for event in read_events(folder):
        if event.event == "dirty" and event.facts.get("side") == side:
            unrepaired += 1
            since_sweep_began += 1
        elif event.event == "sweeping":
            since_sweep_began = 0
        elif event.event == "swept" and side == "target":
            unrepaired = since_sweep_began
        elif event.event == "discarded" and event.facts.get("side") == side:
            unrepaired = 0
    return unrepaired


def append_event(folder: Path, event: str, **facts: object) -> None:
    """Append an event to a migration's history, without a lock.

    Raises:
        JournalError: If it cannot be written.
    """
    with _writing(folder):
        append_lines(folder / _EVENTS_FILE, [{"time": _now(), "event": event} | facts])


def _entering(record: MigrationRecord, state: State) -> MigrationRecord:
    entered = (*record.entered, Entered(state=state, time=_now()))
    return dataclasses.replace(record, state=state, entered=entered)


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="milliseconds")


def _read_failed(folder: Path) -> dict[PointId, str]:
    path = folder / _FAILED_FILE
    failed: dict[PointId, str] = {}
    try:
        for line in read_lines(path):
            point_id = cast("PointId", line.get("id"))
            problem = line.get("problem")
            if problem is None:
                failed.pop(point_id, None)
            else:
                failed[point_id] = str(problem)
    except OSError as error:
        raise JournalError(f"{path} cannot be read: {error}") from error
    return failed


def _lock(folder: Path, *, create: bool) -> FileLock:
    with _writing(folder):
        if create:
            make_folder(folder)
        try:
            return FileLock(folder / _LOCK_FILE)
        except LockHeldError as error:
            raise JournalError(
                f"the migration in {folder} is being worked on by another process or thread; wait "
                "for it, or stop it"
            ) from error


@contextlib.contextmanager
def _writing(folder: Path) -> Iterator[None]:
    """Turn an OSError into a JournalError that names the folder."""
    try:
        yield
    except OSError as error:
        raise JournalError(
            f"the journal in {folder} cannot be written: {error}. What it recorded so far is kept; "
            "make room and run the command again"
        ) from error
