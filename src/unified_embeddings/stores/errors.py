"""What qdrant-client raises, as a StoreError that names collection and operation."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator

from grpc import RpcError
from qdrant_client.common.client_exceptions import QdrantException
from qdrant_client.http.exceptions import ApiException

from unified_embeddings.errors import FingerprintMismatchError, StoreError

_FAILURES = (
    ApiException,
    QdrantException,
    RpcError,
    OSError,
    sqlite3.Error,  # a local mode's files: a full disk, a folder made read-only
    ValueError,
    RuntimeError,
)


@contextlib.contextmanager
def store_errors(collection: str, operation: str) -> Iterator[None]:
    """Turn whatever the client raises into a StoreError that says where.

    ValueError and RuntimeError are what a store in this process raises, the others a server's.
    """
    try:
        yield
    except _FAILURES as error:
        if isinstance(error, FingerprintMismatchError | StoreError):
            raise
        reason = str(error).strip() or type(error).__name__
        raise StoreError(collection, operation, reason) from error
