"""The client's methods that change collections as a whole: their settings, or all of them."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from qdrant_client import models as qm

from unified_embeddings.stores.edge.arguments import refuse_strict_mode
from unified_embeddings.stores.edge.bounds import check_timeout
from unified_embeddings.stores.edge.changes import changed_settings
from unified_embeddings.stores.edge.coercion import coerce
from unified_embeddings.stores.edge.creation import checked_config, new_settings
from unified_embeddings.stores.edge.parts import ClientPart


class CollectionChanges(ClientPart):
    """The methods that change collections as a whole."""

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
        """Change a collection's index settings and metadata; what is not given stays.

        The next `optimize` builds the index with the new settings. Metadata is merged key by key;
        a key whose new value is None is removed.

        Returns:
            Whether there was anything to change.

        Raises:
            InputError: If there is no such collection or vector, an option is out of bounds, or it
                cannot be changed here (a sparse vector's modifier and datatype, switching off the
                collection's quantisation, what only a cluster has).
            StoreError: If it cannot be written.
        """
        check_timeout(timeout)
        refuse_strict_mode(coerce(qm.StrictModeConfig, strict_mode_config, "strict_mode_config"))
        options = {
            "optimizers_config": optimizers_config,
            "collection_params": collection_params,
            "vectors_config": vectors_config,
            "hnsw_config": hnsw_config,
            "quantization_config": quantization_config,
            "sparse_vectors_config": sparse_vectors_config,
        }
        change = partial(changed_settings, metadata=metadata, options=options)
        self._store.update_settings(collection_name, change)
        return any(value is not None for value in (metadata, *options.values()))

    def recreate_collection(
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
        """Delete a collection, if there is one, with its aliases, and create an empty one.

        The settings are checked first: if they are refused, nothing is deleted. After a crash in
        between, there is no collection of this name. See `create_collection`.

        Raises:
            InputError: If the name is invalid or an alias, or an option is refused.
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
        checked_config(collection_name, settings)
        self._store.delete_collection(collection_name)
        self._store.create_collection(collection_name, settings)
        return True
