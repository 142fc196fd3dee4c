"""Records in a collection's metadata, each under a key of its own.

What lives here: writing a record so that it is known to be kept. What does not: what a record
means (`fusion_choice`, `calibration_record`, `keyword_list`, `schema`).

A server, the embedded store and qdrant-client's local mode all merge new metadata key by key, and
remove a key whose value is None (seen with qdrant-client 1.18; so says Qdrant's reference of
`PATCH /collections/NAME`). So records do not touch each other, whichever is written. Clearing and
copying keep metadata as it is.
"""

from __future__ import annotations

from collections.abc import Mapping

from qdrant_client import models as qm

from unified_embeddings.errors import StoreError
from unified_embeddings.stores.errors import store_errors
from unified_embeddings.stores.opening import Client


def read_record(info: qm.CollectionInfo, key: str) -> object:
    """Return what a collection records under a key; None if nothing."""
    return (info.config.metadata or {}).get(key)


def write_record(
    client: Client, name: str, key: str, record: Mapping[str, object] | None, *, operation: str
) -> None:
    """Record something in a collection's metadata, or remove what is there.

    Args:
        client: Sync client.
        name: The collection's name.
        key: The record's own key.
        record: What is recorded, fit for JSON; None removes the record, if there is one.
        operation: What is being done, for messages.

    Raises:
        StoreError: If Qdrant cannot be reached or refuses, or does not keep the record.
    """
    with store_errors(name, operation):
        client.update_collection(name, metadata={key: record})
        kept = read_record(client.get_collection(name), key)
    if kept != record:
        raise StoreError(
            name,
            operation,
            "the store does not keep a collection's metadata; Qdrant does from version 1.16 on",
        )
