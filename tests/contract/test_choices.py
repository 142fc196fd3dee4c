"""Every model choice gives sentence-transformers' vectors, with the prefixes of its model card.

On tiny random checkpoints of the real architectures. nomic-embed-text-v2-moe and jina-clip need
remote code that transformers does not have. Nomic's prefixes, pooling and normalisation are tested
on transformers' own NomicBert (version 1's architecture, without experts).
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import checkpoints
from unified_embeddings import BGE_M3_Embedder
from unified_embeddings.models.catalogue import MODELS
from unified_embeddings.models.spec import ModelSpec

BGE = "Represent this sentence for searching relevant passages: "
CARDS: dict[str, dict[str, Any]] = {
    # choice: architecture, pooling, normalised, prefix of queries, of documents, dimension, length
    "nomic": {"kind": "nomic", "q": "search_query: ", "d": "search_document: ", "is": (768, 512)},
    "arctic": {"kind": "xlmr", "pooling": "cls", "q": "query: ", "is": (1024, 8192)},
    "jina-v3": {
        "kind": "jina",
        "q": "Represent the query for retrieving evidence documents: ",
        "d": "Represent the document for retrieval: ",
        "is": (1024, 8192),
    },
    "bge-large-en-v1.5": {"pooling": "cls", "q": BGE, "is": (1024, 512)},
    "bge-base-en-v1.5": {"pooling": "cls", "q": BGE, "is": (768, 512)},
    "bge-small-en-v1.5": {"pooling": "cls", "q": BGE, "is": (384, 512)},
    "e5-large-v2": {"q": "query: ", "d": "passage: ", "is": (1024, 512)},
    "e5-base-v2": {"q": "query: ", "d": "passage: ", "is": (768, 512)},
    "e5-small-v2": {"q": "query: ", "d": "passage: ", "is": (384, 512)},
    "all-MiniLM-L6-v2": {"is": (384, 256)},
    "all-mpnet-base-v2": {"kind": "mpnet", "is": (768, 384)},
    "paraphrase-multilingual-MiniLM-L12-v2": {
        "kind": "bert-multilingual",
        "normalise": False,
        "is": (384, 128),
    },
}
LIMIT = 120
"""Maximum tokens of the tiny checkpoints, so that truncation is part of the comparison.

It is more than the prefixes take, which their small vocabularies split into up to 60 tokens.
"""


def texts() -> list[str]:
    rng = random.Random(5)
    words = " ".join(checkpoints.CORPUS).split()
    mixed = [" ".join(rng.choices(words, k=rng.choice([1, 3, 9, 30]))) for _ in range(14)]
    return [*mixed, "", " \n ", "fox " * 200, mixed[0]]


Make = Callable[[str], tuple[Path, ModelSpec]]


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory) -> Make:
    def make_model(choice: str) -> tuple[Path, ModelSpec]:
        card = CARDS[choice]
        folder = checkpoints.sentence_model(
            tmp_path_factory.mktemp("model") / "it",
            card.get("kind", "bert"),
            pooling=card.get("pooling", "mean"),
            normalise=card.get("normalise", True),
            limit=LIMIT,
        )
        spec = dataclasses.replace(
            MODELS[choice], model_id=str(folder), dimension=checkpoints.WIDTH, remote_code=False
        )
        return folder, spec

    return make_model


@pytest.mark.parametrize("choice", CARDS)
def test_vectors_equal_sentence_transformers(choice: str, make: Make) -> None:
    from sentence_transformers import SentenceTransformer

    folder, spec = make(choice)
    card = CARDS[choice]
    oracle = SentenceTransformer(str(folder), device="cpu")
    ours = BGE_M3_Embedder(spec, precision="fp32", device="cpu", batch_tokens=200, cache=None)
    assert ours.heads == ("dense",)
    assert ours.max_length == LIMIT
    for encode, prefix, adapter in (
        (ours.encode_queries, card.get("q", ""), "retrieval_query"),
        (ours.encode_documents, card.get("d", ""), "retrieval_passage"),
    ):
        if choice == "jina-v3":
            oracle = SentenceTransformer(str(folder), device="cpu")
            oracle.load_adapter(str(folder / adapter))
        expected = oracle.encode([prefix + text for text in texts()])
        result = encode(texts())
        assert result.sparse is None
        assert result.dense is not None
        np.testing.assert_allclose(result.dense, expected, atol=1e-5)
        alone = np.concatenate([encode([text]).dense for text in texts()])
        np.testing.assert_allclose(result.dense, alone, atol=1e-5)
    lengths = np.linalg.norm(expected, axis=1)
    assert np.allclose(lengths, 1, atol=1e-5) == card.get("normalise", True)


def test_jinas_roles_go_through_their_own_adapters(
    make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    _, spec = make("jina-v3")
    spec = dataclasses.replace(spec, query_prefix="", document_prefix="")
    ours = BGE_M3_Embedder(spec, precision="fp32")
    query, document = ours.encode_queries(["fox"]).dense, ours.encode_documents(["fox"]).dense
    assert "CC-BY-NC-4.0: no commercial use" in caplog.text
    assert np.abs(query - document).max() > 1e-3
    assert "LOAD REPORT" not in caplog.text
    again = ours.encode_queries(["dog", "fox"]).dense
    np.testing.assert_allclose(again[1], query[0], atol=1e-6)


@pytest.mark.parametrize("choice", CARDS)
def test_the_table_says_what_the_card_says(choice: str) -> None:
    spec, card = MODELS[choice], CARDS[choice]
    assert (spec.dimension, spec.max_length) == card["is"]
    assert spec.query_prefix == card.get("q", "")
    assert spec.document_prefix == card.get("d", "")
    assert spec.pooling == card.get("pooling", "mean")
    assert spec.normalise == card.get("normalise", True)


def test_every_choice_of_one_model_is_held_to_its_card() -> None:
    other = {"bge-m3", "mini-m3", "clip", "mini-clip", "jina-clip", "bge-large-splade"}
    assert {*MODELS} == {*CARDS} | other | {"Splade_PP_en_v1", "bm25"}


@pytest.mark.parametrize("layout", ["plain", "modules"])
def test_splade_equals_sentence_transformers_sparse_encoder(layout: str, tmp_path: Path) -> None:
    from sentence_transformers import SparseEncoder

    folder = checkpoints.sentence_model(tmp_path / "splade", "splade")
    oracle = SparseEncoder(str(folder), device="cpu")
    oracle.max_seq_length = LIMIT
    if layout == "modules":
        oracle.save_pretrained(str(folder))
    spec = dataclasses.replace(MODELS["Splade_PP_en_v1"], model_id=str(folder), max_length=LIMIT)
    ours = BGE_M3_Embedder(spec, precision="fp32", device="cpu", batch_tokens=200, cache=None)
    expected = oracle.encode(texts(), convert_to_sparse_tensor=False).numpy()
    result = ours.encode_documents(texts())
    assert result.dense is None
    assert result.sparse is not None
    for vector, row in zip(result.sparse, expected, strict=True):
        close_to_zero = row[np.setdiff1d(np.arange(len(row)), vector.indices)]
        assert np.all(close_to_zero < 1e-5)
        np.testing.assert_allclose(vector.values, row[vector.indices], atol=1e-4)
    assert max(len(vector) for vector in result.sparse) > 5


def test_a_wide_batch_of_splade_goes_through_in_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = checkpoints.sentence_model(tmp_path / "splade", "splade")
    spec = dataclasses.replace(MODELS["Splade_PP_en_v1"], model_id=str(folder))
    whole = BGE_M3_Embedder(spec, cache=None).encode_documents(texts()).sparse
    monkeypatch.setattr("unified_embeddings.engines.sentence._LOGIT_BYTES", 100_000)
    parts = BGE_M3_Embedder(spec, cache=None).encode_documents(texts()).sparse
    assert whole is not None
    assert parts is not None
    for whole_vector, part_vector in zip(whole, parts, strict=True):
        whole_row, part_row = (
            np.bincount(vector.indices, vector.values, minlength=500)
            for vector in (whole_vector, part_vector)
        )
        np.testing.assert_allclose(whole_row, part_row, atol=1e-5)


@pytest.mark.parametrize(("kind", "engine"), [("bert", "torch"), ("mpnet", "sentence")])
def test_a_spec_without_an_engine_gets_one_that_runs_it(
    kind: str, engine: str, tmp_path: Path
) -> None:
    folder = checkpoints.sentence_model(tmp_path / kind, kind)
    embedder = BGE_M3_Embedder(ModelSpec("mine", str(folder)))
    assert embedder.runtime.engine == engine
    assert embedder.encode_query("fox").dense.shape == (1, checkpoints.WIDTH)


def test_both_engines_agree(tmp_path: Path) -> None:
    spec = ModelSpec("mine", str(checkpoints.sentence_model(tmp_path / "bert", "bert")))
    packed, padded = (
        BGE_M3_Embedder(spec, engine=engine, precision="fp32").encode_documents(texts()).dense
        for engine in ("torch", "sentence")
    )
    np.testing.assert_allclose(packed, padded, atol=1e-5)


def test_a_model_with_a_dense_layer_keeps_it(tmp_path: Path) -> None:
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.base.modules import Dense

    folder = checkpoints.sentence_model(tmp_path / "bert", "bert", normalise=False)
    oracle = SentenceTransformer(str(folder), device="cpu")
    torch.manual_seed(1)
    oracle.append(Dense(checkpoints.WIDTH, 16))
    oracle.save_pretrained(str(tmp_path / "dense"))
    spec = ModelSpec("mine", str(tmp_path / "dense"), dimension=16, normalise=False)
    ours = BGE_M3_Embedder(spec, precision="fp32")
    assert ours.runtime.engine == "sentence"
    np.testing.assert_allclose(
        ours.encode_documents(texts()).dense, oracle.encode(texts()), atol=1e-5
    )
