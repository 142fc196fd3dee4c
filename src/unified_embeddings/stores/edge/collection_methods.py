"""The client's methods about whole collections: their settings, vectors, indexes and aliases."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import qdrant_edge as core
from qdrant_client import models as qm

from unified_embeddings.errors import InputError
from unified_embeddings.stores.edge.bounds import check_timeout
from unified_embeddings.stores.edge.coercion import coerce, coerce_dict
from unified_embeddings.stores.edge.configuration import (
    from_core_payload_schema,
    params_of_new_vector,
    to_collection_config,
    to_core_payload_index,
)
from unified_embeddings.stores.edge.core_types import CoreShard
from unified_embeddings.stores.edge.creation import new_settings
from unified_embeddings.stores.edge.naming import check_is_text
from unified_embeddings.stores.edge.parts import ClientPart
from unified_embeddings.stores.edge.settings import Settings
from unified_embeddings.stores.edge.translation import argument_errors


class CollectionMethods(ClientPart):
    """The methods about whole collections."""

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
        settings = new_settings(
            vectors_config=vectors_config,
            sparse_vectors_config=sparse_vectors_config,
            shard_number=shard_number,
            sharding_method=sharding_method,
            replication_factor=replication_factor,
            write_consistency_factor=write_consistency_factor,
            on_disk_payload=on_disk_payload,
            hnsw_config=hnsw_config,
            optimizers_config=optimizers_config,
            wal_config=wal_config,
            quantization_config=quantization_config,
            timeout=timeout,
            strict_mode_config=strict_mode_config,
            metadata=metadata,
            payload=payload,
            id_tracker=id_tracker,
        )
        self._store.create_collection(collection_name, settings)
        return True

    def delete_collection(self, collection_name: str, timeout: int | None = None) -> bool:
        """Delete a collection, its points and its aliases; False if there is none of this name."""
        check_timeout(timeout)
        return self._store.delete_collection(collection_name)

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


def _to_aliases_response(aliases: Mapping[str, str]) -> qm.CollectionsAliasesResponse:
    return qm.CollectionsAliasesResponse(
        aliases=[
            qm.AliasDescription(alias_name=alias, collection_name=name)
            for alias, name in aliases.items()
        ]
    )
