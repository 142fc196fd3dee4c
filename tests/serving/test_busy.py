"""What clients see of a service that is loading, full, too slow, or whose model fails."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from conftest import fake_config
from running_service import RunningService
from unified_embeddings.embedders.fake import FakeEmbedder
from unified_embeddings.errors import UnifiedEmbeddingsError
from unified_embeddings.types import Embeddings, HeadName, Role, Text

BODIES: dict[str, dict[str, Any]] = {
    "/embed": {"inputs": "held"},
    "/v1/embeddings": {"input": "held"},
    "/v1/rerank": {"query": "held", "documents": ["held"]},
    "/api/embed": {"model": "mini-m3", "input": "held"},
    "/v1/m3": {"texts": ["held"]},
    "/query": {"input": {"query": "held"}},
}
SECRET = "a word that no answer may hold"


class GatedEmbedder(FakeEmbedder):
    """Holds texts that say so, or all, until it is opened, and fails on those that say so."""

    def __init__(self) -> None:
        super().__init__(32, cache=None)
        self.gate = threading.Event()
        self.is_held = threading.Event()
        self.holds_all = False

    def encode(self, texts: Sequence[Text], *, role: Role, heads: Sequence[HeadName]) -> Embeddings:
        if self.holds_all or "held" in texts:
            self.is_held.set()
            assert self.gate.wait(60)
        if "fails" in texts:
            raise RuntimeError(SECRET)
        if "fails with a reason" in texts:
            raise UnifiedEmbeddingsError("the model says why")
        return super().encode(texts, role=role, heads=heads)


@pytest.fixture
def embedder() -> Iterator[GatedEmbedder]:
    gated = GatedEmbedder()
    yield gated
    gated.gate.set()


def start(embedder: GatedEmbedder, **settings: Any) -> RunningService:
    config = fake_config()
    config._embedder = embedder
    return RunningService(config, **settings)


def error_kinds(path: str, body: dict[str, Any]) -> tuple[str | None, str | None]:
    """Return TEI's kind and OpenAI's kind of an error, where the contract has one."""
    error = body["error"]
    return body.get("error_type"), error.get("type") if isinstance(error, dict) else None


KINDS = {
    429: ("Overloaded", "rate_limit_error"),
    500: ("Backend", "server_error"),
    503: ("Unhealthy", "server_error"),
    504: ("Timeout", "server_error"),
}


def assert_told(answer: httpx.Response, path: str, status: int, words: str) -> None:
    assert answer.status_code == status
    assert words in answer.text
    tei, openai = KINDS[status]
    is_tei, is_openai = path == "/embed", path in ("/v1/embeddings", "/v1/rerank")
    assert error_kinds(path, answer.json()) == (
        tei if is_tei else None,
        openai if is_openai else None,
    )
    assert ("retry-after" in answer.headers) == (status in (429, 503))


def test_a_full_queue_is_told_at_once_in_each_contract(embedder: GatedEmbedder) -> None:
    with start(embedder, max_waiting_tokens=2) as running, ThreadPoolExecutor(2) as threads:

        def ask() -> int:
            return httpx.post(running.url + "/embed", json={"inputs": "held"}).status_code

        held = threads.submit(ask)
        assert embedder.is_held.wait(30)
        waiting = threads.submit(ask)  # it passes the mark, and is still taken
        while not running.service.batcher.waiting_tokens:
            threading.Event().wait(0.01)
        for path, body in BODIES.items():
            answer = httpx.post(running.url + path, json=body)
            assert_told(answer, path, 429, "tokens are waiting, and the limit is 2")
            assert int(answer.headers["retry-after"]) >= 1
        _require_client_errors(running.url)
        embedder.gate.set()
        assert (held.result(), waiting.result()) == (200, 200)


def _require_client_errors(url: str) -> None:
    openai = pytest.importorskip("openai")
    client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
    with pytest.raises(openai.RateLimitError) as caught:
        client.embeddings.create(model="mini-m3", input="a")
    assert caught.value.code == "rate_limit"
    ollama = pytest.importorskip("ollama")
    with pytest.raises(ollama.ResponseError) as refused:
        ollama.Client(url).embed(model="mini-m3", input="a")
    assert refused.value.status_code == 429


def test_openais_client_tries_again_by_itself(embedder: GatedEmbedder) -> None:
    openai = pytest.importorskip("openai")
    with start(embedder, max_waiting_tokens=2) as running, ThreadPoolExecutor(3) as threads:
        client = openai.OpenAI(base_url=f"{running.url}/v1", api_key="none", max_retries=5)

        def ask(text: str) -> int:
            return len(client.embeddings.create(model="mini-m3", input=text).data)

        answers = [threads.submit(ask, "held")]
        assert embedder.is_held.wait(30)
        answers += [threads.submit(ask, text) for text in ("one", "two")]
        threading.Event().wait(0.3)
        embedder.gate.set()
        assert [answer.result() for answer in answers] == [1, 1, 1]


@pytest.mark.parametrize("path", BODIES)
def test_what_is_not_answered_in_time_is_told(embedder: GatedEmbedder, path: str) -> None:
    with start(embedder, request_timeout=0.2) as running:
        answer = httpx.post(running.url + path, json=BODIES[path], timeout=30)
        assert_told(answer, path, 504, "not answered within 0.2 s")
        embedder.gate.set()


def test_a_failing_model_is_told_without_its_words(embedder: GatedEmbedder) -> None:
    with start(embedder) as running:
        for path, body in BODIES.items():
            failing = _replace(body, "fails")
            answer = httpx.post(running.url + path, json=failing)
            assert_told(answer, path, 500, "failed on this request (RuntimeError)")
            assert SECRET not in answer.text
            assert httpx.post(running.url + path, json=_replace(body, "fine")).status_code == 200
        reason = httpx.post(running.url + "/embed", json={"inputs": "fails with a reason"})
        assert_told(reason, "/embed", 500, "the model says why")


def _replace(value: Any, text: str) -> Any:
    if isinstance(value, dict):
        return {name: _replace(part, text) for name, part in value.items()}
    if isinstance(value, list):
        return [_replace(part, text) for part in value]
    return text if value == "held" else value


def test_a_bad_text_fails_alone(embedder: GatedEmbedder) -> None:
    with start(embedder) as running, ThreadPoolExecutor(4) as threads:

        def ask(text: str) -> int:
            answer = httpx.post(running.url + "/embed", json={"inputs": text}, timeout=60)
            return answer.status_code

        first = threads.submit(ask, "held")
        assert embedder.is_held.wait(30)
        others = [threads.submit(ask, text) for text in ("one", "fails", "two")]
        while running.service.batcher.waiting_requests < 3:
            threading.Event().wait(0.01)
        embedder.gate.set()
        assert first.result() == 200
        assert [other.result() for other in others] == [200, 500, 200]


def test_a_loading_service_says_so(embedder: GatedEmbedder) -> None:
    embedder.holds_all = True
    with start(embedder, waits=False) as running:
        for path, body in BODIES.items():
            answer = httpx.post(running.url + path, json=body)
            assert_told(answer, path, 503, "the model is being loaded; try again in a moment")
        assert httpx.get(running.url + "/health").json() == {"status": "loading"}
        ready = httpx.get(running.url + "/ready")
        assert ready.status_code == 503
        assert ready.json()["status"] == "loading"
        assert set(ready.json()) >= {"error_type"}
        embedder.gate.set()
