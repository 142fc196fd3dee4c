"""How a collection's rankings are fused, where that was chosen for the collection itself.

What lives here: reading and writing the choice. What does not: choosing (`evaluation.tuning`), and
fusing (`search.fusing`).
"""

from __future__ import annotations

import shlex

from qdrant_client import models as qm

from unified_embeddings.errors import InputError, StoreError
from unified_embeddings.models.fusion import Fusion
from unified_embeddings.stores.opening import Client
from unified_embeddings.stores.records import read_record, write_record

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
    record = read_record(info, FUSION_KEY)
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
            f"its metadata holds one that this version cannot use: {error}. fusion='model' does "
            f"without it; to remove it: unified-embeddings tune {shlex.quote(name)} --reset",
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
    operation = "recording the fusion chosen for it"
    write_record(client, name, FUSION_KEY, record, operation=operation)
