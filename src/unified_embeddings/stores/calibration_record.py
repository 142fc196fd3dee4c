"""The calibration of relevance that was fitted for a collection, in its metadata.

What lives here: reading and writing it. What does not: fitting it (`evaluation.calibrating`), and
using it (`llama.searched_collection`).
"""

from __future__ import annotations

import shlex

from qdrant_client import models as qm

from unified_embeddings.errors import InputError, StoreError
from unified_embeddings.models.calibration import Calibration
from unified_embeddings.stores.opening import Client
from unified_embeddings.stores.records import read_record, write_record

CALIBRATION_KEY = "unified_embeddings_calibration"
"""Key of the collection's metadata under which it is recorded."""


def read_calibration(name: str, info: qm.CollectionInfo) -> Calibration | None:
    """Return the calibration that was fitted for a collection; None if none was.

    Args:
        name: The collection's name, for messages.
        info: What Qdrant reports about it.

    Raises:
        StoreError: If the record cannot be read, as if a later version wrote it.
    """
    record = read_record(info, CALIBRATION_KEY)
    if record is None:
        return None
    try:
        if not isinstance(record, dict):
            raise InputError(f"expected a mapping, got {record!r:.80}")
        return Calibration.from_dict(record)
    except InputError as error:
        raise StoreError(
            name,
            "reading the calibration fitted for it",
            f"its metadata holds one that this version cannot use: {error}. Fit it again, or "
            f"remove it: unified-embeddings tune {shlex.quote(name)} --calibrate --reset",
        ) from error


def write_calibration(client: Client, name: str, calibration: Calibration | None) -> None:
    """Record a calibration in a collection's metadata, or remove the one that is there.

    Args:
        client: Sync client.
        name: The collection's name.
        calibration: What was fitted; None removes the record, if there is one.

    Raises:
        StoreError: If Qdrant cannot be reached or refuses, or does not keep the record.
    """
    record = None if calibration is None else calibration.to_dict()
    operation = "recording the calibration fitted for it"
    write_record(client, name, CALIBRATION_KEY, record, operation=operation)
