"""Settings of collections, vectors and indexes, for Qdrant's core and back from it."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import qdrant_edge as core
from pydantic import BaseModel
from qdrant_client import models as qm

from unified_embeddings.errors import InputError
from unified_embeddings.stores.edge.coercion import coerce
from unified_embeddings.stores.edge.core_types import CoreConfig, CoreEnum, CoreUpdate
from unified_embeddings.stores.edge.points import to_json_payload
from unified_embeddings.stores.edge.settings import Settings
from unified_embeddings.stores.edge.translation import (
    convert_fields,
    to_core_member,
    unsupported,
)

_HNSW_DEFAULTS = {"m": 16, "ef_construct": 100, "full_scan_threshold": 10_000}
"""Qdrant's defaults (its configuration reference, "hnsw_index")."""
_BACKGROUND_OPTIONS = (
    "memmap_threshold", "flush_interval_sec", "max_optimization_threads", "prevent_unoptimized",
)  # fmt: skip
"""Options of a server's background optimisers; here `optimize` runs when it is called."""
_LOG_SEGMENT_MB = 32
"""Size of the core's log files, which it has no setting for."""

_CORE_INDEX_PARAMS: dict[str, Any] = {
    "keyword": core.KeywordIndexParams,
    "integer": core.IntegerIndexParams,
    "float": core.FloatIndexParams,
    "geo": core.GeoIndexParams,
    "text": core.TextIndexParams,
    "bool": core.BoolIndexParams,
    "datetime": core.DatetimeIndexParams,
    "uuid": core.UuidIndexParams,
}
_INDEX_PARAMS: dict[str, Any] = {
    "keyword": qm.KeywordIndexParams,
    "integer": qm.IntegerIndexParams,
    "float": qm.FloatIndexParams,
    "geo": qm.GeoIndexParams,
    "text": qm.TextIndexParams,
    "bool": qm.BoolIndexParams,
    "datetime": qm.DatetimeIndexParams,
    "uuid": qm.UuidIndexParams,
}

_OPTIONS: dict[str, Any] = {
    "hnsw_config": qm.HnswConfigDiff,
    "quantization_config": qm.QuantizationConfig,
    "optimizers_config": qm.OptimizersConfigDiff,
    "on_disk_payload": bool,
    "payload": qm.PayloadStorageParams,
    "id_tracker": qm.IdTrackerParams,
}
"""Option of `create_collection` → its type."""

_to_memory = partial(to_core_member, core.Memory)
_to_datatype = partial(to_core_member, core.VectorStorageDatatype)
_to_distance = partial(to_core_member, core.Distance)


# --- collections --------------------------------------------------------------------------------


def to_settings(
    *, vectors_config: Any, sparse_vectors_config: Any, metadata: Any, **options: Any
) -> Settings:
    """Return the settings that `create_collection` is called with.

    Args:
        vectors_config: The vectors, by name or a single one without a name.
        sparse_vectors_config: The sparse vectors by name.
        metadata: The caller's own data.
        **options: The other fields of `Settings`.

    Raises:
        InputError: If there is no vector, an option is of another type, or the metadata is not
            valid JSON.
    """
    vectors = coerce(qm.VectorsConfig, vectors_config, "vectors_config")
    if isinstance(vectors, qm.VectorParams):
        vectors = {"": vectors}
    sparse = coerce(
        dict[str, qm.SparseVectorParams], sparse_vectors_config, "sparse_vectors_config"
    )
    if not vectors and not sparse:
        raise unsupported("a collection without vectors")
    if metadata is not None:
        metadata, _ = to_json_payload(metadata)
    coerced = {name: coerce(_OPTIONS[name], value, name) for name, value in options.items()}
    return Settings(
        vectors=vectors or {}, sparse_vectors=sparse or {}, metadata=metadata, **coerced
    )


def to_core_config(settings: Settings) -> CoreConfig:
    """Return the configuration that a shard is created with.

    Raises:
        InputError: If the settings hold something that the core lacks.
    """
    payload = convert_fields(settings.payload, memory=_to_memory)
    id_tracker = convert_fields(settings.id_tracker, memory=_to_memory)
    return core.EdgeConfig(
        vectors={name: _to_dense_params(params) for name, params in settings.vectors.items()},
        sparse_vectors={
            name: _to_sparse_params(params) for name, params in settings.sparse_vectors.items()
        },
        on_disk_payload=settings.on_disk_payload,
        hnsw_config=_to_hnsw(settings.hnsw_config),
        quantization_config=_to_quantization(settings.quantization_config),
        optimizers=_to_optimizers(settings.optimizers_config),
        payload_memory=payload.get("memory"),
        id_tracker_memory=id_tracker.get("memory"),
    )


def to_collection_config(settings: Settings) -> qm.CollectionConfig:
    """Return a collection's settings as a server with one node describes them."""
    vectors: Any = dict(settings.vectors)
    if set(vectors) == {""}:
        vectors = vectors[""]
    optimizer_options: dict[str, Any] = {"default_segment_number": 0, "flush_interval_sec": 0}
    if settings.optimizers_config is not None:
        optimizer_options |= settings.optimizers_config.model_dump(exclude_none=True)
        if (
            optimizer_options.get("max_optimization_threads")
            == qm.MaxOptimizationThreadsSetting.AUTO
        ):
            del optimizer_options["max_optimization_threads"]  # reported as a number, or not at all
    hnsw_options: dict[str, Any] = dict(_HNSW_DEFAULTS)
    if settings.hnsw_config is not None:
        hnsw_options |= settings.hnsw_config.model_dump(exclude_none=True)
    return qm.CollectionConfig(
        params=qm.CollectionParams(
            vectors=vectors,
            sparse_vectors=dict(settings.sparse_vectors) or None,
            shard_number=1,
            replication_factor=1,
            write_consistency_factor=1,
            on_disk_payload=settings.on_disk_payload,
            payload=settings.payload,
            id_tracker=settings.id_tracker,
        ),
        hnsw_config=qm.HnswConfig(**hnsw_options),
        optimizer_config=qm.OptimizersConfig(**optimizer_options),
        wal_config=qm.WalConfig(wal_capacity_mb=_LOG_SEGMENT_MB, wal_segments_ahead=0),
        quantization_config=settings.quantization_config,
        metadata=settings.metadata,
    )


def _to_dense_params(params: qm.VectorParams) -> CoreConfig:
    options = convert_fields(
        params,
        distance=_to_distance,
        multivector_config=_to_multivector,
        datatype=_to_datatype,
        quantization_config=_to_quantization,
        hnsw_config=_to_hnsw,
        memory=_to_memory,
    )
    return core.EdgeVectorParams(**options)


def _to_sparse_params(params: qm.SparseVectorParams) -> CoreConfig:
    options = convert_fields(params.index, memory=_to_memory, datatype=_to_datatype)
    return core.EdgeSparseVectorParams(**options, **_modifier_option(params))


def _modifier_option(params: qm.SparseVectorParams) -> dict[str, CoreEnum]:
    if params.modifier in (None, qm.Modifier.NONE):
        return {}
    return {"modifier": to_core_member(core.Modifier, params.modifier)}


def _to_multivector(config: qm.MultiVectorConfig) -> CoreConfig:
    comparator = to_core_member(core.MultiVectorComparator, config.comparator)
    return core.MultiVectorConfig(comparator)


def _to_hnsw(config: qm.HnswConfigDiff | None) -> CoreConfig:
    if config is None:
        return None
    return core.HnswIndexConfig(**{**_HNSW_DEFAULTS, **convert_fields(config, memory=_to_memory)})


def _to_optimizers(config: qm.OptimizersConfigDiff | None) -> CoreConfig:
    ignored = dict.fromkeys(_BACKGROUND_OPTIONS, lambda value: value)
    options = convert_fields(config, **ignored)
    for name in _BACKGROUND_OPTIONS:
        options.pop(name, None)
    if not options:
        return None
    return core.EdgeOptimizersConfig(**options)


def _to_quantization(config: qm.QuantizationConfig | None) -> CoreConfig:
    match config:
        case None:
            return None
        case qm.ScalarQuantization():
            options = convert_fields(
                config.scalar,
                type=partial(to_core_member, core.ScalarType),
                memory=_to_memory,
            )
            return core.ScalarQuantizationConfig(**options)
        case qm.ProductQuantization():
            options = convert_fields(
                config.product,
                compression=partial(to_core_member, core.CompressionRatio),
                memory=_to_memory,
            )
            return core.ProductQuantizationConfig(**options)
        case qm.BinaryQuantization():
            options = convert_fields(
                config.binary,
                encoding=partial(to_core_member, core.BinaryQuantizationEncoding),
                query_encoding=partial(to_core_member, core.BinaryQuantizationQueryEncoding),
                memory=_to_memory,
            )
            return core.BinaryQuantizationConfig(**options)
        case qm.TurboQuantization():
            options = convert_fields(
                config.turbo,
                bits=partial(to_core_member, core.TurboQuantBitSize),
                memory=_to_memory,
            )
            return core.TurboQuantQuantizationConfig(**options)
    raise unsupported(f"quantization_config {type(config).__name__}")


# --- vectors added to a collection --------------------------------------------------------------


def params_of_new_vector(
    config: qm.DenseVectorNameConfig | qm.SparseVectorNameConfig,
) -> qm.VectorParams | qm.SparseVectorParams:
    """Return the parameters of a vector to add, as `create_collection` would take them.

    Raises:
        InputError: If an added vector cannot have this data type.
    """
    if isinstance(config, qm.DenseVectorNameConfig):
        dense = config.dense
        return qm.VectorParams(
            size=dense.size,
            distance=dense.distance,
            multivector_config=dense.multivector_config,
            datatype=_datatype_of_new_vector(dense.datatype),
        )
    sparse = config.sparse
    index = None
    if sparse.datatype:
        index = qm.SparseIndexParams(datatype=_datatype_of_new_vector(sparse.datatype))
    return qm.SparseVectorParams(index=index, modifier=sparse.modifier)


def _datatype_of_new_vector(value: Any) -> qm.Datatype | None:
    """Return a data type; qdrant-client has another enum of them for vectors added later."""
    if value is None:
        return None
    try:
        return qm.Datatype(value.value)
    except ValueError:
        raise unsupported(f"datatype {value.value!r} of a vector added later") from None


def vector_creation(name: str, params: qm.VectorParams | qm.SparseVectorParams) -> CoreUpdate:
    """Return the operation that adds a vector name to a shard."""
    if isinstance(params, qm.VectorParams):
        options = convert_fields(
            params,
            distance=_to_distance,
            multivector_config=_to_multivector,
            datatype=_to_datatype,
        )
        return core.UpdateOperation.create_dense_vector(name, **options)
    options = convert_fields(params.index, datatype=_to_datatype)
    return core.UpdateOperation.create_sparse_vector(name, **options, **_modifier_option(params))


# --- payload indexes ----------------------------------------------------------------------------


def to_core_payload_index(schema: qm.PayloadFieldSchema | str) -> CoreConfig:
    """Return a payload index's type or parameters, as the core takes them."""
    if not isinstance(schema, BaseModel):
        return to_core_member(core.PayloadSchemaType, schema)
    if isinstance(schema, qm.IntegerIndexParams) and schema.lookup is schema.range is False:
        raise InputError("an integer index needs lookup or range, or both, to be of use")
    options = convert_fields(
        schema,
        memory=_to_memory,
        tokenizer=partial(to_core_member, core.TokenizerType),
        stopwords=_to_stopwords,
        stemmer=_to_stemmer,
    )
    params_class = _CORE_INDEX_PARAMS[options.pop("type")]
    return params_class(**options)


def _to_stopwords(stopwords: qm.StopwordsInterface) -> CoreConfig:
    if not isinstance(stopwords, qm.StopwordsSet):
        return to_core_member(core.Language, stopwords)
    languages = {to_core_member(core.Language, language) for language in stopwords.languages or ()}
    return core.StopwordsSet(languages or None, set(stopwords.custom or ()) or None)


def _to_stemmer(stemmer: qm.StemmingAlgorithm) -> CoreConfig:
    if isinstance(stemmer, qm.DisabledStemmerParams):
        return core.DisabledStemmer()
    return core.SnowballParams(to_core_member(core.SnowballLanguage, stemmer.language))


def from_core_payload_schema(schema: Mapping[str, Any]) -> dict[str, qm.PayloadIndexInfo]:
    """Return the payload indexes of a shard, by field, as qdrant-client describes them."""
    indexes = {}
    for field, info in schema.items():
        index_type = _member_value(info.data_type)
        params = None
        if info.params is not None:
            params_class = _INDEX_PARAMS[index_type]
            options = {
                name: _from_core_option(getattr(info.params, name, None))
                for name in params_class.model_fields
            }
            options["type"] = index_type
            params = params_class(**options)
        indexes[field] = qm.PayloadIndexInfo(
            data_type=qm.PayloadSchemaType(index_type), params=params, points=info.points
        )
    return indexes


def _from_core_option(value: Any) -> Any:
    """Return an option of a core index as qdrant-client's model takes it."""
    match value:
        case None | bool() | int() | float() | str():
            return value
        case core.StopwordsSet():
            languages = sorted(map(_member_value, value.languages or ()))
            return qm.StopwordsSet(
                languages=languages or None, custom=sorted(value.custom or ()) or None
            )
        case core.SnowballParams():
            return qm.SnowballParams(
                type=qm.Snowball.SNOWBALL, language=_member_value(value.language)
            )
        case core.DisabledStemmer():
            return qm.DisabledStemmerParams(type=qm.NoStemmer.NONE)
        case core.TextScoringParams():
            return qm.TextScoringParams(type=_from_core_option(value.type))
    return _member_value(value)


def _member_value(member: CoreEnum) -> Any:
    """Return qdrant-client's value of a core enum's member: Language.English → "english"."""
    return str(member).rsplit(".", 1)[-1].lower()
