"""Checks of what callers pass, shared by all rooms.

What lives here: checks that raise an InputError which names the argument. What does not: checks of
one class's own options, which stand in that class.
"""

from __future__ import annotations

from collections.abc import Iterable

from unified_embeddings.errors import InputError


def require_whole_number(name: str, value: object, *, least: int = 1) -> int:
    """Return a whole number, and refuse everything else.

    Args:
        name: What the caller calls it, for the message.
        value: What came. A bool is not a number here.
        least: The smallest value allowed.

    Raises:
        InputError: If it is not a whole number, or below `least`.
    """
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise InputError(f"{name} must be a whole number >= {least}, got {value!r}")
    return value


def require_texts(texts: Iterable[str]) -> list[str]:
    """Return the texts as a list, each a str of valid Unicode.

    Args:
        texts: Any number of texts; none gives an empty list.

    Raises:
        InputError: If it is a single text or not a list, or if an item is not a str or holds a lone
            surrogate. The `index` of the first bad item is named.
    """
    if isinstance(texts, str | bytes) or not isinstance(texts, Iterable):
        raise InputError(
            f"expected a list of texts, got {type(texts).__name__}; put a single text into a list"
        )
    items = list(texts)
    for index, item in enumerate(items):
        if not isinstance(item, str):
            raise InputError(f"expected a str, got {type(item).__name__}", index=index)
        try:
            item.encode()
        except UnicodeEncodeError as error:
            raise InputError(
                f"holds a lone surrogate at character {error.start}, which is not valid Unicode; "
                "read the text with the right encoding or errors='replace'",
                index=index,
            ) from None
    return items
