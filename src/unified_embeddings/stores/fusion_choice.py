"""How a collection's rankings are fused, where that was chosen for the collection itself.

What lives here: reading and writing the choice. What does not: choosing (`evaluation.tuning`), and
fusing (`retrievers`).

The choice has a key of its own in the collection's metadata. A server, the embedded store and
qdrant-client's local mode all merge new metadata key by key, and remove a key whose value is None
(seen with qdrant-client 1.18; so says Qdrant's reference of `PATCH /collections/NAME`). So the
choice and the model's record do not touch each other, whichever is written. Clearing and copying
keep metadata as it is.
"""

from __future__ import annotations

from qdrant_client import models as qm

from unified_embeddings.errors import InputError, StoreError
from unified_embeddings.models.fusion import Fusion
from unified_embeddings.stores.errors import store_errors
from unified_embeddings.stores.opening import Client

FUSION_KEY = "unified_embeddings_fusion"
"""Key of the collection's metadata under which the choice is recorded."""


def read_choice(name: str, info: qm.CollectionInfo) -> Fusion | None:
    """Return the fusion that was chosen for a collection; None if none was.

    Args:
        name: The collection's name, for messages.
        info: What Qdrant reports about it.

    Raises:
        StoreError: If the record cannot be read, as if a later version wrote it.
    """
    record = (info.config.metadata or {}).get(FUSION_KEY)
    if record is None:
        return None
    try:
        if not isinstance(record, dict):
            raise InputError(f"expected a mapping, got {record!r:.80}")
        return Fusion.from_dict(record)
    except InputError as error:
        raise StoreError(
            name,
            "reading the fusion chosen for it",
            f"its metadata holds one that this version cannot use: {error}. Choose again "
            "(unified-embeddings tune) or remove it (tune --reset); fusion='model' does without it",
        ) from error


def write_choice(client: Client, name: str, fusion: Fusion | None) -> None:
    """Record a fusion in a collection's metadata, or remove the one that is there.

    Args:
        client: Sync client.
        name: The collection's name.
        fusion: What was chosen; None removes the choice, if there is one.

    Raises:
        StoreError: If Qdrant cannot be reached or refuses, or does not keep the choice.
    """
    record = None if fusion is None else fusion.to_dict()
    with store_errors(name, "recording the fusion chosen for it"):
        client.update_collection(name, metadata={FUSION_KEY: record})
        kept = read_choice(name, client.get_collection(name))
    if kept != fusion:
        raise StoreError(
            name,
            "recording the fusion chosen for it",
            "the store does not keep a collection's metadata; Qdrant does from version 1.16 on",
        )
