"""Files that survive a crash: scratch folders, publishing, locks and free space.

What lives here: the one promise that everything this package writes for good is made with. What
does not: what the files contain, and what an error in writing them means to the caller.

The promise: whenever the process is killed or the power fails, a path holds its old content or its
new content (or nothing, while an incomplete folder is replaced), never a mixture, and what a
function has published stays. Three steps keep it. Content
is written into a scratch folder next to its target, hence on the same file system. It is flushed
to disk. It is renamed into place, and the folder's own list of names is flushed too.

A killed process leaves its scratch folder behind. The next one that needs a scratch folder in the
same place removes it. A lock that each scratch folder holds tells litter from work in progress.
"""

from __future__ import annotations

import contextlib
import errno
import os
import platform
import re
import secrets
import shutil
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

_SCRATCH_NAME = re.compile(r"\.unified-embeddings-(?P<machine>[0-9a-f]{8})-[0-9a-f]{16}")
_LOCK = "lock"
_WORK = "work"
_ABANDONED_AFTER = 24 * 3600
"""Seconds after which another machine's scratch folder counts as litter."""
_IN_THE_WAY = {errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR}
"""What a rename reports if its target holds a folder with content, or a file."""
if sys.platform == "win32":
    _IN_THE_WAY.add(errno.EACCES)
_PUBLISH_ATTEMPTS = 100
"""Races that a publish loses at most; on Windows a lost race looks like a lack of permission."""
_ZEROS = bytes(64 * 2**10)  # as much as is copied at a time
_MIB = 2**20


class LockHeldError(OSError):
    """The lock is held already, by another process or elsewhere in this one."""


class LockUnsupportedError(OSError):
    """The file system does not offer locks."""


class NoSpaceError(OSError):
    """The disk has less space than is needed."""

    def __init__(self, problem: str) -> None:
        super().__init__(problem)
        self.errno = errno.ENOSPC


class FileLock:
    """An exclusive lock on a file, held from construction until `release`.

    It excludes other processes and other holders in this one. The system releases it when the
    process ends, however that happens.

    Args:
        path: The file to lock.
        create: Whether to create the file if it is missing.

    Raises:
        LockHeldError: If somebody else holds it. This does not wait.
        LockUnsupportedError: If the file system does not offer locks.
        OSError: If the file cannot be opened.

    Example:
        >>> lock = FileLock(Path("store.lock"))
        >>> FileLock(Path("store.lock"))
        Traceback (most recent call last):
        ...
        unified_embeddings.system.files.LockHeldError: store.lock is locked
        >>> lock.release()
    """

    def __init__(self, path: Path, *, create: bool = True) -> None:
        import portalocker  # Here, since it takes 20 ms and most processes lock nothing.

        self._file = path.open("a+" if create else "r+")
        try:
            portalocker.lock(self._file, portalocker.LOCK_EX | portalocker.LOCK_NB)
            # The former holder may have deleted the file after this one opened it. A lock on a
            # file without a name excludes nobody.
            if not os.path.samestat(os.fstat(self._file.fileno()), path.stat()):
                raise LockHeldError(f"{path} was replaced")
        except portalocker.AlreadyLocked as error:
            self._file.close()
            raise LockHeldError(f"{path} is locked") from error
        except portalocker.LockException as error:
            self._file.close()
            raise LockUnsupportedError(str(error)) from error
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> FileLock:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def release(self) -> None:
        """Release the lock. Idempotent."""
        import portalocker

        if self._file.closed:
            return
        # Closing the file would not do: a forked child has a copy of the handle, and the lock
        # would last as long as that child.
        with contextlib.suppress(OSError, portalocker.LockException):
            portalocker.unlock(self._file)
        self._file.close()


# --- scratch folders ----------------------------------------------------------------------------


@contextlib.contextmanager
def scratch_folder(parent: Path) -> Iterator[Path]:
    """Make an empty folder inside `parent` to prepare files in, and remove it on exit.

    Create `parent` if it is missing. Remove what killed processes have left there first; the
    scratch folders of living processes are left alone.

    Yields:
        The empty folder. What is finished in it can be published anywhere within `parent`.

    Raises:
        OSError: If the folder cannot be created.
    """
    make_folder(parent)
    remove_litter(parent)
    folder, lock = _make_scratch(parent)
    try:
        work = folder / _WORK
        work.mkdir()
        yield work
    finally:
        _remove_scratch(folder, lock)


def remove_litter(parent: Path) -> None:
    """Remove the scratch folders in `parent` that killed processes have left.

    What cannot be removed stays for the next call.
    """
    for folder in list(parent.iterdir()):
        name = _SCRATCH_NAME.fullmatch(folder.name)
        if name is not None:
            with contextlib.suppress(OSError):
                _remove_if_abandoned(folder, machine=name["machine"])


def _remove_if_abandoned(folder: Path, *, machine: str) -> None:
    # A lock that is taken on one machine need not be seen on another that shares the folder (NFS,
    # Lustre), so that age alone tells there.
    if machine != _this_machine() and time.time() - folder.stat().st_mtime < _ABANDONED_AFTER:
        return
    try:
        lock = FileLock(folder / _LOCK, create=False)
    except FileNotFoundError:
        # Between two steps of being made or removed, and then empty. Only that can go here.
        folder.rmdir()
        return
    _remove_scratch(folder, lock)


def _make_scratch(parent: Path) -> tuple[Path, FileLock | None]:
    """Create and lock a scratch folder; None for the lock if the file system has no locks."""
    while True:
        folder = parent / f".unified-embeddings-{_this_machine()}-{secrets.token_hex(8)}"
        folder.mkdir()
        try:
            return folder, FileLock(folder / _LOCK)
        except LockUnsupportedError:
            # Nobody can lock it, so nobody takes it for litter.
            return folder, None
        except (LockHeldError, FileNotFoundError):
            # Another process took it for litter in the moment before it was locked.
            continue


def _remove_scratch(folder: Path, lock: FileLock | None) -> None:
    """Remove a scratch folder, content first.

    The lock file goes last and while it is locked, so that a removal that is killed halfway leaves
    something that the next process recognises as litter.
    """
    shutil.rmtree(folder / _WORK, ignore_errors=True)
    if lock is None:
        shutil.rmtree(folder, ignore_errors=True)
        return
    is_empty = not (folder / _WORK).exists()
    if is_empty:
        _remove_shell(folder)
    lock.release()
    if is_empty and sys.platform == "win32":
        _remove_shell(folder)  # Windows keeps open files, the locked one included.


def _remove_shell(folder: Path) -> None:
    with contextlib.suppress(OSError):
        (folder / _LOCK).unlink()
        folder.rmdir()


def _this_machine() -> str:
    """Return eight digits that tell machines, and containers, apart."""
    return f"{zlib.crc32(platform.node().encode()):08x}"


# --- publishing ---------------------------------------------------------------------------------


def publish_folder(
    folder: Path, target: Path, *, is_complete: Callable[[Path], bool] | None = None
) -> None:
    """Move a finished folder to its final path, atomically and durably.

    Two processes may publish to the same path at once.

    Args:
        folder: A folder inside a scratch folder of `target`'s parent.
        target: Its final path, missing or an empty folder.
        is_complete: If given, `target` may hold something else. A target for which this is true is
            kept, since another process was first. Any other is replaced; if the process is killed
            at this moment, `target` is missing.

    Raises:
        OSError: If `target` is in use or cannot be written.
    """
    sync_tree(folder)
    for attempts_left in reversed(range(_PUBLISH_ATTEMPTS)):
        with contextlib.suppress(OSError):
            target.rmdir()  # Windows does not rename onto an empty folder, unlike POSIX.
        try:
            folder.replace(target)
            break
        except OSError as error:
            if is_complete is None:
                raise
            if not os.path.lexists(target):
                # What was in the way may have been moved by another process since.
                if error.errno in _IN_THE_WAY and attempts_left:
                    continue
                raise
            if is_complete(target):
                return
        with contextlib.suppress(FileNotFoundError):  # Then another process has moved it.
            target.replace(folder.with_name(f"replaced-{secrets.token_hex(8)}"))
    sync_folder(target.parent)


def publish_file(file: Path, target: Path) -> None:
    """Move a finished file to its final path, atomically and durably, replacing what is there.

    Args:
        file: A file inside a scratch folder of `target`'s parent.
        target: Its final path.

    Raises:
        OSError: If `target` cannot be written; it is then as it was.
    """
    sync_file(file)
    file.replace(target)
    sync_folder(target.parent)


def replace_file(target: Path, content: bytes) -> None:
    """Write a whole file, atomically and durably, replacing what is there.

    Raises:
        OSError: If it cannot be written; it is then as it was.

    Example:
        >>> replace_file(Path("catalog.json"), b"{}")
        >>> Path("catalog.json").read_bytes()
        b'{}'
    """
    with scratch_folder(target.parent) as scratch:
        file = scratch / target.name
        file.write_bytes(content)
        publish_file(file, target)


def make_folder(folder: Path) -> None:
    """Create a folder and its missing parents durably.

    Raises:
        OSError: If it cannot be created, or is a file.
        ValueError: If there cannot be such a path.
    """
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    for path in reversed(missing):
        path.mkdir(exist_ok=True)
        sync_folder(path.parent)
    folder.mkdir(exist_ok=True)  # Raises if it is a file.


# --- flushing -----------------------------------------------------------------------------------


def sync_tree(folder: Path) -> None:
    """Flush a folder, and every file and folder in it, to disk.

    The folder may be in use: a file that is renamed or removed meanwhile is passed over.

    Raises:
        OSError: If a file cannot be flushed.
    """
    for parent, _, names in os.walk(folder, topdown=False):
        for name in names:
            path = Path(parent, name)
            if not path.is_symlink():
                with contextlib.suppress(FileNotFoundError):
                    sync_file(path)
        sync_folder(Path(parent))


def sync_file(file: Path) -> None:
    """Flush a file's content to disk.

    Raises:
        OSError: If it cannot be flushed.
    """
    if sys.platform == "win32":
        # Windows flushes only handles that may write. A file that may not be written was not
        # written now: it is linked here.
        if os.access(file, os.W_OK):
            _sync_handle(file, os.O_RDWR)
    else:
        _sync_handle(file, os.O_RDONLY)


def sync_folder(folder: Path) -> None:
    """Flush a folder's list of names to disk, on file systems that allow it."""
    with contextlib.suppress(OSError):
        _sync_handle(folder, os.O_RDONLY)


def _sync_handle(path: Path, flags: int) -> None:
    handle = os.open(path, flags)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


# --- free space ---------------------------------------------------------------------------------


def free_space(path: Path) -> int:
    """Return the bytes that are free where `path` is, or will be once it is created."""
    return shutil.disk_usage(existing_part(path)).free


def require_space(path: Path, needed: int) -> None:
    """Refuse to go on if the disk has less than `needed` bytes free.

    Args:
        path: Where they are to be written; it need not exist yet.
        needed: Bytes.

    Raises:
        NoSpaceError: If there are fewer. The message says how many there are, and how many are
            needed.
    """
    free = free_space(path)
    if free < needed:
        raise NoSpaceError(
            f"the disk of {existing_part(path)} has {free / _MIB:,.1f} MiB free, "
            f"{needed / _MIB:,.1f} MiB are needed"
        )


def existing_part(path: Path) -> Path:
    """Return the longest part of a path that exists."""
    absolute = path.absolute()
    return next(parent for parent in (absolute, *absolute.parents) if parent.exists())


# --- copying ------------------------------------------------------------------------------------


def copy_with_holes(source: str, target: str) -> None:
    """Copy a file, leaving holes for blocks of zeros, as a `copy_function` of `shutil.copytree`.

    The files of Qdrant's core are mostly zeros.
    """
    with Path(source).open("rb") as reading, Path(target).open("wb") as writing:
        while block := reading.read(len(_ZEROS)):
            if block == _ZEROS[: len(block)]:
                writing.seek(len(block), os.SEEK_CUR)
            else:
                writing.write(block)
        writing.truncate(reading.tell())
