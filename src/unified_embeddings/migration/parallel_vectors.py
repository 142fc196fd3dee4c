"""A second collection with the points of a first one and the vectors of further heads.

What lives here: copying the points with vectors added, and letting an alias name the copy. What
does not: adding vectors in place (`added_vectors`). Nothing is deleted here.

The copy is laid out as a collection of ours: an unnamed dense vector gets the usual name, and a
payload of other software becomes LlamaIndex's, with all metadata. The numbers stay as they are.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Mapping, Sequence

from qdrant_client import models as qm

from unified_embeddings.errors import InputError, StoreError
from unified_embeddings.llama.layouts import (
    Payload,
    PayloadReader,
    SourceText,
    UnreadablePoint,
)
from unified_embeddings.migration.heads import (
    Addition,
    VectorParams,
    Vectors,
    Watching,
    check_heads,
    find_lacking,
)
from unified_embeddings.migration.sides import Collection
from unified_embeddings.stores.aliases import read_aliases, switch_alias
from unified_embeddings.stores.copy_points import (
    PointId,
    PointReader,
    check_arrived,
    find_existing,
    plain_id,
)
from unified_embeddings.stores.copying import creation_options, payload_indexes
from unified_embeddings.stores.errors import store_errors
from unified_embeddings.stores.keyword_list import record_keywords
from unified_embeddings.stores.opening import Client, is_local_mode
from unified_embeddings.stores.request_sizes import split_by_size
from unified_embeddings.stores.schema import (
    DENSE_VECTOR,
    dense_vectors,
    record_colbert,
    stored_colbert,
)
from unified_embeddings.stores.stored_colbert import check_stored_colbert

_POINTS_PER_REQUEST = 64
_POINTS_COMPARED = 500
_REQUEST_BYTES = 8 * 2**20
"""As JSON and before vectors are added: what is sent is split once more."""


def copy_with_heads(
    client: Client,
    name: str,
    target: str,
    info: qm.CollectionInfo,
    addition: Addition,
    params: Mapping[str, VectorParams],
    reader: PayloadReader,
    watching: Watching,
) -> tuple[int, dict[str, int]]:
    """Copy a collection's points and add the vectors of heads to them.

    Points that the target has already are skipped, so the same call resumes an interrupted one.

    Args:
        client: Client of the place of both collections.
        name: The collection to copy; it is not changed.
        target: The collection to fill; created if it does not exist.
        info: What Qdrant reports about the first.
        addition: What is added; nothing only copies.
        params: The vectors to add, by their names.
        reader: Reads the points' texts.
        watching: What is told meanwhile.

    Returns:
        How many points were copied, and why some have no new vectors → how many.

    Raises:
        InputError: If the target is the collection itself.
        StoreError: If the target exists and does not fit, or Qdrant fails.
    """
    _prepare_target(client, name, target, info, addition, params)
    if addition.keywords is not None:
        record_keywords(client, target, addition.keywords)
    points_reader = PointReader(
        client, name, info, max_points=_POINTS_PER_REQUEST, max_bytes=_REQUEST_BYTES
    )
    watching.on_total(points_reader.count())
    copied = 0
    problems: Counter[str] = Counter()
    for page_ids in points_reader.id_pages():
        existing = find_existing(client, target, page_ids)
        watching.on_points(len(existing))
        missing_ids = [point_id for point_id in page_ids if point_id not in existing]
        for points in points_reader.requests(missing_ids):
            watching.check()
            problems.update(_send(client, target, addition, reader, points))
            copied += len(points)
            watching.on_points(len(points))
    return copied, dict(problems)


def _prepare_target(
    client: Client,
    name: str,
    target: str,
    info: qm.CollectionInfo,
    addition: Addition,
    params: Mapping[str, VectorParams],
) -> None:
    """Create the target unless it exists, and check that it can take the points."""
    if target == name:
        raise InputError(f"collection {name!r} cannot be copied onto itself; name another")
    local = is_local_mode(client)
    with store_errors(target, "creating the collection"):
        taken_by = read_aliases(client).get(target)
        if taken_by is not None:
            raise StoreError(target, "creating", f"it is an alias of {taken_by!r}; name another")
        if not client.collection_exists(target):
            options = creation_options(info, local=local)
            dense, sparse = _named_params(info), dict(options["sparse_vectors_config"] or {})
            for vector, wanted in params.items():
                if isinstance(wanted, qm.SparseVectorParams):
                    sparse[vector] = wanted
                else:
                    dense[vector] = wanted
            options |= {"vectors_config": dense, "sparse_vectors_config": sparse or None}
            client.create_collection(target, **options)
            if "colbert" in addition.heads:
                record_colbert(client, target, addition.colbert)
        target_info = client.get_collection(target)
    check_heads(target, target_info, addition.embedder, addition.heads)
    if "colbert" in addition.heads:
        check_stored_colbert(target, addition.colbert, stored_colbert(target_info))
    wanted_vectors: dict[str, VectorParams] = {**_named_params(info), **params}
    lacking = find_lacking(target, target_info, wanted_vectors)
    if lacking:
        raise StoreError(
            target,
            "adding vectors",
            f"it exists and lacks the vectors {', '.join(map(repr, lacking))}; name another "
            "collection (--copy-to)",
        )
    with store_errors(target, "indexing the payload"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # local mode warns that an index has no effect there
        for field, index in payload_indexes(info, local=local).items():
            if field not in target_info.payload_schema:
                client.create_payload_index(target, field, field_schema=index)


def _named_params(info: qm.CollectionInfo) -> dict[str, qm.VectorParams]:
    """Return the dense vectors of the copy: those of the collection, each with a name."""
    return {vector or DENSE_VECTOR: params for vector, params in dense_vectors(info).items()}


def _send(
    client: Client,
    target: str,
    addition: Addition,
    reader: PayloadReader,
    points: Sequence[qm.PointStruct],
) -> list[str]:
    """Write points with further vectors, if there are any, and return what is wrong with some."""
    readable: dict[PointId, SourceText] = {}
    problems = []
    for point in points:
        source = reader.read(plain_id(point.id), point.payload)
        if isinstance(source, UnreadablePoint):
            problems.append(source.problem)
        else:
            readable[source.point_id] = source
    added: dict[PointId, Vectors] = {}
    if readable:
        vectors = addition.encode(list(readable.values()))
        added = dict(zip(readable, vectors, strict=True))
    items = []
    for point in points:
        new_vectors = added.get(plain_id(point.id), {})
        complete_point = qm.PointStruct.model_construct(
            id=point.id,
            payload=_payload_of(point, readable),
            vector={**_named(point), **new_vectors},
        )
        items.append((complete_point, new_vectors))
    for complete in split_by_size(items):
        with store_errors(target, "writing points"):
            client.upsert(target, complete)
    check_arrived(client, target, [plain_id(point.id) for point in points])
    return problems


def _named(point: qm.PointStruct) -> dict[str, object]:
    """Return a point's vectors, each with a name."""
    if isinstance(point.vector, dict):
        return {name or DENSE_VECTOR: vector for name, vector in point.vector.items()}
    return {DENSE_VECTOR: point.vector} if point.vector else {}


def _payload_of(point: qm.PointStruct, readable: Mapping[PointId, SourceText]) -> Payload | None:
    """Return LlamaIndex's payload for a point, or the point's own payload if it has no text."""
    source = readable.get(plain_id(point.id))
    return point.payload if source is None else source.payload


def switch_to_copy(
    client: Client, alias: str, name: str, target: str, reader: PayloadReader
) -> None:
    """Let an alias name the copy, at once for all who use it; not if it does already.

    Raises:
        StoreError: If the copy is not complete, the alias names something else by now, or Qdrant
            fails.
    """
    operation = f"switching the alias {alias!r}"
    with store_errors(target, operation):
        if read_aliases(client).get(alias) == target:
            return
        counts = [client.count(each, exact=True).count for each in (name, target)]
    outdated = _find_outdated(client, name, target, reader)
    if counts[0] != counts[1] or outdated:
        problem = f"{name!r} has {counts[0]} points and {target!r} has {counts[1]}"
        if outdated:
            problem += (
                f", of which {len(outdated)} are missing or have another payload, such as "
                f"{outdated[0]!r}"
            )
        raise StoreError(
            target,
            operation,
            f"{problem}: points were added, changed or deleted meanwhile. Delete {target!r} and "
            "run the same command again while nobody writes; the alias stays where it is",
        )
    switch_alias(client, alias, owner=name, to=target)


def _find_outdated(client: Client, name: str, target: str, reader: PayloadReader) -> list[PointId]:
    """Return the ids of the first page of points that the copy does not hold as they are now."""
    copy = Collection(client, target)
    for page in Collection(client, name).pages(_POINTS_COMPARED):
        held = copy.payloads_of(list(page.points))
        outdated = []
        for point_id, payload in page.points.items():
            source = reader.read(point_id, payload)
            expected = payload if isinstance(source, UnreadablePoint) else source.payload
            if held.get(point_id) != expected:
                outdated.append(point_id)
        if outdated:
            return outdated
    return []
