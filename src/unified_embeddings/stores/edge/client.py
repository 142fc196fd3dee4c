"""Qdrant in this process: qdrant-client's interface over Qdrant's own core, in a folder.

What lives here: the client's methods, their arguments and their answers. What happens inside is in
`store`; the modules beside it convert what goes in and comes out. `EdgeQdrantClient` takes and
returns qdrant-client's models, so that a program moves to a server by putting
`QdrantClient(url=...)` in its place.
"""

from __future__ import annotations

import contextlib
import copy
import itertools
import os
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, cast

import qdrant_edge as core
from qdrant_client import QdrantClient
from qdrant_client import models as qm
from qdrant_client.client_base import QdrantBase
from qdrant_client.http.models import QueryResponse  # qm has FastEmbed's by that name
from qdrant_client.migrate.migrate import migrate

from unified_embeddings.errors import InputError, StoreError, UnifiedEmbeddingsError
from unified_embeddings.stores.asynchronous import AsyncView
from unified_embeddings.stores.edge.bounds import check_timeout, check_wal
from unified_embeddings.stores.edge.coercion import coerce, coerce_dict
from unified_embeddings.stores.edge.configuration import (
    from_core_payload_schema,
    params_of_new_vector,
    to_collection_config,
    to_core_payload_index,
    to_settings,
)
from unified_embeddings.stores.edge.core_types import CorePoint, CoreShard, CoreUpdate
from unified_embeddings.stores.edge.filters import to_core_filter
from unified_embeddings.stores.edge.fused_order import order_found
from unified_embeddings.stores.edge.limits import path_depth
from unified_embeddings.stores.edge.naming import check_is_text
from unified_embeddings.stores.edge.points import (
    split_into_pieces,
    to_core_point_vectors,
    to_core_points,
    to_iterator,
    to_json_payload,
    to_list,
    to_names,
)
from unified_embeddings.stores.edge.queries import check_limit, to_core_query, to_prefetches
from unified_embeddings.stores.edge.selection import (
    PointIds,
    Selector,
    find_existing,
    find_matching,
    find_protected,
    parse_selector,
    require_existing,
)
from unified_embeddings.stores.edge.settings import Settings
from unified_embeddings.stores.edge.store import EmbeddedStore
from unified_embeddings.stores.edge.translation import (
    PointId,
    argument_errors,
    from_core_id,
    to_core_id,
    to_core_ids,
    to_core_member,
    to_core_order,
    to_payload_selector,
    to_record,
    to_scored_point,
    to_vector_selector,
    unsupported,
    unsupported_method,
)
from unified_embeddings.stores.edge.vectors import approximate_bytes, unwrap_unnamed
from unified_embeddings.types import FloatArray
from unified_embeddings.validation import require_whole_number

WithPayload: TypeAlias = bool | Sequence[str] | qm.PayloadSelector
WithVectors: TypeAlias = bool | Sequence[str]
Query: TypeAlias = (
    int
    | str
    | uuid.UUID
    | Sequence[float]
    | Sequence[Sequence[float]]
    | FloatArray
    | qm.SparseVector
    | qm.Query
)
"""A point's id, a vector or one of qdrant-client's queries."""

_IDS_PER_WRITE = 100_000
"""Ids in one deletion: it holds the interpreter for some tens of milliseconds."""
_ID_BYTES = 40
"""About what an id takes in the core's log: a UUID's text."""


class EdgeQdrantClient:
    """QdrantClient over a folder, on Qdrant's own core, in this process.

    Thread-safe. Only one process, and one client in it, can open a folder at a time. A write that
    has returned survives a killed process; `flush` makes it survive a loss of power. Searches read
    every vector until `optimize` has built an index. The core holds Python's interpreter during a
    call: some milliseconds for a search over 10,000 points, about 20 over 50,000.

    Methods and options that only a server has (shards, replicas, snapshots) raise an InputError
    that names them, and so does what a server refuses. `wait`, `ordering`, `consistency` and
    `timeout` are accepted and change nothing: each write returns when it is done, and reads see all
    completed writes. Plain dicts are taken for qdrant-client's models, as a server's client does.

    Args:
        path: The folder; created if it does not exist.

    Raises:
        StoreError: If the folder is in use, cannot be written, or was made by other or newer
            software.

    Attributes:
        path: The folder, absolute.
        released: Set once the client is closed and another one may open the folder.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> from qdrant_client import models
        >>> from unified_embeddings import EdgeQdrantClient
        >>> with TemporaryDirectory() as folder, EdgeQdrantClient(folder) as client:
        ...     created = client.create_collection(
        ...         "animals",
        ...         vectors_config=models.VectorParams(size=2, distance=models.Distance.DOT),
        ...     )
        ...     stored = client.upsert(
        ...         "animals",
        ...         [
        ...             models.PointStruct(id=1, vector=[1.0, 0.0], payload={"name": "fox"}),
        ...             models.PointStruct(id=2, vector=[0.0, 1.0], payload={"name": "owl"}),
        ...         ],
        ...     )
        ...     response = client.query_points("animals", query=[0.2, 0.9], limit=1)
        >>> response.points[0].payload
        {'name': 'owl'}
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        try:
            self.path = Path(path).expanduser().resolve()
        except (OSError, RuntimeError, TypeError, ValueError) as error:
            problem = f"it is not a usable path of a folder: {error}"
            raise StoreError(str(path)[:200], "opening", problem) from error
        self._store = EmbeddedStore(self.path)
        self.released = self._store.released
        self._operation_ids = itertools.count()

    def __enter__(self) -> EdgeQdrantClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __reduce__(self) -> tuple[object, ...]:
        """Refuse to be copied or pickled.

        Raises:
            InputError: Always.
        """
        raise InputError(
            f"a client of the folder {str(self.path)!r} can be neither copied nor pickled, as only "
            "one can hold the folder open; share the client"
        )

    if not TYPE_CHECKING:  # or a type checker would accept any misspelt attribute

        def __getattr__(self, name: str) -> Any:
            """Refuse a method that only a server has, by its name.

            The error is an AttributeError as well, so that `hasattr` is False.
            """
            if name.startswith("_") or not callable(getattr(QdrantClient, name, None)):
                raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
            raise unsupported_method(name)

    @property
    def aclient(self) -> AsyncView:
        """Return AsyncQdrantClient's methods over this client, each run in a worker thread."""
        return AsyncView(self)

    @property
    def closed(self) -> bool:
        """Tell whether `close` was called."""
        return self._store.closed

    @property
    def forked(self) -> bool:
        """Tell whether it was opened by the process that this one was forked from."""
        return self._store.forked

    def close(self) -> None:
        """Flush everything and let another process open the folder. Idempotent.

        Raises:
            StoreError: If the disk is full; what was acknowledged is in the log all the same.
        """
        self._store.close()

    def flush(self, collection_name: str | None = None) -> None:
        """Force one collection, or all of them, to the disk.

        Raises:
            InputError: If there is no such collection.
            StoreError: If it cannot be written.
        """
        self._store.flush(collection_name)

    def optimize(self, collection_name: str) -> bool:
        """Merge a collection's points and index them (HNSW), for fast searches over many points.

        It pays from about 20,000 points. The index is approximate, so measure recall. On large
        collections it takes minutes, in a separate process; reads go on meanwhile, writes wait.
        Points that are added later are searched one by one until the next call.

        Returns:
            Whether there was something to do.

        Raises:
            InputError: If there is no such collection.
            StoreError: If the disk lacks space for three copies, or the core fails.
        """
        return self._store.optimize(collection_name)

    def clear(self, collection_name: str) -> None:
        """Delete all points of a collection and free their space at once; atomic.

        The collection keeps its settings, its metadata, its payload indexes and its aliases. After
        a crash it has all its points or none. A running `optimize` is ended.

        Raises:
            InputError: If there is no such collection.
            StoreError: If the collection cannot be read, or a new one cannot be written, as on a
                full disk.
        """
        check_is_text(collection_name)
        self._store.clear_collection(collection_name)

    def disk_bytes(self, collection_name: str) -> int:
        """Return the bytes that a collection's files take on disk.

        Raises:
            InputError: If there is no such collection.
        """
        shard, _ = self._store.collection(collection_name)
        return shard.disk_bytes()

    # --- collections ----------------------------------------------------------------------------

    def get_collections(self) -> qm.CollectionsResponse:
        """Return the names of all collections."""
        names = self._store.state().collections
        return qm.CollectionsResponse(
            collections=[qm.CollectionDescription(name=name) for name in names]
        )

    def collection_exists(self, collection_name: str) -> bool:
        """Tell whether there is a collection, or an alias, of this name."""
        check_is_text(collection_name)
        return self._store.state().entry(collection_name) is not None

    def get_collection(self, collection_name: str) -> qm.CollectionInfo:
        """Return a collection's settings, its metadata and how many points it has.

        Raises:
            InputError: If there is no such collection.
        """

        def ask(settings: Settings, core_shard: CoreShard) -> tuple[Settings, Any]:
            return settings, core_shard.info()

        settings, info = self._store.read(collection_name, "reading it", ask)
        settings = copy.deepcopy(settings)  # the caller may change what it gets
        return qm.CollectionInfo(
            status=qm.CollectionStatus.GREEN,
            optimizer_status=qm.OptimizersStatusOneOf.OK,
            indexed_vectors_count=info.indexed_vectors_count,
            points_count=info.points_count,
            segments_count=info.segments_count,
            payload_schema=from_core_payload_schema(info.payload_schema),
            config=to_collection_config(settings),
        )

    def create_collection(
        self,
        collection_name: str,
        vectors_config: qm.VectorParams | Mapping[str, qm.VectorParams] | None = None,
        sparse_vectors_config: Mapping[str, qm.SparseVectorParams] | None = None,
        shard_number: int | None = None,
        sharding_method: qm.ShardingMethod | None = None,
        replication_factor: int | None = None,
        write_consistency_factor: int | None = None,
        on_disk_payload: bool | None = None,
        hnsw_config: qm.HnswConfigDiff | None = None,
        optimizers_config: qm.OptimizersConfigDiff | None = None,
        wal_config: qm.WalConfigDiff | None = None,
        quantization_config: qm.QuantizationConfig | None = None,
        timeout: int | None = None,
        strict_mode_config: qm.StrictModeConfig | None = None,
        metadata: dict[str, Any] | None = None,
        payload: qm.PayloadStorageParams | None = None,
        id_tracker: qm.IdTrackerParams | None = None,
    ) -> bool:
        """Create a collection; atomic.

        `wal_config` and the options of a server's background optimisers (`flush_interval_sec`,
        `memmap_threshold`, `max_optimization_threads`, `prevent_unoptimized`) are checked and
        change nothing: the log and `optimize` have no such settings.

        Raises:
            InputError: If the name is taken or invalid, an option is out of a server's bounds, or
                one that only a server has.
            StoreError: If it cannot be written.
        """
        _refuse_server_options("create_collection", sharding_method=sharding_method)
        _refuse_several(
            shard_number=shard_number,
            replication_factor=replication_factor,
            write_consistency_factor=write_consistency_factor,
        )
        check_timeout(timeout)
        check_wal(coerce(qm.WalConfigDiff, wal_config, "wal_config"))
        _refuse_strict_mode(coerce(qm.StrictModeConfig, strict_mode_config, "strict_mode_config"))
        settings = to_settings(
            vectors_config=vectors_config,
            sparse_vectors_config=sparse_vectors_config,
            hnsw_config=hnsw_config,
            quantization_config=quantization_config,
            optimizers_config=optimizers_config,
            on_disk_payload=on_disk_payload,
            payload=payload,
            id_tracker=id_tracker,
            metadata=metadata,
        )
        self._store.create_collection(collection_name, settings)
        return True

    def delete_collection(self, collection_name: str, timeout: int | None = None) -> bool:
        """Delete a collection, its points and its aliases; False if there is none of this name."""
        check_timeout(timeout)
        return self._store.delete_collection(collection_name)

    def update_collection(
        self,
        collection_name: str,
        optimizers_config: qm.OptimizersConfigDiff | None = None,
        collection_params: qm.CollectionParamsDiff | None = None,
        vectors_config: Mapping[str, qm.VectorParamsDiff] | None = None,
        hnsw_config: qm.HnswConfigDiff | None = None,
        quantization_config: qm.QuantizationConfigDiff | None = None,
        timeout: int | None = None,
        sparse_vectors_config: Mapping[str, qm.SparseVectorParams] | None = None,
        strict_mode_config: qm.StrictModeConfig | None = None,
        metadata: dict[str, Any] | None = None,
    ) -> bool:
        """Merge metadata into the collection's, key by key; nothing else can be changed here.

        A key whose new value is None is removed.

        Returns:
            Whether there was metadata to merge.

        Raises:
            InputError: If there is no such collection, or another option is given.
            StoreError: If it cannot be written.
        """
        _refuse_server_options(
            "update_collection",
            optimizers_config=optimizers_config,
            collection_params=collection_params,
            vectors_config=vectors_config,
            hnsw_config=hnsw_config,
            quantization_config=quantization_config,
            sparse_vectors_config=sparse_vectors_config,
            strict_mode_config=strict_mode_config,
        )
        check_timeout(timeout)
        return self._store.update_metadata(collection_name, metadata)

    def create_vector_name(
        self,
        collection_name: str,
        vector_name: str,
        vector_name_config: qm.DenseVectorNameConfig | qm.SparseVectorNameConfig,
        wait: bool = True,
        ordering: qm.WriteOrdering | None = None,
        timeout: int | None = None,
    ) -> qm.UpdateResult:
        """Add a vector to a collection; its points have no vector of this name yet.

        Raises:
            InputError: If the name is invalid or taken by a different vector.
            StoreError: If it cannot be written.
        """
        check_timeout(timeout)
        config = coerce(
            qm.DenseVectorNameConfig | qm.SparseVectorNameConfig,
            vector_name_config,
            "vector_name_config",
        )
        params = params_of_new_vector(config)
        self._store.add_vector(collection_name, vector_name, params)
        return self._completed()

    def delete_vector_name(
        self,
        collection_name: str,
        vector_name: str,
        wait: bool = True,
        ordering: qm.WriteOrdering | None = None,
        timeout: int | None = None,
    ) -> qm.UpdateResult:
        """Remove a vector from a collection and from all its points.

        Raises:
            InputError: If the collection has no such vector.
            StoreError: If it cannot be written.
        """
        check_timeout(timeout)
        self._store.remove_vector(collection_name, vector_name)
        return self._completed()

    def create_payload_index(
        self,
        collection_name: str,
        field_name: str,
        field_schema: qm.PayloadFieldSchema | str | None = None,
        field_type: qm.PayloadFieldSchema | str | None = None,
        wait: bool = True,
        ordering: qm.WriteOrdering | None = None,
        timeout: int | None = None,
    ) -> qm.UpdateResult:
        """Index a payload field, for fast filters; `order_by` needs it.

        Raises:
            InputError: If there is no such collection, or no such type of index.
            StoreError: If it cannot be written.
        """
        check_timeout(timeout)
        schema = field_type if field_schema is None else field_schema
        if schema is None:
            raise InputError("field_schema is needed, such as models.PayloadSchemaType.KEYWORD")
        schema = coerce_dict(qm.PayloadSchemaParams, schema, "field_schema")
        with argument_errors("the index"):
            index = to_core_payload_index(schema)
            update = core.UpdateOperation.create_field_index(field_name, index)
        self._store.write_index(collection_name, "indexing a payload field", update)
        return self._completed()

    def delete_payload_index(
        self,
        collection_name: str,
        field_name: str,
        wait: bool = True,
        ordering: qm.WriteOrdering | None = None,
        timeout: int | None = None,
    ) -> qm.UpdateResult:
        """Drop a payload field's index."""
        check_timeout(timeout)
        with argument_errors("the index"):
            update = core.UpdateOperation.delete_field_index(field_name)
        self._store.write_index(collection_name, "dropping a payload index", update)
        return self._completed()

    # --- aliases --------------------------------------------------------------------------------

    def get_aliases(self) -> qm.CollectionsAliasesResponse:
        """Return all aliases."""
        return _to_aliases_response(self._store.state().aliases)

    def get_collection_aliases(self, collection_name: str) -> qm.CollectionsAliasesResponse:
        """Return the aliases of one collection."""
        aliases = self._store.state().aliases
        return _to_aliases_response(
            {alias: name for alias, name in aliases.items() if name == collection_name}
        )

    def update_collection_aliases(
        self,
        change_aliases_operations: Sequence[qm.AliasOperations],
        timeout: int | None = None,
    ) -> bool:
        """Change aliases; atomic: all of them or, after an error or a crash, none.

        Raises:
            InputError: If an alias would point at no collection or take a collection's name, or an
                alias to rename does not exist.
            StoreError: If it cannot be written.
        """
        check_timeout(timeout)
        operations = coerce(
            list[qm.AliasOperations], change_aliases_operations, "change_aliases_operations"
        )
        self._store.change_aliases(operations or [])
        return True

    # --- writing points -------------------------------------------------------------------------

    def upsert(
        self,
        collection_name: str,
        points: qm.Batch | Sequence[qm.PointStruct],
        wait: bool = True,
        ordering: qm.WriteOrdering | None = None,
        shard_key_selector: qm.ShardKeySelector | None = None,
        update_filter: qm.Filter | None = None,
        update_mode: qm.UpdateMode | None = None,
        timeout: int | None = None,
    ) -> qm.UpdateResult:
        """Store points; a point with the same id is replaced.

        Args:
            collection_name: Where to store them.
            points: The points; none is stored if one of them cannot be.
            wait: Every write is waited for.
            ordering: Every write is ordered.
            shard_key_selector: Only for a server.
            update_filter: Replace only points that match.
            update_mode: Store only new points, or only those that exist.
            timeout: Nothing is waited for.

        Raises:
            InputError: If a point cannot be stored; its `index` says which.
            StoreError: If it cannot be written.
        """
        _refuse_server_options("upsert", shard_key_selector=shard_key_selector)
        check_timeout(timeout)
        condition = to_core_filter(update_filter)
        mode = None
        if update_mode is not None:
            mode = to_core_member(core.UpdateMode, update_mode)
        with self._store.writing(collection_name) as (shard, settings):
            core_points = to_core_points(points, settings)
            protected = find_protected(shard, list(core_points), condition)
            stored = [item for key, item in core_points.items() if key not in protected]
            for piece, size in split_into_pieces(stored):
                update = core.UpdateOperation.upsert_points(piece, None, mode)
                shard.write("storing points", update, size=size)
        return self._completed()

    def upload_points(
        self,
        collection_name: str,
        points: Iterable[qm.PointStruct],
        batch_size: int = 64,
        parallel: int = 1,
        method: str | None = None,
        max_retries: int = 3,
        wait: bool = False,
        shard_key_selector: qm.ShardKeySelector | None = None,
        update_filter: qm.Filter | None = None,
        update_mode: qm.UpdateMode | None = None,
    ) -> None:
        """Store points from an iterable, `batch_size` at a time; see `upsert`.

        `parallel`, `method` and `max_retries` configure a connection, and there is none here.

        Raises:
            InputError: If a point cannot be stored; its `index` counts all points given, and the
                batches before it are stored. If batch_size < 1.
            StoreError: If it cannot be written.
        """
        require_whole_number("batch_size", batch_size)
        remaining = to_iterator(points, "points")
        stored_count = 0
        while batch := list(itertools.islice(remaining, batch_size)):
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
                raise InputError(error.problem, index=stored_count + error.index) from error
            stored_count += len(batch)

    def update_vectors(
        self,
        collection_name: str,
        points: Sequence[qm.PointVectors],
        wait: bool = True,
        ordering: qm.WriteOrdering | None = None,
        shard_key_selector: qm.ShardKeySelector | None = None,
        update_filter: qm.Filter | None = None,
        timeout: int | None = None,
    ) -> qm.UpdateResult:
        """Replace the vectors given; a point keeps its other vectors and its payload.

        Raises:
            InputError: If a vector cannot be stored, and nothing is. If a point does not exist; the
                others are updated by then.
            StoreError: If it cannot be written.
        """
        _refuse_server_options("update_vectors", shard_key_selector=shard_key_selector)
        check_timeout(timeout)
        condition = to_core_filter(update_filter)
        with self._store.writing(collection_name) as (shard, settings):
            new_vectors = to_core_point_vectors(points, settings)
            existing = find_existing(shard, list(new_vectors))
            protected = find_protected(shard, list(new_vectors), condition)
            sized_points: list[tuple[CorePoint, int]] = []
            for point_id, vectors in new_vectors.items():
                if point_id in existing and point_id not in protected:
                    core_point = core.PointVectors(point_id, unwrap_unnamed(vectors))
                    sized_points.append((core_point, approximate_bytes(vectors)))
            for piece, size in split_into_pieces(sized_points):
                update = core.UpdateOperation.update_vectors(piece)
                shard.write("updating vectors", update, size=size)
        require_existing(new_vectors, existing)
        return self._completed()

    def delete_vectors(
        self,
        collection_name: str,
        vectors: Sequence[str],
        points: Selector,
        wait: bool = True,
        ordering: qm.WriteOrdering | None = None,
        shard_key_selector: qm.ShardKeySelector | None = None,
        timeout: int | None = None,
    ) -> qm.UpdateResult:
        """Remove vectors from points by name.

        Raises:
            InputError: If there is no such vector. If a point does not exist; the others are
                changed by then.
            StoreError: If it cannot be written.
        """
        _refuse_server_options("delete_vectors", shard_key_selector=shard_key_selector)
        check_timeout(timeout)
        _, settings = self._store.collection(collection_name)
        names = to_vector_selector(to_names(vectors, "vectors"), settings)
        if not names:
            raise InputError("there are no vectors to delete")
        return self._update_selected(
            collection_name,
            "deleting vectors",
            points,
            lambda point_ids: core.UpdateOperation.delete_vectors(point_ids, names),
        )

    def delete(
        self,
        collection_name: str,
        points_selector: Selector,
        wait: bool = True,
        ordering: qm.WriteOrdering | None = None,
        shard_key_selector: qm.ShardKeySelector | None = None,
        timeout: int | None = None,
    ) -> qm.UpdateResult:
        """Delete points by ids or by a filter; ids that do not exist are no error.

        Raises:
            InputError: If the list of ids is empty.
            StoreError: If it cannot be written.
        """
        _refuse_server_options("delete", shard_key_selector=shard_key_selector)
        check_timeout(timeout)
        point_ids, condition = parse_selector(points_selector)
        with self._store.writing(collection_name) as (shard, _):
            if point_ids is None:
                point_ids = find_matching(shard, condition)
            for start in range(0, len(point_ids), _IDS_PER_WRITE):
                piece = point_ids[start : start + _IDS_PER_WRITE]
                update = core.UpdateOperation.delete_points(piece)
                shard.write("deleting points", update, size=_ID_BYTES * len(piece))
        return self._completed()

    def set_payload(
        self,
        collection_name: str,
        payload: dict[str, Any],
        points: Selector,
        key: str | None = None,
        wait: bool = True,
        ordering: qm.WriteOrdering | None = None,
        shard_key_selector: qm.ShardKeySelector | None = None,
        timeout: int | None = None,
    ) -> qm.UpdateResult:
        """Merge fields into the payload of points, at `key` if it is given.

        Raises:
            InputError: If the payload is not valid JSON. If an id does not exist; the others are
                changed by then.
            StoreError: If it cannot be written.
        """
        _refuse_server_options("set_payload", shard_key_selector=shard_key_selector)
        check_timeout(timeout)
        if key is not None and not isinstance(key, str):
            raise InputError(f"key must be a JSON path such as 'a.b', got {key!r:.80}")
        above = 0 if key is None else path_depth(key)
        content, size = to_json_payload(payload, above=above)
        return self._update_selected(
            collection_name,
            "setting payload",
            points,
            lambda point_ids: core.UpdateOperation.set_payload(point_ids, content, key),
            size=size,
        )

    def overwrite_payload(
        self,
        collection_name: str,
        payload: dict[str, Any],
        points: Selector,
        wait: bool = True,
        ordering: qm.WriteOrdering | None = None,
        shard_key_selector: qm.ShardKeySelector | None = None,
        timeout: int | None = None,
    ) -> qm.UpdateResult:
        """Replace the whole payload of points; see `set_payload`."""
        _refuse_server_options("overwrite_payload", shard_key_selector=shard_key_selector)
        check_timeout(timeout)
        content, size = to_json_payload(payload)
        return self._update_selected(
            collection_name,
            "overwriting payload",
            points,
            lambda point_ids: core.UpdateOperation.overwrite_payload(point_ids, content),
            size=size,
        )

    def delete_payload(
        self,
        collection_name: str,
        keys: Sequence[str],
        points: Selector,
        wait: bool = True,
        ordering: qm.WriteOrdering | None = None,
        shard_key_selector: qm.ShardKeySelector | None = None,
        timeout: int | None = None,
    ) -> qm.UpdateResult:
        """Remove fields from the payload of points; see `set_payload`."""
        _refuse_server_options("delete_payload", shard_key_selector=shard_key_selector)
        check_timeout(timeout)
        names = to_names(keys, "keys")
        return self._update_selected(
            collection_name,
            "deleting payload",
            points,
            lambda point_ids: core.UpdateOperation.delete_payload(point_ids, names),
        )

    def clear_payload(
        self,
        collection_name: str,
        points_selector: Selector,
        wait: bool = True,
        ordering: qm.WriteOrdering | None = None,
        shard_key_selector: qm.ShardKeySelector | None = None,
        timeout: int | None = None,
    ) -> qm.UpdateResult:
        """Remove the whole payload of points; see `set_payload`."""
        _refuse_server_options("clear_payload", shard_key_selector=shard_key_selector)
        check_timeout(timeout)
        return self._update_selected(
            collection_name,
            "clearing payload",
            points_selector,
            core.UpdateOperation.clear_payload,
        )

    def migrate(
        self,
        dest_client: QdrantBase,
        collection_names: list[str] | None = None,
        batch_size: int = 100,
        recreate_on_collision: bool = False,
    ) -> None:
        """Copy collections to another client by qdrant-client's own function.

        `unified-embeddings copy` does the same and can be resumed.

        Raises:
            InputError: If batch_size < 1, or a collection exists there already.
        """
        try:
            migrate(
                cast("QdrantBase", self),  # it has the methods that are called
                dest_client,
                collection_names=collection_names,
                batch_size=batch_size,
                recreate_on_collision=recreate_on_collision,
            )
        except UnifiedEmbeddingsError:
            raise
        except (AssertionError, ValueError) as error:
            raise InputError(f"the collections cannot be migrated: {error}") from error

    # --- reading points -------------------------------------------------------------------------

    def retrieve(
        self,
        collection_name: str,
        ids: PointIds,
        with_payload: WithPayload = True,
        with_vectors: WithVectors = False,
        consistency: qm.ReadConsistency | None = None,
        shard_key_selector: qm.ShardKeySelector | None = None,
        timeout: int | None = None,
    ) -> list[qm.Record]:
        """Return points by their ids, in the order of the ids; unknown ids are left out."""
        _refuse_server_options("retrieve", shard_key_selector=shard_key_selector)
        check_timeout(timeout)
        point_ids = to_core_ids(ids)

        def ask(settings: Settings, core_shard: CoreShard) -> list[CorePoint]:
            with argument_errors("the request"):
                payload_selector = to_payload_selector(with_payload)
                vector_selector = to_vector_selector(with_vectors, settings)
            points: list[CorePoint] = core_shard.retrieve(
                point_ids, payload_selector, vector_selector
            )
            return points

        points = self._store.read(collection_name, "retrieving", ask)
        records = {from_core_id(point.id): to_record(point) for point in points}
        return [records[point_id] for point_id in point_ids if point_id in records]

    def scroll(
        self,
        collection_name: str,
        scroll_filter: qm.Filter | None = None,
        limit: int = 10,
        order_by: str | qm.OrderBy | None = None,
        offset: int | str | uuid.UUID | None = None,
        with_payload: WithPayload = True,
        with_vectors: WithVectors = False,
        consistency: qm.ReadConsistency | None = None,
        shard_key_selector: qm.ShardKeySelector | None = None,
        timeout: int | None = None,
    ) -> tuple[list[qm.Record], int | str | None]:
        """Return one page of points in the order of their ids, and where the next one begins.

        Raises:
            InputError: If limit < 1, or `order_by` comes with an offset.
            StoreError: If `order_by` names a field that has no payload index, or the core fails.
        """
        _refuse_server_options("scroll", shard_key_selector=shard_key_selector)
        check_timeout(timeout)
        check_limit(limit)
        order_by = coerce_dict(qm.OrderBy, order_by, "order_by")
        if order_by is not None and offset is not None:
            raise InputError("order_by takes no offset; start from a value instead")

        def ask(settings: Settings, core_shard: CoreShard) -> tuple[list[CorePoint], Any]:
            with argument_errors("the request"):
                request = core.ScrollRequest(
                    offset=None if offset is None else to_core_id(offset),
                    limit=limit,
                    filter=to_core_filter(scroll_filter),
                    with_payload=to_payload_selector(with_payload),
                    with_vector=to_vector_selector(with_vectors, settings),
                    order_by=to_core_order(order_by),
                )
            points, next_id = core_shard.scroll(request)
            return points, next_id

        points, next_id = self._store.read(collection_name, "scrolling", ask)
        next_offset = None if next_id is None else from_core_id(next_id)
        return [to_record(point) for point in points], next_offset

    def count(
        self,
        collection_name: str,
        count_filter: qm.Filter | None = None,
        exact: bool = True,
        shard_key_selector: qm.ShardKeySelector | None = None,
        timeout: int | None = None,
    ) -> qm.CountResult:
        """Count the points, or those that match a filter."""
        _refuse_server_options("count", shard_key_selector=shard_key_selector)
        check_timeout(timeout)
        with argument_errors("the request"):
            request = core.CountRequest(exact=exact, filter=to_core_filter(count_filter))

        def ask(_: Settings, core_shard: CoreShard) -> int:
            return int(core_shard.count(request))

        return qm.CountResult(count=self._store.read(collection_name, "counting", ask))

    def query_points(
        self,
        collection_name: str,
        query: Query | None = None,
        using: str | None = None,
        prefetch: qm.Prefetch | Sequence[qm.Prefetch] | None = None,
        query_filter: qm.Filter | None = None,
        search_params: qm.SearchParams | None = None,
        limit: int = 10,
        offset: int | None = None,
        with_payload: WithPayload = True,
        with_vectors: WithVectors = False,
        score_threshold: float | None = None,
        lookup_from: qm.LookupLocation | None = None,
        consistency: qm.ReadConsistency | None = None,
        shard_key_selector: qm.ShardKeySelector | None = None,
        timeout: int | None = None,
    ) -> QueryResponse:
        """Return the points that answer a query best, best first.

        Args:
            collection_name: Where to search.
            query: A vector (dense, sparse, multi), a point's id (returns the points nearest to it,
                without itself), NearestQuery, FusionQuery or RrfQuery; None returns points in no
                order.
            using: Which of the collection's vectors to compare; None for the unnamed one.
            prefetch: Queries whose results `query` fuses or rescores; they nest.
            query_filter: What all results must match.
            search_params: How an index is searched.
            limit: Maximum number of points.
            offset: Number of points to skip at the beginning.
            with_payload: Whether payloads come back, or which fields.
            with_vectors: Whether vectors come back, or which.
            score_threshold: The worst score to return.
            lookup_from: Not supported.
            consistency: Every read is consistent.
            shard_key_selector: Only for a server.
            timeout: Nothing is waited for.

        Raises:
            InputError: If the query does not fit the collection, or is of a type that is not
                supported (recommendation, discovery, formula, sampling, MMR, text).
            StoreError: If the core fails.
        """
        _refuse_server_options("query_points", shard_key_selector=shard_key_selector)
        check_timeout(timeout)
        # Not validated: pydantic refuses arrays, and `to_core_query` checks every part.
        request = qm.QueryRequest.model_construct(
            query=coerce_dict(qm.QueryInterface, query, "the query"),
            using=using,
            prefetch=to_prefetches(prefetch),
            filter=coerce(qm.Filter, query_filter, "query_filter"),
            params=coerce(qm.SearchParams, search_params, "search_params"),
            limit=limit,
            offset=offset,
            with_payload=with_payload,
            with_vector=with_vectors,
            score_threshold=score_threshold,
            lookup_from=lookup_from,
        )

        def ask(settings: Settings, core_shard: CoreShard) -> list[CorePoint]:
            points: list[CorePoint] = core_shard.query(to_core_query(request, core_shard, settings))
            return order_found(request, points)

        return _to_query_response(self._store.read(collection_name, "querying", ask))

    def query_batch_points(
        self,
        collection_name: str,
        requests: Sequence[qm.QueryRequest],
        consistency: qm.ReadConsistency | None = None,
        timeout: int | None = None,
    ) -> list[QueryResponse]:
        """Answer several queries in one call; payloads come back only on request.

        See `query_points`.

        Raises:
            InputError: If a query does not fit; its `index` says which.
            StoreError: If the core fails.
        """
        check_timeout(timeout)

        parsed_requests = []
        for index, given in enumerate(to_list(requests, "requests")):
            with _errors_at(index):
                parsed_requests.append(coerce(qm.QueryRequest, given, "the request"))

        def ask(settings: Settings, core_shard: CoreShard) -> list[list[CorePoint]]:
            core_queries = []
            for index, request in enumerate(parsed_requests):
                with _errors_at(index):
                    core_queries.append(to_core_query(request, core_shard, settings))
            if not core_queries:
                return []
            answers: list[list[CorePoint]] = core_shard.query_batch(
                core.QueryBatchRequest(core_queries)
            )
            return [
                order_found(request, points)
                for request, points in zip(parsed_requests, answers, strict=True)
            ]

        answers = self._store.read(collection_name, "querying", ask)
        return [_to_query_response(points) for points in answers]

    # --- inside ---------------------------------------------------------------------------------

    def _update_selected(
        self,
        collection_name: str,
        operation: str,
        selector: Selector,
        make_update: Callable[[list[PointId]], CoreUpdate],
        *,
        size: int = 0,
    ) -> qm.UpdateResult:
        """Apply one of the core's operations to the points selected, some at a time.

        Args:
            collection_name: The collection that holds them.
            operation: What is being done, for messages.
            selector: Which points.
            make_update: Makes the core's operation for some ids.
            size: About how many bytes the operation adds to each point.

        Raises:
            InputError: If the operation cannot be made. If a selected id does not exist; the others
                are changed by then, as a server does it.
            StoreError: If it cannot be written.
        """
        selected_ids, condition = parse_selector(selector)
        with self._store.writing(collection_name) as (shard, _):
            if selected_ids is None:
                selected_ids = find_matching(shard, condition)
                existing = set(selected_ids)
            else:
                existing = find_existing(shard, selected_ids)
            sized_ids = [(point_id, size) for point_id in selected_ids if point_id in existing]
            for piece, piece_size in split_into_pieces(sized_ids):
                with argument_errors(operation):
                    update = make_update(piece)
                shard.write(operation, update, size=piece_size)
        require_existing(selected_ids, existing)
        return self._completed()

    def _completed(self) -> qm.UpdateResult:
        return qm.UpdateResult(
            operation_id=next(self._operation_ids), status=qm.UpdateStatus.COMPLETED
        )


# --- arguments ----------------------------------------------------------------------------------


@contextlib.contextmanager
def _errors_at(index: int) -> Iterator[None]:
    """Give an InputError the position of what it is about."""
    try:
        yield
    except InputError as error:
        raise InputError(error.problem, index=index) from error


def _refuse_server_options(method: str, **options: object) -> None:
    """Refuse options that only a server has.

    Raises:
        InputError: If one of them is given; it names the first one.
    """
    for name, value in options.items():
        if value is not None:
            raise unsupported(f"{method}({name}=...)")


def _refuse_strict_mode(config: qm.StrictModeConfig | None) -> None:
    """Refuse limits that only a server holds its callers to; switched off, they mean nothing.

    Raises:
        InputError: If they are switched on.
    """
    if config is not None and config.enabled:
        raise unsupported("strict_mode_config(enabled=True)")


def _refuse_several(**numbers: int | None) -> None:
    """Refuse more than one shard or replica.

    Raises:
        InputError: If a number is given that is not 1.
    """
    for name, number in numbers.items():
        if number not in (None, 1):
            raise unsupported(f"{name}={number}")


# --- answers ------------------------------------------------------------------------------------


def _to_aliases_response(aliases: Mapping[str, str]) -> qm.CollectionsAliasesResponse:
    return qm.CollectionsAliasesResponse(
        aliases=[
            qm.AliasDescription(alias_name=alias, collection_name=name)
            for alias, name in aliases.items()
        ]
    )


def _to_query_response(points: list[CorePoint]) -> QueryResponse:
    return QueryResponse.model_construct(points=[to_scored_point(point) for point in points])
