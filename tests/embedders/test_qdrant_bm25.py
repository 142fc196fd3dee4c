"""`Qdrant/bm25` and `Qdrant/bm25-native`: the vectors of FastEmbed and of Qdrant itself, exactly.

The expected vectors come from FastEmbed, where it is installed, with NLTK's stop words, which
LlamaIndex brings; from Qdrant's core; and from published values of MurmurHash3, worked out by hand.
"""

from __future__ import annotations

import importlib.util
import pickle
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import llama_index.core
import numpy as np
import pytest
import qdrant_edge as core
from hypothesis import given
from hypothesis import strategies as st
from llama_index.core.schema import TextNode
from llama_index.core.vector_stores.types import VectorStoreQuery, VectorStoreQueryMode
from llama_index.vector_stores.qdrant import QdrantVectorStore
from qdrant_client import QdrantClient
from qdrant_client import models as qm

from unified_embeddings import (
    EdgeQdrantClient,
    FingerprintMismatchError,
    InputError,
    PairedEmbedder,
    UnifiedHybridRetriever,
    make_embedder,
)
from unified_embeddings.embedders.bm25 import Bm25Embedder
from unified_embeddings.embedders.fake import FakeEmbedder
from unified_embeddings.llama.vector_store import build_vector_store
from unified_embeddings.migration.adoption import adopt_collection
from unified_embeddings.models.bm25 import LANGUAGES, NATIVE_BM25, languages_of
from unified_embeddings.models.catalogue import spec_for
from unified_embeddings.types import SparseVector

needs_stemmer = pytest.mark.skipif(
    importlib.util.find_spec("py_rust_stemmers") is None,
    reason="stems words, for which the library comes with the extra 'bm25'",
)
needs_fastembed = pytest.mark.skipif(
    importlib.util.find_spec("fastembed") is None,
    reason="compares with FastEmbed, which is no dependency: pip install fastembed",
)

STOP_WORDS = Path(llama_index.core.__file__).parent / "_static/nltk_cache/corpora/stopwords"

# The signed 32 bits of MurmurHash3 with seed 0; the number in a vector is without the sign.
HELLO, TEST = 0x248BFA47, 2**32 - 0xBA6BD213

TEXTS = [
    "The connections of a pump, and its seals: AB-1234C!",
    "snake_case, __init__ and _ alone; don't stop, we'll see",
    "Die Häuser der Straße und ein Haus",
    "Les continuations de l'été à Noël",
    "Книги и книгами, КНИГА",
    "ΟΔΟΣ Οδός οδόσ ΑΣ\u0301Β",
    "机器学习 かな カナ 한국어",
    "हिन्दी में किताबें",
    "كتاب والكتب ـــ",
    "İstanbul'da KITAPLARI ısı",
    "x" * 41 + " " + "z" * 40,
    "1 22 ٣٤ ² ½ Ⅷ",
    "",
    " ?! ",
]


def values_of(vector: SparseVector) -> dict[int, np.float32]:
    return {int(index): np.float32(value) for index, value in vector.items()}


def documents_of(embedder: Bm25Embedder, texts: Sequence[str]) -> list[dict[int, np.float32]]:
    return [values_of(vector) for vector in embedder.encode_documents(list(texts)).sparse or []]


def queries_of(embedder: Bm25Embedder, texts: Sequence[str]) -> list[dict[int, np.float32]]:
    return [values_of(vector) for vector in embedder.encode_queries(list(texts)).sparse or []]


@needs_stemmer
class TestValues:
    @pytest.mark.parametrize("name", ["Qdrant/bm25", "Qdrant/bm25-native"])
    def test_worked_out_by_hand(self, name: str) -> None:
        """Three terms, "the" left out; 1.2 (0.25 + 0.75 · 3 / 256) = 0.310546875."""
        (vector,) = documents_of(Bm25Embedder(name), ["Hello, the hello test"])
        assert vector == {
            HELLO: np.float32(2 * 2.2 / 2.310546875),
            TEST: np.float32(2.2 / 1.310546875),
        }
        assert queries_of(Bm25Embedder(name), ["test HELLO test"]) == [{HELLO: 1, TEST: 1}]

    def test_the_two_part_at_underscores_long_words_and_marks(self) -> None:
        fastembed, native = Bm25Embedder("Qdrant/bm25"), Bm25Embedder("Qdrant/bm25-native")
        words = {
            embedder.model_name: [[piece.text for piece in embedder.split(text)] for text in TEXTS]
            for embedder in (fastembed, native)
        }
        assert words["Qdrant/bm25"][1] == ["snake_cas", "__init__", "alon", "stop", "see"]
        assert words["Qdrant/bm25-native"][1] == ["snake", "case", "init", "alone", "stop", "see"]
        assert words["Qdrant/bm25"][10] == ["z" * 40]
        assert words["Qdrant/bm25-native"][10] == ["x" * 41, "z" * 40]

    def test_no_stemming_keeps_stop_words(self) -> None:
        for name in ("Qdrant/bm25:none", "Qdrant/bm25-native:none"):
            (plain,) = queries_of(Bm25Embedder(name), ["the tests"])
            (stemmed,) = queries_of(Bm25Embedder(name.removesuffix(":none")), ["the tests"])
            assert (len(plain), set(stemmed)) == (2, {TEST})


class TestNative:
    def core_of(self, language: str) -> Any:
        if language == "none":
            stop_words, stemmer = core.StopwordsSet(), core.DisabledStemmer()
            return core.Bm25(core.Bm25Config(stopwords=stop_words, stemmer=stemmer))
        return core.Bm25(core.Bm25Config(language=language))

    def assert_equal(self, language: str, texts: Sequence[str]) -> None:
        model, embedder = self.core_of(language), Bm25Embedder(f"Qdrant/bm25-native:{language}")
        for text, document, query in zip(
            texts, documents_of(embedder, texts), queries_of(embedder, texts), strict=True
        ):
            expected = model.embed_document(text)
            values = map(np.float32, expected.values)
            assert document == dict(zip(expected.indices, values, strict=True)), text
            assert query == dict.fromkeys(model.embed_query(text).indices, 1.0), text

    @pytest.mark.parametrize("language", [*languages_of(NATIVE_BM25), "none"])
    def test_vectors_are_the_cores(self, language: str) -> None:
        self.assert_equal(language, TEXTS)

    @given(st.text())
    def test_vectors_of_any_text_are_the_cores(self, text: str) -> None:
        self.assert_equal("english", [text])

    @pytest.mark.parametrize("language", languages_of(NATIVE_BM25))
    def test_its_stop_words_are_nltks(self, language: str) -> None:
        """So FastEmbed's, which are the same; those with an apostrophe or a space are no words."""
        words = (STOP_WORDS / language).read_text("utf-8").split("\n")
        whole_words = [word for word in words if word and word.isalpha()]
        assert len(whole_words) > 50
        assert queries_of(Bm25Embedder(f"Qdrant/bm25-native:{language}"), whole_words) == [
            {}
        ] * len(whole_words)


@needs_fastembed
@needs_stemmer
class TestFastEmbed:
    @pytest.fixture(scope="class")
    def load(self, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Any]:
        """FastEmbed's class over a folder with the files that its model has on the hub."""
        from fastembed.sparse.bm25 import Bm25

        folder = tmp_path_factory.mktemp("bm25")
        for language in LANGUAGES:
            if language != "tamil":
                words = (STOP_WORDS / language).read_bytes()
                (folder / f"{language}.txt").write_bytes(words)

        def load(language: str) -> Any:
            options = {"language": language, "specific_model_path": str(folder)}
            if language == "none":
                options = {"specific_model_path": str(folder), "disable_stemmer": True}
            return Bm25("Qdrant/bm25", **options)

        return load

    def assert_equal(self, model: Any, language: str, texts: list[str]) -> None:
        embedder = Bm25Embedder(f"Qdrant/bm25:{language}")
        expected = [
            dict(zip(vector.indices.tolist(), vector.values.astype(np.float32), strict=True))
            for vector in model.embed(texts)
        ]
        assert documents_of(embedder, texts) == expected
        queries = [dict.fromkeys(v.indices.tolist(), 1.0) for v in model.query_embed(texts)]
        assert queries_of(embedder, texts) == queries

    @pytest.mark.parametrize("language", [*LANGUAGES, "none"])
    def test_vectors_are_its_own(self, load: Callable[[str], Any], language: str) -> None:
        self.assert_equal(load(language), language, TEXTS)

    def test_vectors_of_any_text_are_its_own(self, load: Callable[[str], Any]) -> None:
        model = load("english")

        @given(st.lists(st.text(), min_size=1, max_size=8))
        def check(texts: list[str]) -> None:
            self.assert_equal(model, "english", texts)

        check()

    def test_a_stock_collection_is_searched_as_stock_searches_it(
        self, load: Callable[[str], Any]
    ) -> None:
        model = load("english")

        def encode(vectors: Any) -> tuple[list[list[int]], list[list[float]]]:
            rows = [(vector.indices.tolist(), vector.values.tolist()) for vector in vectors]
            return [row[0] for row in rows], [row[1] for row in rows]

        client = QdrantClient(":memory:")
        stock = QdrantVectorStore(
            collection_name="stock", client=client, enable_hybrid=True,
            sparse_doc_fn=lambda texts: encode(model.embed(texts)),
            sparse_query_fn=lambda texts: encode(model.query_embed(texts)),
            sparse_config=qm.SparseVectorParams(modifier=qm.Modifier.IDF),
        )  # fmt: skip
        dense = FakeEmbedder(heads=("dense",), model_name="words")
        stock.add(nodes_with(dense))
        pair = PairedEmbedder(dense, Bm25Embedder("Qdrant/bm25"))
        ours = UnifiedHybridRetriever(
            build_vector_store(pair, "stock", client=client, adopt="trust"), pair, mode="sparse",
            adopt="trust", similarity_top_k=10,
        )  # fmt: skip
        for question in QUESTIONS:
            (indices,), (values,) = encode(model.query_embed([question]))
            expected = client.query_points(
                "stock", query=qm.SparseVector(indices=indices, values=values),
                using="text-sparse-new", limit=10,
            ).points  # fmt: skip
            found = {hit.node.node_id: hit.score for hit in ours.retrieve(question)}
            assert found == {str(point.id): point.score for point in expected}


# --- collections ----------------------------------------------------------------------------------

DOCUMENTS = [
    "The fox jumps over the dog, and the dog sleeps.",
    "Call get_user with the ids of the users.",
    "Part AB-1234C replaces AB-1234.",
    "Connections of the pump are tested twice.",
] + [f"Filler number {number} says nothing of note." for number in range(20)]
QUESTIONS = ["which dogs?", "user ids", "1234C", "a connected pump's test", "the of and"]


def nodes_with(dense: FakeEmbedder) -> list[TextNode]:
    rows = dense.encode_documents(DOCUMENTS).dense
    assert rows is not None
    return [
        TextNode(text=text, id_=node_id(row), embedding=vector.tolist())
        for row, (text, vector) in enumerate(zip(DOCUMENTS, rows, strict=True))
    ]


def node_id(row: int) -> str:
    return f"00000000-0000-0000-0000-{row:012}"


@pytest.fixture(params=["memory", "folder"])
def client(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Any]:
    """A place for a collection that Qdrant's own BM25 fills."""
    place: Any = EdgeQdrantClient(str(tmp_path / "store"))
    if request.param == "memory":
        place.close()
        place = QdrantClient(":memory:")
    yield place
    place.close()


def fill_natively(client: Any, dense: FakeEmbedder) -> Any:
    """Make the collection that the stock store makes, with Qdrant's own vectors of the texts."""
    model = core.Bm25()
    client.create_collection(
        "native",
        vectors_config={
            "text-dense": qm.VectorParams(size=dense.dimension, distance=qm.Distance.COSINE)
        },
        sparse_vectors_config={"text-sparse-new": qm.SparseVectorParams(modifier=qm.Modifier.IDF)},
    )
    points = []
    for row, node in enumerate(nodes_with(dense)):
        vector = model.embed_document(node.text)
        sparse = qm.SparseVector(indices=vector.indices, values=vector.values)
        points.append(
            qm.PointStruct(
                id=node_id(row),
                vector={"text-dense": node.embedding, "text-sparse-new": sparse},
                payload={"_node_content": node.model_dump_json(), "_node_type": "TextNode"},
            )
        )
    client.upsert("native", points)
    return model


class TestCollection:
    def test_a_native_collection_answers_as_qdrants_own_queries_do(self, client: Any) -> None:
        dense = FakeEmbedder(heads=("dense",), model_name="words")
        model = fill_natively(client, dense)
        pair = PairedEmbedder(dense, Bm25Embedder("Qdrant/bm25-native"))
        store = build_vector_store(pair, "native", client=client, adopt="trust")
        for question in QUESTIONS:
            vector = model.embed_query(question)
            expected = []
            if vector.indices:
                query = qm.SparseVector(indices=vector.indices, values=vector.values)
                expected = client.query_points(
                    "native", query=query, using="text-sparse-new", limit=10
                ).points
            found = store.query(
                VectorStoreQuery(
                    query_str=question, mode=VectorStoreQueryMode.SPARSE, sparse_top_k=10,
                    similarity_top_k=10,
                    query_embedding=dense.encode_query(question).dense[0].tolist(),  # type: ignore[index]
                )
            )  # fmt: skip
            assert dict(zip(found.ids or [], found.similarities or [], strict=True)) == {
                str(point.id): pytest.approx(point.score, rel=1e-6) for point in expected
            }

    def test_a_native_collection_is_proved_and_then_written_to(self, client: Any) -> None:
        dense = FakeEmbedder(heads=("dense",), model_name="words")
        fill_natively(client, dense)
        pair = PairedEmbedder(dense, Bm25Embedder("Qdrant/bm25-native"))
        adoption = adopt_collection(client, "native", pair)
        assert adoption.sparse is not None
        store = build_vector_store(pair, "native", client=client)
        node = TextNode(text="A connected dog", id_=node_id(99))
        node.embedding = dense.encode_documents([node.text]).dense[0].tolist()  # type: ignore[index]
        store.add([node])
        retriever = UnifiedHybridRetriever(store, pair, mode="sparse", similarity_top_k=1)
        assert retriever.retrieve("dog connections")[0].node.node_id == node.node_id
        other = PairedEmbedder(dense, Bm25Embedder("Qdrant/bm25-native:german"))
        with pytest.raises(FingerprintMismatchError):
            build_vector_store(other, "native", client=client)


class TestName:
    def test_case_does_not_matter_to_the_name_and_does_to_the_language(self) -> None:
        names = ["Qdrant/bm25-native", "qdrant/bm25-native", "QDRANT/BM25-native:english"]
        assert len({Bm25Embedder(name).fingerprint for name in names}) == 1
        with pytest.raises(InputError, match=r"Qdrant/bm25-native:LANGUAGE.*german"):
            spec_for("Qdrant/bm25-native:German")

    def test_what_qdrant_does_not_have_is_refused(self) -> None:
        with pytest.raises(InputError, match="no BM25 that we have"):
            Bm25Embedder("Qdrant/bm25-native:tamil")
        with pytest.raises(InputError, match="no BM25 that we have"):
            Bm25Embedder("Qdrant/bm25:klingon")

    @needs_stemmer
    def test_each_has_a_fingerprint_of_its_own(self) -> None:
        names = ["bm25", "Qdrant/bm25", "Qdrant/bm25-native", "Qdrant/bm25:german"]
        assert len({Bm25Embedder(name).fingerprint for name in names}) == len(names)

    def test_it_is_a_sparse_model_and_goes_through_pickle(self) -> None:
        embedder = make_embedder("Qdrant/bm25-native")
        assert embedder.heads == ("sparse",)
        assert embedder.sparse_idf
        copy = pickle.loads(pickle.dumps(embedder))
        assert copy.encode_query("a test").sparse == embedder.encode_query("a test").sparse
