"""Copying collections from one place to another, vectors included: nothing is embedded again.

What lives here: the order of a copy, and which settings it takes along. What must agree before
points may be added to an existing collection is in `copy_checks`, reading the points in
`copy_points`. Both ends are clients with qdrant-client's interface, which the caller opens.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from qdrant_client import models as qm

from unified_embeddings.errors import InputError, StoreError
from unified_embeddings.stores.aliases import read_aliases, read_aliases_of
from unified_embeddings.stores.copy_checks import (
    check_alias,
    check_same_shape,
    read_source_info,
)
from unified_embeddings.stores.copy_points import (
    RESUME_HINT,
    PointId,
    PointReader,
    check_arrived,
    find_existing,
    plain_id,
)
from unified_embeddings.stores.errors import place_errors, store_errors
from unified_embeddings.stores.opening import Client, is_in_process, is_local_mode
from unified_embeddings.stores.schema import PAYLOAD_INDEXES, recorded_model

_REQUEST_BYTES = 16 * 2**20
"""As JSON: half of what a Qdrant server accepts unless configured otherwise."""


@dataclass(frozen=True)
class CopyReport:
    """What a copy did.

    Attributes:
        collection: The collection's name in the source.
        target: Its name in the target.
        created: Whether this copy created the target's collection.
        copied: Points sent.
        already_there: Points skipped because the target had their ids.
        total: Points of the source that are now in the target.
        seconds: Duration of the copy.
        aliases: The collection's aliases in the source.
        aliases_copied: Whether the target has these aliases now.
    """

    collection: str
    target: str
    created: bool
    copied: int
    already_there: int
    total: int
    seconds: float
    aliases: tuple[str, ...]
    aliases_copied: bool


def collection_names(client: Client, place: str) -> list[str]:
    """Return the names of a place's collections, sorted.

    Args:
        client: A client of the place.
        place: What to call it in a message.

    Raises:
        StoreError: If it cannot be reached or refuses.
    """
    with place_errors(place, "listing the collections"):
        return sorted(collection.name for collection in client.get_collections().collections)


def check_copy(
    source: Client,
    target: Client,
    name: str,
    *,
    target_name: str | None = None,
    aliases: bool = False,
) -> qm.CollectionInfo:
    """Refuse a copy that cannot be made; nothing is written.

    An existing collection in the target must have the same vectors (names, sizes, distances, types,
    data types), the same sparse vectors and the same model's fingerprint.

    Args:
        source: Client of the place that holds the collection.
        target: Client of the place to copy to.
        name: The collection's name in the source.
        target_name: Its name in the target; defaults to `name`.
        aliases: Whether its aliases are to be copied too.

    Returns:
        What the source reports about the collection.

    Raises:
        InputError: If it would be copied onto itself.
        StoreError: If it does not exist, does not fit, or a name is taken in the target.
    """
    target_name = target_name or name
    if source is target and name == target_name:
        raise InputError(
            f"collection {name!r} would be copied onto itself; give another place or another name"
        )
    with store_errors(name, "reading the source"):
        info = read_source_info(source, name)
    with store_errors(target_name, "reading the target"):
        target_collections = {
            collection.name for collection in target.get_collections().collections
        }
        target_aliases = read_aliases(target)
        if target_name in target_aliases:
            raise StoreError(
                target_name,
                "copying",
                f"in the target this is an alias of {target_aliases[target_name]!r}; give another "
                "name",
            )
        if aliases:
            for alias in read_aliases_of(source, name):
                check_alias(alias, target_name, target_collections, target_aliases)
        if target_name in target_collections:
            check_same_shape(target_name, info, target.get_collection(target_name))
    return info


def copy_collection(
    source: Client,
    target: Client,
    name: str,
    *,
    target_name: str | None = None,
    overwrite: bool = False,
    aliases: bool = False,
    batch: int = 256,
    request_bytes: int = _REQUEST_BYTES,
    on_total: Callable[[int], None] = lambda _: None,
    on_points: Callable[[int], None] = lambda _: None,
    **settings: int,
) -> CopyReport:
    """Copy a collection: settings, payload indexes, metadata, and every point with its vectors.

    To resume an interrupted copy, make the same call again: points whose ids the target has are
    skipped, and their vectors are not even read. Each page of points is looked up in the target
    after it was written, so that a copy that ends without an error is complete.

    A source that changes meanwhile is no error. Points that are added to or removed from pages that
    were already read are not seen. A point that changes after it was copied stays as it was, unless
    it is copied again with `overwrite`.

    Qdrant returns vectors of cosine distance normalised: their copies have the same direction, and
    length 1. All other vectors arrive unchanged.

    How vectors are stored, indexed and quantised goes along. What belongs to an installation does
    not: shards, replicas, optimisers, the write-ahead log and strict mode are the target's own.

    Args:
        source: Client of the place that holds the collection.
        target: Client of the place to copy to.
        name: The collection's name in the source.
        target_name: Its name in the target; defaults to `name`.
        overwrite: Send all points, also those that the target has.
        aliases: Give the copy the collection's aliases, once it is complete.
        batch: Maximum number of points in a request.
        request_bytes: Maximum size of a request as JSON; a larger point goes alone.
        on_total: Called once with the number of points to go through.
        on_points: Called with the number of points just copied or skipped.
        **settings: Passed to `create_collection` if the target's collection is created:
            shard_number, replication_factor, write_consistency_factor. A folder has none of them.

    Raises:
        InputError: If it would be copied onto itself, or settings are given for a folder.
        StoreError: If `check_copy` refuses it, or one of the places fails meanwhile.
    """
    started = time.monotonic()
    target_name = target_name or name
    if settings and is_in_process(target):
        raise InputError(f"{', '.join(settings)}: only a Qdrant server has such settings")
    info = check_copy(source, target, name, target_name=target_name, aliases=aliases)
    created = _prepare_target(target, target_name, info, settings, local=is_local_mode(source))
    reader = PointReader(source, name, info, max_points=batch, max_bytes=request_bytes)
    on_total(reader.count())
    copied, already_there = _copy_points(
        reader, target, target_name, overwrite=overwrite, on_points=on_points
    )
    source_aliases = read_aliases_of(source, name)
    copies_aliases = aliases and bool(source_aliases)
    if copies_aliases:
        set_aliases(target, target_name, source_aliases)
    return CopyReport(
        collection=name,
        target=target_name,
        created=created,
        copied=copied,
        already_there=already_there,
        total=copied + already_there,
        seconds=round(time.monotonic() - started, 3),
        aliases=source_aliases,
        aliases_copied=copies_aliases,
    )


def _copy_points(
    reader: PointReader,
    target: Client,
    target_name: str,
    *,
    overwrite: bool,
    on_points: Callable[[int], None],
) -> tuple[int, int]:
    """Copy all points; return how many were sent, and how many were skipped."""
    copied = already_there = 0
    for page_ids in reader.id_pages():
        existing: set[PointId] = set()
        if not overwrite:
            existing = find_existing(target, target_name, page_ids)
        if existing:
            already_there += len(existing)
            on_points(len(existing))
        missing_ids = [point_id for point_id in page_ids if point_id not in existing]
        sent_ids: list[PointId] = []
        for points in reader.requests(missing_ids):
            with store_errors(target_name, f"writing to the target ({RESUME_HINT})"):
                target.upsert(target_name, points)
            sent_ids += [plain_id(point.id) for point in points]
            on_points(len(points))
        if sent_ids:
            check_arrived(target, target_name, sent_ids)
        copied += len(sent_ids)
    return copied, already_there


def _prepare_target(
    target: Client,
    name: str,
    source: qm.CollectionInfo,
    settings: dict[str, int],
    *,
    local: bool,
) -> bool:
    """Create the target's collection if it is missing, and the payload indexes that it lacks.

    Args:
        target: The target's client.
        name: The collection's name there.
        source: What the source reports about the collection.
        settings: Further settings of a collection that is created.
        local: Whether the source is qdrant-client's local mode.

    Returns:
        Whether the collection was created.

    Raises:
        StoreError: If the target refuses, or does not keep what the copy needs.
    """
    with store_errors(name, "creating the collection in the target"):
        is_missing = not target.collection_exists(name)
        if is_missing:
            options = creation_options(source, local=local) | settings
            target.create_collection(name, **options)
        info = target.get_collection(name)
    # A server before 1.16 keeps no metadata, so resuming would find no model: fail now rather than
    # on resume.
    check_same_shape(name, source, info)
    with store_errors(name, "indexing the payload in the target"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # local mode warns that an index has no effect there
        for field, index in payload_indexes(source, local=local).items():
            if field not in info.payload_schema:
                target.create_payload_index(name, field, field_schema=index)
    return is_missing


def payload_indexes(source: qm.CollectionInfo, *, local: bool) -> dict[str, qm.PayloadFieldSchema]:
    """Return the payload indexes of a copy, by field."""
    indexes: dict[str, qm.PayloadFieldSchema] = {}
    if local and recorded_model(source) is not None:
        # Local mode has no payload indexes; a server's collection of ours always has these.
        indexes.update(PAYLOAD_INDEXES)
    for field, index in source.payload_schema.items():
        indexes[field] = index.params or index.data_type
    return indexes


def creation_options(source: qm.CollectionInfo, *, local: bool) -> dict[str, Any]:
    """Return the options of `create_collection` that make a collection like the source's."""
    params = source.config.params
    optional = {
        "on_disk_payload": params.on_disk_payload,
        "payload": getattr(params, "payload", None),  # older qdrant-clients lack these two
        "id_tracker": getattr(params, "id_tracker", None),
        "quantization_config": source.config.quantization_config,
        "metadata": source.config.metadata,
    }
    if not local:  # local mode has no index settings of its own and reports Qdrant's defaults
        hnsw_options = source.config.hnsw_config.model_dump(exclude_none=True)
        optional["hnsw_config"] = qm.HnswConfigDiff(**hnsw_options)
    options: dict[str, Any] = {
        "vectors_config": params.vectors or {},
        "sparse_vectors_config": params.sparse_vectors or None,
    }
    for option, value in optional.items():
        if value is not None:
            options[option] = value
    return options


def set_aliases(target: Client, target_name: str, aliases: Sequence[str]) -> None:
    """Let aliases name a collection; one that named another names this one.

    Raises:
        StoreError: If the target refuses.
    """
    operations = [
        qm.CreateAliasOperation(
            create_alias=qm.CreateAlias(collection_name=target_name, alias_name=alias)
        )
        for alias in aliases
    ]
    with store_errors(target_name, "setting the aliases in the target"):
        target.update_collection_aliases(operations)
