"""The service and its own client: RemoteEmbedder, `ping` and a pipeline against the real thing."""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from llama_index.core import Settings

from embedding_service import serve_app
from running_service import RunningService
from unified_embeddings import (
    InputError,
    RemoteEmbedder,
    ServiceError,
    TextEmbedder,
    UnifiedSentenceSplitter,
)
from unified_embeddings.cli import app as cli
from unified_embeddings.config.pipeline import UnifiedEmbeddingConfig
from unified_embeddings.serving.app import make_app
from unified_embeddings.serving.settings import ServiceSettings

KEY = "s3cret-key"
TEXTS = ["Foxes jump over lazy dogs.", "", "Füchse \u2028 springen.", "dog " * 400, "fox"]
MODEL = "mini-m3"


@pytest.fixture(scope="module")
def local() -> TextEmbedder:
    return UnifiedEmbeddingConfig(MODEL, precision="fp32", device="cpu", cache=None).embedder


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """The address of a service that wants a key."""
    config = UnifiedEmbeddingConfig(MODEL, precision="fp32", device="cpu")
    app = make_app(config, ServiceSettings(api_keys=(KEY,), max_texts=16))
    server, thread, address = serve_app(app, lifespan="on")
    end = time.monotonic() + 60
    while httpx.get(f"{address}/ready").status_code != 200:
        assert time.monotonic() < end
        time.sleep(0.05)
    yield address
    server.should_exit = server.force_exit = True
    thread.join(30)


@pytest.fixture
def embedder(url: str) -> Iterator[RemoteEmbedder]:
    with RemoteEmbedder(url, api_key=KEY) as remote:
        yield remote


def test_says_what_the_model_is(embedder: RemoteEmbedder, local: TextEmbedder) -> None:
    for name in (
        "model_name", "heads", "dimension", "max_length", "document_length", "fingerprint",
        "former_fingerprints", "revision", "fusion", "calibration", "sparse_idf",
    ):  # fmt: skip
        assert getattr(embedder, name) == getattr(local, name), name
    assert embedder.info.precision == "fp32"
    assert embedder.info.max_texts == 16


def test_gives_the_local_models_vectors(embedder: RemoteEmbedder, local: TextEmbedder) -> None:
    """Within the noise of another batch: a forward pass of other texts rounds differently."""
    texts = [f"{text} {i}" for i in range(9) for text in TEXTS]
    found = embedder.encode_documents(texts, colbert=True)
    expected = local.encode_documents(texts, colbert=True)
    assert found.dense is not None
    assert expected.dense is not None
    np.testing.assert_allclose(found.dense, expected.dense, atol=2e-6)
    for mine, theirs in zip(found.sparse or [], expected.sparse or [], strict=True):
        np.testing.assert_array_equal(mine.indices, theirs.indices)
        np.testing.assert_allclose(mine.values, theirs.values, atol=1e-5)
    for rows, their_rows in zip(found.colbert or [], expected.colbert or [], strict=True):
        np.testing.assert_allclose(rows, their_rows, atol=1e-5)
    stats = embedder.stats()
    assert stats.forwards == 3  # of at most 16 texts
    assert stats.truncated == 9
    assert stats.tokens == sum(length.tokens for length in local.measure(texts))


def test_a_text_comes_back_bit_for_bit(url: str, embedder: RemoteEmbedder) -> None:
    """The service keeps what it computed, so two clients are given the same bits."""
    first = embedder.encode_documents(TEXTS[:1], colbert=True)
    with RemoteEmbedder(url, api_key=KEY) as other:
        second = other.encode_documents(TEXTS[:1], colbert=True)
    assert first.dense is not None
    assert second.dense is not None
    assert first.colbert is not None
    assert second.colbert is not None
    np.testing.assert_array_equal(first.dense, second.dense)
    np.testing.assert_array_equal(first.colbert[0], second.colbert[0])
    assert first.sparse == second.sparse


def test_tokens_are_the_models(embedder: RemoteEmbedder, local: TextEmbedder) -> None:
    for text in TEXTS:
        assert embedder.tokenise(text) == local.tokenise(text)
    long_text = " ".join(f"Sentence {i} says that foxes jump over lazy dogs." for i in range(200))
    chunks = UnifiedSentenceSplitter(embedder).split_text(long_text)
    assert chunks == UnifiedSentenceSplitter(local).split_text(long_text)


def test_the_key(url: str) -> None:
    for key in (None, "wrong"):
        with pytest.raises(ServiceError, match="key") as raised:
            RemoteEmbedder(url, api_key=key).dimension  # noqa: B018
        assert raised.value.status == 401


def test_a_pipeline(url: str, tmp_path: Path) -> None:
    config = UnifiedEmbeddingConfig(MODEL, url=url, api_key=KEY)
    assert config.model_choice == MODEL
    store = config.vector_store("notes", path=tmp_path / "store")
    assert config.retriever(store).retrieve("Is there anything yet?") == []
    with pytest.raises(InputError, match="engine"):
        UnifiedEmbeddingConfig(MODEL, url=url, engine="onnx")
    store.client.close()


def test_the_examples_of_the_docs_page(url: str) -> None:
    page = (Path(__file__).parents[2] / "docs" / "serving-clients.md").read_text("utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    assert len(blocks) == 2
    earlier = dict(vars(Settings))
    results: list[dict[str, Any]] = []
    try:
        for block in blocks:
            code = block.replace('"http://127.0.0.1:8000"', f'"{url}", api_key="{KEY}"')
            assert code != block
            names: dict[str, Any] = {"__name__": "example"}
            exec(compile(code, "serving-clients.md", "exec"), names)
            results.append(names)
    finally:
        vars(Settings).clear()
        vars(Settings).update(earlier)
    config, store = results[0]["config"], results[0]["store"]
    found = config.retriever(store, similarity_top_k=1).retrieve("Who jumps?")
    assert found[0].text == "Foxes jump over lazy dogs."
    assert results[1]["embedder"].stats().forwards == 1


def test_ping(
    url: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UNIFIED_EMBEDDINGS_API_KEY", KEY)
    monkeypatch.setattr(sys, "argv", ["unified-embeddings", "ping", url, "--json"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    report = json.loads(capsys.readouterr().out)
    assert [row for row in report["results"] if not row["ok"]] == []
    assert not ended.value.code
    assert len(report["results"]) == 20


def test_what_is_too_much_for_one_request_is_asked_for_in_several() -> None:
    texts = [f"Foxes jump over lazy dogs, {number} times." for number in range(12)]
    with RunningService(max_request_tokens=40) as running:
        embedder = RemoteEmbedder(running.url, retries=0)
        found = embedder.encode_documents(texts, dense=True, sparse=True, colbert=True)
        expected = running.service.embedder.encode_documents(
            texts, dense=True, sparse=True, colbert=True
        )
        embedder.close()
    assert found.dense is not None
    assert expected.dense is not None
    np.testing.assert_array_equal(found.dense, expected.dense)
    assert [item.to_qdrant() for item in found.sparse or ()] == [
        item.to_qdrant() for item in expected.sparse or ()
    ]
    assert len(found.colbert or ()) == len(texts)
