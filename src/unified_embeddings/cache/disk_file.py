"""The cache's file: opening it, telling it from other files, and replacing a damaged one.

What lives here: the file's schema, its version, and what happens to a file that cannot be used.
What does not: reading and writing rows (`disk_tier`).

A file of our own that is damaged, or of an earlier version, is renamed and a new one is started: it
holds nothing that cannot be computed again. A file that is not recognisably ours is never touched.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sqlite3
import time
from pathlib import Path

from unified_embeddings.errors import InputError
from unified_embeddings.system.files import make_folder

LOCK_TIMEOUT = 30.0
"""Seconds to wait for another process that is writing."""
_LOG = logging.getLogger(__name__)
_VERSION = 2
"""Written into the file (PRAGMA user_version)."""
_APPLICATION = int.from_bytes(b"UEmb", "big")
"""Written into the file too (PRAGMA application_id)."""
_TABLE = (
    "CREATE TABLE vectors (key BLOB PRIMARY KEY, kind INTEGER NOT NULL, width INTEGER NOT NULL, "
    "data BLOB NOT NULL, checksum BLOB NOT NULL, used REAL NOT NULL)"
)
_INDEX = "CREATE INDEX unified_embeddings_by_use ON vectors (used)"
_TABLE_OF_VERSION_1 = (
    "CREATE TABLE vectors (key BLOB PRIMARY KEY, kind INTEGER NOT NULL, width INTEGER NOT NULL, "
    "data BLOB NOT NULL, used REAL NOT NULL)"
)
_MARKS = (b"unified_embeddings_by_use", b"CREATE INDEX by_use ON vectors (used)")
"""What only a file of ours has in its schema: of this version, and of version 1."""
_MAGIC = b"SQLite format 3\0"
_APPLICATION_OFFSET = 68
"""Where SQLite writes the application's id into the file's header."""
_HEAD = 64 * 2**10
"""Bytes at the start of a file that are searched for the marks: its largest page."""
_LOCK_POLL = 0.01
"""Seconds between two attempts to switch the journal mode."""
_ATTEMPTS = 5
"""How often a file is set aside before giving up; more than one if other processes do the same."""


class _UnusableError(Exception):
    """The file is ours, and cannot be used.

    Attributes:
        state: What is wrong with it, as the end of a file's new name: "damaged", "version-1".
        reason: What is wrong with it, in words.
    """

    def __init__(self, state: str, reason: str) -> None:
        super().__init__(reason)
        self.state = state
        self.reason = reason


def open_cache_file(path: Path) -> sqlite3.Connection:
    """Open a cache file; create it, with its folder, if it is missing or has to be set aside.

    Raises:
        InputError: If it cannot be opened, is another program's, or is of a later version.
    """
    try:
        make_folder(path.parent)
        for _ in range(_ATTEMPTS):
            inode = inode_of(path)
            try:
                return _connect(path)
            except _UnusableError as problem:
                set_aside(path, inode, problem.state, problem.reason)
            except FileNotFoundError:  # another process has set it aside meanwhile
                continue
        raise OSError("it is found damaged again and again")
    except (sqlite3.Error, OSError, ValueError) as error:
        raise InputError(
            f"{path} cannot serve as a cache file: {error}. Give the path of a new file, or "
            "delete this one if it is a cache"
        ) from error


def is_damage(error: Exception) -> bool:
    """Tell whether an error says that a file's content is damaged.

    SQLite's codes for that, CORRUPT and NOTADB, are the only ones that Python turns into the base
    class. All others (a full disk, a file that is locked or read-only) have classes of their own.
    A message that quotes damaged text becomes a UnicodeDecodeError.
    """
    return type(error) is sqlite3.DatabaseError or isinstance(error, UnicodeDecodeError)


def set_aside(path: Path, inode: int, state: str, reason: str) -> None:
    """Rename a file that cannot be used, so that a new one can be started in its place.

    Only the last one of each state is kept. A write-ahead log left beside it is removed: it would
    be applied to the new file.

    Args:
        path: The file. No connection to it may be open in this process.
        inode: Of the file that was found unusable. If another process has replaced it, nothing is
            done.
        state: The end of its new name.
        reason: What is wrong with it, in words.

    Raises:
        OSError: If it cannot be renamed.
    """
    if inode_of(path) != inode:
        return
    new_path = path.with_name(f"{path.name}.{state}")
    try:
        path.replace(new_path)
    except FileNotFoundError:  # another process was first
        return
    for suffix in ("-wal", "-shm"):
        with contextlib.suppress(FileNotFoundError):
            path.with_name(path.name + suffix).unlink()
    _LOG.warning(
        "The cache file %s %s. It was moved to %s, which can be deleted, and a new one was "
        "started: its vectors are computed again.",
        path,
        reason,
        new_path.name,
    )


def inode_of(path: Path) -> int:
    """Return a number that tells a file from one that takes its place; 0 if there is none."""
    try:
        return path.stat().st_ino
    except FileNotFoundError:
        return 0


def _connect(path: Path) -> sqlite3.Connection:
    """Open a file and see to its schema.

    Raises:
        _UnusableError: If it is ours, and damaged or of version 1.
        InputError: If it is another program's, or of a later version.
        sqlite3.Error: If it cannot be opened.
    """
    database = sqlite3.connect(path, timeout=LOCK_TIMEOUT, check_same_thread=False)
    try:
        # So that a damaged row of text is bytes too, rather than an error for all rows beside it.
        database.text_factory = bytes
        database.execute("BEGIN IMMEDIATE")
        with database:
            _check_schema(database, path)
        # After the check, since the journal mode is written into the file, which may turn out to
        # be another program's.
        _use_write_ahead_log(database)
        # A transaction may be lost with the power then, but the file stays whole.
        database.execute("PRAGMA synchronous=NORMAL")
    except (sqlite3.Error, UnicodeDecodeError) as error:
        # Before closing it, which may still write what a log holds.
        may_be_damaged = is_damage(error) or _has_damaged_header(path, error)
        is_ours = may_be_damaged and _looks_like_ours(path)
        database.close()
        if is_ours:
            raise _UnusableError("damaged", f"is damaged ({error})") from error
        raise
    except BaseException:
        # An interrupt's traceback would keep the connection, and with it the file's lock.
        database.close()
        raise
    return database


def _check_schema(database: sqlite3.Connection, path: Path) -> None:
    """Create the schema in a new file; refuse any other file that does not have it."""
    (version,) = database.execute("PRAGMA user_version").fetchone()
    schema = {sql for (sql,) in database.execute("SELECT sql FROM sqlite_master") if sql}
    if not schema and version == 0:
        database.execute(_TABLE)
        database.execute(_INDEX)
        database.execute(f"PRAGMA user_version={_VERSION}")
        database.execute(f"PRAGMA application_id={_APPLICATION}")
        return
    if {_TABLE.encode(), _INDEX.encode()} <= schema:
        if version == _VERSION:
            return
        raise _UnusableError("damaged", f"is damaged (its version reads {version})")
    if _TABLE_OF_VERSION_1.encode() in schema and version == 1:
        raise _UnusableError("version-1", "was written by an earlier version, without checksums")
    (application,) = database.execute("PRAGMA application_id").fetchone()
    if application == _APPLICATION and version <= _VERSION:
        raise _UnusableError("damaged", "is damaged (its schema is not a cache's)")
    raise InputError(
        f"{path} is a database of another kind or version (expected cache schema {_VERSION}, found "
        f"{version}); give another path"
    )


def _use_write_ahead_log(database: sqlite3.Connection) -> None:
    """Switch the journal mode, waiting for other connections, which SQLite does not do here."""
    deadline = time.monotonic() + LOCK_TIMEOUT
    while True:
        try:
            database.execute("PRAGMA journal_mode=WAL")
            return
        except sqlite3.OperationalError:
            if time.monotonic() > deadline:
                raise
            time.sleep(_LOCK_POLL)


def _has_damaged_header(path: Path, error: Exception) -> bool:
    """Tell whether an error that has other causes too comes from a damaged header here."""
    message = str(error)
    if "readonly" in message:
        return os.access(path, os.W_OK) and os.access(path.parent, os.W_OK)
    return "unsupported file format" in message


def _looks_like_ours(path: Path) -> bool:
    """Tell whether a file that SQLite cannot read is a cache file of ours, judging by its bytes.

    A file that is cut off within SQLite's header, or holds nothing but zeros, as a power failure
    leaves it, is nobody's.
    """
    with path.open("rb") as file:
        head = file.read(_HEAD)
    application = _APPLICATION.to_bytes(4, "big")
    if head[_APPLICATION_OFFSET : _APPLICATION_OFFSET + 4] == application:
        return True
    if any(mark in head for mark in _MARKS):
        return True
    return not head.strip(b"\0") or (len(head) < 100 and _MAGIC.startswith(head[: len(_MAGIC)]))
