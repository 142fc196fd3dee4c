"""A server's rules for names and dimensions, so that every collection made here can move there."""

from __future__ import annotations

from unified_embeddings.errors import InputError
from unified_embeddings.stores.edge.settings import Settings

_FORBIDDEN_CHARACTERS = frozenset('<>:"/\\|?*\0\x1f')
_LONGEST_NAME = 255
_LONGEST_VECTOR_NAME = 200
_LARGEST_DIMENSION = 65_536


def check_is_text(name: object) -> None:
    """Refuse a collection's name that is not a string.

    Raises:
        InputError: If it is not.
    """
    if not isinstance(name, str):
        raise InputError(f"a collection's name must be a string, got {name!r:.80}")


def check_name(name: str) -> None:
    """Refuse a name that a server would refuse.

    Raises:
        InputError: If it is empty, too long, a folder's "." or "..", or has a forbidden character.
    """
    is_usable = isinstance(name, str) and name not in ("", ".", "..") and len(name) <= _LONGEST_NAME
    if not is_usable:
        raise InputError(
            f"a name must be a string of 1 to {_LONGEST_NAME} characters, got {name!r:.80}"
        )
    for character in name:
        is_lone_surrogate = "\ud800" <= character <= "\udfff"
        if character in _FORBIDDEN_CHARACTERS or is_lone_surrogate:
            raise InputError(f"a name must not contain {character!r}, got {name!r}")


def check_vectors(settings: Settings) -> None:
    """Refuse vector names and dimensions that a server would refuse.

    Raises:
        InputError: If a name is invalid or used twice, or a dimension is out of range.
    """
    if "" in settings.sparse_vectors:
        raise InputError("a sparse vector needs a name")
    for name in (*settings.vectors, *settings.sparse_vectors):
        if name:
            check_name(name)
        if len(name.encode()) > _LONGEST_VECTOR_NAME:
            raise InputError(f"a vector's name is at most {_LONGEST_VECTOR_NAME} bytes: {name!r}")
    for name, params in settings.vectors.items():
        if not 1 <= params.size <= _LARGEST_DIMENSION:
            raise InputError(
                f"vector {name!r}: size must be 1 to {_LARGEST_DIMENSION}, got {params.size}"
            )
        if name in settings.sparse_vectors:
            raise InputError(f"vector {name!r} cannot be both dense and sparse")
