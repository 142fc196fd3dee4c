"""What a search is to find, and the requests that find it.

What lives here: how deep each list is searched, and the requests of one round trip. What does not:
sending them, and nodes made of what they find (`llama.hybrid_search`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from qdrant_client import models as qm

from unified_embeddings.models.calibration import Calibration
from unified_embeddings.models.fusion import LIST_NAMES, Fusion
from unified_embeddings.search.branches import Branch, ListName
from unified_embeddings.search.options import Mode, Score
from unified_embeddings.search.query_vectors import QueryVectors
from unified_embeddings.stores.stored_colbert import COLBERT_VECTOR
from unified_embeddings.types import FloatArray, SparseVector

DIVERSE_CANDIDATES = 4
"""Points that MMR chooses among, for each that it returns: LlamaIndex's `mmr_prefetch_factor`."""
_MOST_CANDIDATES = 16_384
"""Points that Qdrant lets MMR choose among."""


@dataclass(frozen=True, kw_only=True)
class SearchPlan:
    """What a search is to find.

    Attributes:
        mode: Which lists are searched.
        top_k: Nodes returned.
        fusion: How the lists are fused in the mode "hybrid".
        reranked: Nodes that ColBERT orders anew; None for no reranking.
        dense_depth: Points of the dense list; None for as many as the fusion says, and as are
            returned or reranked.
        sparse_depth: The same of the sparse list.
        diversity: In the mode "dense", from 0, the nearest points, to 1, points unlike each other:
            Qdrant's maximal marginal relevance. None for the nearest points.
        filter: Which points are searched.
        params: Qdrant's own parameters of each search.
        shard_key: Which shards are searched.
        payload: Which fields of the points come back.
        score: What the nodes' score is.
        calibration: How likely a hit is relevant, from its scores in both lists; None: not known,
            which `score` "relevance" does not allow.
    """

    mode: Mode
    top_k: int
    fusion: Fusion
    reranked: int | None = None
    dense_depth: int | None = None
    sparse_depth: int | None = None
    diversity: float | None = None
    filter: qm.Filter | None = None
    params: qm.SearchParams | None = None
    shard_key: qm.ShardKeySelector | None = None
    payload: bool | list[str] = True
    score: Score = "rrf"
    calibration: Calibration | None = None

    @property
    def answer_size(self) -> int:
        """How many nodes the lists have to yield: those returned, or those to rerank."""
        if self.reranked is None:
            return self.top_k
        return max(self.reranked, self.top_k)

    def weight_of(self, list_name: ListName) -> float:
        """Return the weight of a list; 0 if it is not searched, as it would add nothing."""
        if self.mode != "hybrid":
            return 1.0 if list_name == self.mode else 0.0
        return dict(zip(LIST_NAMES, self.fusion.weights, strict=False)).get(list_name, 0.0)

    def depth_of(self, list_name: ListName) -> int:
        """Return how many points of a list are fused, or returned."""
        given = {"dense": self.dense_depth, "sparse": self.sparse_depth}.get(list_name)
        if given is not None:
            return given
        if self.mode == "hybrid":
            return max(self.fusion.candidates, self.answer_size)
        return self.answer_size

    def search_depth_of(self, list_name: ListName) -> int:
        """Return how many points of a list are wanted: relevance may need more than fusing."""
        depth = self.depth_of(list_name)
        if self.score == "relevance" and self.calibration is not None:
            return max(depth, self.calibration.depth)
        return depth


def build_branches(
    query: QueryVectors, plan: SearchPlan, *, vector_names: Mapping[ListName, str]
) -> list[Branch]:
    """Return the searches that the question's vectors allow, the dense one first.

    Args:
        query: The question's vectors.
        plan: What is wanted.
        vector_names: Each list's vectors in the collection; "" for unnamed ones.
    """
    vectors: dict[ListName, FloatArray | SparseVector | None] = {
        "dense": query.dense,
        "sparse": query.sparse,
        "bm25": query.bm25,
    }
    branches = []
    for list_name, vector in vectors.items():
        weight = plan.weight_of(list_name)
        # A question made of unknown or special tokens alone has no lexical weights.
        if vector is None or len(vector) == 0 or weight == 0:
            continue
        branches.append(
            Branch(
                list_name=list_name,
                vector=_to_qdrant(vector),
                vector_name=vector_names[list_name] or None,
                weight=weight,
                depth=plan.search_depth_of(list_name),
            )
        )
    return branches


def _to_qdrant(vector: FloatArray | SparseVector) -> list[float] | qm.SparseVector:
    if isinstance(vector, SparseVector):
        return qm.SparseVector(indices=vector.indices.tolist(), values=vector.values.tolist())
    numbers: list[float] = vector.tolist()
    return numbers


def build_requests(
    branches: Sequence[Branch], plan: SearchPlan, limits: Sequence[int]
) -> list[qm.QueryRequest]:
    """Return the requests to send in one batch, one for each list.

    Each names the payload that it wants, which a batch leaves out otherwise.

    Args:
        branches: What is searched.
        plan: What is wanted.
        limits: How many points to fetch of each list.
    """
    return [
        qm.QueryRequest(
            query=branch.vector,
            using=branch.vector_name,
            filter=plan.filter,
            params=plan.params,
            shard_key=plan.shard_key,
            limit=limit,
            with_payload=plan.payload,
        )
        for branch, limit in zip(branches, limits, strict=True)
    ]


def build_token_request(
    question: FloatArray, branches: Sequence[Branch], plan: SearchPlan, limits: Sequence[int]
) -> qm.QueryRequest:
    """Return the request for the ColBERT scores of all points that the lists may hold.

    It goes into the same batch as the lists' own requests, whose points it finds again by the same
    searches. Their payloads come with the lists.

    Args:
        question: The question's ColBERT vectors, float32 (q, d).
        branches: What is searched.
        plan: What is wanted.
        limits: How many points are fetched of each list.
    """
    prefetches = [
        qm.Prefetch(
            query=branch.vector,
            using=branch.vector_name,
            filter=plan.filter,
            params=plan.params,
            limit=limit,
        )
        for branch, limit in zip(branches, limits, strict=True)
    ]
    return qm.QueryRequest(
        query=question.tolist(),
        using=COLBERT_VECTOR,
        prefetch=prefetches,
        shard_key=plan.shard_key,
        limit=sum(limits),
        with_payload=False,
    )


def build_diverse_request(
    query: QueryVectors, plan: SearchPlan, *, dense_name: str
) -> qm.QueryRequest:
    """Return the request for points that are near the question and unlike each other.

    Args:
        query: With the dense vector.
        plan: With a diversity.
        dense_name: Name of the collection's dense vectors; "" for unnamed ones.
    """
    assert query.dense is not None
    candidates = min(plan.top_k * DIVERSE_CANDIDATES, _MOST_CANDIDATES)
    diverse = qm.Mmr(diversity=plan.diversity, candidates_limit=candidates)
    return qm.QueryRequest(
        query=qm.NearestQuery(nearest=query.dense.tolist(), mmr=diverse),
        using=dense_name or None,
        filter=plan.filter,
        params=plan.params,
        shard_key=plan.shard_key,
        limit=plan.top_k,
        with_payload=plan.payload,
    )
