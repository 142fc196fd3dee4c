"""What a search is to find, and the requests that find it.

What lives here: how deep each list is searched, and the requests of one round trip. What does not:
sending them, and nodes made of what they find (`llama.hybrid_search`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from qdrant_client import models as qm

from unified_embeddings.models.fusion import Fusion
from unified_embeddings.search.branches import Branch, ListName
from unified_embeddings.search.options import Mode
from unified_embeddings.search.query_vectors import QueryVectors
from unified_embeddings.stores.stored_colbert import COLBERT_VECTOR
from unified_embeddings.types import FloatArray

DIVERSE_CANDIDATES = 4
"""Points that MMR chooses among, for each that it returns: LlamaIndex's `mmr_prefetch_factor`."""


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

    @property
    def answer_size(self) -> int:
        """How many nodes the lists have to yield: those returned, or those to rerank."""
        if self.reranked is None:
            return self.top_k
        return max(self.reranked, self.top_k)

    def depth_of(self, list_name: ListName) -> int:
        """Return how many points of a list are wanted."""
        given = {"dense": self.dense_depth, "sparse": self.sparse_depth}[list_name]
        if given is not None:
            return given
        if self.mode == "hybrid":
            return max(self.fusion.candidates, self.answer_size)
        return self.answer_size


def build_branches(
    query: QueryVectors, plan: SearchPlan, *, dense_name: str, sparse_name: str
) -> list[Branch]:
    """Return the searches that the question's vectors allow, the dense one first.

    A list of weight 0 would add nothing, so it is not searched.

    Args:
        query: The question's vectors.
        plan: What is wanted.
        dense_name: Name of the collection's dense vectors; "" for unnamed ones.
        sparse_name: Name of its sparse vectors.
    """
    dense_weight, sparse_weight = 1.0, 1.0
    if plan.mode == "hybrid":
        dense_weight, sparse_weight = plan.fusion.weights
    branches = []
    if query.dense is not None and dense_weight > 0:
        branches.append(
            Branch(
                list_name="dense",
                vector=query.dense.tolist(),
                vector_name=dense_name or None,
                weight=dense_weight,
                depth=plan.depth_of("dense"),
            )
        )
    # A question made of unknown or special tokens alone has no lexical weights.
    if query.sparse is not None and len(query.sparse) > 0 and sparse_weight > 0:
        branches.append(
            Branch(
                list_name="sparse",
                vector=qm.SparseVector(
                    indices=query.sparse.indices.tolist(), values=query.sparse.values.tolist()
                ),
                vector_name=sparse_name,
                weight=sparse_weight,
                depth=plan.depth_of("sparse"),
            )
        )
    return branches


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
    diverse = qm.Mmr(diversity=plan.diversity, candidates_limit=plan.top_k * DIVERSE_CANDIDATES)
    return qm.QueryRequest(
        query=qm.NearestQuery(nearest=query.dense.tolist(), mmr=diverse),
        using=dense_name or None,
        filter=plan.filter,
        params=plan.params,
        shard_key=plan.shard_key,
        limit=plan.top_k,
        with_payload=plan.payload,
    )
