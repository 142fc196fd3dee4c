"""Other libraries' searches over the embedded store, unmodified, as over local mode.

Each needs a package that is no dependency of this one, and is skipped without it.
"""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import qdrant_client
from qdrant_client import QdrantClient
from qdrant_client import models as qm

from unified_embeddings import EdgeQdrantClient


@pytest.fixture
def both(tmp_path: Path) -> Iterator[list[Any]]:
    with EdgeQdrantClient(tmp_path / "store") as client:
        yield [client, QdrantClient(":memory:")]


def vector(text: str) -> list[float]:
    generator = np.random.default_rng(zlib.crc32(text.encode()))
    drawn = generator.normal(size=8)
    return [float(value) for value in drawn / np.linalg.norm(drawn)]


TEXTS = [f"text {number}" for number in range(30)]


def test_langchains_search_type_mmr(both: list[Any]) -> None:
    embeddings = pytest.importorskip("langchain_core.embeddings")
    langchain = pytest.importorskip("langchain_qdrant")

    class Fake(embeddings.Embeddings):  # type: ignore[misc,name-defined]
        def embed_documents(self, texts: list[str]) -> list[list[float]]:
            return [vector(text) for text in texts]

        def embed_query(self, text: str) -> list[float]:
            return vector(text)

    answers = []
    for client in both:
        client.create_collection(
            "docs", vectors_config=qm.VectorParams(size=8, distance=qm.Distance.COSINE)
        )
        store = langchain.QdrantVectorStore(client, "docs", Fake())
        store.add_texts(TEXTS, ids=list(range(30)))
        options = {"k": 5, "fetch_k": 15, "lambda_mult": 0.5}
        retriever = store.as_retriever(search_type="mmr", search_kwargs=options)
        answers.append([document.page_content for document in retriever.invoke("a question")])
        nearest = store.similarity_search("a question", k=5)
        assert answers[-1] != [document.page_content for document in nearest]
    assert answers[0] == answers[1]
    assert len(answers[0]) == 5


def test_haystacks_group_by(both: list[Any]) -> None:
    haystack = pytest.importorskip("haystack")
    stores = pytest.importorskip("haystack_integrations.document_stores.qdrant")
    retrievers = pytest.importorskip("haystack_integrations.components.retrievers.qdrant")
    answers = []
    for client in both:
        store = stores.QdrantDocumentStore(
            ":memory:", index="docs", embedding_dim=8, use_sparse_embeddings=True
        )
        store._client = client
        store._set_up_collection("docs", 8, True, "cosine", True, False)
        store.write_documents(
            [
                haystack.Document(
                    id=text,
                    content=text,
                    meta={"doc": f"document {number % 4}"},
                    embedding=vector(text),
                    sparse_embedding=haystack.dataclasses.SparseEmbedding(
                        indices=[number % 5, 9], values=[1.0, 0.1 * number + 0.1]
                    ),
                )
                for number, text in enumerate(TEXTS)
            ]
        )
        sparse = haystack.dataclasses.SparseEmbedding(indices=[3, 9], values=[1.0, 0.3])
        dense = {"query_embedding": vector("a question")}
        options = {"top_k": 3, "group_by": "meta.doc", "group_size": 2}
        by_dense = retrievers.QdrantEmbeddingRetriever(store, **options).run(**dense)
        by_both = retrievers.QdrantHybridRetriever(store, **options).run(
            **dense, query_sparse_embedding=sparse
        )
        answers.append(
            [
                [(document.id, round(document.score, 5)) for document in found["documents"]]
                for found in (by_dense, by_both)
            ]
        )
    assert answers[0] == answers[1]
    assert len(answers[0][0]) == 6


def test_sentence_transformers_semantic_search(
    both: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    torch = pytest.importorskip("torch")
    engines = pytest.importorskip("sentence_transformers.sparse_encoder.search_engines")
    generator = torch.Generator().manual_seed(0)

    def drawn(rows: int) -> Any:
        kept = torch.rand(rows, 50, generator=generator) > 0.8
        return (torch.rand(rows, 50, generator=generator) * kept).to_sparse()

    corpus, query = drawn(40), drawn(3)
    answers = []
    for client in both:
        monkeypatch.setattr(qdrant_client, "QdrantClient", lambda *_, made=client, **__: made)
        found, _, index = engines.semantic_search_qdrant(query, corpus, output_index=True)
        assert index[0] is client
        answers.append([(hit["corpus_id"], hit["score"]) for hit in itertools.chain(*found)])
    assert [place for place, _ in answers[0]] == [place for place, _ in answers[1]]
    scores = [[score for _, score in answer] for answer in answers]
    np.testing.assert_allclose(scores[0], scores[1], rtol=1e-5)
