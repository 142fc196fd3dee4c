"""Arguments of the client's methods: their types, and which options an embedded store refuses."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Iterator, Sequence
from typing import TypeAlias

from qdrant_client import models as qm

from unified_embeddings.errors import InputError
from unified_embeddings.stores.edge.translation import unsupported
from unified_embeddings.types import FloatArray

WithPayload: TypeAlias = bool | Sequence[str] | qm.PayloadSelector
WithVectors: TypeAlias = bool | Sequence[str]
Query: TypeAlias = (
    int
    | str
    | uuid.UUID
    | Sequence[float]
    | Sequence[Sequence[float]]
    | FloatArray
    | qm.SparseVector
    | qm.Query
)
"""A point's id, a vector or one of qdrant-client's queries."""


@contextlib.contextmanager
def errors_at(index: int) -> Iterator[None]:
    """Give an InputError the position of what it is about."""
    try:
        yield
    except InputError as error:
        raise InputError(error.problem, index=index) from error


def refuse_server_options(method: str, **options: object) -> None:
    """Refuse options that only a server has.

    Raises:
        InputError: If one of them is given; it names the first one.
    """
    for name, value in options.items():
        if value is not None:
            raise unsupported(f"{method}({name}=...)")


def refuse_strict_mode(config: qm.StrictModeConfig | None) -> None:
    """Refuse limits that only a server holds its callers to; switched off, they mean nothing.

    Raises:
        InputError: If they are switched on.
    """
    if config is not None and config.enabled:
        raise unsupported("strict_mode_config(enabled=True)")


def refuse_several(**numbers: int | None) -> None:
    """Refuse more than one shard or replica.

    Raises:
        InputError: If a number is given that is not 1.
    """
    for name, number in numbers.items():
        if number not in (None, 1):
            raise unsupported(f"{name}={number}")
