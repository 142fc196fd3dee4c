"""Every engine gives FlagEmbedding's vectors in fp32, on random checkpoints."""

from __future__ import annotations

import random
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import checkpoints
from unified_embeddings import BGE_M3_Embedder, EmbeddingCache, Embeddings
from unified_embeddings.engines.registry import ENGINE_NAMES

DENSE, SPARSE, COLBERT = 1e-5, 1e-4, 1e-4
SPECIALS = {"xlmr": "<s> <pad> </s> <unk> <mask>", "bert": "[CLS] [PAD] [SEP] [UNK] [MASK]"}
SEP_OF_BERT = 3
"""FlagEmbedding drops a token as eos only if the tokenizer names one; BERT calls it sep."""


def batch(seed: int) -> list[str]:
    """Texts of many lengths, one far longer, alphabets mixed, words and whole texts repeated."""
    rng = random.Random(seed)
    odd = ["zyx", "𝕆𝕕𝕕", "e\u0301", "👩\u200d👩\u200d👧", "\u202etext\u202c"]
    words = [*" ".join(checkpoints.CORPUS).split(), *odd]
    texts = [" ".join(rng.choices(words, k=rng.choice([1, 2, 3, 5, 8, 20]))) for _ in range(12)]
    texts += ["fox " * 40, "", " \t\n ", texts[0], *(s for s in SPECIALS.values())]
    texts += [f"a {special} b" for s in SPECIALS.values() for special in s.split()]
    texts.append(" ".join(rng.choices(words, k=400)))  # the outlier in length
    rng.shuffle(texts)
    return texts


@pytest.fixture(scope="module", params=["xlmr", "bert"])
def folder(request: pytest.FixtureRequest) -> Path:
    path: Path = request.getfixturevalue(request.param)
    return path


@pytest.fixture(scope="module")
def oracle(folder: Path) -> Iterator[Any]:
    from FlagEmbedding import BGEM3FlagModel

    pooling = "mean" if (folder / "1_Pooling").exists() else "cls"
    model = BGEM3FlagModel(
        str(folder), use_fp16=False, devices="cpu", pooling_method=pooling, batch_size=7
    )
    yield model
    model.stop_self_pool()


@pytest.fixture(scope="module", params=sorted({*ENGINE_NAMES} - {"sentence"}))
def embedder(
    request: pytest.FixtureRequest, folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> BGE_M3_Embedder:
    if request.param == "onnx":
        from unified_embeddings.export.folder import export_onnx

        folder = export_onnx(folder, tmp_path_factory.mktemp("onnx") / folder.name)
    return BGE_M3_Embedder(
        folder, engine=request.param, precision="fp32", device="cpu", batch_tokens=300, cache=None
    )


def assert_as_oracle(ours: Embeddings, theirs: dict[str, Any], *, ignored: set[int]) -> None:
    np.testing.assert_allclose(ours.dense, theirs["dense_vecs"], rtol=0, atol=DENSE)
    for mine, weights in zip(ours.sparse, theirs["lexical_weights"], strict=True):
        expected = {int(token): float(w) for token, w in weights.items()}
        expected = {token: w for token, w in expected.items() if token not in ignored}
        assert set(mine) == set(expected)
        for token, weight in expected.items():
            assert mine[token] == pytest.approx(weight, abs=SPARSE)
    for mine, rows in zip(ours.colbert, theirs["colbert_vecs"], strict=True):
        np.testing.assert_allclose(mine, rows, rtol=0, atol=COLBERT)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("max_length", [8192, 24])
def test_every_head_is_the_oracles(
    embedder: BGE_M3_Embedder, oracle: Any, folder: Path, seed: int, max_length: int
) -> None:
    limited = BGE_M3_Embedder(
        embedder.model_name, max_length=max_length, cache=None, batch_tokens=300, precision="fp32",
        device="cpu", engine=embedder.runtime.engine,
    )  # fmt: skip
    texts = batch(seed)
    theirs = oracle.encode(
        texts,
        max_length=limited.max_length,
        return_dense=True,
        return_sparse=True,
        return_colbert_vecs=True,
    )
    ignored = {SEP_OF_BERT} if (folder / "1_Pooling").exists() else set()
    assert_as_oracle(limited.encode_documents(texts, colbert=True), theirs, ignored=ignored)
    assert limited.stats().truncated > 0 or max_length > 24


def test_a_text_alone_equals_the_text_in_a_batch(embedder: BGE_M3_Embedder) -> None:
    texts = batch(7)
    together = embedder.encode_documents(texts, colbert=True)
    for i, text in enumerate(texts):
        alone = embedder.encode_documents([text], colbert=True)
        np.testing.assert_allclose(alone.dense[0], together.dense[i], rtol=0, atol=1e-5)
        np.testing.assert_allclose(alone.colbert[0], together.colbert[i], rtol=0, atol=1e-5)
        assert set(alone.sparse[0]) == set(together.sparse[i])
        np.testing.assert_allclose(
            alone.sparse[0].values, together.sparse[i].values, rtol=0, atol=1e-5
        )


@pytest.mark.parametrize("heads", [(1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 0, 1)])
def test_a_head_is_the_same_whichever_others_are_asked_for(
    embedder: BGE_M3_Embedder, heads: tuple[int, int, int]
) -> None:
    texts = batch(8)[:6]
    dense, sparse, colbert = map(bool, heads)
    everything = embedder.encode_documents(texts, colbert=True)
    part = embedder.encode_documents(texts, dense=dense, sparse=sparse, colbert=colbert)
    assert list(part) == [
        n for n, on in zip(("dense", "sparse", "colbert"), heads, strict=True) if on
    ]
    if dense:
        np.testing.assert_allclose(part.dense, everything.dense, atol=1e-6)
    if sparse:
        assert [set(v) for v in part.sparse] == [set(v) for v in everything.sparse]
    if colbert:
        for mine, theirs in zip(part.colbert, everything.colbert, strict=True):
            np.testing.assert_allclose(mine, theirs, atol=1e-6)


def test_blank_text_is_a_text(embedder: BGE_M3_Embedder) -> None:
    blank = embedder.encode_documents(["", "  "], colbert=True)
    np.testing.assert_allclose(np.linalg.norm(blank.dense, axis=1), 1, atol=1e-6)
    assert [len(vector) for vector in blank.sparse] == [0, 0]
    assert [len(rows) for rows in blank.colbert] == [1, 1]


def test_bf16_stays_near_fp32(folder: Path) -> None:
    texts = batch(3)
    exact = BGE_M3_Embedder(folder, precision="fp32", device="cpu").encode_documents(texts)
    rounded = BGE_M3_Embedder(folder, precision="bf16", device="cpu").encode_documents(texts)
    assert rounded.dense.dtype == np.float32
    assert (exact.dense * rounded.dense).sum(axis=1).min() > 0.99


def test_packed_attention_chunks_long_texts_without_changing_them(
    xlmr: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from unified_embeddings.engines import attention

    texts = [*batch(4), "fox " * 450]
    whole = BGE_M3_Embedder(xlmr, cache=EmbeddingCache(0)).encode_documents(texts, colbert=True)
    monkeypatch.setattr(attention, "_QUERY_ROWS", 7)
    chunked = BGE_M3_Embedder(xlmr, cache=EmbeddingCache(0)).encode_documents(texts, colbert=True)
    np.testing.assert_allclose(whole.dense, chunked.dense, rtol=0, atol=1e-6)
    for a, b in zip(whole.colbert, chunked.colbert, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5)


def test_seven_calls_lead_to_a_matrix_product(xlmr: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader and a debugger reach the arithmetic without going through callbacks.

    The last is the test's own.
    """
    from unified_embeddings.engines import products

    stacks: list[list[str]] = []
    for product in (products.Product, products.OneDnnProduct):

        def watch(self: Any, *arguments: Any, compute: Any = product.__call__, **more: Any) -> Any:
            stacks.append([frame.name for frame in traceback.extract_stack()])
            return compute(self, *arguments, **more)

        monkeypatch.setattr(product, "__call__", watch)
    BGE_M3_Embedder(xlmr, precision="fp32", device="cpu").encode_documents(["fox"])
    calls = stacks[0][stacks[0].index("encode_documents") :]
    assert calls == [
        "encode_documents", "_encode", "_compute", "_run", "run_passes", "start",
        "__call__", "watch",
    ]  # fmt: skip


def test_mean_pooling_is_sentence_transformers(bert: Path) -> None:
    from sentence_transformers import SentenceTransformer

    texts = batch(5)
    theirs = SentenceTransformer(str(bert), device="cpu").encode(texts, normalize_embeddings=True)
    ours = BGE_M3_Embedder(bert, precision="fp32", device="cpu").encode_documents(texts)
    np.testing.assert_allclose(ours.dense, theirs, rtol=0, atol=1e-5)
