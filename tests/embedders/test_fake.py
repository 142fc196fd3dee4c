"""FakeEmbedder: the real embedders' interface, and vectors that say what words a text holds."""

from __future__ import annotations

import pickle
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from unified_embeddings import (
    BGE_M3_Embedder,
    EmbeddingCache,
    InputError,
    ModelSpec,
    TextEmbedder,
    UnifiedEmbeddingsError,
    UnifiedSparseEmbedding,
    UnifiedTextEmbedding,
    colbert_score,
    sparse_score,
)
from unified_embeddings.embedders.fake import FakeEmbedder


def test_shapes_and_dtypes_are_the_real_ones() -> None:
    embeddings = FakeEmbedder(dimension=16).encode_documents(["a b c", "d"], colbert=True)
    assert embeddings.dense is not None
    assert embeddings.colbert is not None
    assert (embeddings.dense.shape, embeddings.dense.dtype) == ((2, 16), np.float32)
    assert [rows.shape for rows in embeddings.colbert] == [(4, 16), (2, 16)]
    np.testing.assert_allclose(np.linalg.norm(embeddings.dense, axis=1), 1, atol=1e-6)
    for rows in embeddings.colbert:
        np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-6)


def test_texts_that_share_words_are_nearer_in_every_head() -> None:
    embedder = FakeEmbedder()
    near, far = "Foxes jump over dogs.", "The sea is calm."
    documents = embedder.encode_documents([near, far], colbert=True)
    query = embedder.encode_query("Which foxes jump?", colbert=True)
    assert documents.dense is not None
    assert query.dense is not None
    dense = documents.dense @ query.dense[0]
    sparse = [sparse_score(query.sparse[0], vector) for vector in documents.sparse or []]
    colbert = [colbert_score(query.colbert[0], rows) for rows in documents.colbert or []]
    assert dense[0] > dense[1]
    assert sparse[0] > sparse[1] == 0
    assert colbert[0] > colbert[1]


def test_a_blank_text_has_a_unit_vector_no_weights_and_one_row() -> None:
    embeddings = FakeEmbedder(dimension=8).encode_documents(["", " ?!"], colbert=True)
    assert embeddings.dense is not None
    np.testing.assert_allclose(np.linalg.norm(embeddings.dense, axis=1), 1, atol=1e-6)
    assert [len(vector) for vector in embeddings.sparse or []] == [0, 0]
    assert [len(rows) for rows in embeddings.colbert or []] == [1, 1]


def test_no_texts_give_an_empty_result() -> None:
    embeddings = FakeEmbedder(dimension=8).encode_documents([])
    assert embeddings.dense is not None
    assert embeddings.dense.shape == (0, 8)
    assert embeddings.sparse == []


def test_long_texts_are_cut_and_counted() -> None:
    embedder = FakeEmbedder(max_length=4)
    cut, whole = embedder.encode_documents(["one two three", "one two"], colbert=True).colbert or []
    np.testing.assert_array_equal(cut, whole)
    assert embedder.stats().truncated == 1
    assert embedder.document_length == 2


def test_the_first_text_that_is_cut_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    embedder = FakeEmbedder(max_length=4)
    embedder.encode_documents(["one two"])
    assert caplog.messages == []
    for number in range(3):
        embedder.encode_documents([f"one two three {number}", f"four five six {number}"])
    (message,) = caplog.messages
    assert "fake takes 4 tokens of a text; a longer one was cut" in message
    FakeEmbedder(max_length=4).encode_query("one two three")
    assert len(caplog.messages) == 2


def test_the_same_vectors_in_every_process() -> None:
    code = (
        "from unified_embeddings.embedders.fake import FakeEmbedder\n"
        "print(FakeEmbedder(dimension=4).encode_query('Foxes jump').dense.tolist())"
    )
    seen = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(sys.path)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(seen) == 1


def test_a_text_is_computed_once() -> None:
    embedder = FakeEmbedder(cache=EmbeddingCache())
    embedder.encode_documents(["a", "a", "b"])
    embedder.encode_queries(["a", "b"])
    stats = embedder.stats()
    assert (stats.texts, stats.tokenised, stats.forwards) == (5, 2, 1)
    assert (stats.cache.misses, stats.cache.hits) == (4, 6)


def test_heads_it_does_not_have_are_refused() -> None:
    embedder = FakeEmbedder(heads=("dense",))
    assert embedder.encode_query("fox").sparse is None
    with pytest.raises(InputError, match="no sparse ones"):
        embedder.encode_query("fox", sparse=True)


def test_bad_texts_are_refused_as_by_the_real_ones() -> None:
    with pytest.raises(InputError, match="expected a str, got NoneType") as refused:
        FakeEmbedder().encode_documents(["fine", None])  # type: ignore[list-item]
    assert refused.value.index == 1


@pytest.mark.parametrize(
    ("heads", "problem"),
    [
        (("dens",), r"fake: heads can be dense, sparse, colbert, not \['dens'\]"),
        (("dense", ""), "heads can be"),
        (("dense", None), "heads can be"),
        ((["dense"],), "heads can be"),
        ((), "at least one of"),
        ("dense", "heads must be tuple or list, got 'dense'"),
        (None, "heads must be tuple or list"),
    ],
)
def test_unknown_heads_are_refused_as_by_the_real_ones(heads: Any, problem: str) -> None:
    with pytest.raises(InputError, match=problem):
        FakeEmbedder(heads=heads)
    with pytest.raises(InputError, match=problem):
        ModelSpec("fake", "fake", heads=heads)


def test_a_head_named_twice_counts_once() -> None:
    assert FakeEmbedder(heads=("dense", "sparse", "dense")).heads == ("dense", "sparse")


def test_a_name_that_is_no_text_is_refused() -> None:
    with pytest.raises(InputError, match="model_name must be a str, got 7"):
        FakeEmbedder(model_name=7)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["fake", "real"])
def test_closed_it_answers_from_its_cache_alone(kind: str, request: Any) -> None:
    embedder: TextEmbedder = FakeEmbedder()
    if kind == "real":
        embedder = BGE_M3_Embedder(request.getfixturevalue("xlmr"), precision="fp32", device="cpu")
    with embedder:
        before = embedder.encode_query("fox", colbert=True)
    after = embedder.encode_query("fox", colbert=True)
    np.testing.assert_array_equal(after.dense, before.dense)
    assert len(embedder.encode_documents([])) == 0
    for call in (embedder.encode_documents, embedder.encode_queries):
        with pytest.raises(UnifiedEmbeddingsError, match="closed; make a new one"):
            call(["fox", "dog"])
    with pytest.raises(UnifiedEmbeddingsError, match="closed; make a new one"):
        embedder.tokenise("fox")
    with pytest.raises(UnifiedEmbeddingsError, match="closed; make a new one"):
        embedder.document_length  # noqa: B018 - reading it is the act
    with pytest.raises(InputError):
        embedder.encode_documents([7])  # type: ignore[list-item]


def test_closed_without_a_cache_it_answers_nothing() -> None:
    embedder = FakeEmbedder(cache=None)
    embedder.encode_query("fox")
    embedder.close()
    embedder.close()
    with pytest.raises(UnifiedEmbeddingsError, match="closed"):
        embedder.encode_query("fox")


def test_two_names_have_two_fingerprints() -> None:
    one, other = FakeEmbedder(), FakeEmbedder(model_name="other")
    assert one.fingerprint == FakeEmbedder().fingerprint != other.fingerprint
    assert len(one.fingerprint) == 32


def test_a_pickled_copy_is_equal() -> None:
    embedder = FakeEmbedder(8, heads=("dense", "sparse"), max_length=9, model_name="x")
    copy = pickle.loads(pickle.dumps(embedder))
    assert (copy.fingerprint, copy.heads, copy.max_length) == (
        embedder.fingerprint,
        embedder.heads,
        embedder.max_length,
    )
    np.testing.assert_array_equal(copy.encode_query("a").dense, embedder.encode_query("a").dense)


@pytest.mark.parametrize("cache", [None, "auto", EmbeddingCache(max_bytes=7)])
def test_a_pickled_copy_has_a_cache_of_the_same_size(cache: Any) -> None:
    embedder = FakeEmbedder(cache=cache)
    copy = pickle.loads(pickle.dumps(embedder))
    assert copy.cache is not embedder.cache
    assert copy.cache.max_bytes == embedder.cache.max_bytes
    copy.encode_query("fox")
    copy.encode_query("fox")
    assert copy.stats().forwards == (1 if cache == "auto" else 2)


@pytest.mark.parametrize("adapter", [UnifiedTextEmbedding, UnifiedSparseEmbedding])
def test_an_adapter_over_it_says_that_it_cannot_be_restored(adapter: Any) -> None:
    stored = adapter(FakeEmbedder()).model_dump()
    with pytest.raises(InputError, match=r"'fake' cannot be made with dimension, heads; .* give"):
        adapter(**stored)


def test_from_dict_refuses_and_names_the_way_out() -> None:
    stored = UnifiedTextEmbedding(FakeEmbedder()).to_dict()
    with pytest.raises(InputError, match=r"a FakeEmbedder.*give the embedder itself"):
        UnifiedTextEmbedding.from_dict(stored)


@given(st.lists(st.text(max_size=40), max_size=5))
def test_a_text_has_the_same_vectors_alone_and_among_others(texts: list[str]) -> None:
    texts = [text.encode("utf-8", "ignore").decode() for text in texts]
    embedder = FakeEmbedder(8, cache=None)
    together = embedder.encode_documents(texts)
    assert together.dense is not None
    assert together.sparse is not None
    for text, dense, sparse in zip(texts, together.dense, together.sparse, strict=True):
        alone = embedder.encode_documents([text])
        np.testing.assert_array_equal(alone.dense[0], dense)  # type: ignore[index]
        assert alone.sparse == [sparse]
