"""Plain dicts and lists where qdrant-client's models are meant.

A client of a server passes its arguments to pydantic, so `{"must": [...]}` is a filter to it. The
same dicts are taken here, and a misspelt key in one is refused.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from pydantic import TypeAdapter, ValidationError

from unified_embeddings.errors import InputError


def coerce(kind: Any, value: Any, subject: str) -> Any:
    """Return a value as one of qdrant-client's models.

    Args:
        kind: The model, or a union of models and other types.
        value: What the caller gave. None and a model of the right kind are returned as they are:
            a model was validated when it was made.
        subject: What it is, for messages: "the filter".

    Raises:
        InputError: If it is neither such a model nor a dict that makes one.
    """
    if value is None:
        return None
    try:
        return _adapter(kind).validate_python(value)
    except ValidationError as error:
        raise InputError(f"{subject} cannot be used: {_describe(error)}") from error
    except RecursionError as error:
        raise InputError(f"{subject} cannot be used: it is nested too deeply") from error


def coerce_dict(kind: Any, value: Any, subject: str) -> Any:
    """Return a dict as one of qdrant-client's models, and anything else as it is."""
    if isinstance(value, dict):
        return coerce(kind, value, subject)
    return value


@cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def _describe(error: ValidationError) -> str:
    """Return the first of pydantic's complaints with the place that it is about."""
    first = error.errors(include_url=False, include_input=False)[0]
    place = ".".join(map(str, first["loc"]))
    return f"{place}: {first['msg']}" if place else str(first["msg"])
