"""Qdrant in this process: qdrant-client's interface over Qdrant's own core, in a folder.

What lives here: the client's methods and what they mean. What goes in and comes out is written by
`points`, `queries`, `vectors` and `translation`; the points lie in `shard`, the list of collections
in `catalog`. `EdgeQdrantClient` takes and returns qdrant-client's models, so that a program moves
to a server by giving `QdrantClient(url=...)` in its place.
"""

from __future__ import annotations

import contextlib
import copy
import itertools
import os
import threading
import uuid
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from operator import methodcaller
from pathlib import Path
from typing import Any

import qdrant_edge as core
from qdrant_client import QdrantClient, models
from qdrant_client.http.models import QueryResponse  # models has FastEmbed's by that name

from unified_embeddings.errors import InputError, StoreError
from unified_embeddings.stores.asynchronous import AsyncView
from unified_embeddings.stores.edge import configuration, queries, translation
from unified_embeddings.stores.edge import points as points_
from unified_embeddings.stores.edge.catalog import Catalog, Entry, State
from unified_embeddings.stores.edge.settings import Settings, settings_with
from unified_embeddings.stores.edge.shard import Shard

Call = Callable[[Any], Any]
"""A question to the core's shard."""

_IDS_A_PAGE = 10_000
_BAD_NAME = frozenset('<>:"/\\|?*\0\x1f')
_LONGEST_NAME = 255
_LONGEST_VECTOR_NAME = 200
_LARGEST_SIZE = 65_536
"""A server's rules for names and dimensions, so that what is made here can move there."""

PointIds = Sequence[int | str | uuid.UUID]
Selector = PointIds | models.Filter | models.PointIdsList | models.FilterSelector


class EdgeQdrantClient:
    """QdrantClient over a folder, on Qdrant's own core, in this process.

    Thread-safe. One process, and one client in it, has a folder at a time. A write that has
    returned outlives a killed process; `flush` makes it outlive a loss of power. Searches read
    every vector until `optimize` has built an index. The core holds Python's interpreter during a
    call: some milliseconds for a search over 10,000 points, about 20 over 50,000.

    What a server has beyond one process (shards, replicas, snapshots, timeouts) raises InputError
    by its name. `wait`, `ordering` and `consistency` are taken: every write here is waited for and
    seen by every read after it.

    Args:
        path: The folder; made if it is not there.

    Raises:
        StoreError: If the folder is in use, cannot be written, or was made by other or newer
            software.

    Attributes:
        path: The folder, absolute.
        released: Set once it is closed and another client may open the folder.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        try:
            self.path = Path(path).expanduser().resolve()
        except (OSError, RuntimeError, TypeError, ValueError) as error:
            raise StoreError(str(path)[:200], "opening", f"no path of a folder: {error}") from error
        self._catalog = Catalog(self.path)
        self._shards: dict[str, Shard] = {}
        self.released = threading.Event()
        # Taken after a shard's own lock, never before it: optimizing holds that one for minutes.
        self._changing = threading.RLock()
        self._process = os.getpid()
        self._operations = itertools.count()
        self._release = weakref.finalize(
            self, _release, self._catalog, self._shards, self._changing, self.released, os.getpid()
        )

    def __enter__(self) -> EdgeQdrantClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __getattr__(self, name: str) -> Any:
        """A method that only a server has, which says so when it is called."""
        if name.startswith("_") or not callable(getattr(QdrantClient, name, None)):
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

        def refuse(*_args: Any, **_kwargs: Any) -> Any:
            raise translation.unsupported(f"{name}()")

        return refuse

    @property
    def aclient(self) -> AsyncView:
        """AsyncQdrantClient's methods over this client, each run in a worker thread."""
        return AsyncView(self)

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return not self._release.alive

    @property
    def forked(self) -> bool:
        """Whether it was opened by the process that this one was forked from."""
        return os.getpid() != self._process

    def close(self) -> None:
        """Bring everything to disk and let another process open the folder.

        Raises:
            StoreError: If the disk is full; what was acknowledged is in the log all the same.
        """
        self._release()

    def flush(self, collection_name: str | None = None) -> None:
        """Force one collection, or all, to the disk itself.

        Raises:
            InputError: If there is no such collection.
            StoreError: If it cannot be written.
        """
        names = [collection_name] if collection_name else list(self._state().collections)
        for name in names:
            self._collection(name)[0].flush()

    def optimize(self, collection_name: str) -> bool:
        """Merge a collection's points and index them (HNSW), for quick searches over many.

        Worth it from some 20,000 points; the index is approximate, so measure recall. Takes minutes
        on big collections, in a process of its own; reads go on meanwhile, writes wait. Points that
        come later are searched one by one beside the index until the next call.

        Returns:
            Whether there was something to do.

        Raises:
            InputError: If there is no such collection.
            StoreError: If the disk has not three times the collection's room, or the core fails.
        """
        shard, _ = self._collection(collection_name)
        name = shard.collection
        new = self._catalog.new_shard()
        old = ""

        def commit() -> None:
            nonlocal old
            with self._changing:
                state = self._state()
                entry = state.collections.get(name)
                if entry is None or self._shards.get(name) is not shard:
                    raise StoreError(name, "optimizing", "the collection was deleted meanwhile")
                old = entry.shard
                changed = {**state.collections, name: Entry(new, entry.settings)}
                self._catalog.save(State(changed, state.aliases))

        try:
            return shard.optimize(self._catalog.shard_path(new), commit)
        finally:
            if old and shard.folder.name == new:
                self._catalog.drop_shard(old)

    # --- collections ----------------------------------------------------------------------------

    def get_collections(self) -> models.CollectionsResponse:
        """The names of all collections."""
        return models.CollectionsResponse(
            collections=[
                models.CollectionDescription(name=name) for name in self._state().collections
            ]
        )

    def collection_exists(self, collection_name: str) -> bool:
        """Whether there is a collection, or an alias, of this name."""
        return self._state().entry(collection_name) is not None

    def get_collection(self, collection_name: str) -> models.CollectionInfo:
        """A collection's settings, its metadata and how many points it has.

        Raises:
            InputError: If there is none of this name.
        """
        settings, info = self._reading(
            collection_name, "reading it", lambda settings: lambda it: (settings, it.info())
        )
        settings = copy.deepcopy(settings)  # the caller's to change
        unnamed = set(settings.vectors) == {""}
        return models.CollectionInfo(
            status=models.CollectionStatus.GREEN,
            optimizer_status=models.OptimizersStatusOneOf.OK,
            indexed_vectors_count=info.indexed_vectors_count,
            points_count=info.points_count,
            segments_count=info.segments_count,
            payload_schema=configuration.payload_schema(info.payload_schema),
            config=models.CollectionConfig(
                params=models.CollectionParams(
                    vectors=settings.vectors[""] if unnamed else dict(settings.vectors),
                    sparse_vectors=dict(settings.sparse_vectors) or None,
                    shard_number=1,
                    replication_factor=1,
                    write_consistency_factor=1,
                    on_disk_payload=settings.on_disk_payload,
                    payload=settings.payload,
                    id_tracker=settings.id_tracker,
                ),
                hnsw_config=models.HnswConfig(**configuration.hnsw_options(settings.hnsw_config)),
                optimizer_config=models.OptimizersConfig(
                    **{
                        "default_segment_number": 0,
                        "flush_interval_sec": 0,
                        **_set_fields(settings.optimizers_config),
                    }
                ),
                quantization_config=settings.quantization_config,
                metadata=settings.metadata,
            ),
        )

    def create_collection(
        self,
        collection_name: str,
        vectors_config: models.VectorParams | Mapping[str, models.VectorParams] | None = None,
        sparse_vectors_config: Mapping[str, models.SparseVectorParams] | None = None,
        shard_number: int | None = None,
        sharding_method: models.ShardingMethod | None = None,
        replication_factor: int | None = None,
        write_consistency_factor: int | None = None,
        on_disk_payload: bool | None = None,
        hnsw_config: models.HnswConfigDiff | None = None,
        optimizers_config: models.OptimizersConfigDiff | None = None,
        wal_config: models.WalConfigDiff | None = None,
        quantization_config: models.QuantizationConfig | None = None,
        timeout: int | None = None,
        strict_mode_config: models.StrictModeConfig | None = None,
        metadata: dict[str, Any] | None = None,
        payload: models.PayloadStorageParams | None = None,
        id_tracker: models.IdTrackerParams | None = None,
    ) -> bool:
        """Make a collection, wholly or not at all.

        Raises:
            InputError: If the name is taken or no good, or an option is a server's.
            StoreError: If it cannot be written.
        """
        _server_only(
            "create_collection",
            sharding_method=sharding_method,
            wal_config=wal_config,
            timeout=timeout,
            strict_mode_config=strict_mode_config,
        )
        _one_of_each(
            shard_number=shard_number,
            replication_factor=replication_factor,
            write_consistency_factor=write_consistency_factor,
        )
        _check_name(collection_name)
        if isinstance(vectors_config, models.VectorParams):
            vectors_config = {"": vectors_config}
        settings = Settings(
            vectors=dict(vectors_config or {}),
            sparse_vectors=dict(sparse_vectors_config or {}),
            hnsw_config=hnsw_config,
            quantization_config=quantization_config,
            optimizers_config=optimizers_config,
            on_disk_payload=on_disk_payload,
            payload=payload,
            id_tracker=id_tracker,
            metadata=None if metadata is None else points_.payload(metadata)[0],
        )
        _check_vectors(settings)
        settings = copy.deepcopy(settings)  # not what the caller may change
        with translation.arguments("the settings"):
            config = configuration.config(settings)
        with self._changing:
            state = self._state()
            if collection_name in state.collections:
                raise InputError(f"collection {collection_name!r} already exists")
            if collection_name in state.aliases:
                raise InputError(f"alias {collection_name!r} already exists")
            entry = Entry(self._catalog.new_shard(), settings)
            shard = Shard(collection_name, self._catalog.shard_path(entry.shard))
            try:
                shard.create(config)
                changed = {**state.collections, collection_name: entry}
                self._catalog.save(State(changed, state.aliases))
            finally:
                if self._catalog.state.collections.get(collection_name) is entry:
                    self._shards[collection_name] = shard
                else:
                    shard.close(keep=False)
                    self._catalog.drop_shard(entry.shard)
        return True

    def delete_collection(self, collection_name: str, timeout: int | None = None) -> bool:
        """Drop a collection, its points and its aliases; False if there is none of this name."""
        _server_only("delete_collection", timeout=timeout)
        with self._changing:
            state = self._state()
            collections = dict(state.collections)
            entry = collections.pop(collection_name, None)
            if entry is None:
                return False
            aliases = {a: name for a, name in state.aliases.items() if name != collection_name}
            self._catalog.save(State(collections, aliases))
            shard = self._shards.pop(collection_name, None)
        try:
            if shard is not None:
                shard.close(keep=False)
        finally:
            self._catalog.drop_shard(entry.shard)
        return True

    def update_collection(
        self,
        collection_name: str,
        optimizers_config: models.OptimizersConfigDiff | None = None,
        collection_params: models.CollectionParamsDiff | None = None,
        vectors_config: Mapping[str, models.VectorParamsDiff] | None = None,
        hnsw_config: models.HnswConfigDiff | None = None,
        quantization_config: models.QuantizationConfigDiff | None = None,
        timeout: int | None = None,
        sparse_vectors_config: Mapping[str, models.SparseVectorParams] | None = None,
        strict_mode_config: models.StrictModeConfig | None = None,
        metadata: dict[str, Any] | None = None,
    ) -> bool:
        """Merge metadata into the collection's, key by key; nothing else can be changed here.

        A key whose new value is None goes.

        Raises:
            InputError: If there is no such collection, or something else is to be changed.
            StoreError: If it cannot be written.
        """
        _server_only(
            "update_collection",
            optimizers_config=optimizers_config,
            collection_params=collection_params,
            vectors_config=vectors_config,
            hnsw_config=hnsw_config,
            quantization_config=quantization_config,
            timeout=timeout,
            sparse_vectors_config=sparse_vectors_config,
            strict_mode_config=strict_mode_config,
        )
        with self._changing:
            _, settings = self._collection(collection_name)
            if metadata is None:
                return False
            merged = _merged(settings.metadata, points_.payload(metadata)[0])
            self._save_settings(collection_name, settings_with(settings, metadata=merged))
        return True

    def create_vector_name(
        self,
        collection_name: str,
        vector_name: str,
        vector_name_config: models.DenseVectorNameConfig | models.SparseVectorNameConfig,
        wait: bool = True,
        ordering: models.WriteOrdering | None = None,
        timeout: int | None = None,
    ) -> models.UpdateResult:
        """Add a vector to a collection; its points have none under this name yet.

        Raises:
            InputError: If the name is taken by another vector or no good.
            StoreError: If it cannot be written.
        """
        _server_only("create_vector_name", timeout=timeout)
        with self._writing(collection_name) as (shard, _), self._changing:
            _, settings = self._collection(shard.collection)  # metadata may have changed
            params: models.VectorParams | models.SparseVectorParams
            if isinstance(vector_name_config, models.DenseVectorNameConfig):
                dense = vector_name_config.dense
                params = models.VectorParams(
                    size=dense.size,
                    distance=dense.distance,
                    multivector_config=dense.multivector_config,
                    datatype=_datatype(dense.datatype),
                )
                changed = settings_with(settings, vectors={**settings.vectors, vector_name: params})
            else:
                sparse = vector_name_config.sparse
                index = models.SparseIndexParams(datatype=_datatype(sparse.datatype))
                params = models.SparseVectorParams(
                    index=index if sparse.datatype else None, modifier=sparse.modifier
                )
                changed = settings_with(
                    settings, sparse_vectors={**settings.sparse_vectors, vector_name: params}
                )
            there = settings.vectors.get(vector_name) or settings.sparse_vectors.get(vector_name)
            if there is not None and there != params:
                raise InputError(f"the collection has another vector named {vector_name!r} already")
            _check_vectors(changed)
            with translation.arguments("the vector"):
                update = configuration.new_vector(vector_name, params)
            shard.write_alone("adding a vector", update)
            self._save_settings(shard.collection, changed)
        return self._done()

    def delete_vector_name(
        self,
        collection_name: str,
        vector_name: str,
        wait: bool = True,
        ordering: models.WriteOrdering | None = None,
        timeout: int | None = None,
    ) -> models.UpdateResult:
        """Remove a vector from a collection and all its points.

        Raises:
            InputError: If the collection has no such vector.
            StoreError: If it cannot be written.
        """
        _server_only("delete_vector_name", timeout=timeout)
        with self._writing(collection_name) as (shard, _), self._changing:
            _, settings = self._collection(shard.collection)  # metadata may have changed
            dense, sparse = dict(settings.vectors), dict(settings.sparse_vectors)
            if dense.pop(vector_name, None) is None and sparse.pop(vector_name, None) is None:
                raise InputError(f"the collection has no vector named {vector_name!r}")
            update = core.UpdateOperation.delete_vector_name(vector_name)
            shard.write_alone("removing a vector", update)
            self._save_settings(
                shard.collection, settings_with(settings, vectors=dense, sparse_vectors=sparse)
            )
        return self._done()

    def create_payload_index(
        self,
        collection_name: str,
        field_name: str,
        field_schema: Any = None,
        field_type: Any = None,
        wait: bool = True,
        ordering: models.WriteOrdering | None = None,
        timeout: int | None = None,
    ) -> models.UpdateResult:
        """Index a payload field, for quick filters; `order_by` needs it.

        Raises:
            InputError: If there is no such collection, or no such kind of index.
            StoreError: If it cannot be written.
        """
        _server_only("create_payload_index", timeout=timeout)
        schema = field_type if field_schema is None else field_schema
        if schema is None:
            raise InputError("field_schema is needed, such as models.PayloadSchemaType.KEYWORD")
        with translation.arguments("the index"):
            made = configuration.payload_index(schema)
            update = core.UpdateOperation.create_field_index(field_name, made)
        return self._write(collection_name, "indexing a payload field", update)

    def delete_payload_index(
        self,
        collection_name: str,
        field_name: str,
        wait: bool = True,
        ordering: models.WriteOrdering | None = None,
        timeout: int | None = None,
    ) -> models.UpdateResult:
        """Drop a payload field's index."""
        _server_only("delete_payload_index", timeout=timeout)
        with translation.arguments("the index"):
            update = core.UpdateOperation.delete_field_index(field_name)
        return self._write(collection_name, "dropping a payload index", update)

    # --- aliases --------------------------------------------------------------------------------

    def get_aliases(self) -> models.CollectionsAliasesResponse:
        """All aliases."""
        return _aliases(self._state().aliases)

    def get_collection_aliases(self, collection_name: str) -> models.CollectionsAliasesResponse:
        """The aliases of one collection."""
        aliases = self._state().aliases
        return _aliases({a: name for a, name in aliases.items() if name == collection_name})

    def update_collection_aliases(
        self, change_aliases_operations: Sequence[Any], timeout: int | None = None
    ) -> bool:
        """Change aliases, all of them or, on an error or a crash, none.

        Raises:
            InputError: If an alias is to point at no collection or take a collection's name, or one
                that is to be renamed does not exist.
            StoreError: If it cannot be written.
        """
        _server_only("update_collection_aliases", timeout=timeout)
        with self._changing:
            state = self._state()
            aliases = dict(state.aliases)
            for operation in change_aliases_operations:
                match operation:
                    case models.CreateAliasOperation(create_alias=change):
                        if change.collection_name not in state.collections:
                            raise self._unknown(change.collection_name)
                        self._require_free(change.alias_name)
                        aliases[change.alias_name] = change.collection_name
                    case models.DeleteAliasOperation(delete_alias=gone):
                        aliases.pop(gone.alias_name, None)
                    case models.RenameAliasOperation(rename_alias=renamed):
                        self._require_free(renamed.new_alias_name)
                        if renamed.old_alias_name not in aliases:
                            raise InputError(f"alias {renamed.old_alias_name!r} does not exist")
                        aliases[renamed.new_alias_name] = aliases.pop(renamed.old_alias_name)
                    case _:
                        raise InputError(f"not an operation on aliases: {type(operation).__name__}")
            self._catalog.save(State(state.collections, aliases))
        return True

    # --- writing points -------------------------------------------------------------------------

    def upsert(
        self,
        collection_name: str,
        points: models.Batch | Sequence[models.PointStruct],
        wait: bool = True,
        ordering: models.WriteOrdering | None = None,
        shard_key_selector: Any = None,
        update_filter: models.Filter | None = None,
        update_mode: models.UpdateMode | None = None,
        timeout: int | None = None,
    ) -> models.UpdateResult:
        """Store points; one whose id is there is replaced.

        Args:
            collection_name: Where to.
            points: The points; none is stored if one of them cannot be.
            wait: Every write is waited for.
            ordering: Every write is ordered.
            shard_key_selector: A server's.
            update_filter: Replace only what matches.
            update_mode: Only new points, or only those that are there.
            timeout: A server's.

        Raises:
            InputError: If a point cannot be stored; its `index` says which.
            StoreError: If it cannot be written.
        """
        _server_only("upsert", shard_key_selector=shard_key_selector, timeout=timeout)
        condition = translation.to_filter(update_filter)
        mode = None if update_mode is None else translation.member(core.UpdateMode, update_mode)
        with self._writing(collection_name) as (shard, settings):
            for piece, size in points_.pieces(points_.to_core(points, settings)):
                update = core.UpdateOperation.upsert_points(piece, condition, mode)
                shard.write("storing points", update, size=size)
        return self._done()

    def upload_points(
        self,
        collection_name: str,
        points: Iterable[models.PointStruct],
        batch_size: int = 64,
        parallel: int = 1,
        method: str | None = None,
        max_retries: int = 3,
        wait: bool = False,
        shard_key_selector: Any = None,
        update_filter: models.Filter | None = None,
        update_mode: models.UpdateMode | None = None,
    ) -> None:
        """Store points from an iterable, `batch_size` at a time; see `upsert`.

        `parallel`, `method` and `max_retries` are about a connection that is not here.
        """
        remaining = iter(points)
        stored = 0
        while batch := list(itertools.islice(remaining, max(1, batch_size))):
            try:
                self.upsert(
                    collection_name,
                    batch,
                    shard_key_selector=shard_key_selector,
                    update_filter=update_filter,
                    update_mode=update_mode,
                )
            except InputError as error:
                if error.index is None:
                    raise
                raise InputError(error.problem, index=stored + error.index) from error
            stored += len(batch)

    def update_vectors(
        self,
        collection_name: str,
        points: Sequence[models.PointVectors],
        wait: bool = True,
        ordering: models.WriteOrdering | None = None,
        shard_key_selector: Any = None,
        update_filter: models.Filter | None = None,
        timeout: int | None = None,
    ) -> models.UpdateResult:
        """Replace the vectors given; the others of a point stay, and its payload.

        Raises:
            InputError: If a vector cannot be stored or a point is not there; those there have
                theirs then.
            StoreError: If it cannot be written.
        """
        _server_only("update_vectors", shard_key_selector=shard_key_selector, timeout=timeout)
        condition = translation.to_filter(update_filter)
        with self._writing(collection_name) as (shard, settings):
            ready = points_.vectors_to_core(points, settings)
            there, missing = _present(shard, list(ready))
            sized = (
                (core.PointVectors(one, points_.unnamed(ready[one])), points_.size_of(ready[one]))
                for one in there
            )
            for piece, size in points_.pieces(sized):
                update = core.UpdateOperation.update_vectors(piece, condition)
                shard.write("updating vectors", update, size=size)
        _require_all(missing)
        return self._done()

    def delete_vectors(
        self,
        collection_name: str,
        vectors: Sequence[str],
        points: Selector,
        wait: bool = True,
        ordering: models.WriteOrdering | None = None,
        shard_key_selector: Any = None,
        timeout: int | None = None,
    ) -> models.UpdateResult:
        """Remove vectors from points by name.

        Raises:
            InputError: If there is no such vector, or a point is not there.
            StoreError: If it cannot be written.
        """
        _server_only("delete_vectors", shard_key_selector=shard_key_selector, timeout=timeout)
        _, settings = self._collection(collection_name)
        names = translation.with_vectors(points_.texts(vectors, "vectors"), settings)
        if not names:
            raise InputError("there are no vectors to delete")
        return self._on(collection_name, "deleting vectors", points, "delete_vectors", names)

    def delete(
        self,
        collection_name: str,
        points_selector: Selector,
        wait: bool = True,
        ordering: models.WriteOrdering | None = None,
        shard_key_selector: Any = None,
        timeout: int | None = None,
    ) -> models.UpdateResult:
        """Delete points by ids or by a filter; ids that are not there are no error.

        Raises:
            InputError: If the list of ids is empty.
            StoreError: If it cannot be written.
        """
        _server_only("delete", shard_key_selector=shard_key_selector, timeout=timeout)
        ids, condition = points_.selected(points_selector)
        if ids is None:
            update = core.UpdateOperation.delete_points_by_filter(condition)
        else:
            update = core.UpdateOperation.delete_points(ids)
        return self._write(collection_name, "deleting points", update)

    def set_payload(
        self,
        collection_name: str,
        payload: dict[str, Any],
        points: Selector,
        key: str | None = None,
        wait: bool = True,
        ordering: models.WriteOrdering | None = None,
        shard_key_selector: Any = None,
        timeout: int | None = None,
    ) -> models.UpdateResult:
        """Merge fields into the payload of points, at `key` if it is given.

        Raises:
            InputError: If the payload is no JSON, or an id is not there; the others have it then.
            StoreError: If it cannot be written.
        """
        _server_only("set_payload", shard_key_selector=shard_key_selector, timeout=timeout)
        value, size = points_.payload(payload)
        return self._on(
            collection_name, "setting payload", points, "set_payload", value, key, size=size
        )

    def overwrite_payload(
        self,
        collection_name: str,
        payload: dict[str, Any],
        points: Selector,
        wait: bool = True,
        ordering: models.WriteOrdering | None = None,
        shard_key_selector: Any = None,
        timeout: int | None = None,
    ) -> models.UpdateResult:
        """Replace the whole payload of points; see `set_payload`."""
        _server_only("overwrite_payload", shard_key_selector=shard_key_selector, timeout=timeout)
        value, size = points_.payload(payload)
        return self._on(
            collection_name, "overwriting payload", points, "overwrite_payload", value, size=size
        )

    def delete_payload(
        self,
        collection_name: str,
        keys: Sequence[str],
        points: Selector,
        wait: bool = True,
        ordering: models.WriteOrdering | None = None,
        shard_key_selector: Any = None,
        timeout: int | None = None,
    ) -> models.UpdateResult:
        """Remove fields from the payload of points; see `set_payload`."""
        _server_only("delete_payload", shard_key_selector=shard_key_selector, timeout=timeout)
        names = points_.texts(keys, "keys")
        return self._on(collection_name, "deleting payload", points, "delete_payload", names)

    def clear_payload(
        self,
        collection_name: str,
        points_selector: Selector,
        wait: bool = True,
        ordering: models.WriteOrdering | None = None,
        shard_key_selector: Any = None,
        timeout: int | None = None,
    ) -> models.UpdateResult:
        """Remove the whole payload of points; see `set_payload`."""
        _server_only("clear_payload", shard_key_selector=shard_key_selector, timeout=timeout)
        return self._on(collection_name, "clearing payload", points_selector, "clear_payload")

    # --- reading points -------------------------------------------------------------------------

    def retrieve(
        self,
        collection_name: str,
        ids: PointIds,
        with_payload: Any = True,
        with_vectors: Any = False,
        consistency: Any = None,
        shard_key_selector: Any = None,
        timeout: int | None = None,
    ) -> list[models.Record]:
        """Points by their ids, in the order of the ids; those not there are left out."""
        _server_only("retrieve", shard_key_selector=shard_key_selector, timeout=timeout)
        wanted = [translation.point_id(one) for one in ids]

        def ask(settings: Settings) -> Call:
            with translation.arguments("the request"):
                payload = translation.with_payload(with_payload)
                names = translation.with_vectors(with_vectors, settings)
            return lambda it: it.retrieve(wanted, payload, names)

        found = self._reading(collection_name, "retrieving", ask)
        records = {record.id: record for record in map(translation.record, found)}
        return [records[one] for one in wanted if one in records]

    def scroll(
        self,
        collection_name: str,
        scroll_filter: models.Filter | None = None,
        limit: int = 10,
        order_by: str | models.OrderBy | None = None,
        offset: int | str | uuid.UUID | None = None,
        with_payload: Any = True,
        with_vectors: Any = False,
        consistency: Any = None,
        shard_key_selector: Any = None,
        timeout: int | None = None,
    ) -> tuple[list[models.Record], int | str | None]:
        """One page of points in the order of their ids, and where the next one begins.

        Raises:
            InputError: If limit < 1, or `order_by` comes with an offset.
            StoreError: If `order_by` names a field that has no payload index, or the core fails.
        """
        _server_only("scroll", shard_key_selector=shard_key_selector, timeout=timeout)
        queries.check_limit(limit)
        if order_by is not None and offset is not None:
            raise InputError("order_by takes no offset; start from a value instead")

        def ask(settings: Settings) -> Call:
            with translation.arguments("the request"):
                request = core.ScrollRequest(
                    offset=None if offset is None else translation.point_id(offset),
                    limit=limit,
                    filter=translation.to_filter(scroll_filter),
                    with_payload=translation.with_payload(with_payload),
                    with_vector=translation.with_vectors(with_vectors, settings),
                    order_by=translation.order_by(order_by),
                )
            return lambda it: it.scroll(request)

        found, following = self._reading(collection_name, "scrolling", ask)
        return [translation.record(one) for one in found], translation.next_offset(following)

    def count(
        self,
        collection_name: str,
        count_filter: models.Filter | None = None,
        exact: bool = True,
        shard_key_selector: Any = None,
        timeout: int | None = None,
    ) -> models.CountResult:
        """How many points there are, or match a filter."""
        _server_only("count", shard_key_selector=shard_key_selector, timeout=timeout)
        with translation.arguments("the request"):
            request = core.CountRequest(exact=exact, filter=translation.to_filter(count_filter))
        count = self._reading(collection_name, "counting", lambda _: lambda it: it.count(request))
        return models.CountResult(count=count)

    def query_points(
        self,
        collection_name: str,
        query: Any = None,
        using: str | None = None,
        prefetch: models.Prefetch | Sequence[models.Prefetch] | None = None,
        query_filter: models.Filter | None = None,
        search_params: models.SearchParams | None = None,
        limit: int = 10,
        offset: int | None = None,
        with_payload: Any = True,
        with_vectors: Any = False,
        score_threshold: float | None = None,
        lookup_from: models.LookupLocation | None = None,
        consistency: Any = None,
        shard_key_selector: Any = None,
        timeout: int | None = None,
    ) -> QueryResponse:
        """The points that answer a query best, best first.

        Args:
            collection_name: Where to look.
            query: A vector (dense, sparse, multi), a point's id (the points nearest to it, without
                itself), NearestQuery, FusionQuery or RrfQuery; None for points in no order.
            using: Which of the collection's vectors to compare; None for the unnamed one.
            prefetch: Queries whose results `query` fuses or scores anew; they nest.
            query_filter: What all results must match.
            search_params: How an index is searched.
            limit: Points at most.
            offset: Points to leave out at the beginning.
            with_payload: Whether payloads come back, or which fields.
            with_vectors: Whether vectors come back, or which.
            score_threshold: The worst score to return.
            lookup_from: Not supported.
            consistency: Every read is consistent.
            shard_key_selector: A server's.
            timeout: A server's.

        Raises:
            InputError: If the query does not fit the collection, or is of a kind that is not
                supported (recommendation, discovery, formula, sampling, MMR, text).
            StoreError: If the core fails.
        """
        _server_only("query_points", shard_key_selector=shard_key_selector, timeout=timeout)
        request = models.QueryRequest.model_construct(
            query=query,
            using=using,
            prefetch=prefetch,
            filter=query_filter,
            params=search_params,
            limit=limit,
            offset=offset,
            with_payload=with_payload,
            with_vector=with_vectors,
            score_threshold=score_threshold,
            lookup_from=lookup_from,
        )

        def ask(settings: Settings) -> Call:
            return lambda it: it.query(queries.request(request, it, settings))

        return _response(self._reading(collection_name, "querying", ask))

    def query_batch_points(
        self,
        collection_name: str,
        requests: Sequence[models.QueryRequest],
        consistency: Any = None,
        timeout: int | None = None,
    ) -> list[QueryResponse]:
        """Several queries in one call; see `query_points`, but payloads come back only on request.

        Raises:
            InputError: If a query does not fit; its `index` says which.
            StoreError: If the core fails.
        """
        _server_only("query_batch_points", timeout=timeout)

        def ask(settings: Settings) -> Call:
            def call(it: Any) -> Any:
                made = []
                for index, request in enumerate(requests):
                    try:
                        made.append(queries.request(request, it, settings))
                    except InputError as error:
                        raise InputError(str(error), index=index) from error
                return it.query_batch(core.QueryBatchRequest(made)) if made else []

            return call

        return [_response(found) for found in self._reading(collection_name, "querying", ask)]

    # --- inside ---------------------------------------------------------------------------------

    def _state(self) -> State:
        """What is in the store, of one moment.

        Raises:
            StoreError: If it was closed, or opened by the process this one was forked from.
        """
        if self.closed:
            raise StoreError(str(self.path), "reading", "the store has been closed; open it again")
        if self.forked:
            raise StoreError(
                str(self.path),
                "reading",
                "it was opened before this process was forked, and two processes would damage it. "
                'Start workers with the method "spawn" and open the store in one of them',
            )
        return self._catalog.state

    def _collection(self, name: str) -> tuple[Shard, Settings]:
        """The points and the settings of a collection, by its name or an alias."""
        found = self._state().entry(name)
        if found is None:
            raise self._unknown(name)
        resolved, entry = found
        shard = self._shards.get(resolved)
        if shard is None:
            with self._changing:
                found = self._state().entry(name)
                if found is None:
                    raise self._unknown(name)
                resolved, entry = found
                shard = self._shards.get(resolved)
                if shard is None:
                    shard = Shard(resolved, self._catalog.shard_path(entry.shard))
                    entry = self._settled(resolved, shard, entry)
                    self._shards[resolved] = shard
        return shard, entry.settings

    def _settled(self, name: str, shard: Shard, entry: Entry) -> Entry:
        """Finish or undo a change of vector names that a crash left between shard and catalogue.

        One that was being removed is gone, one that was being added never was.
        """
        names, settings = shard.vector_names(), entry.settings
        known = {*settings.vectors, *settings.sparse_vectors}
        if names is None or names == known:
            return entry
        for added in names - known:
            update = core.UpdateOperation.delete_vector_name(added)
            shard.write_alone("undoing a stopped addition", update)
        if known <= names:
            return entry
        dense = {key: one for key, one in settings.vectors.items() if key in names}
        sparse = {key: one for key, one in settings.sparse_vectors.items() if key in names}
        kept = settings_with(settings, vectors=dense, sparse_vectors=sparse)
        return self._save_settings(name, kept)

    def _reading(self, name: str, operation: str, ask: Callable[[Settings], Call]) -> Any:
        """What the core answers; of the collection an alias was switched to meanwhile, if so."""
        while True:
            shard, settings = self._collection(name)
            try:
                return shard.read(operation, ask(settings))
            except StoreError:
                if not shard.closed or self._collection(name)[0] is shard:
                    raise

    @contextlib.contextmanager
    def _writing(self, name: str) -> Iterator[tuple[Shard, Settings]]:
        """A collection that nobody else writes to, and whose settings stay, for as long as held."""
        while True:
            shard, _ = self._collection(name)
            with shard.writing:
                again, settings = self._collection(name)
                if again is shard:  # and no alias was switched while this waited
                    yield shard, settings
                    return

    def _unknown(self, name: str) -> InputError:
        there = ", ".join(map(repr, sorted(self._catalog.state.collections))) or "none"
        return InputError(f"collection {name!r} not found; collections there: {there}")

    def _require_free(self, alias: str) -> None:
        _check_name(alias)
        if alias in self._catalog.state.collections:
            raise InputError(f"collection {alias!r} already exists; an alias needs another name")

    def _save_settings(self, name: str, settings: Settings) -> Entry:
        state = self._state()
        found = state.entry(name)
        if found is None:
            raise self._unknown(name)
        entry = Entry(found[1].shard, settings)
        self._catalog.save(State({**state.collections, found[0]: entry}, state.aliases))
        return entry

    def _write(self, collection_name: str, operation: str, update: Any) -> models.UpdateResult:
        with self._writing(collection_name) as (shard, _):
            shard.write(operation, update)
        return self._done()

    def _on(
        self,
        collection_name: str,
        operation: str,
        points: Any,
        method: str,
        *arguments: Any,
        size: int = 0,
    ) -> models.UpdateResult:
        """Apply one of the core's operations to the points selected, some at a time.

        Args:
            collection_name: Whose points.
            operation: What is done, for messages.
            points: The selector.
            method: Of the core's UpdateOperation.
            *arguments: What it takes after the ids.
            size: About how many bytes it brings to each point.
        """
        ids, condition = points_.selected(points)
        with self._writing(collection_name) as (shard, _):
            missing: list[points_.PointId] = []
            if ids is None:
                ids = _matching(shard, condition)
            else:
                ids, missing = _present(shard, ids)
            for piece, bytes_ in points_.pieces((one, size) for one in ids):
                with translation.arguments(operation):
                    update = getattr(core.UpdateOperation, method)(piece, *arguments)
                shard.write(operation, update, size=bytes_)
        _require_all(missing)
        return self._done()

    def _done(self) -> models.UpdateResult:
        return models.UpdateResult(
            operation_id=next(self._operations), status=models.UpdateStatus.COMPLETED
        )


def _release(
    catalog: Catalog,
    shards: dict[str, Shard],
    changing: Any,
    released: threading.Event,
    process: int,
) -> None:
    """Close a client: when it is told to, when nobody holds it, at the interpreter's end."""
    if os.getpid() != process:
        return  # a forked child has copies of handles that are its parent's to close
    with changing:  # what is being made now is in `shards` afterwards; nothing new comes
        open_shards = list(shards.values())
        shards.clear()
    failure: StoreError | None = None
    try:
        for shard in open_shards:
            try:
                shard.close()
            except StoreError as error:
                failure = failure or error
    finally:
        catalog.close()
        released.set()
    if failure is not None:
        raise failure


def _present(
    shard: Shard, ids: list[points_.PointId]
) -> tuple[list[points_.PointId], list[points_.PointId]]:
    """Which ids are there, and which are not."""
    found = shard.read("looking points up", lambda it: it.retrieve(ids, False, False))
    known = set(map(translation.found_id, found))
    return [one for one in ids if one in known], [one for one in ids if one not in known]


def _matching(shard: Shard, condition: Any) -> list[points_.PointId]:
    """The ids of the points that match a filter."""
    ids: list[points_.PointId] = []
    offset = None
    while True:
        request = core.ScrollRequest(
            offset=offset, limit=_IDS_A_PAGE, filter=condition, with_payload=False
        )
        page, offset = shard.read("looking points up", methodcaller("scroll", request))
        ids += map(translation.found_id, page)
        if offset is None:
            return ids


def _server_only(method: str, **options: Any) -> None:
    """Refuse what only a server can do."""
    for name, value in options.items():
        if value is not None:
            raise translation.unsupported(f"{method}({name}=...)")


def _one_of_each(**numbers: int | None) -> None:
    for name, number in numbers.items():
        if number not in (None, 1):
            raise translation.unsupported(f"{name}={number}")


def _check_name(name: str) -> None:
    if not isinstance(name, str) or not name or name in (".", "..") or len(name) > _LONGEST_NAME:
        raise InputError(
            f"a name must be a text of 1 to {_LONGEST_NAME} characters, got {name!r:.80}"
        )
    for character in name:
        if character in _BAD_NAME or "\ud800" <= character <= "\udfff":  # half of a character
            raise InputError(f"a name cannot hold {character!r}, got {name!r}")


def _check_vectors(settings: Settings) -> None:
    if "" in settings.sparse_vectors:
        raise InputError("a sparse vector needs a name")
    for name in (*settings.vectors, *settings.sparse_vectors):
        if name:
            _check_name(name)
        if len(name.encode()) > _LONGEST_VECTOR_NAME:
            raise InputError(f"a vector's name is at most {_LONGEST_VECTOR_NAME} bytes: {name!r}")
    for name in settings.vectors:
        size = settings.vectors[name].size
        if not 1 <= size <= _LARGEST_SIZE:
            raise InputError(f"vector {name!r}: size must be 1 to {_LARGEST_SIZE}, got {size}")
        if name in settings.sparse_vectors:
            raise InputError(f"vector {name!r} cannot be both dense and sparse")


def _merged(old: dict[str, Any] | None, new: dict[str, Any]) -> dict[str, Any]:
    """Metadata as a server merges it: None takes a key out."""
    if old is None:
        return new
    merged = {**old, **new}
    return {key: value for key, value in merged.items() if new.get(key, value) is not None}


def _require_all(missing: list[int | str]) -> None:
    if missing:
        raise InputError(
            f"no point with id {missing[0]!r}; {len(missing)} of the ids are not there"
        )


def _response(found: list[Any]) -> QueryResponse:
    return QueryResponse.model_construct(points=[translation.scored_point(one) for one in found])


def _aliases(aliases: Mapping[str, str]) -> models.CollectionsAliasesResponse:
    return models.CollectionsAliasesResponse(
        aliases=[
            models.AliasDescription(alias_name=alias, collection_name=name)
            for alias, name in aliases.items()
        ]
    )


def _set_fields(model: Any) -> dict[str, Any]:
    return {} if model is None else model.model_dump(exclude_none=True)


def _datatype(value: Any) -> models.Datatype | None:
    try:
        return None if value is None else models.Datatype(value.value)
    except ValueError:
        raise translation.unsupported(f"datatype {value.value!r} of a vector added later") from None
