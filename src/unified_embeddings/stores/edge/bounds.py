"""A server's bounds for settings and search options, which the core does not check.

Some values beyond them fail only when an index is built, hours later: `ef_construct=0` and a sparse
`turbo4` make every `optimize` fail, an `m` of 2**40 ends its process.
"""

from __future__ import annotations

import math

from qdrant_client import models as qm

from unified_embeddings.errors import InputError
from unified_embeddings.stores.edge.settings import Settings

_SPARSE_DATATYPES = (qm.Datatype.FLOAT32, qm.Datatype.FLOAT16, qm.Datatype.UINT8)
_LARGEST_M = 4_096
_LARGEST_EF = 65_536
_MOST_THREADS = 1_024
"""Far above what is of use. A server has no such bounds; its process would fail as ours does."""


def check_settings(settings: Settings) -> None:
    """Refuse settings of a collection that a server refuses, or that no index can be built with.

    Raises:
        InputError: If a value is out of bounds; the message names it.
    """
    _check_hnsw(settings.hnsw_config)
    _check_quantization(settings.quantization_config)
    _check_optimizers(settings.optimizers_config)
    for dense in settings.vectors.values():
        _check_hnsw(dense.hnsw_config)
        _check_quantization(dense.quantization_config)
    for name, sparse in settings.sparse_vectors.items():
        check_sparse_index(name, sparse.index)


def check_sparse_index(name: str, index: qm.SparseIndexParams | None) -> None:
    """Refuse a sparse vector whose index could not be built; see `check_settings`."""
    if index is None:
        return
    require_range(f"sparse vector {name!r}: full_scan_threshold", index.full_scan_threshold, 0)
    if index.datatype is not None and index.datatype not in _SPARSE_DATATYPES:
        allowed = ", ".join(datatype.value for datatype in _SPARSE_DATATYPES)
        raise InputError(
            f"sparse vector {name!r}: datatype must be one of {allowed}, got "
            f"{index.datatype.value!r}, of which no index can be built"
        )


def check_wal(config: qm.WalConfigDiff | None) -> None:
    """Refuse settings of the log that a server refuses.

    Raises:
        InputError: If a value is out of bounds.
    """
    if config is not None:
        require_range("wal_config.wal_capacity_mb", config.wal_capacity_mb, 1)
        require_range("wal_config.wal_segments_ahead", config.wal_segments_ahead, 0)
        require_range("wal_config.wal_retain_closed", config.wal_retain_closed, 1)


def check_search(params: qm.SearchParams) -> None:
    """Refuse search options that a server refuses.

    Raises:
        InputError: If a value is out of bounds.
    """
    require_range("hnsw_ef", params.hnsw_ef, 1)
    if params.quantization is not None:
        require_range("oversampling", params.quantization.oversampling, 1)
    if params.acorn is not None:
        require_range("max_selectivity", params.acorn.max_selectivity, 0, 1)


def check_timeout(timeout: float | None) -> None:
    """Refuse a timeout that a server refuses; any other is taken and changes nothing here.

    Raises:
        InputError: If it is below one second, or not a number.
    """
    require_range("timeout", timeout, 1)


def require_range(
    subject: str, value: float | None, smallest: float, largest: float | None = None
) -> None:
    """Refuse a number outside its bounds, NaN and infinity; None is always within.

    Raises:
        InputError: If it is outside.
    """
    if value is None:
        return
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    is_large_enough = is_number and math.isfinite(value) and value >= smallest
    if is_large_enough and (largest is None or value <= largest):
        return
    bounds = f"at least {smallest}" if largest is None else f"from {smallest} to {largest}"
    raise InputError(f"{subject} must be {bounds}, got {value!r:.40}")


def _check_hnsw(config: qm.HnswConfigDiff | None) -> None:
    if config is None:
        return
    require_range("hnsw_config.m", config.m, 0, _LARGEST_M)
    require_range("hnsw_config.payload_m", config.payload_m, 0, _LARGEST_M)
    require_range("hnsw_config.ef_construct", config.ef_construct, 4, _LARGEST_EF)
    require_range("hnsw_config.full_scan_threshold", config.full_scan_threshold, 10)
    require_range("hnsw_config.max_indexing_threads", config.max_indexing_threads, 0, _MOST_THREADS)


def _check_quantization(config: qm.QuantizationConfig | None) -> None:
    if isinstance(config, qm.ScalarQuantization):
        require_range("quantile", config.scalar.quantile, 0.5, 1)


def _check_optimizers(config: qm.OptimizersConfigDiff | None) -> None:
    if config is None:
        return
    require_range("optimizers_config.deleted_threshold", config.deleted_threshold, 0, 1)
    require_range(
        "optimizers_config.vacuum_min_vector_number", config.vacuum_min_vector_number, 100
    )
    require_range("optimizers_config.default_segment_number", config.default_segment_number, 0)
    require_range("optimizers_config.max_segment_size", config.max_segment_size, 1)
    require_range("optimizers_config.memmap_threshold", config.memmap_threshold, 0)
    require_range("optimizers_config.indexing_threshold", config.indexing_threshold, 0)
    require_range("optimizers_config.flush_interval_sec", config.flush_interval_sec, 0)
