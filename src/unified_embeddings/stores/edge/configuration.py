"""Collection and index settings: qdrant-client's models into the core's, and back."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import qdrant_edge as core
from pydantic import BaseModel
from qdrant_client import models

from unified_embeddings.stores.edge.settings import Settings
from unified_embeddings.stores.edge.translation import convert_fields, member, unsupported

_HNSW = {"m": 16, "ef_construct": 100, "full_scan_threshold": 10_000}
"""Qdrant's defaults (its configuration reference, "hnsw_index")."""


def _memory(value: Any) -> Any:
    return member(core.Memory, value)


def _datatype(value: Any) -> Any:
    return member(core.VectorStorageDatatype, value)


def config(settings: Settings) -> Any:
    """What a shard is made with.

    Raises:
        InputError: If the settings hold something that the core has not.
    """
    return core.EdgeConfig(
        vectors={name: _vector(params) for name, params in settings.vectors.items()},
        sparse_vectors={name: _sparse(params) for name, params in settings.sparse_vectors.items()},
        on_disk_payload=settings.on_disk_payload,
        hnsw_config=_hnsw(settings.hnsw_config),
        quantization_config=_quantization(settings.quantization_config),
        optimizers=_optimizers(settings.optimizers_config),
        payload_memory=convert_fields(settings.payload, memory=_memory).get("memory"),
        id_tracker_memory=convert_fields(settings.id_tracker, memory=_memory).get("memory"),
    )


def _vector(params: models.VectorParams) -> Any:
    return core.EdgeVectorParams(
        **convert_fields(
            params,
            distance=lambda value: member(core.Distance, value),
            multivector_config=_multivector,
            datatype=_datatype,
            quantization_config=_quantization,
            hnsw_config=_hnsw,
            memory=_memory,
        )
    )


def _sparse(params: models.SparseVectorParams) -> Any:
    options = convert_fields(params.index, memory=_memory, datatype=_datatype)
    if params.modifier not in (None, models.Modifier.NONE):
        options["modifier"] = member(core.Modifier, params.modifier)
    return core.EdgeSparseVectorParams(**options)


def _multivector(config: models.MultiVectorConfig) -> Any:
    return core.MultiVectorConfig(member(core.MultiVectorComparator, config.comparator))


def hnsw_options(config: models.HnswConfigDiff | None) -> dict[str, Any]:
    """The options of an index, with the defaults where a collection has none of its own."""
    return {**_HNSW, **({} if config is None else config.model_dump(exclude_none=True))}


def _hnsw(config: models.HnswConfigDiff | None) -> Any:
    if config is None:
        return None
    return core.HnswIndexConfig(**{**_HNSW, **convert_fields(config, memory=_memory)})


def _optimizers(config: models.OptimizersConfigDiff | None) -> Any:
    options = convert_fields(config)
    for name in ("memmap_threshold", "flush_interval_sec", "max_optimization_threads"):
        if name in options:
            raise unsupported(f"optimizers_config.{name}")
    return core.EdgeOptimizersConfig(**options) if options else None


def _quantization(config: models.QuantizationConfig | None) -> Any:
    if config is None:
        return None
    kinds: dict[str, tuple[Any, dict[str, Any]]] = {
        "scalar": (core.ScalarQuantizationConfig, {"type": core.ScalarType}),
        "product": (core.ProductQuantizationConfig, {"compression": core.CompressionRatio}),
        "binary": (
            core.BinaryQuantizationConfig,
            {
                "encoding": core.BinaryQuantizationEncoding,
                "query_encoding": core.BinaryQuantizationQueryEncoding,
            },
        ),
        "turbo": (core.TurboQuantQuantizationConfig, {"bits": core.TurboQuantBitSize}),
    }
    for kind, (made, enums) in kinds.items():
        inner = getattr(config, kind, None)
        if inner is not None:
            convert = {name: _member_of(enum) for name, enum in enums.items()}
            return made(**convert_fields(inner, memory=_memory, **convert))
    raise unsupported(f"quantization_config {type(config).__name__}")


def _member_of(enum: Any) -> Callable[[Any], Any]:
    return lambda value: member(enum, value)


def new_vector(name: str, params: models.VectorParams | models.SparseVectorParams) -> Any:
    """The operation that adds a vector name to a shard."""
    if isinstance(params, models.VectorParams):
        options = convert_fields(params, multivector_config=_multivector, datatype=_datatype)
        distance = member(core.Distance, options.pop("distance"))
        return core.UpdateOperation.create_dense_vector(name, distance=distance, **options)
    options = convert_fields(params.index, datatype=_datatype)
    if params.modifier not in (None, models.Modifier.NONE):
        options["modifier"] = member(core.Modifier, params.modifier)
    return core.UpdateOperation.create_sparse_vector(name, **options)


_INDEXES: dict[str, Any] = {
    "keyword": core.KeywordIndexParams,
    "integer": core.IntegerIndexParams,
    "float": core.FloatIndexParams,
    "geo": core.GeoIndexParams,
    "text": core.TextIndexParams,
    "bool": core.BoolIndexParams,
    "datetime": core.DatetimeIndexParams,
    "uuid": core.UuidIndexParams,
}


_INDEX_MODELS: dict[str, Any] = {
    "keyword": models.KeywordIndexParams,
    "integer": models.IntegerIndexParams,
    "float": models.FloatIndexParams,
    "geo": models.GeoIndexParams,
    "text": models.TextIndexParams,
    "bool": models.BoolIndexParams,
    "datetime": models.DatetimeIndexParams,
    "uuid": models.UuidIndexParams,
}


def payload_index(schema: Any) -> Any:
    """A payload index's type or parameters."""
    if not isinstance(schema, BaseModel):
        return member(core.PayloadSchemaType, schema)
    options = convert_fields(
        schema,
        memory=_memory,
        tokenizer=_member_of(core.TokenizerType),
        stopwords=_stopwords,
        stemmer=_stemmer,
    )
    return _INDEXES[options.pop("type")](**options)


def _stopwords(given: models.StopwordsInterface) -> Any:
    if not isinstance(given, models.StopwordsSet):
        return member(core.Language, given)
    languages = {member(core.Language, one) for one in given.languages or ()}
    return core.StopwordsSet(languages or None, set(given.custom or ()) or None)


def _stemmer(given: models.StemmingAlgorithm) -> Any:
    if isinstance(given, models.DisabledStemmerParams):
        return core.DisabledStemmer()
    return core.SnowballParams(member(core.SnowballLanguage, given.language))


def payload_schema(found: Mapping[str, Any]) -> dict[str, models.PayloadIndexInfo]:
    """The payload indexes of a shard, by field."""
    schema = {}
    for field, info in found.items():
        kind = str(info.data_type).rsplit(".", 1)[-1].lower()
        params = None
        if info.params is not None:
            made = _INDEX_MODELS[kind]
            options = {
                name: _model_value(getattr(info.params, name, None)) for name in made.model_fields
            }
            params = made(**options | {"type": kind})
        schema[field] = models.PayloadIndexInfo(
            data_type=models.PayloadSchemaType(kind), params=params, points=info.points
        )
    return schema


def _model_value(value: Any) -> Any:
    """An option of the core as its model has it: an enum's member by its name."""
    match value:
        case None | bool() | int() | float() | str():
            return value
        case core.StopwordsSet():
            languages = sorted(map(_model_value, value.languages or ()))
            return models.StopwordsSet(
                languages=languages or None, custom=sorted(value.custom or ()) or None
            )
        case core.SnowballParams():
            return models.SnowballParams(
                type=models.Snowball.SNOWBALL, language=_model_value(value.language)
            )
        case core.DisabledStemmer():
            return models.DisabledStemmerParams(type=models.NoStemmer.NONE)
        case core.TextScoringParams():
            return models.TextScoringParams(type=_model_value(value.type))
    return str(value).rsplit(".", 1)[-1].lower()
