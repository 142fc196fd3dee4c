"""Errors that qdrant-client raises, as StoreErrors that name the collection and the operation."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator

from grpc import RpcError
from qdrant_client.common.client_exceptions import QdrantException
from qdrant_client.http.exceptions import ApiException, ResponseHandlingException

from unified_embeddings.errors import FingerprintMismatchError, StoreError

_CLIENT_ERRORS = (
    # Raised for a server:
    ApiException,
    QdrantException,
    RpcError,
    OSError,
    # Raised by a store in this process; sqlite3's by local mode on a full or read-only disk:
    sqlite3.Error,
    ValueError,
    RuntimeError,
)


@contextlib.contextmanager
def store_errors(collection: str, operation: str) -> Iterator[None]:
    """Turn whatever a Qdrant client raises into a StoreError.

    Args:
        collection: The collection's name.
        operation: What is being done.

    Raises:
        StoreError: If the client raises. A StoreError or a FingerprintMismatchError passes
            unchanged.
    """
    try:
        yield
    except _CLIENT_ERRORS as error:
        if isinstance(error, FingerprintMismatchError | StoreError):
            raise
        raise StoreError(collection, operation, _describe(error)) from error


@contextlib.contextmanager
def place_errors(place: str, operation: str) -> Iterator[None]:
    """Turn whatever a Qdrant client raises into a StoreError about a folder or a server.

    Args:
        place: The folder or address.
        operation: What is being done.

    Raises:
        StoreError: If the client raises; see `store_errors`.
    """
    try:
        yield
    except _CLIENT_ERRORS as error:
        if isinstance(error, FingerprintMismatchError | StoreError):
            raise
        raise StoreError.of_place(place, operation, _describe(error)) from error


def _describe(error: Exception) -> str:
    """Return what went wrong, and what to look at where no server answers."""
    reason = str(error).strip() or type(error).__name__
    if isinstance(error, ResponseHandlingException) and "Connection refused" in reason:
        return f"{reason}. Is the Qdrant server running, and is this its address?"
    return reason
