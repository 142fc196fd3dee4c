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
    # Joined first, since one call of the digest costs less than one for each field.
    parts = []
    for field in fields:
        raw = field.encode() if isinstance(field, str) else field
        parts.append(len(raw).to_bytes(8, "little"))
        parts.append(raw)
    return hashlib.blake2b(b"".join(parts), digest_size=16).digest()
