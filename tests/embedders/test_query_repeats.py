"""A token that a query repeats: BGE-M3's rule, and the sum where a model's spec asks for it."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

import checkpoints
from unified_embeddings import BGE_M3_Embedder, EmbeddingCache, ModelSpec, PairedEmbedder
from unified_embeddings.embedders.fake import FakeEmbedder
from unified_embeddings.engines.registry import ENGINE_NAMES
from unified_embeddings.types import HEAD_NAMES, SparseVector

QUERY = "fox dog fox the fox dog hen"
TOKEN_WEIGHT = 0.5


@pytest.fixture(scope="module")
def flat(bert: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint whose sparse head gives every token 0.5, wherever it stands."""
    folder = tmp_path_factory.mktemp("flat") / "bert"
    shutil.copytree(bert, folder)
    head = {"weight": torch.zeros(1, checkpoints.WIDTH), "bias": torch.tensor([TOKEN_WEIGHT])}
    torch.save(head, folder / "sparse_linear.pt")
    return folder


def make_embedder(
    folder: Path, *, sums: bool, engine: str = "torch", cache: EmbeddingCache | None = None
) -> BGE_M3_Embedder:
    spec = ModelSpec("repeats", str(folder), heads=HEAD_NAMES, sum_query_repeats=sums)
    return BGE_M3_Embedder(spec, engine=engine, precision="fp32", device="cpu", cache=cache)


def weights(embedder: BGE_M3_Embedder, vector: SparseVector) -> dict[int, float]:
    """Return the weights of QUERY's words by how often QUERY holds them."""
    counts = Counter(embedder.tokenise(QUERY))
    assert set(vector) == set(counts)
    assert max(counts.values()) >= 3
    by_count: dict[int, set[float]] = {}
    for token, count in counts.items():
        by_count.setdefault(count, set()).add(vector[token])
    assert all(len(values) == 1 for values in by_count.values())
    return {count: values.pop() for count, values in by_count.items()}


@pytest.mark.parametrize("engine", sorted({*ENGINE_NAMES} - {"sentence"}))
def test_the_sum_of_a_querys_weights_by_hand(engine: str, flat: Path) -> None:
    """Each time a token occurs in the query adds its 0.5; in a document it counts once."""
    embedder = make_embedder(flat, sums=True, engine=engine)
    query = weights(embedder, embedder.encode_query(QUERY).sparse[0])
    document = weights(embedder, embedder.encode_documents([QUERY]).sparse[0])
    for count, weight in query.items():
        assert weight == count * TOKEN_WEIGHT
    assert set(document.values()) == {TOKEN_WEIGHT}


@pytest.mark.parametrize("engine", sorted({*ENGINE_NAMES} - {"sentence"}))
def test_without_it_a_query_is_as_a_document(engine: str, flat: Path) -> None:
    embedder = make_embedder(flat, sums=False, engine=engine)
    query = weights(embedder, embedder.encode_query(QUERY).sparse[0])
    assert set(query.values()) == {TOKEN_WEIGHT}


def test_an_export_takes_the_rule_along(flat: Path, tmp_path: Path) -> None:
    from unified_embeddings.export.folder import export_onnx

    source = make_embedder(flat, sums=True)
    exported = BGE_M3_Embedder(export_onnx(source.spec, tmp_path / "onnx"))
    assert exported.spec.sum_query_repeats
    assert exported.encode_query(QUERY).sparse[0] == source.encode_query(QUERY).sparse[0]


def test_real_heads_weigh_each_occurrence_by_its_context(xlmr: Path) -> None:
    """The sum lies between the largest weight and that times the count; nothing else changes."""
    summing, keeping = (make_embedder(xlmr, sums=sums) for sums in (True, False))
    counts = Counter(summing.tokenise(QUERY))
    ours = summing.encode_query(QUERY, colbert=True)
    theirs = keeping.encode_query(QUERY, colbert=True)
    np.testing.assert_array_equal(ours.dense, theirs.dense)
    np.testing.assert_array_equal(ours.colbert[0], theirs.colbert[0])
    assert set(ours.sparse[0]) == set(theirs.sparse[0])
    for token, largest in theirs.sparse[0].items():
        assert largest <= ours.sparse[0][token] <= counts[token] * largest * (1 + 1e-6)
    repeated = [token for token in theirs.sparse[0] if counts[token] > 1]
    assert any(ours.sparse[0][token] > theirs.sparse[0][token] for token in repeated)
    for text in (QUERY, *checkpoints.CORPUS):
        mine = summing.encode_documents([text])
        assert mine.sparse[0] == keeping.encode_documents([text]).sparse[0]


def test_a_cache_never_serves_a_query_by_another_rule(flat: Path, tmp_path: Path) -> None:
    """Not in memory and not from disk; documents' vectors are shared, since they are the same."""
    file = tmp_path / "vectors.sqlite"
    keeping = make_embedder(flat, sums=False, cache=EmbeddingCache(path=file))
    keeping.encode_query(QUERY)
    keeping.encode_documents([QUERY])
    summing = make_embedder(flat, sums=True, cache=EmbeddingCache(path=file))
    summing.encode_documents([QUERY])
    assert summing.stats().forwards == 0
    query = weights(summing, summing.encode_query(QUERY).sparse[0])
    assert max(query.values()) == 3 * TOKEN_WEIGHT
    again = make_embedder(flat, sums=False, cache=keeping.cache)
    assert set(weights(again, again.encode_query(QUERY).sparse[0]).values()) == {TOKEN_WEIGHT}
    assert again.stats().forwards == 0


def test_a_collection_serves_both_rules(flat: Path) -> None:
    """Its documents do not depend on the rule, so neither does its record of the model."""
    summing, keeping = (make_embedder(flat, sums=sums) for sums in (True, False))
    assert summing.fingerprint == keeping.fingerprint
    assert summing.former_fingerprints == keeping.former_fingerprints


def test_a_pair_takes_the_rule_of_its_sparse_model(flat: Path) -> None:
    summing = make_embedder(flat, sums=True)
    pair = PairedEmbedder(FakeEmbedder(heads=("dense",)), summing)
    assert pair.encode_query(QUERY).sparse[0] == summing.encode_query(QUERY).sparse[0]
