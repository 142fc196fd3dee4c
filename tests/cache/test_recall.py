"""Recalling values that are all in memory: what counts, what is kept, and many threads at once."""

from __future__ import annotations

import hashlib
import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from unified_embeddings.cache.embedding_cache import EmbeddingCache
from unified_embeddings.cache.keys import key_for
from unified_embeddings.embedders.fake import FakeEmbedder
from unified_embeddings.types import FloatArray


def filled(*names: str, **options: int) -> EmbeddingCache:
    cache = EmbeddingCache(**options)
    for name in names:
        put(cache, name)
    return cache


def put(cache: EmbeddingCache, name: str) -> None:
    with cache.claim([key_for(name)]) as claim:
        for missing in claim.rounds():
            for key in missing:
                claim.put(key, np.array([ord(name)], dtype=np.float32))


def recalled(cache: EmbeddingCache, names: str) -> list[float] | None:
    values = cache.recall([key_for(name) for name in names])
    return None if values is None else [float(value[0]) for value in values]


def test_values_come_in_the_order_of_their_keys() -> None:
    cache = filled("a", "b", "c")
    assert recalled(cache, "cab") == [99.0, 97.0, 98.0]
    assert recalled(cache, "") == []


def test_each_key_named_counts_as_a_hit() -> None:
    cache = filled("a", "b")
    assert recalled(cache, "aba") == [97.0, 98.0, 97.0]
    assert (cache.hits, cache.misses) == (3, 2)


def test_where_one_is_missing_nothing_counts() -> None:
    cache = filled("a", "b")
    assert recalled(cache, "abx") is None
    assert (cache.hits, cache.misses) == (0, 2)


def test_what_was_recalled_is_evicted_last() -> None:
    cache = filled("a", "b", max_entries=2)
    recalled(cache, "a")
    put(cache, "c")
    assert recalled(cache, "ac") == [97.0, 99.0]
    assert recalled(cache, "b") is None


def test_a_lookup_that_fails_changes_no_order() -> None:
    cache = filled("a", "b", max_entries=2)
    recalled(cache, "ax")
    put(cache, "c")
    assert recalled(cache, "a") is None


def test_what_is_on_disk_only_is_found_by_the_claim(tmp_path: Path) -> None:
    embedder = FakeEmbedder(cache=EmbeddingCache(path=tmp_path / "vectors.sqlite"))
    expected = embedder.encode_query("fox").dense
    embedder.cache.close()
    again = FakeEmbedder(cache=EmbeddingCache(path=tmp_path / "vectors.sqlite"))
    found = again.encode_query("fox").dense
    assert expected is not None
    assert found is not None
    np.testing.assert_array_equal(found, expected)
    assert again.stats().forwards == 0


@pytest.mark.parametrize("heads", [{"sparse": False}, {"dense": False}, {"colbert": True}])
def test_hits_and_misses_are_those_of_the_claim(heads: dict[str, bool]) -> None:
    embedder = FakeEmbedder()
    texts = ["fox", "dog", "fox"]
    embedder.encode_documents(texts[:1])  # dense and sparse
    misses = embedder.cache.misses
    hits = embedder.cache.hits
    for _ in range(2):
        embedder.encode_documents(texts, **heads)
    asked_for = 2 * len(texts) * {"sparse": 1, "dense": 1, "colbert": 3}[next(iter(heads))]
    new = {"sparse": 1, "dense": 1, "colbert": 4}[next(iter(heads))]  # distinct and not there
    assert embedder.cache.misses - misses == new
    assert embedder.cache.hits - hits == asked_for - new


def test_many_threads_get_one_computation_and_equal_vectors() -> None:
    embedder = FakeEmbedder(dimension=32)
    texts = [f"text {number}" for number in range(8)]
    answers: list[list[FloatArray]] = []
    start = threading.Barrier(8)

    def ask() -> None:
        start.wait()
        for _ in range(50):
            vectors = [embedder.encode_query(text).dense for text in texts]
            answers.append([vector for vector in vectors if vector is not None])

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    expected = [vector.tobytes() for vector in answers[0]]
    assert len(answers) == 400
    assert all([vector.tobytes() for vector in answer] == expected for answer in answers)
    assert embedder.cache.misses == 2 * len(texts)
    assert embedder.cache.hits == 2 * len(texts) * 399


@given(st.lists(st.text().filter(lambda text: text.isprintable()) | st.binary(), max_size=5))
def test_a_key_is_the_digest_of_its_fields_one_after_the_other(fields: list[str | bytes]) -> None:
    digest = hashlib.blake2b(digest_size=16)
    for field in fields:
        raw = field.encode() if isinstance(field, str) else field
        digest.update(len(raw).to_bytes(8, "little"))
        digest.update(raw)
    assert key_for(*fields) == digest.digest()
