"""What LlamaIndex's own retrievers ask a store, checked before anything is sent.

What lives here: what each mode and each number of a query means. What does not: what a metadata
filter means (`filters`), and searching (`hybrid_search`).

| mode | what is searched |
|---|---|
| `DEFAULT` | the dense list |
| `SPARSE`, `TEXT_SEARCH` | the sparse list |
| `HYBRID` | both, and a keyword list, fused as the retriever fuses them |
| `SEMANTIC_HYBRID` | both, fused, and ordered anew by ColBERT |
| `MMR` | the dense list, with points unlike each other |

`similarity_top_k` nodes are returned; `hybrid_top_k` takes its place in the hybrid modes, and
`sparse_top_k` in the sparse ones. Fused lists are as deep as the fusion says, as the retriever's
are. A number that is given for a list is its depth: `sparse_top_k` of the sparse one, and
`similarity_top_k` of the dense one where `hybrid_top_k` says how many to return. `alpha` is the
weight of the dense list in plain RRF, 1 - alpha that of the sparse one, and a keyword list is left
out; without it they are fused as was chosen for the collection, as suits its keyword list, or as
the model's own numbers say.
"""

from __future__ import annotations

from collections.abc import Mapping, Sized
from dataclasses import dataclass, replace
from typing import Any, Literal, cast

from llama_index.core.vector_stores.types import (
    VectorStoreQuery,
    VectorStoreQueryMode,
    VectorStoreQueryResult,
)
from pydantic import ValidationError
from qdrant_client import models as qm

from unified_embeddings.embedders.base import TextEmbedder
from unified_embeddings.errors import InputError
from unified_embeddings.llama.fields import LLAMA_INDEX_FIELDS, Fields
from unified_embeddings.llama.filters import is_of_document, select_points
from unified_embeddings.llama.hybrid_search import SearchAnswer
from unified_embeddings.llama.stock_arguments import check_names
from unified_embeddings.models.calibration import Calibration
from unified_embeddings.models.fusion import PLAIN_CANDIDATES, Fusion
from unified_embeddings.search.options import (
    Mode,
    Score,
    check_heads,
    check_score,
    choose_fusion,
)
from unified_embeddings.search.plan import SearchPlan
from unified_embeddings.search.query_vectors import QueryVectors
from unified_embeddings.types import FloatArray, Options
from unified_embeddings.validation import require_share, require_vector, require_whole_number

_MODES: dict[VectorStoreQueryMode, Mode] = {
    VectorStoreQueryMode.DEFAULT: "dense",
    VectorStoreQueryMode.MMR: "dense",
    VectorStoreQueryMode.SPARSE: "sparse",
    VectorStoreQueryMode.TEXT_SEARCH: "sparse",
    VectorStoreQueryMode.HYBRID: "hybrid",
    VectorStoreQueryMode.SEMANTIC_HYBRID: "hybrid",
}
_RERANKED: dict[VectorStoreQueryMode, Literal["colbert"]] = {
    VectorStoreQueryMode.SEMANTIC_HYBRID: "colbert"
}
"""Modes that order what they find anew, and by what."""
_OPTIONS = ("qdrant_filters", "search_params", "shard_identifier", "mmr_threshold", "score")
"""Keyword arguments of a store's `query`."""
_EVEN_THRESHOLD = 0.5
"""How much nearness counts in MMR where a query does not say, as in LlamaIndex's own."""


@dataclass(frozen=True)
class CheckedQuery:
    """A query that can be answered.

    Attributes:
        query: The query, with Python's numbers.
        mode: Which lists it searches.
        vector: Its own embedding, float32 (dimension,); None where none is needed.
        filter: Which points it searches.
        params: Qdrant's parameters of each search.
        threshold: How much nearness counts in MMR, against being unlike the others; 0 to 1.
        score: What the nodes' score is.
    """

    query: VectorStoreQuery
    mode: Mode
    vector: FloatArray | None
    filter: qm.Filter | None
    params: qm.SearchParams | None
    threshold: float
    score: Score = "rrf"

    @property
    def reranks(self) -> bool:
        """Whether ColBERT orders the nodes anew."""
        return self.query.mode in _RERANKED

    @property
    def runs_model(self) -> bool:
        """Whether answering it runs the model.

        A question that is searched for by its own embedding was embedded by LlamaIndex just now,
        and the words' vector of that pass is in the cache.
        """
        return self.mode == "sparse" or self.reranks

    def choose_fusion(self, own: Fusion, chosen: Fusion | None) -> Fusion:
        """Return how the query's lists are fused.

        Args:
            own: The model's own fusion.
            chosen: The one chosen for the collection, if there is one.
        """
        alpha = self.query.alpha
        weights = "auto" if alpha is None else (alpha, 1 - alpha)
        return choose_fusion(own, candidates="auto", rrf_k="auto", weights=weights, chosen=chosen)

    def plan(
        self,
        fusion: Fusion,
        calibration: Calibration | None,
        shard_key: qm.ShardKeySelector | None,
    ) -> SearchPlan:
        """Return what the query is to find.

        Args:
            fusion: How its lists are fused.
            calibration: How likely a hit is relevant; None: not known.
            shard_key: Which shards are searched.
        """
        query = self.query
        dense_depth = None
        top_k = query.similarity_top_k
        if self.mode == "hybrid" and query.hybrid_top_k is not None:
            top_k, dense_depth = query.hybrid_top_k, query.similarity_top_k
        if self.mode == "sparse" and query.sparse_top_k is not None:
            top_k = query.sparse_top_k
        return SearchPlan(
            mode=self.mode,
            top_k=top_k,
            fusion=fusion,
            reranked=PLAIN_CANDIDATES if self.reranks else None,
            dense_depth=dense_depth,
            sparse_depth=query.sparse_top_k,
            diversity=1 - self.threshold if query.mode == VectorStoreQueryMode.MMR else None,
            filter=self.filter,
            params=self.params,
            shard_key=shard_key,
            score=self.score,
            calibration=calibration,
        )

    def embed(self, embedder: TextEmbedder) -> QueryVectors:
        """Return the vectors that are searched with: the query's own dense one, and its words'.

        After LlamaIndex has embedded the question through our model, the words' vector is in the
        cache, and this is a look-up.
        """
        if self.mode == "dense":
            return QueryVectors(dense=self.vector)
        encoded = embedder.encode_query(
            cast("str", self.query.query_str), dense=False, sparse=True, colbert=self.reranks
        )
        assert encoded.sparse is not None
        colbert = encoded.colbert[0] if encoded.colbert else None
        if self.mode == "sparse":
            return QueryVectors(sparse=encoded.sparse[0])
        return QueryVectors(
            dense=self.vector,
            sparse=encoded.sparse[0],
            colbert=colbert,
            words=self.query.query_str,
        )


def check_query(
    query: VectorStoreQuery,
    embedder: TextEmbedder,
    options: Mapping[str, Any],
    fields: Fields = LLAMA_INDEX_FIELDS,
) -> CheckedQuery:
    """Reject a query that cannot be answered.

    Args:
        query: The query.
        embedder: The embedder whose vectors are searched.
        options: The keyword arguments of the store's `query`.
        fields: Where the collection's payloads have the metadata.

    Raises:
        InputError: If it is no query, has a mode that no list answers or lacks what its mode
            searches by, or has a number out of range or a filter that cannot be translated.
    """
    if not isinstance(query, VectorStoreQuery):
        raise InputError(f"expected a VectorStoreQuery, got {type(query).__name__}")
    check_names(options, _OPTIONS, {})
    own_filter = build_query_filter(query, fields)
    query = replace(query, mode=_read_mode(query.mode))
    mode = _check_mode(query, embedder)
    changes: Options = {}
    for name in ("similarity_top_k", "sparse_top_k", "hybrid_top_k"):
        limit = getattr(query, name)
        if limit is not None:
            changes[name] = require_whole_number(name, limit)
    if query.alpha is not None:
        changes["alpha"] = require_share("alpha", query.alpha)
    vector = None
    if query.query_embedding is not None:
        vector = require_vector(
            query.query_embedding, embedder.dimension, subject="the query's own embedding"
        )
        changes["query_embedding"] = vector.tolist()
    return CheckedQuery(
        query=replace(query, **changes),
        mode=mode,
        vector=vector,
        filter=_read_filter(options.get("qdrant_filters"), own_filter),
        params=_read_params(options.get("search_params")),
        threshold=_read_threshold(query, options),
        score=_read_score(query, mode, options),
    )


def to_result(answer: SearchAnswer) -> VectorStoreQueryResult:
    """Return what a search found in the form in which LlamaIndex's retrievers take it."""
    return VectorStoreQueryResult(
        nodes=[scored.node for scored in answer.nodes],
        similarities=[float(scored.score or 0.0) for scored in answer.nodes],
        ids=[scored.node.node_id for scored in answer.nodes],
    )


def _read_mode(mode: object) -> VectorStoreQueryMode:
    """Return a mode that is given as LlamaIndex's own value or as a text.

    Raises:
        InputError: If there is none of that name.
    """
    try:
        return VectorStoreQueryMode(mode)
    except ValueError:
        known = ", ".join(each.value for each in _MODES)
        raise InputError(f"there is no mode {mode!r:.80}; take one of {known}") from None


def _check_mode(query: VectorStoreQuery, embedder: TextEmbedder) -> Mode:
    """Return the lists that a query searches.

    Raises:
        InputError: If no list answers its mode, or it lacks what the mode searches by; the stock
            store finds something then.
    """
    mode = _MODES.get(query.mode)
    if mode is None:
        known = ", ".join(each.value for each in _MODES)
        raise InputError(
            f"the mode {query.mode.value!r} is not one that Qdrant answers; take one of {known}"
        )
    check_heads(embedder, mode, _RERANKED.get(query.mode))
    text = query.query_str
    if mode != "dense" and (not isinstance(text, str) or not text.strip()):
        raise InputError(
            f"the mode {query.mode.value!r} needs query_str, a text that is not blank; got {text!r}"
        )
    if mode != "sparse" and query.query_embedding is None:
        raise InputError(f"the mode {query.mode.value!r} needs query_embedding")
    return mode


def _read_filter(given: object, own: qm.Filter | None) -> qm.Filter | None:
    """Return Qdrant's filter that a caller gives, or else the query's own.

    Raises:
        InputError: If what is given is no filter.
    """
    if given is None:
        return own
    if not isinstance(given, qm.Filter):
        raise InputError(f"qdrant_filters= takes a qdrant_client Filter, got {given!r:.80}")
    return given


def _read_params(given: object) -> qm.SearchParams | None:
    """Return the parameters of a search.

    Raises:
        InputError: If they are none of Qdrant's.
    """
    if given is None or isinstance(given, qm.SearchParams):
        return given
    try:
        return qm.SearchParams.model_validate(given)
    except ValidationError as error:
        problem = error.errors(include_url=False, include_input=False)[0]["msg"]
        raise InputError(f"search_params= cannot be {given!r:.80}: {problem}") from None


def _read_score(query: VectorStoreQuery, mode: Mode, options: Mapping[str, Any]) -> Score:
    """Return what the nodes' score is to be.

    Raises:
        InputError: If it is unknown, or relevance is asked for in a mode that it is not for.
    """
    given = options.get("score")
    if given is None:
        return "rrf"
    check_score(given, mode, _RERANKED.get(query.mode))
    return cast("Score", given)


def _read_threshold(query: VectorStoreQuery, options: Mapping[str, Any]) -> float:
    """Return how much nearness counts in MMR.

    Raises:
        InputError: If it is not between 0 and 1.
    """
    given = query.mmr_threshold
    if given is None:
        given = options.get("mmr_threshold")
    if given is None:
        return _EVEN_THRESHOLD
    return require_share("mmr_threshold", given)


def build_query_filter(
    query: VectorStoreQuery, fields: Fields = LLAMA_INDEX_FIELDS
) -> qm.Filter | None:
    """Return the filter of a query; its lists of ids restrict it unless they are empty.

    Raises:
        InputError: If an id or a metadata filter cannot be translated.
    """
    conditions: list[qm.Condition] = []
    if not _is_empty(query.doc_ids):
        conditions.append(is_of_document(cast("list[str]", query.doc_ids), fields))
    node_ids = None if _is_empty(query.node_ids) else query.node_ids
    selected = select_points(node_ids, query.filters, fields)
    if selected is not None:
        conditions.append(selected)
    return qm.Filter(must=conditions) if conditions else None


def _is_empty(ids: object) -> bool:
    """Tell whether a query's list of ids restricts nothing."""
    return ids is None or (isinstance(ids, Sized) and len(ids) == 0)
