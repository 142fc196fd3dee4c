"""Files on an object store, named by a URL such as `s3://bucket/folder`, through fsspec.

What lives here: finding and opening input files there, and uploading outputs so that an upload that
was cut off goes on. What does not: what the files hold (`reader`, `output`).

An upload counts once the store tells the file's size, and its MD5 where it gives one, and the line
that says so stands in the job's own folder. The next run uploads only what has no such line, or is
no longer what the line says.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from unified_embeddings.bulk.job import sha256_of
from unified_embeddings.errors import InputError, MissingExtraError, UnifiedEmbeddingsError

_UPLOADS = "uploads.jsonl"
_BLOCK = 1 << 20


class UploadError(UnifiedEmbeddingsError):
    """An output cannot be uploaded, or is another file on the store; what is computed is kept."""


@dataclass(frozen=True)
class StoredFile:
    """A file on an object store.

    Attributes:
        system: The store, an fsspec file system.
        path: Of the file in it.
        size: Its bytes.
    """

    system: Any
    path: str
    size: int

    def open(self) -> IO[bytes]:
        """Open the file for reading; it is fetched as it is read."""
        handle: IO[bytes] = self.system.open(self.path, "rb")
        return handle


def is_url(place: object) -> bool:
    """Tell whether a place is a URL such as `s3://bucket/folder`, and not a path."""
    return isinstance(place, str) and "://" in place


def find_stored_files(url: str) -> tuple[list[tuple[str, StoredFile]], bool]:
    """Return the files at a URL with their names within it, and whether it is a folder.

    Raises:
        InputError: If the store is unknown, cannot be reached, or has nothing there.
    """
    system, path = _open_system(url)
    try:
        if system.isdir(path):
            found = system.find(path, detail=True)
            folder = path.rstrip("/") + "/"
            files = []
            for name, info in found.items():
                files.append((name.removeprefix(folder), StoredFile(system, name, _size(info))))
            return sorted(files, key=lambda file: file[0].split("/")), True
        size = _size(system.info(path))
    except FileNotFoundError:
        raise InputError(f"there is no file or folder {url!r}") from None
    except Exception as error:  # Each store has errors of its own.
        raise InputError(f"{url} cannot be read: {type(error).__name__}: {error}") from None
    return [(path.rsplit("/", 1)[-1], StoredFile(system, path, size))], False


def require_writable(url: str) -> None:
    """Refuse a store that is unknown or does not answer, before anything is computed.

    Raises:
        InputError: If it is one.
    """
    system, path = _open_system(url)
    try:
        system.makedirs(path, exist_ok=True)
        system.exists(path)
    except Exception as error:
        raise InputError(
            f"{url} cannot be written to: {type(error).__name__}: {error}; give another --output"
        ) from None


def stored_size(url: str, name: str) -> int | None:
    """Return the bytes of a file in a folder on a store; None if it is not there.

    Raises:
        InputError: If the store cannot be read.
    """
    system, folder = _open_system(url)
    try:
        return _size(system.info(f"{folder.rstrip('/')}/{name}"))
    except FileNotFoundError:
        return None
    except Exception as error:
        raise InputError(f"{url} cannot be read: {type(error).__name__}: {error}") from None


def default_work_folder(source: object, output: str) -> Path:
    """Return the folder in the user's cache that a job with outputs on a store works in.

    It follows from the input's and the outputs' places, so that the same command finds it again.

    Raises:
        InputError: If the input is no file or folder, so that nothing tells two jobs apart.
    """
    import platformdirs

    if not isinstance(source, str | os.PathLike) or source == "-":
        raise InputError(
            "with an --output on an object store, rows that are no file need a --work-dir, where "
            "the job keeps its parts"
        )
    place = source if is_url(source) else str(Path(source).absolute())
    key = hashlib.blake2b(json.dumps([str(place), output]).encode(), digest_size=12).hexdigest()
    return platformdirs.user_cache_path("unified-embeddings") / "bulk" / key


def upload_files(files: Sequence[Path], url: str, work_folder: Path) -> list[str]:
    """Upload a job's outputs, except those that an earlier run uploaded.

    Args:
        files: In the order of the upload; what tells that the outputs are whole comes last.
        url: The folder on the store.
        work_folder: The job's own, which remembers what is uploaded.

    Returns:
        The files' URLs.

    Raises:
        UploadError: If the store refuses one, or has another content then.
    """
    system, folder = _open_system(url)
    uploads = work_folder / _UPLOADS
    known = _read_uploads(uploads)
    urls = []
    for file in files:
        target = f"{folder.rstrip('/')}/{file.name}"
        line = {"target": target, "sha256": sha256_of(file)}
        try:
            if known.get(target) != {**line, "mark": _mark(system, target)}:
                system.put_file(str(file), target)
                system.invalidate_cache()
                _verify(system, target, file)
                _add_line(uploads, {**line, "mark": _mark(system, target)})
        except UploadError:
            raise
        except Exception as error:
            raise UploadError(
                f"{file.name} cannot be uploaded to {url}: {type(error).__name__}: {error}. What "
                "is computed is kept; run the same command again to go on"
            ) from None
        urls.append(f"{url.rstrip('/')}/{file.name}")
    return urls


def _open_system(url: str) -> tuple[Any, str]:
    try:
        import fsspec.core
    except ImportError:
        raise MissingExtraError("fsspec, which object stores need,", extra="bulk") from None
    try:
        system, path = fsspec.core.url_to_fs(url)
    except ImportError as error:  # The message names the package to install.
        raise InputError(f"{url}: {error}") from None
    except ValueError as error:
        raise InputError(
            f"{url}: {error}; expected a URL such as s3://bucket/folder, or a path"
        ) from None
    return system, path


def _size(info: Any) -> int:
    return int(info.get("size") or 0)


def _mark(system: Any, target: str) -> str | None:
    """Return what changes when a stored file does; None if there is none."""
    try:
        info = system.info(target)
    except FileNotFoundError:
        return None
    names = ("size", "ETag", "etag", "md5Hash", "generation", "mtime", "created")
    return json.dumps({name: str(info[name]) for name in names if name in info})


def _verify(system: Any, target: str, file: Path) -> None:
    """Compare a stored file with the one that was uploaded.

    Raises:
        UploadError: If its size, or the MD5 that the store gives, is another.
    """
    info = system.info(target)
    if _size(info) != file.stat().st_size:
        raise UploadError(
            f"{target} has {_size(info):,} bytes on the store, but {file.stat().st_size:,} were "
            "uploaded; run the same command again"
        )
    told = _told_md5(info)
    if told is not None and told != _md5(file):
        raise UploadError(f"{target} is damaged on the store; run the same command again")


def _told_md5(info: Any) -> bytes | None:
    """Return the MD5 that Google's or Azure's store gives. S3's ETag is one only at times."""
    content = info.get("content_settings") or {}
    told = info.get("md5Hash") or content.get("content_md5")
    if isinstance(told, str):
        return base64.b64decode(told)
    return bytes(told) if told else None


def _md5(file: Path) -> bytes:
    digest = hashlib.md5(usedforsecurity=False)
    with file.open("rb") as handle:
        for block in _blocks(handle):
            digest.update(block)
    return digest.digest()


def _blocks(handle: IO[bytes]) -> Iterator[bytes]:
    while block := handle.read(_BLOCK):
        yield block


def _read_uploads(file: Path) -> dict[str, dict[str, object]]:
    known: dict[str, dict[str, object]] = {}
    if file.exists():
        for text in file.read_text("utf-8", errors="replace").splitlines():
            with contextlib.suppress(ValueError, KeyError, TypeError):
                line = json.loads(text)
                known[line["target"]] = line
    return known


def _add_line(file: Path, line: dict[str, object]) -> None:
    with file.open("a", encoding="utf-8") as handle:
        handle.write(json.dumps(line) + "\n")
        handle.flush()
        os.fsync(handle.fileno())
