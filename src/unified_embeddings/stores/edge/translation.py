"""qdrant-client's models as Qdrant's core takes them, and what the core answers as those models.

Both speak of the same things under nearly the same names, so most of this is tables. What has no
counterpart is refused by its name; nothing is left out without a word.
"""

from __future__ import annotations

import contextlib
import math
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import qdrant_edge as core
from pydantic import BaseModel
from qdrant_client import models

from unified_embeddings.errors import InputError
from unified_embeddings.stores.edge.catalog import Settings

_LARGEST_ID = 2**64 - 1
_DEFAULT_RRF_K = 2
"""Qdrant's own where a request names none."""
_HNSW = {"m": 16, "ef_construct": 100, "full_scan_threshold": 10_000}
"""Qdrant's defaults (its configuration reference, "hnsw_index")."""


def unsupported(what: str) -> InputError:
    """The error for what a server does and an embedded store does not."""
    return InputError(
        f"{what} is not supported by the embedded store; leave it out, or run a Qdrant server and "
        "use url="
    )


@contextlib.contextmanager
def arguments(what: str) -> Iterator[None]:
    """Turn what the core's types refuse into an InputError.

    Raises:
        InputError: If something within has another type, is out of range or cannot be read.
    """
    try:
        yield
    except InputError:
        raise
    except (AttributeError, OverflowError, TypeError, ValueError) as error:
        reason = str(error).split("\n", 1)[0]
        raise InputError(f"{what} cannot be used: {reason}") from error


def member(enum: Any, value: Any) -> Any:
    """A value of one of qdrant-client's enums as the core's: "max_sim" → MaxSim."""
    wanted = str(getattr(value, "value", value)).replace("_", "").lower()
    for name in dir(enum):
        if not name.startswith("_") and name.replace("_", "").lower() == wanted:
            return getattr(enum, name)
    raise unsupported(f"{enum.__name__} {getattr(value, 'value', value)!r}")


def _options(model: BaseModel | None, **convert: Callable[[Any], Any]) -> dict[str, Any]:
    """The fields of a model that are set, by name, some converted."""
    if model is None:
        return {}
    values = {name: getattr(model, name) for name in type(model).model_fields}
    return {
        name: convert.get(name, _plain)(value)
        for name, value in values.items()
        if value is not None
    }


def _plain(value: Any) -> Any:
    if isinstance(value, BaseModel):
        raise unsupported(f"{type(value).__name__} here")
    return value


def _memory(value: Any) -> Any:
    return member(core.Memory, value)


def _datatype(value: Any) -> Any:
    return member(core.VectorStorageDatatype, value)


# --- how a collection is made -------------------------------------------------------------------


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
        payload_memory=_options(settings.payload, memory=_memory).get("memory"),
        id_tracker_memory=_options(settings.id_tracker, memory=_memory).get("memory"),
    )


def _vector(params: models.VectorParams) -> Any:
    return core.EdgeVectorParams(
        **_options(
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
    options = _options(params.index, memory=_memory, datatype=_datatype)
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
    return core.HnswIndexConfig(**{**_HNSW, **_options(config, memory=_memory)})


def _optimizers(config: models.OptimizersConfigDiff | None) -> Any:
    options = _options(config)
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
            return made(**_options(inner, memory=_memory, **convert))
    raise unsupported(f"quantization_config {type(config).__name__}")


def _member_of(enum: Any) -> Callable[[Any], Any]:
    return lambda value: member(enum, value)


def new_vector(name: str, params: models.VectorParams | models.SparseVectorParams) -> Any:
    """The operation that adds a vector name to a shard."""
    if isinstance(params, models.VectorParams):
        options = _options(params, multivector_config=_multivector, datatype=_datatype)
        distance = member(core.Distance, options.pop("distance"))
        return core.UpdateOperation.create_dense_vector(name, distance=distance, **options)
    options = _options(params.index, datatype=_datatype)
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
    options = _options(
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


# --- points -------------------------------------------------------------------------------------


def point_id(value: Any) -> int | str:
    """An id as the core takes it: unsigned 64-bit integer, or a UUID in its usual form.

    Raises:
        InputError: If it is neither.
    """
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= _LARGEST_ID:
        return value
    if isinstance(value, uuid.UUID):
        return str(value)
    if isinstance(value, str):
        try:
            return str(uuid.UUID(value))
        except ValueError:
            pass
    raise InputError(f"an id must be a UUID or an integer from 0 to {_LARGEST_ID}, got {value!r}")


def _id_model(value: Any) -> int | str:
    return value if isinstance(value, int) else str(value)


def found_id(found: Any) -> int | str:
    """The id of something that the core found."""
    return _id_model(found.id)


def next_offset(value: Any) -> int | str | None:
    """Where the next page of a scroll begins; None after the last."""
    return None if value is None else _id_model(value)


def _vector_model(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _vector_model(one) for name, one in value.items()}
    if isinstance(value, core.SparseVector):
        return models.SparseVector(indices=value.indices, values=value.values)
    return value


def record(found: Any) -> models.Record:
    """A point that was retrieved or scrolled over."""
    return models.Record.model_construct(
        id=_id_model(found.id),
        payload=found.payload,
        vector=_vector_model(found.vector),
        order_value=found.order_value,
    )


def scored_point(found: Any) -> models.ScoredPoint:
    """A point that a query found."""
    return models.ScoredPoint.model_construct(
        id=_id_model(found.id),
        version=found.version,
        score=found.score,
        payload=found.payload,
        vector=_vector_model(found.vector),
        order_value=found.order_value,
    )


def with_payload(selector: Any) -> Any:
    """Which parts of the payload come back."""
    if isinstance(selector, models.PayloadSelectorInclude):
        return core.PayloadSelector.Include(selector.include)
    if isinstance(selector, models.PayloadSelectorExclude):
        return core.PayloadSelector.Exclude(selector.exclude)
    if selector is None or isinstance(selector, bool):
        return bool(selector)
    if isinstance(selector, str):
        raise InputError(f"with_payload takes a list of fields, got the text {selector!r}")
    return list(selector)


def with_vectors(selector: Any, settings: Settings) -> bool | list[str]:
    """Which vectors come back.

    Raises:
        InputError: If the collection has no vector of a name.
    """
    if selector is None or isinstance(selector, bool):
        return bool(selector)
    if isinstance(selector, str):
        raise InputError(f"with_vectors takes a list of names, got the text {selector!r}")
    names = list(selector)
    for name in names:
        if name not in settings.vectors and name not in settings.sparse_vectors:
            raise InputError(f"the collection has no vector named {name!r}")
    return names


def order_by(order: Any) -> Any:
    """How a scroll is ordered; None for by id."""
    if order is None:
        return None
    if isinstance(order, str):
        return core.OrderBy(order)
    direction = None if order.direction is None else member(core.Direction, order.direction)
    start = order.start_from
    return core.OrderBy(order.key, direction, start.isoformat() if _is_date(start) else start)


# --- queries ------------------------------------------------------------------------------------


def fusion(query: models.FusionQuery | models.RrfQuery) -> Any:
    """How the prefetches are fused."""
    if isinstance(query, models.RrfQuery):
        k = _DEFAULT_RRF_K if query.rrf.k is None else query.rrf.k
        if k < 1:
            raise InputError(f"RRF's k must be at least 1, got {k}")
        return core.Fusion.Rrf(k, query.rrf.weights)
    if query.fusion == models.Fusion.DBSF:
        return core.Fusion.Dbsf()
    return core.Fusion.Rrf(_DEFAULT_RRF_K)


def check_fusion(query: models.FusionQuery | models.RrfQuery, prefetches: int) -> None:
    """Refuse a fusion of nothing, or with another number of weights than lists.

    Raises:
        InputError: If so.
    """
    if not prefetches:
        raise InputError("a fusion needs at least one prefetch to fuse")
    weights = query.rrf.weights if isinstance(query, models.RrfQuery) else None
    if weights is not None and len(weights) != prefetches:
        raise InputError(f"RRF needs a weight for each prefetch: {len(weights)} for {prefetches}")
    if weights is not None and not all(map(math.isfinite, weights)):
        raise InputError(f"RRF's weights must be finite numbers, got {weights}")


def search_params(params: models.SearchParams | None) -> Any:
    """How an index is searched; None for as it is set up."""
    if params is None:
        return None
    return core.SearchParams(
        **_options(
            params,
            quantization=lambda value: core.QuantizationSearchParams(**_options(value)),
            acorn=lambda value: core.AcornSearchParams(**_options(value)),
            idf=_idf,
        )
    )


def _idf(params: models.IdfParams) -> Any:
    """Over which points a sparse vector's IDF is computed: those of a filter, or all."""
    corpus = params.corpus if isinstance(params, models.IdfCorpusParams) else None
    return core.IdfParams(corpus=to_filter(corpus))


# --- filters ------------------------------------------------------------------------------------


def to_filter(given: models.Filter | None) -> Any:
    """A filter.

    Raises:
        InputError: If it holds a condition that the core has not, or a key that is no JSON path.
    """
    if given is None:
        return None
    if not isinstance(given, models.Filter):
        raise InputError(f"a filter must be a models.Filter, got {type(given).__name__}")
    minimum = given.min_should
    with arguments("the filter"):
        return core.Filter(
            must=_conditions(given.must),
            should=_conditions(given.should),
            must_not=_conditions(given.must_not),
            min_should=None
            if minimum is None
            else core.MinShould([_condition(one) for one in minimum.conditions], minimum.min_count),
        )


def _conditions(given: Any) -> list[Any] | None:
    if given is None:
        return None
    return [_condition(one) for one in (given if isinstance(given, Sequence) else [given])]


def _condition(given: Any) -> Any:
    match given:
        case models.FieldCondition():
            return _field(given)
        case models.Filter():
            return to_filter(given)
        case models.HasIdCondition():
            return core.HasIdCondition({point_id(one) for one in given.has_id})
        case models.IsEmptyCondition():
            return core.IsEmptyCondition(given.is_empty.key)
        case models.IsNullCondition():
            return core.IsNullCondition(given.is_null.key)
        case models.HasVectorCondition():
            return core.HasVectorCondition(given.has_vector)
        case models.NestedCondition():
            return core.NestedCondition(given.nested.key, to_filter(given.nested.filter))
        case models.SliceCondition():
            return core.SliceCondition(given.slice.total, given.slice.index)
    raise unsupported(f"the condition {type(given).__name__}")


def _field(given: models.FieldCondition) -> Any:
    return core.FieldCondition(
        given.key,
        **_options(
            given.model_copy(update={"key": None}),
            match=_match,
            range=_range,
            geo_bounding_box=lambda box: core.GeoBoundingBox(
                _point(box.top_left), _point(box.bottom_right)
            ),
            geo_radius=lambda circle: core.GeoRadius(_point(circle.center), circle.radius),
            geo_polygon=lambda polygon: core.GeoPolygon(
                _line(polygon.exterior), [_line(line) for line in polygon.interiors or ()]
            ),
            values_count=lambda count: core.ValuesCount(**_options(count)),
        ),
    )


def _match(given: Any) -> Any:
    match given:
        case models.MatchValue():
            # To the core's binding Python's True is the number 1; only NumPy's is a truth value.
            value = np.bool_(given.value) if isinstance(given.value, bool) else given.value
            return core.MatchValue(value)
        case models.MatchAny():
            return core.MatchAny(given.any)
        case models.MatchExcept():
            return core.MatchExcept(given.except_)
        case models.MatchText():
            return core.MatchText(given.text)
        case models.MatchTextAny():
            return core.MatchTextAny(given.text_any)
        case models.MatchPhrase():
            return core.MatchPhrase(given.phrase)
        case models.MatchPrefix():
            return core.MatchPrefix(given.prefix)
        case models.MatchSubstring():
            return core.MatchSubstring(given.substring)
    raise unsupported(f"the match {type(given).__name__}")


def _range(given: Any) -> Any:
    if isinstance(given, models.DatetimeRange):
        return core.RangeDateTime(
            **{name: value.isoformat() for name, value in _options(given).items()}
        )
    return core.RangeFloat(**_options(given))


def _is_date(value: Any) -> bool:
    return hasattr(value, "isoformat")


def _point(point: models.GeoPoint) -> Any:
    return core.GeoPoint(point.lon, point.lat)


def _line(line: models.GeoLineString) -> list[Any]:
    return [_point(point) for point in line.points]
