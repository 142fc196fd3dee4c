"""The keys of which a request must bring one.

What lives here: reading keys, and comparing without telling by the time it takes. What does not:
the answer to a request without one.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence
from pathlib import Path

from unified_embeddings.errors import InputError

_SCHEME = b"bearer "


def load_keys(listed: str, file: Path | None) -> tuple[str, ...]:
    """Return the API keys that the environment lists and a file holds.

    Args:
        listed: Keys with commas between them.
        file: A file with a key in each line; blank lines and lines with "#" are left out.

    Raises:
        InputError: If the file cannot be read or holds no key, or a key is not ASCII.
    """
    keys = [key.strip() for key in listed.split(",") if key.strip()]
    if file is not None:
        keys += read_keys(file)
    if not all(key.isascii() and key.isprintable() for key in keys):
        raise InputError("an API key must be printable ASCII, as HTTP headers are")
    return tuple(keys)


def read_keys(file: Path) -> tuple[str, ...]:
    """Read API keys from a file: one in each line, blank lines and lines with "#" left out.

    Raises:
        InputError: If the file cannot be read, or holds no key.
    """
    try:
        lines = file.read_text("utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise InputError(f"the file of API keys {file} cannot be read: {error}") from None
    stripped = [line.strip() for line in lines]
    keys = tuple(line for line in stripped if line and not line.startswith("#"))
    if not keys:
        raise InputError(f"the file of API keys {file} holds none; write one in each line")
    return keys


class ApiKeys:
    """Keys of which a request must bring one as `Authorization: Bearer KEY`; none let all in.

    Args:
        keys: The keys, ASCII.
    """

    def __init__(self, keys: Sequence[str]) -> None:
        # Digests have one length, so that not even a key's length shows in the time.
        self._digests = [hashlib.sha256(key.encode()).digest() for key in keys]

    def accept(self, authorization: bytes | None) -> bool:
        """Tell whether a request with this header may pass, in a time that depends on no key."""
        if not self._digests:
            return True
        header = authorization or b""
        given = hashlib.sha256(header[len(_SCHEME) :].strip()).digest()
        is_known = False
        for digest in self._digests:
            is_known |= hmac.compare_digest(digest, given)
        return is_known and header[: len(_SCHEME)].lower() == _SCHEME
