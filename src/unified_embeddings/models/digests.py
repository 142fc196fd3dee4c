"""Digests of model files: of their whole content, computed once and remembered.

What lives here: SHA-256 of a file, whence it is known without reading the file, and the samples
that earlier versions took. What does not: which files make a model (`identity`).

A digest of a model is part of each collection's fingerprint. A change to what is digested would
make every existing collection look as if it came from another model.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import time
from collections.abc import Iterable
from pathlib import Path

from unified_embeddings.system.files import make_folder, replace_file

DIGEST_BYTES = 12
"""Bytes of a model's digest: 24 hex digits."""

_LOG = logging.getLogger(__name__)
_BLOCK = 2**20
"""Bytes read at once."""
_WORTH_REMEMBERING = 4 * 2**20
"""Bytes from which on a digest is remembered. Below, reading the file takes 10 ms at most."""
_SETTLED = 2.0
"""Seconds for which a file must have been unchanged to be remembered. A file system's clock is
coarse: two changes within one of its ticks leave the same times behind."""
_SHA256 = re.compile("[0-9a-f]{64}")
_SAMPLES = 256
_SAMPLE_BYTES = 4096


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file's whole content, as 64 hex digits.

    The file is read once. Later calls, in other processes too, find the digest in the user's cache
    folder as long as the file's path, size, times and inode are the same. A file that
    huggingface_hub has downloaded need not be read at all: it is named after its digest.

    Raises:
        OSError: If it is missing or cannot be read.
    """
    real_path = Path(os.path.realpath(path))
    state = _state_of(real_path)
    if state["size"] < _WORTH_REMEMBERING:
        return _read_digest(real_path)
    note = _note_path(real_path)
    noted = _read_note(note)
    if noted is not None and noted["state"] == state:
        return str(noted["sha256"])
    named = _digest_in_name(real_path)
    # A download that is not as it was when it was noted does not deserve its name any more.
    is_untouched = noted is None
    digest = named if named and is_untouched else _read_digest(real_path)
    if _state_of(real_path) == state and _is_settled(state):
        _write_note(note, {"path": str(real_path), "state": state, "sha256": digest})
    return digest


def content_digest(files: Iterable[Path]) -> str:
    """Return 24 hex digits that tell the whole content of some files from any other.

    Raises:
        OSError: If a file is missing or cannot be read.
    """
    digest = hashlib.blake2b(digest_size=DIGEST_BYTES)
    for path in files:
        digest.update(bytes.fromhex(file_digest(path)))
    return digest.hexdigest()


# --- reading and remembering ------------------------------------------------------------------


def _read_digest(path: Path) -> str:
    digest = hashlib.sha256()
    buffer = bytearray(_BLOCK)
    view = memoryview(buffer)
    with path.open("rb", buffering=0) as file:
        while read := file.readinto(buffer):
            digest.update(view[:read])
    return digest.hexdigest()


def _state_of(path: Path) -> dict[str, int]:
    """Return what changes when a file does."""
    stat = path.stat()
    return {
        "size": stat.st_size,
        "mtime": stat.st_mtime_ns,
        "ctime": stat.st_ctime_ns,
        "inode": stat.st_ino,
        "device": stat.st_dev,
    }


def _is_settled(state: dict[str, int]) -> bool:
    # Windows has the time of creation in place of the time of the last change, whatever it was.
    changed = state["mtime"] if os.name == "nt" else state["ctime"]
    return time.time() - changed / 1e9 > _SETTLED


def _digest_in_name(path: Path) -> str | None:
    """Return the digest that huggingface_hub has named a downloaded file after, if it is one.

    The file's folder is `models--owner--name/blobs`. Small files, which are not in the hub's large
    file storage, have a shorter name there.
    """
    in_hub_cache = path.parent.name == "blobs" and path.parent.parent.name.startswith("models--")
    return path.name if in_hub_cache and _SHA256.fullmatch(path.name) else None


def _note_path(path: Path) -> Path:
    """Return the file in the user's cache folder that remembers a file's digest."""
    import platformdirs

    name = hashlib.blake2b(os.fsencode(path), digest_size=16).hexdigest()
    return platformdirs.user_cache_path("unified-embeddings") / "digests" / f"{name}.json"


def _read_note(note: Path) -> dict[str, object] | None:
    try:
        content = json.loads(note.read_bytes())
    except (OSError, ValueError, RecursionError):  # none, or a damaged one
        return None
    if not isinstance(content, dict) or content.pop("checksum", None) != _checksum(content):
        return None
    return content


def _write_note(note: Path, content: dict[str, object]) -> None:
    try:
        make_folder(note.parent)
        replace_file(note, json.dumps({**content, "checksum": _checksum(content)}).encode())
    except OSError as error:  # a cache folder that cannot be written costs time, and nothing else
        _LOG.debug("The digest of %s is not remembered: %s", content["path"], error)


def _checksum(content: dict[str, object]) -> str:
    canonical = json.dumps(content, sort_keys=True).encode()
    return hashlib.blake2b(canonical, digest_size=16).hexdigest()


# --- as earlier versions did it -------------------------------------------------------------------


def read_content(path: Path) -> bytes:
    """Return a file's size and content; a missing file counts as an empty one.

    The size goes first, so that the end of one file and the start of the next cannot be confused.
    """
    content = path.read_bytes() if path.is_file() else b""
    return len(content).to_bytes(8, "little") + content


def sample_content(path: Path) -> bytes:
    """Return a large file's size, and 256 blocks of 4 KiB spread evenly through it.

    Two files that differ only between the blocks cannot be told apart by them, which is why this
    serves to recognise what earlier versions have recorded, and for nothing else.
    """
    size = path.stat().st_size
    parts = [size.to_bytes(8, "little")]
    with path.open("rb") as file:
        for i in range(_SAMPLES):
            file.seek(i * size // _SAMPLES)
            parts.append(file.read(_SAMPLE_BYTES))
    return b"".join(parts)
