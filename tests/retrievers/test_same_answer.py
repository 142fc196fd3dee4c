"""The same question gets the same answer: ties in every mode, client, call and layout.

The oracle is brute force over the fake embedder's vectors, ordered by the rule that the retriever
documents: by score, then by the better single rank, then by id.
"""

from __future__ import annotations

import asyncio
import random
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from llama_index.core.schema import NodeWithScore, TextNode
from llama_index.vector_stores.qdrant import QdrantVectorStore
from qdrant_client import QdrantClient
from qdrant_client import models as qm

from unified_embeddings.embedders.fake import FakeEmbedder
from unified_embeddings.heads import colbert_score
from unified_embeddings.llama.vector_store import build_vector_store
from unified_embeddings.models.fusion import Fusion
from unified_embeddings.retrievers.hybrid import UnifiedHybridRetriever
from unified_embeddings.search.ranking import (
    first_limit,
    id_order,
    next_limits,
    order_points,
)
from unified_embeddings.stores.edge.client import EdgeQdrantClient

WORDS = [f"word{number}" for number in range(12)]
EMBEDDER = FakeEmbedder(dimension=16)
OPTIONS: dict[str, dict[str, Any]] = {
    "auto": {},
    "equal": {"weights": (1, 1)},
    "weighted": {"weights": (1, 0.3), "candidates": 7},
    "k 0": {"weights": (1, 1), "rrf_k": 0, "candidates": 12},
    "one of weight 0": {"weights": (0, 1)},
    "by score": {"fusion": Fusion((0.6, 0.4), candidates=30, method="dbsf")},
    "dense": {"mode": "dense"},
    "sparse": {"mode": "sparse"},
    "rerank": {"rerank": "colbert"},
    "rerank 12": {"rerank": "colbert", "candidates": 12},
}
ways = pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())


def make_texts(count: int, seed: int) -> list[str]:
    """Return texts of one to three words, so that many are equal."""
    draw = random.Random(seed)
    return [" ".join(draw.choices(WORDS, k=draw.choice((1, 1, 2, 3)))) for _ in range(count)]


def make_ids(count: int, seed: int) -> list[str]:
    """Return ids whose order has nothing to do with the order of the texts."""
    draw = random.Random(seed)
    return [str(uuid.UUID(int=draw.getrandbits(128), version=4)) for _ in range(count)]


TEXTS = make_texts(300, seed=1)
IDS = make_ids(300, seed=2)
QUERIES = make_texts(15, seed=3)


def fill(
    client: QdrantClient | EdgeQdrantClient,
    texts: Sequence[str] = TEXTS,
    ids: Sequence[str] = IDS,
) -> QdrantVectorStore:
    store = build_vector_store(EMBEDDER, "ties", client=client)
    dense = EMBEDDER.encode_documents(texts).dense
    assert dense is not None
    nodes = [
        TextNode(id_=node_id, text=text, embedding=vector.tolist())
        for node_id, text, vector in zip(ids, texts, dense, strict=True)
    ]
    store.add(nodes)
    return store


@pytest.fixture(scope="module")
def memory() -> QdrantVectorStore:
    return fill(QdrantClient(":memory:"))


@pytest.fixture(scope="module")
def embedded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[QdrantVectorStore]:
    with EdgeQdrantClient(tmp_path_factory.mktemp("store") / "one") as client:
        yield fill(client)


@pytest.fixture(scope="module")
def shuffled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[QdrantVectorStore]:
    """The same nodes, written in another order, some of them twice."""
    order = random.Random(4).sample(range(300), 300)
    with EdgeQdrantClient(tmp_path_factory.mktemp("store") / "two") as client:
        fill(client, [TEXTS[i] for i in order[:100]], [IDS[i] for i in order[:100]])
        yield fill(client, [TEXTS[i] for i in order], [IDS[i] for i in order])


# --- the oracle -------------------------------------------------------------------------------


def rank_by_score(scores: dict[str, float]) -> list[str]:
    """Order ids by score, then by id; these scores tie or are far apart."""
    return sorted(scores, key=lambda node_id: (-round(scores[node_id], 5), node_id))


def dense_scores(query: str) -> dict[str, float]:
    documents = EMBEDDER.encode_documents(TEXTS).dense
    (vector,) = EMBEDDER.encode_query(query).dense  # type: ignore[misc]  # one row
    assert documents is not None
    scores = documents.astype(np.float64) @ vector.astype(np.float64)
    return dict(zip(IDS, scores.tolist(), strict=True))


def sparse_scores(query: str) -> dict[str, float]:
    (weights,) = EMBEDDER.encode_query(query).sparse or []
    scores = {}
    for node_id, vector in zip(IDS, EMBEDDER.encode_documents(TEXTS).sparse or [], strict=True):
        common = set(weights) & set(vector)
        if common:
            scores[node_id] = sum(weights[word] * vector[word] for word in common)
    return scores


def fuse(query: str, weights: tuple[float, float], k: int, candidates: int) -> list[str]:
    rankings = [rank_by_score(dense_scores(query)), rank_by_score(sparse_scores(query))]
    scores: dict[str, float] = {}
    best_rank: dict[str, int] = {}
    for ranking, weight in zip(rankings, weights, strict=True):
        for rank, node_id in enumerate(ranking[:candidates]):
            if weight:
                scores[node_id] = scores.get(node_id, 0.0) + weight / (k + rank + 1)
                best_rank[node_id] = min(rank, best_rank.get(node_id, rank))
    return sorted(scores, key=lambda i: (-round(scores[i], 12), best_rank[i], i))


def fuse_by_score(query: str, fusion: Fusion, candidates: int) -> list[str]:
    all_scores = [dense_scores(query), sparse_scores(query)]
    fused: dict[str, float] = {}
    best_rank: dict[str, int] = {}
    for scores, weight in zip(all_scores, fusion.weights, strict=True):
        ids = rank_by_score(scores)[:candidates]
        values = np.array([round(scores[node_id], 5) for node_id in ids])
        shares = np.full(len(ids), 0.5)
        if len(set(values.tolist())) > 1:
            shares += (values - values.mean()) / (6 * values.std(ddof=1))
        for rank, node_id in enumerate(ids):
            fused[node_id] = fused.get(node_id, 0.0) + weight * float(shares[rank])
            best_rank[node_id] = min(rank, best_rank.get(node_id, rank))
    return sorted(fused, key=lambda i: (-round(fused[i], 6), best_rank[i], i))


def expected_ids(query: str, top_k: int, options: dict[str, Any]) -> list[str]:
    mode = options.get("mode")
    if mode == "dense":
        return rank_by_score(dense_scores(query))[:top_k]
    if mode == "sparse":
        return rank_by_score(sparse_scores(query))[:top_k]
    if "fusion" in options:
        depth = options.get("candidates", options["fusion"].candidates)
        return fuse_by_score(query, options["fusion"], max(depth, top_k))[:top_k]
    own = EMBEDDER.fusion
    weights = options.get("weights", own.weights)
    k = options.get("rrf_k", 60 if "weights" in options else own.k)
    depth = options.get("candidates", 20 if "weights" in options else own.candidates)
    fused = fuse(query, weights, k, max(depth, top_k))
    if "rerank" not in options:
        return fused[:top_k]
    candidates = max(options.get("candidates", 20), top_k)
    (rows,) = EMBEDDER.encode_query(query, colbert=True).colbert or []
    scores = {}
    for node_id in fused[:candidates]:
        text = TEXTS[IDS.index(node_id)]
        (document,) = EMBEDDER.encode_documents([text], colbert=True).colbert or []
        scores[node_id] = round(colbert_score(rows, document), 5)
    return sorted(fused[:candidates], key=lambda i: -scores[i])[:top_k]


def ids_of(nodes: Sequence[NodeWithScore]) -> list[str]:
    return [scored.node.node_id for scored in nodes]


# --- one order --------------------------------------------------------------------------------


class TestOneOrder:
    def test_the_texts_tie(self) -> None:
        assert len(set(TEXTS)) < 200
        assert max(map(TEXTS.count, TEXTS)) >= 10

    @ways
    @pytest.mark.parametrize("place", ["memory", "embedded", "shuffled"])
    async def test_every_place_and_call_gives_the_documented_order(
        self, place: str, options: dict[str, Any], request: pytest.FixtureRequest
    ) -> None:
        store = request.getfixturevalue(place)
        retriever = UnifiedHybridRetriever(store, EMBEDDER, similarity_top_k=7, **options)
        for query in QUERIES:
            expected = expected_ids(query, 7, options)
            assert ids_of(retriever.retrieve(query)) == expected
            assert ids_of(await retriever.aretrieve(query)) == expected

    @ways
    def test_scores_never_rise_and_sorting_by_them_again_changes_nothing(
        self, memory: QdrantVectorStore, options: dict[str, Any]
    ) -> None:
        retriever = UnifiedHybridRetriever(memory, EMBEDDER, similarity_top_k=20, **options)
        for query in QUERIES[:6]:
            nodes = retriever.retrieve(query)
            again = sorted(nodes, key=lambda scored: -(scored.score or 0.0))
            assert ids_of(again) == ids_of(nodes)

    @ways
    def test_a_larger_top_k_only_appends(
        self, embedded: QdrantVectorStore, options: dict[str, Any]
    ) -> None:
        depth = {"candidates": 25} if options.get("mode") is None else {}
        sizes = (1, 2, 3, 5, 8, 13, 25)
        retrievers = [
            UnifiedHybridRetriever(
                embedded, EMBEDDER, **{**options, **depth, "similarity_top_k": size}
            )
            for size in sizes
        ]
        for query in QUERIES[:6]:
            answers = [ids_of(retriever.retrieve(query)) for retriever in retrievers]
            for size, answer in zip(sizes, answers, strict=True):
                assert answer == answers[-1][:size]

    @ways
    def test_an_optimized_collection_gives_the_same_order(
        self, tmp_path: Path, options: dict[str, Any]
    ) -> None:
        with EdgeQdrantClient(tmp_path / "store") as client:
            store = fill(client)
            client.optimize("ties")
            retriever = UnifiedHybridRetriever(store, EMBEDDER, similarity_top_k=7, **options)
            for query in QUERIES[:6]:
                assert ids_of(retriever.retrieve(query)) == expected_ids(query, 7, options)


class TestTiesAtTheCut:
    """More points tie than are fetched: those of the smallest ids come first all the same."""

    @pytest.mark.parametrize("count", [12, 30, 300, 700])
    @ways
    def test_equal_texts(self, count: int, options: dict[str, Any]) -> None:
        ids = make_ids(count, seed=5)
        store = fill(QdrantClient(":memory:"), ["word1 word2"] * count, ids)
        retriever = UnifiedHybridRetriever(
            store, EMBEDDER, **{"candidates": 5, **options, "similarity_top_k": 3}
        )
        assert ids_of(retriever.retrieve("word1")) == sorted(ids)[:3]

    def test_beyond_the_documented_thousand_the_answer_has_the_size_asked_for(
        self, tmp_path: Path
    ) -> None:
        ids = make_ids(1500, seed=6)
        with EdgeQdrantClient(tmp_path / "store") as client:
            store = fill(client, ["word1"] * 1500, ids)
            retriever = UnifiedHybridRetriever(store, EMBEDDER, similarity_top_k=4)
            answers = {tuple(ids_of(retriever.retrieve("word1"))) for _ in range(5)}
        assert len(answers) == 1  # the core's own order is stable, if not by id
        assert all(len(answer) == 4 for answer in answers)

    def test_no_tie_at_the_cut_costs_one_request(
        self, memory: QdrantVectorStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        limits: list[int | None] = []
        search = memory.client.query_batch_points

        def counting(name: str, requests: Sequence[qm.QueryRequest], **options: Any) -> Any:
            limits.extend(request.limit for request in requests)
            return search(name, requests, **options)

        monkeypatch.setattr(memory.client, "query_batch_points", counting)
        retriever = UnifiedHybridRetriever(memory, EMBEDDER, candidates=20)
        retriever.retrieve("word1 word2 word3")
        assert limits[:2] == [30, 30]


class TestTheEmbeddedClientsOwnFusion:
    """Whoever asks the client itself gets one order too, and pages that do not overlap."""

    @pytest.mark.parametrize(
        "fusion",
        [
            qm.FusionQuery(fusion=qm.Fusion.RRF),
            qm.FusionQuery(fusion=qm.Fusion.DBSF),
            qm.RrfQuery(rrf=qm.Rrf(k=61)),
        ],
        ids=["rrf", "dbsf", "rrf 61"],
    )
    def test_by_score_then_id(self, embedded: QdrantVectorStore, fusion: qm.Query) -> None:
        for query in QUERIES[:6]:
            question = EMBEDDER.encode_query(query)
            assert question.dense is not None
            assert question.sparse is not None
            sparse = qm.SparseVector(**question.sparse[0].to_qdrant())
            prefetch = [
                qm.Prefetch(query=question.dense[0].tolist(), using="text-dense", limit=20),
                qm.Prefetch(query=sparse, using="text-sparse-new", limit=30),
            ]

            def ask(
                limit: int,
                offset: int | None = None,
                prefetch: list[qm.Prefetch] = prefetch,
            ) -> list[tuple[float, str]]:
                points = embedded.client.query_points(
                    "ties", query=fusion, prefetch=prefetch, limit=limit, offset=offset
                ).points
                return [(-point.score, str(point.id)) for point in points]

            whole = ask(50)
            assert whole == sorted(whole)
            for size in (1, 4, 7, 20):
                assert ask(size) == whole[:size]
                assert ask(size, offset=3) == whole[3 : 3 + size]
            request = qm.QueryRequest(query=fusion, prefetch=prefetch, limit=6)
            for answer in embedded.client.query_batch_points("ties", [request] * 3):
                assert [str(point.id) for point in answer.points] == [i for _, i in whole[:6]]


# --- the rule -----------------------------------------------------------------------------------


def point(point_id: int | str, score: float) -> qm.ScoredPoint:
    return qm.ScoredPoint(id=point_id, version=0, score=score)


def numbered(scores: Sequence[float]) -> list[qm.ScoredPoint]:
    return [point(number, score) for number, score in enumerate(scores)]


class TestOrder:
    def test_scores_that_differ_in_the_seventh_digit_tie(self) -> None:
        points = [point(3, 0.7000002), point(1, 0.7000001), point(2, 0.7), point(0, 0.6999)]
        assert [(p.id, score) for p, score in order_points(points)] == [
            (1, 0.7000002),
            (2, 0.7000002),
            (3, 0.7000002),
            (0, 0.6999),
        ]

    def test_large_scores_tie_by_their_share(self) -> None:
        points = [point(2, 500.0002), point(1, 500.0), point(0, 499.99)]
        assert [p.id for p, _ in order_points(points)] == [1, 2, 0]

    def test_a_chain_of_small_steps_is_not_one_tie(self) -> None:
        points = numbered([0.5 - step * 7e-7 for step in range(4)])
        scores = [score for _, score in order_points(points)]
        assert scores[0] == scores[1] > scores[2] == scores[3]

    def test_numbers_come_before_uuids(self) -> None:
        small, large = str(uuid.UUID(int=1)), str(uuid.UUID(int=2))
        ids: list[int | str] = [large, 10, small, 9]
        assert sorted(ids, key=id_order) == [9, 10, small, large]

    @settings(max_examples=200)
    @given(st.lists(st.sampled_from([0.9, 0.5, 0.5000001, 0.1, -0.2]), max_size=12), st.randoms())
    def test_the_order_in_which_ties_arrive_does_not_matter(
        self, scores: list[float], draw: random.Random
    ) -> None:
        points = numbered(scores)
        arrived = points[:]
        draw.shuffle(arrived)
        for ordered in (points, arrived):
            ordered.sort(key=lambda point: -round(point.score, 3))
        assert order_points(arrived) == order_points(points)

    def test_of_distances_the_smallest_is_the_best(self) -> None:
        points = [point(2, 0.1), point(1, 0.1000001), point(0, 0.5)]
        assert [(p.id, score) for p, score in order_points(points)] == [
            (1, 0.1),
            (2, 0.1),
            (0, 0.5),
        ]


class TestHowDeep:
    def test_a_few_more_than_needed(self) -> None:
        assert first_limit(20) == 30

    @pytest.mark.parametrize(
        ("scores", "expected"),
        [
            ([0.9 - step / 100 for step in range(30)], None),  # no ties
            ([0.9] * 19 + [0.5] * 6 + [0.4] * 5, None),  # the tie at the cut ends within
            ([0.9] * 19 + [0.5] * 11, 120),  # it may go on
            ([0.5] * 30, 120),
            ([0.5] * 29, None),  # there are no more points
            ([], None),
        ],
    )
    def test_as_far_as_the_tie_at_the_cut_goes(
        self, scores: list[float], expected: int | None
    ) -> None:
        anew = None if expected is None else [expected]
        assert next_limits([numbered(scores)], [20], [30]) == anew
        clear = numbered([float(step) for step in range(30)])
        both = None if expected is None else [30, expected]
        assert next_limits([clear, numbered(scores)], [20, 20], [30, 30]) == both

    def test_not_beyond_a_thousand(self) -> None:
        assert next_limits([numbered([0.5] * 480)], [20], [480]) == [1000]
        assert next_limits([numbered([0.5] * 1000)], [20], [1000]) is None
        assert next_limits([numbered([0.5] * 2010)], [2000], [2010]) is None


# --- a thousand questions -------------------------------------------------------------------------


@pytest.mark.parametrize("place", ["memory", "embedded"])
@pytest.mark.parametrize(
    "questions", [10, pytest.param(1000, marks=pytest.mark.endurance, id="a thousand")]
)
async def test_random_questions_asked_ten_times_have_one_answer(
    place: str, questions: int, request: pytest.FixtureRequest
) -> None:
    """`pytest -m endurance -k ten_times` asks a thousand."""
    store = request.getfixturevalue(place)
    retrievers = [
        UnifiedHybridRetriever(store, EMBEDDER, similarity_top_k=10, **options)
        for options in OPTIONS.values()
    ]
    draw = random.Random(7)
    for question in make_texts(questions, seed=8):
        retriever = draw.choice(retrievers)
        answers = [ids_of(retriever.retrieve(question)) for _ in range(5)]
        pending = [retriever.aretrieve(question) for _ in range(5)]
        answers += [ids_of(nodes) for nodes in await asyncio.gather(*pending)]
        assert len({tuple(answer) for answer in answers}) == 1
