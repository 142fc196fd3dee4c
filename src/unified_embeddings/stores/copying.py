"""Copying collections from one place to another, vectors included: nothing is embedded again.

What lives here: which settings a copy takes along, what must agree before points may be added to a
collection that is there, and the pages it goes in; and opening a folder that qdrant-client's local
mode made, to copy out of it. Opening the places otherwise is the caller's part; both ends are
clients with qdrant-client's interface.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from qdrant_client import models

from unified_embeddings.errors import InputError, StoreError
from unified_embeddings.stores.errors import store_errors
from unified_embeddings.stores.opening import Client, is_in_process, is_local_mode
from unified_embeddings.stores.schema import METADATA_KEY

_IDS_A_PAGE = 1_000
_REQUEST_BYTES = 16 * 2**20  # as JSON: half of what a Qdrant server takes unless told otherwise
_MULTI_VECTORS_A_READ = 16  # Qdrant lets each hold 2**20 numbers, up to 24 MB as JSON
_AGAIN = "run the same copy again to go on"

PointId = int | str


@dataclass(frozen=True)
class CopyReport:
    """What a copy did.

    Attributes:
        collection: The collection's name in the source.
        target: Its name in the target.
        created: Whether the target's collection was made by this copy.
        copied: Points sent.
        already_there: Points left alone because the target had their ids.
        total: Points of the source that are now in the target.
        seconds: How long it took.
        aliases: The names that stand for the collection in the source.
        aliases_copied: Whether they do so in the target now.
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
    """The collections there, sorted.

    Args:
        client: Of the place.
        place: How to call it in a message.

    Raises:
        StoreError: If it cannot be reached or refuses.
    """
    with store_errors(place, "listing the collections"):
        return sorted(one.name for one in client.get_collections().collections)


def check_copy(
    source: Client,
    target: Client,
    name: str,
    *,
    target_name: str | None = None,
    aliases: bool = False,
) -> models.CollectionInfo:
    """Refuse a copy that cannot be made; nothing is written.

    A collection that is there already must have the same vectors (names, sizes, distances, kinds,
    data types), the same sparse vectors and the same model's fingerprint.

    Args:
        source: Where the collection is.
        target: Where it shall be.
        name: Its name in the source.
        target_name: Its name in the target, the same unless given.
        aliases: Whether its aliases are to be copied too.

    Returns:
        What the source says of the collection.

    Raises:
        InputError: If it would be copied onto itself.
        StoreError: If it is not there, does not fit, or a name is taken in the target.
    """
    target_name = target_name or name
    if source is target and name == target_name:
        raise InputError(
            f"collection {name!r} would be copied onto itself; give another place or another name"
        )
    with store_errors(name, "reading the source"):
        info = _source_info(source, name)
    with store_errors(target_name, "reading the target"):
        there = {one.name for one in target.get_collections().collections}
        named = _aliases(target)
        if target_name in named:
            raise StoreError(
                target_name,
                "copying",
                f"in the target this is an alias of {named[target_name]!r}; give another name",
            )
        if aliases:
            for alias in _aliases_of(source, name):
                _check_alias(alias, target_name, there, named)
        if target_name in there:
            _check_fit(target_name, info, target.get_collection(target_name))
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
    **settings: Any,
) -> CopyReport:
    """Copy a collection: settings, payload indexes, metadata, and every point with its vectors.

    A copy that was stopped is gone on with by the same call: points whose ids the target has are
    left alone, and their vectors not even read. Each page of points is looked up in the target
    once it is written, so that a copy that ends without an error is whole. A source that changes
    meanwhile is no error: what is added or removed behind the page being read is not seen, and a
    point changed after it was copied stays as it was unless copied again with `overwrite`.

    Vectors of cosine distance come back from Qdrant normalised and are copied so: exact in
    direction, their length is lost. All others arrive as they are.

    How vectors are kept, indexed and quantised goes along. What belongs to an installation does
    not: shards, replicas, optimisers, the write-ahead log and strict mode are the target's own.

    Args:
        source: Where the collection is.
        target: Where it shall be.
        name: Its name in the source.
        target_name: Its name in the target, the same unless given.
        overwrite: Send all points, those that are there too.
        aliases: Let the source's aliases of the collection stand for the copy too, once it is
            whole.
        batch: Most points of one request.
        request_bytes: Most bytes of one request, as JSON; a bigger point goes alone.
        on_total: Called once with the number of points to go through.
        on_points: Called with the number of points just copied or found to be there.
        **settings: Passed to `create_collection` where the target is made: shard_number,
            replication_factor, write_consistency_factor. A folder has none of them.

    Raises:
        InputError: If it would be copied onto itself, or settings are given for a folder.
        StoreError: If `check_copy` refuses it, or one of the two fails on the way.
    """
    started = time.monotonic()
    target_name = target_name or name
    if settings and is_in_process(target):
        raise InputError(f"{', '.join(settings)}: only a Qdrant server has such settings")
    info = check_copy(source, target, name, target_name=target_name, aliases=aliases)
    created = _prepare(target, target_name, info, settings, local=is_local_mode(source))

    with store_errors(name, "reading the source"):
        on_total(source.count(name, exact=True).count)
    reader = _Reader(source, name, info, batch, request_bytes)
    copied = already = 0
    for ids in _pages(source, name):
        there = set() if overwrite else _present(target, target_name, ids)
        if there:
            already += len(there)
            on_points(len(there))
        sent: list[PointId] = []
        for points in reader.requests([one for one in ids if one not in there]):
            with store_errors(target_name, f"writing to the target ({_AGAIN})"):
                target.upsert(target_name, points)
            sent += [_plain(point.id) for point in points]
            on_points(len(points))
        if sent:
            _check_arrived(target, target_name, sent)
        copied += len(sent)

    names = _aliases_of(source, name)
    if aliases and names:
        _set_aliases(target, target_name, names)
    return CopyReport(
        collection=name,
        target=target_name,
        created=created,
        copied=copied,
        already_there=already,
        total=copied + already,
        seconds=round(time.monotonic() - started, 3),
        aliases=names,
        aliases_copied=aliases and bool(names),
    )


def _source_info(source: Client, name: str) -> models.CollectionInfo:
    """What the source says of a collection that can be copied."""
    there = sorted(one.name for one in source.get_collections().collections)
    if name not in there:
        alias_of = _aliases(source).get(name)
        hint = f"it is an alias of {alias_of!r}, copy that" if alias_of else "it does not exist"
        shown = ", ".join(map(repr, there)) or "none"
        raise StoreError(name, "copying", f"{hint}; collections in the source: {shown}")
    info = source.get_collection(name)
    if info.config.params.sharding_method == models.ShardingMethod.CUSTOM:
        raise StoreError(
            name,
            "copying",
            "its shards are chosen by keys (sharding_method custom), where one id may stand for "
            "several points; only collections with automatic sharding can be copied",
        )
    return info


def _check_fit(name: str, source: models.CollectionInfo, target: models.CollectionInfo) -> None:
    """Refuse a target whose vectors are of another shape or another model."""
    wanted, found = _shape(source), _shape(target)
    differing = [
        f"{part}: {wanted.get(part, 'none')} in the source, {found.get(part, 'none')} in the target"
        for part in sorted(wanted.keys() | found.keys())
        if wanted.get(part) != found.get(part)
    ]
    if differing:
        raise StoreError(
            name,
            "copying",
            f"the target's collection does not fit: {'; '.join(differing)}. Copy under another "
            "name, or delete the target's collection first",
        )


def _shape(info: models.CollectionInfo) -> dict[str, str]:
    """What two collections must have in common, part by part, in words."""
    params = info.config.params
    shape = {"model": _fingerprint(info) or "not said"}
    for name, dense in _dense(params).items():
        datatype = (dense.datatype or models.Datatype.FLOAT32).value
        multi = dense.multivector_config
        kind = f", multi-vector {multi.comparator.value}" if multi else ""
        shape[f"vector {name!r}"] = f"{dense.size} x {dense.distance.value}, {datatype}{kind}"
    for name, sparse in (params.sparse_vectors or {}).items():
        modifier = (sparse.modifier or models.Modifier.NONE).value
        shape[f"sparse vector {name!r}"] = f"modifier {modifier}"
    return shape


def _dense(params: models.CollectionParams) -> dict[str, models.VectorParams]:
    """The dense vectors by name; the unnamed one is called ""."""
    vectors = params.vectors
    return {"": vectors} if isinstance(vectors, models.VectorParams) else dict(vectors or {})


def _fingerprint(info: models.CollectionInfo) -> str | None:
    """Of the model that made the vectors, where the collection says it."""
    ours = (info.config.metadata or {}).get(METADATA_KEY)
    return None if ours is None else str(ours.get("fingerprint"))


def _prepare(
    target: Client,
    name: str,
    source: models.CollectionInfo,
    settings: dict[str, Any],
    *,
    local: bool,
) -> bool:
    """Make the target's collection where it is missing, and the payload indexes it lacks.

    Args:
        target: Where to.
        name: The collection's name there.
        source: What the source says of it.
        settings: Further ones for a collection that is made.
        local: Whether the source is qdrant-client's local mode.

    Returns:
        Whether the collection was made.
    """
    with store_errors(name, "creating the collection in the target"):
        made = not target.collection_exists(name)
        if made:
            target.create_collection(name, **_settings(source, local=local), **settings)
        info = target.get_collection(name)
    # A server before 1.16 keeps no metadata: better said now than when the copy is gone on with.
    _check_fit(name, source, info)
    indexes: dict[str, Any] = {
        field: index.params or index.data_type for field, index in source.payload_schema.items()
    }
    if local and _fingerprint(source) is not None:
        # A folder need not have it; a server's collection of ours always does.
        indexes.setdefault("doc_id", models.PayloadSchemaType.KEYWORD)
    with store_errors(name, "indexing the payload in the target"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # local mode says of each that it has no effect there
        for field, index in indexes.items():
            if field not in info.payload_schema:
                target.create_payload_index(name, field, field_schema=index)
    return made


def _settings(source: models.CollectionInfo, *, local: bool) -> dict[str, Any]:
    """The options of `create_collection` that make a collection like the source's."""
    params = source.config.params
    options: dict[str, Any] = {
        "on_disk_payload": params.on_disk_payload,
        "payload": getattr(params, "payload", None),  # not known to every qdrant-client
        "id_tracker": getattr(params, "id_tracker", None),
        "quantization_config": source.config.quantization_config,
        "metadata": source.config.metadata,
    }
    if not local:  # local mode has no such settings and gives Qdrant's defaults
        given = source.config.hnsw_config.model_dump(exclude_none=True)
        options["hnsw_config"] = models.HnswConfigDiff(**given)
    return {
        "vectors_config": params.vectors or {},
        "sparse_vectors_config": params.sparse_vectors or None,
        **{key: value for key, value in options.items() if value is not None},
    }


class _Reader:
    """Reads points in requests of bounded size; each read learns from the ones before."""

    def __init__(
        self,
        client: Client,
        name: str,
        info: models.CollectionInfo,
        batch: int,
        request_bytes: int,
    ) -> None:
        multi = any(one.multivector_config for one in _dense(info.config.params).values())
        self._client = client
        self._name = name
        self._most = min(batch, _MULTI_VECTORS_A_READ) if multi else batch
        self._bytes = request_bytes
        self._take = 1
        self._biggest = 1

    def requests(self, ids: Sequence[PointId]) -> Iterator[list[models.PointStruct]]:
        """The points with these ids, those gone meanwhile left out, as lists to send."""
        rest = list(ids)
        while rest:
            with store_errors(self._name, f"reading the source ({_AGAIN})"):
                records = self._client.retrieve(
                    self._name, rest[: self._take], with_payload=True, with_vectors=True
                )
            rest = rest[self._take :]
            yield from self._fitting(records)
            # Twice as many at most, as nothing is known of the points to come; and a big one is
            # forgotten by halves, or all after it would go one by one.
            self._take = max(1, min(self._most, 2 * self._take, self._bytes // self._biggest))
            self._biggest = max(1, self._biggest // 2)

    def _fitting(self, records: list[models.Record]) -> Iterator[list[models.PointStruct]]:
        request: list[models.PointStruct] = []
        held = 0
        for record in records:
            # Not validated again: pydantic takes time, and loses a Ctrl-C that comes meanwhile.
            point = models.PointStruct.model_construct(
                id=record.id, vector=record.vector or {}, payload=record.payload
            )
            size = len(point.model_dump_json().encode())
            self._biggest = max(self._biggest, size)
            if request and held + size > self._bytes:
                yield request
                request, held = [], 0
            request.append(point)
            held += size
        if request:
            yield request


def _pages(source: Client, name: str) -> Iterator[list[PointId]]:
    """The ids of all points, a page at a time."""
    offset: Any = None
    while True:
        with store_errors(name, f"reading the source ({_AGAIN})"):
            records, offset = source.scroll(
                name, limit=_IDS_A_PAGE, offset=offset, with_payload=False, with_vectors=False
            )
        yield [_plain(record.id) for record in records]
        if offset is None:
            return


def _present(client: Client, name: str, ids: Sequence[PointId]) -> set[PointId]:
    """Those of the ids that the collection has."""
    if not ids:
        return set()
    with store_errors(name, f"reading the target ({_AGAIN})"):
        found = client.retrieve(name, ids, with_payload=False, with_vectors=False)
    return {_plain(record.id) for record in found}


def _check_arrived(target: Client, name: str, sent: Sequence[PointId]) -> None:
    there = _present(target, name, sent)
    missing = [one for one in sent if one not in there]
    if missing:
        raise StoreError(
            name,
            "checking the copy",
            f"{len(missing)} of {len(sent)} points just written are not in the target, the first "
            f"of them {missing[0]!r}; {_AGAIN}",
        )


def _plain(point_id: Any) -> PointId:
    """An id as every client gives it: some give a UUID as an object."""
    return point_id if isinstance(point_id, int) else str(point_id)


def _aliases(client: Client) -> dict[str, str]:
    """Alias → collection."""
    return {one.alias_name: one.collection_name for one in client.get_aliases().aliases}


def _aliases_of(source: Client, name: str) -> tuple[str, ...]:
    with store_errors(name, "reading the source's aliases"):
        return tuple(sorted(alias for alias, one in _aliases(source).items() if one == name))


def _check_alias(alias: str, target_name: str, there: set[str], named: dict[str, str]) -> None:
    """Refuse an alias whose name means something else in the target: it may be in use."""
    taken = "a collection" if alias in there or alias == target_name else None
    if alias in named and named[alias] != target_name:
        taken = f"an alias of {named[alias]!r}"
    if taken:
        raise StoreError(
            target_name,
            "copying",
            f"the source's alias {alias!r} would be copied too, but in the target that name is "
            f"{taken}; copy without aliases, or free the name first",
        )


def _set_aliases(target: Client, target_name: str, names: Sequence[str]) -> None:
    with store_errors(target_name, "setting the aliases in the target"):
        target.update_collection_aliases(
            [
                models.CreateAliasOperation(
                    create_alias=models.CreateAlias(collection_name=target_name, alias_name=alias)
                )
                for alias in names
            ]
        )
