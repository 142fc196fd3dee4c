"""What a collection was made with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from qdrant_client import models


@dataclass(frozen=True)
class Settings:
    """What a collection was made with.

    Attributes:
        vectors: Name → dense or multi-vector; the unnamed one is "".
        sparse_vectors: Name → sparse vector.
        hnsw_config: Of every dense vector that has none of its own.
        quantization_config: The same.
        optimizers_config: When `optimize` merges and indexes.
        on_disk_payload: Whether payloads are read from disk.
        payload: Where payloads are held, which overrides it.
        id_tracker: Where the ids of indexed points are held.
        metadata: The collection's own, JSON.
    """

    vectors: Mapping[str, models.VectorParams] = field(default_factory=dict)
    sparse_vectors: Mapping[str, models.SparseVectorParams] = field(default_factory=dict)
    hnsw_config: models.HnswConfigDiff | None = None
    quantization_config: models.QuantizationConfig | None = None
    optimizers_config: models.OptimizersConfigDiff | None = None
    on_disk_payload: bool | None = None
    payload: models.PayloadStorageParams | None = None
    id_tracker: models.IdTrackerParams | None = None
    metadata: dict[str, Any] | None = None


def settings_with(settings: Settings, **changes: Any) -> Settings:
    """The settings with some replaced; those given as None stay."""
    kept = {item.name: getattr(settings, item.name) for item in fields(Settings)}
    return Settings(**kept | {key: value for key, value in changes.items() if value is not None})
