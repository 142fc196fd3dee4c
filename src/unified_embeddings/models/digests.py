"""Digests that tell the content of model files apart.

What lives here: what of a file goes into a digest. What does not: which files make a model
(`checkpoint`).

A digest of a model is part of each collection's fingerprint. A change to anything here would make
every existing collection look as if it came from another model.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

DIGEST_BYTES = 12
"""Bytes of a digest: 24 hex digits."""
_SAMPLES = 256
_SAMPLE_BYTES = 4096


def content_digest(files: Iterable[Path]) -> str:
    """Return 24 hex digits that tell the content of large files from any other, by sampling.

    Raises:
        OSError: If a file is missing or cannot be read.
    """
    digest = hashlib.blake2b(digest_size=DIGEST_BYTES)
    for path in files:
        digest.update(sample_content(path))
    return digest.hexdigest()


def read_content(path: Path) -> bytes:
    """Return a small file's size and content; a missing file counts as an empty one.

    The size goes first, so that the end of one file and the start of the next cannot be confused.
    """
    content = path.read_bytes() if path.is_file() else b""
    return len(content).to_bytes(8, "little") + content


def sample_content(path: Path) -> bytes:
    """Return a large file's size, and 256 blocks of 4 KiB spread evenly through it.

    2 GB of weights take milliseconds. Two fine-tunings of one model differ in nearly every block.
    """
    size = path.stat().st_size
    parts = [size.to_bytes(8, "little")]
    with path.open("rb") as file:
        for i in range(_SAMPLES):
            file.seek(i * size // _SAMPLES)
            parts.append(file.read(_SAMPLE_BYTES))
    return b"".join(parts)
