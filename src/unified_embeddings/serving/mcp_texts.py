"""Values cut to a size that a model can read.

What lives here: cutting, always with a note. What does not: which values there are (`mcp_tools`).
"""

from __future__ import annotations

from typing import TypeVar, cast

from unified_embeddings.serving.mcp_schemas import LONGEST_LIST, LONGEST_VALUE

Value = TypeVar("Value")


def shorten(text: str, width: int) -> str:
    """Return a text, or its beginning with a note of how much is missing."""
    if len(text) <= width:
        return text
    return f"{text[:width]} [cut: the first {width:,} of {len(text):,} characters]"


def cut_values(value: Value) -> Value:
    """Return a value of JSON with long texts and long lists cut at all depths."""
    if isinstance(value, str):
        return cast("Value", shorten(value, LONGEST_VALUE))
    if isinstance(value, list | tuple):
        items = [cut_values(item) for item in value[:LONGEST_LIST]]
        if len(value) > LONGEST_LIST:
            items.append(f"[cut: the first {LONGEST_LIST} of {len(value):,} items]")
        return cast("Value", items)
    if isinstance(value, dict):
        items_cut = {
            shorten(str(key), LONGEST_VALUE): cut_values(item)
            for key, item in list(value.items())[:LONGEST_LIST]
        }
        if len(value) > LONGEST_LIST:
            items_cut["[cut]"] = f"the first {LONGEST_LIST} of {len(value):,} keys"
        return cast("Value", items_cut)
    return value
