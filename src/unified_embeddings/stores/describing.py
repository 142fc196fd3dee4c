"""Everything worth knowing about a collection: how its vectors are kept, and what its points say.

What lives here: settings in words, and the fields of a sample of points. What does not: its size
(`measuring`), and printing (`cli`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from qdrant_client import models as qm

from unified_embeddings.errors import StoreError
from unified_embeddings.models.bm25 import KEYWORD_FUSION
from unified_embeddings.stores.calibration_record import read_calibration
from unified_embeddings.stores.errors import store_errors
from unified_embeddings.stores.fusion_choice import read_choice
from unified_embeddings.stores.keyword_list import recorded_name
from unified_embeddings.stores.listing import CollectionOverview, look_at_collection
from unified_embeddings.stores.opening import Client
from unified_embeddings.stores.sampling import sample_ids
from unified_embeddings.stores.schema import dense_vectors, sparse_vectors, stored_colbert

SAMPLE = 1000
"""Points whose fields are read; all of a smaller collection's."""
_PER_REQUEST = 250
_MOST_FIELDS = 30
_MOST_VALUES = 3
_LONGEST_VALUE = 120
"""Characters of a value that is counted. What is longer is a text, not a value that repeats."""
_DATE_FIELD = "last_modified_date"
_LINKS = frozenset(("doc_id", "document_id", "ref_doc_id"))
"""Fields in which LlamaIndex keeps which document a node is of."""


@dataclass(frozen=True)
class FieldSummary:
    """A field of the points' payloads.

    Attributes:
        name: Its name; with a dot for a field within another.
        points: Points of the sample that have it.
        distinct: Its different values that are short enough to be counted.
        frequent: The most frequent of them with their counts, none if no value repeats.
    """

    name: str
    points: int
    distinct: int
    frequent: tuple[tuple[str, int], ...]


@dataclass(frozen=True)
class CollectionDescription:
    """Everything worth knowing about a collection.

    Attributes:
        overview: What it holds and takes.
        status: Qdrant's word for its state: green is good.
        vectors: Name of each vector → how it is kept, in words; "" is the unnamed one.
        colbert: How ColBERT vectors are pooled and quantised, in words; None if there are none.
        keywords: The BM25 that counts words for its keyword list; None if there is none.
        fusion: The fusion that was chosen for it, or that its keyword list has, in words; None if
            the model's own is used.
        calibration: Where the calibration that was fitted for it comes from; None if none was.
        judges_relevance: Whether a calibration can be used: not where a keyword list is fused too.
        payload_indexes: Field → type of its index.
        sample: Points whose payloads were read.
        fields: Their fields, the most frequent first.
        oldest_file: Day of the oldest last change of a file among them, as 2026-01-31; None if they
            do not tell.
        newest_file: Day of the newest, likewise.
    """

    overview: CollectionOverview
    status: str
    vectors: dict[str, str]
    colbert: str | None
    keywords: str | None
    fusion: str | None
    calibration: str | None
    judges_relevance: bool
    payload_indexes: dict[str, str]
    sample: int
    fields: tuple[FieldSummary, ...]
    oldest_file: str | None
    newest_file: str | None


def describe_collection(client: Client, name: str) -> CollectionDescription:
    """Return everything worth knowing about a collection.

    Args:
        client: Sync client.
        name: The collection's own name.

    Raises:
        StoreError: If it does not exist, or Qdrant fails.
    """
    overview = look_at_collection(client, name)
    with store_errors(name, "reading its settings"):
        info = client.get_collection(name)
    vectors = {key: _describe_dense(params) for key, params in dense_vectors(info).items()}
    for key, sparse in sparse_vectors(info).items():
        vectors[key] = _describe_sparse(sparse)
    colbert = stored_colbert(info)
    keywords = recorded_name(info)
    fusion, judges_relevance = _describe_fusion(name, info, has_keywords=keywords is not None)
    payloads = _read_payloads(client, name)
    days = sorted(
        day for payload in payloads if isinstance(day := payload.get(_DATE_FIELD), str) and day
    )
    return CollectionDescription(
        overview=overview,
        status=info.status.value,
        vectors=vectors,
        colbert=None if colbert is None else str(colbert),
        keywords=keywords,
        fusion=fusion,
        calibration=_describe_calibration(name, info),
        judges_relevance=judges_relevance,
        payload_indexes=_describe_indexes(info),
        sample=len(payloads),
        fields=tuple(_count_fields(payloads)),
        oldest_file=days[0] if days else None,
        newest_file=days[-1] if days else None,
    )


def _describe_dense(params: qm.VectorParams) -> str:
    facts = [f"{params.size} numbers", params.distance.value]
    if params.multivector_config is not None:
        facts[0] = f"rows of {params.size} numbers"
    if params.datatype is not None:
        facts.append(params.datatype.value)
    if params.quantization_config is not None:
        (kind,) = params.quantization_config.model_dump(exclude_none=True)
        facts.append(f"{kind} quantisation")
    if params.on_disk:
        facts.append("on disk")
    hnsw = params.hnsw_config
    if hnsw is not None and hnsw.m == 0:
        facts.append("without an index")
    elif hnsw is not None and hnsw.m is not None:
        facts.append(f"index of m {hnsw.m}")
    return ", ".join(facts)


def _describe_sparse(params: qm.SparseVectorParams) -> str:
    facts = ["sparse"]
    if params.modifier is not None and params.modifier != qm.Modifier.NONE:
        facts.append(f"times {params.modifier.value.upper()}")
    if params.index is not None and params.index.on_disk:
        facts.append("index on disk")
    return ", ".join(facts)


def _describe_fusion(
    name: str, info: qm.CollectionInfo, *, has_keywords: bool
) -> tuple[str | None, bool]:
    """Return how a collection's lists are fused, in words, and whether relevance can be judged.

    None stands for the model's own fusion. A record that cannot be read is described as such.
    """
    try:
        fusion = read_choice(name, info)
    except StoreError as error:
        return f"unreadable: {error}", False
    if fusion is None and has_keywords:
        fusion = KEYWORD_FUSION
    if fusion is None:
        return None, True
    described = f"{fusion} ({fusion.source})" if fusion.source else str(fusion)
    return described, fusion.keyword_weight == 0


def _describe_calibration(name: str, info: qm.CollectionInfo) -> str | None:
    try:
        calibration = read_calibration(name, info)
    except StoreError as error:
        return f"unreadable: {error}"
    if calibration is None:
        return None
    measured = "" if calibration.ece is None else f", expected error {calibration.ece:.3f}"
    return f"{calibration.source or 'its source is not recorded'}{measured}"


def _describe_indexes(info: qm.CollectionInfo) -> dict[str, str]:
    schema = info.payload_schema or {}
    return {field: index.data_type.value for field, index in sorted(schema.items())}


def _read_payloads(client: Client, name: str) -> list[Mapping[str, object]]:
    ids: list[qm.ExtendedPointId] = list(sample_ids(client, name, SAMPLE))
    payloads: list[Mapping[str, object]] = []
    with store_errors(name, "reading a sample of its points"):
        for start in range(0, len(ids), _PER_REQUEST):
            points = client.retrieve(
                name, ids[start : start + _PER_REQUEST], with_payload=True, with_vectors=False
            )
            payloads += [point.payload or {} for point in points]
    return payloads


def _count_fields(payloads: list[Mapping[str, object]]) -> list[FieldSummary]:
    points: Counter[str] = Counter()
    values: dict[str, Counter[str]] = {}
    for payload in payloads:
        for name, value in _iterate_fields(payload):
            points[name] += 1
            values.setdefault(name, Counter()).update(_countable(value))
    fields = []
    for name, count in sorted(points.items(), key=lambda item: (-item[1], item[0])):
        counts = sorted(values[name].items(), key=lambda item: (-item[1], item[0]))
        frequent = [(value, number) for value, number in counts[:_MOST_VALUES] if number > 1]
        fields.append(FieldSummary(name, count, len(counts), tuple(frequent)))
    return fields[:_MOST_FIELDS]


def _iterate_fields(payload: Mapping[str, object]) -> Iterator[tuple[str, object]]:
    """Yield the fields of a payload and those within them, without LlamaIndex's bookkeeping."""
    is_llama_index = "_node_content" in payload
    for name, value in payload.items():
        if name.startswith("_") or (is_llama_index and name in _LINKS):
            continue
        if isinstance(value, Mapping):
            for inner, inner_value in value.items():
                yield f"{name}.{inner}", inner_value
        else:
            yield name, value


def _countable(value: object) -> set[str]:
    """Return the values of a field that can repeat, each once: an element for itself."""
    found = set()
    for element in value if isinstance(value, list) else [value]:
        if isinstance(element, str | int | float) and len(str(element)) <= _LONGEST_VALUE:
            found.add(str(element))
    return found
