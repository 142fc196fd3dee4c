"""The settings that a collection of the embedded store was created with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from qdrant_client import models as qm


@dataclass(frozen=True)
class Settings:
    """The settings of one collection.

    Attributes:
        vectors: Name → dense vector or multi-vector. The unnamed vector's name is "".
        sparse_vectors: Name → sparse vector.
        hnsw_config: Index options of every dense vector that has none of its own.
        quantization_config: Quantisation of every dense vector that has none of its own.
        optimizers_config: When `optimize` merges and indexes.
        on_disk_payload: Whether payloads are read from disk.
        payload: Where payloads are held. Overrides `on_disk_payload`.
        id_tracker: Where the ids of indexed points are held.
        metadata: The caller's own data about the collection, JSON.
    """

    vectors: Mapping[str, qm.VectorParams] = field(default_factory=dict)
    sparse_vectors: Mapping[str, qm.SparseVectorParams] = field(default_factory=dict)
    hnsw_config: qm.HnswConfigDiff | None = None
    quantization_config: qm.QuantizationConfig | None = None
    optimizers_config: qm.OptimizersConfigDiff | None = None
    on_disk_payload: bool | None = None
    payload: qm.PayloadStorageParams | None = None
    id_tracker: qm.IdTrackerParams | None = None
    metadata: dict[str, Any] | None = None


def settings_with(settings: Settings, **changes: Any) -> Settings:
    """Return the settings with some fields replaced; a change to None is ignored."""
    values = {item.name: getattr(settings, item.name) for item in fields(Settings)}
    for name, value in changes.items():
        if value is not None:
            values[name] = value
    return Settings(**values)
