"""How deeply payloads and requests may be nested.

Qdrant's core acknowledges a payload of any depth and logs it. When it reads its log back, or a
stored payload, it stops at a fixed depth and then refuses the whole collection. So what is too deep
is refused before the core sees it. The limits are measured (ADR 18) and a server's are close: its
JSON parser stops at 127 levels.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from pydantic import BaseModel

from unified_embeddings.errors import InputError

PAYLOAD_DEPTH = 123
"""Dicts and lists within each other, the payload itself included, that an upsert reads back."""
FILTER_DEPTH = 124
"""Objects and lists within each other that a filter may have as JSON; 61 filters in one another."""
PREFETCH_DEPTH = 60
"""Prefetches within each other, which a server's JSON parser takes as well."""


def check_payload_depth(content: Any, *, above: int = 0) -> None:
    """Refuse a payload that the core could not read back.

    Args:
        content: The payload as JSON has it: dicts, lists and values.
        above: How many levels it will be stored below the top of the point's payload.

    Raises:
        InputError: If it is nested too deeply.
    """
    if is_deeper(content, PAYLOAD_DEPTH - above):
        raise payload_depth_error()


def payload_depth_error() -> InputError:
    """Return the error for a payload that is nested too deeply, or contains itself."""
    return InputError(
        f"the payload is nested more than {PAYLOAD_DEPTH} levels deep, which could be stored but "
        "not read back; store the deep part as a JSON string"
    )


def check_filter_depth(given: object) -> None:
    """Refuse a filter that is nested too deeply, or contains itself.

    Raises:
        InputError: If it is.
    """
    if is_deeper(given, FILTER_DEPTH):
        raise InputError(
            f"the filter is nested too deeply: at most {FILTER_DEPTH} levels of objects and lists"
        )


def check_prefetch_depth(request: Any) -> None:
    """Refuse a query whose prefetches are nested too deeply, or contain each other.

    Raises:
        InputError: If they are.
    """
    level = _prefetches(request)
    for _ in range(PREFETCH_DEPTH):
        inner = [inner for prefetch in level for inner in _prefetches(prefetch)]
        if not inner:
            return
        level = list({id(prefetch): prefetch for prefetch in inner}.values())
    raise InputError(f"the prefetches are nested more than {PREFETCH_DEPTH} levels deep")


def is_deeper(value: object, limit: int) -> bool:
    """Tell whether objects and lists are nested more than `limit` levels deep.

    Works level by level, not by recursion, so that it answers for any depth and for a value that
    contains itself. An object that a level contains more than once counts once.

    Args:
        value: JSON, or qdrant-client's models.
        limit: Levels, the value itself included.
    """
    level = [value] if _is_nested(value) else []
    for _ in range(limit):
        children = [child for node in level for child in _children(node) if _is_nested(child)]
        if not children:
            return False
        level = list({id(child): child for child in children}.values())
    return bool(level)


def path_depth(path: str) -> int:
    """Return how many levels below the top a JSON path leads: 3 for `a.b[0]`.

    A path that the core cannot parse may give any number.
    """
    depth = 1
    is_quoted = False
    for character in path:
        if character == '"':
            is_quoted = not is_quoted
        elif character in ".[" and not is_quoted:
            depth += 1
    return depth


def _is_nested(value: object) -> bool:
    return isinstance(value, dict | list | tuple | BaseModel)


def _children(node: Any) -> Iterable[object]:
    if isinstance(node, dict):
        return node.values()
    if isinstance(node, BaseModel):
        return _field_values(node)
    return list(node)


def _field_values(model: BaseModel) -> list[object]:
    """Return the values of a model's fields; a filter's single condition counts as a list."""
    values = [getattr(model, name, None) for name in type(model).model_fields]
    clauses = ("must", "should", "must_not")
    for name in clauses:
        clause = getattr(model, name, None)
        if isinstance(clause, BaseModel):
            values.append([clause])
    return values


def _prefetches(request: Any) -> list[Any]:
    prefetch = getattr(request, "prefetch", None)
    if prefetch is None:
        return []
    return list(prefetch) if isinstance(prefetch, list | tuple) else [prefetch]
