"""What the cache's entries are: keys that digest fields, values that are vectors."""

from __future__ import annotations

import hashlib
from typing import TypeAlias

from unified_embeddings.types import FloatArray, SparseVector

Key: TypeAlias = bytes


Value: TypeAlias = "FloatArray | SparseVector"


def key_for(*fields: str | bytes) -> bytes:
    """Digest fields into a key: BLAKE2b over each field preceded by its length.

    The length prefix keeps ("ab", "c") and ("a", "bc") apart.

    Raises:
        UnicodeEncodeError: If a field holds lone surrogates.
    """
    digest = hashlib.blake2b(digest_size=16)
    for field in fields:
        raw = field.encode() if isinstance(field, str) else field
        digest.update(len(raw).to_bytes(8, "little"))
        digest.update(raw)
    return digest.digest()
