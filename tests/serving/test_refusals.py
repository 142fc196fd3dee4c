"""What cannot be answered is refused with the status and the envelope of its contract."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
from running import running

from running_service import RunningService
from unified_embeddings.serving import schemas
from unified_embeddings.serving import service as service_module
from unified_embeddings.serving.routes import tei
from unified_embeddings.serving.schemas import holds_at_most

KEY = {"authorization": "Bearer first-key"}
LONG = "fox " * 400
"""Longer than the 256 tokens of the model."""

BODIES: dict[str, dict[str, Any]] = {
    "/embed": {"inputs": "Foxes jump."},
    "/": {"inputs": "Foxes jump."},
    "/embed_sparse": {"inputs": "Foxes jump."},
    "/embed_all": {"inputs": "Foxes jump."},
    "/rerank": {"query": "Who jumps?", "texts": ["Foxes jump."]},
    "/similarity": {"inputs": {"source_sentence": "a", "sentences": ["b"]}},
    "/tokenize": {"inputs": "Foxes jump."},
    "/v1/embeddings": {"model": "mini-m3", "input": "Foxes jump."},
    "/v1/rerank": {"model": "mini-m3", "query": "Who?", "documents": ["Foxes jump."]},
    "/v2/rerank": {"model": "mini-m3", "query": "Who?", "documents": ["Foxes jump."]},
    "/api/embed": {"model": "mini-m3", "input": "Foxes jump."},
    "/api/embeddings": {"model": "mini-m3", "prompt": "Foxes jump."},
    "/v1/m3": {"texts": ["Foxes jump."]},
    "/query": {"input": {"query": "Foxes jump."}},
    "/search": {"query": "Who jumps?"},
    "/embed_image": {"texts": ["Foxes jump."]},
}
"""A good body for each route that takes one."""
GETS = ["/info", "/metrics", "/v1/models", "/v1/models/mini-m3", "/api/tags", "/api/version"]
PROBES = ["/health", "/ready"]
NOT_STARTED = ["/search", "/embed_image"]


def require_described(running: RunningService) -> Callable[[httpx.Response], None]:
    """Return a hook that looks up each answer's status in the service's description."""
    paths = running.app.openapi()["paths"]

    def check(answer: httpx.Response) -> None:
        operation = paths.get(answer.request.url.path, {}).get(answer.request.method.lower())
        assert operation is None or str(answer.status_code) in operation["responses"], answer.url

    return check


@pytest.fixture(scope="module")
def http(service: RunningService) -> Iterator[httpx.Client]:
    """A client of the service without keys."""
    hooks = {"response": [require_described(service)]}
    with httpx.Client(base_url=service.url, timeout=60, event_hooks=hooks) as client:
        yield client


@pytest.fixture(scope="module")
def guarded(guarded_service: RunningService) -> Iterator[httpx.Client]:
    """A client with a key of the service with small limits: 8 texts, 600 tokens, 20,000 bytes."""
    hooks = {"response": [require_described(guarded_service)]}
    url = guarded_service.url
    with httpx.Client(base_url=url, headers=KEY, timeout=60, event_hooks=hooks) as client:
        yield client


def message_of(path: str, answer: httpx.Response) -> str:
    """Return an error's message, once its envelope is found to be its contract's."""
    body = answer.json()
    assert answer.headers["content-type"] == "application/json"
    if path in ("/v1/rerank", "/v2/rerank"):
        assert set(body) == {"message", "detail", "error"}
        assert body["message"] == body["detail"] == body["error"]["message"]
        message = body["message"]
    elif path.startswith("/v1/") and path != "/v1/m3":
        assert set(body) == {"error"}
        assert set(body["error"]) == {"message", "type", "param", "code"}
        message = body["error"]["message"]
    elif path.startswith("/api/") or path in ("/v1/m3", "/query"):
        assert set(body) == {"error"}
        message = body["error"]
    else:
        assert set(body) == {"error", "error_type"}
        message = body["error"]
    assert isinstance(message, str)
    assert message
    assert "Traceback" not in message
    return message


def bad_input(path: str) -> int:
    """Return the status for bad input: TEI's contracts say 422, the others 400."""
    others = path.startswith(("/v1/", "/v2/", "/api/")) or path == "/query"
    return 400 if others else 422


@pytest.mark.parametrize("path", [path for path in BODIES if path not in NOT_STARTED])
def test_good_bodies_are_answered(guarded: httpx.Client, path: str) -> None:
    assert guarded.post(path, json=BODIES[path]).status_code == 200


# --- keys -----------------------------------------------------------------------------------------

WRONG_KEYS = [
    {},
    {"authorization": "Bearer"},
    {"authorization": "Bearer third-key"},
    {"authorization": "Bearer first-key,second-key"},
    {"authorization": "Basic first-key"},
    {"authorization": "first-key"},
    {"x-api-key": "first-key"},
]


@pytest.mark.parametrize("headers", WRONG_KEYS, ids=str)
@pytest.mark.parametrize("path", [*BODIES, *GETS, "/openapi.json", "/nowhere"])
def test_every_route_but_the_probes_needs_a_key(
    guarded_service: RunningService, path: str, headers: dict[str, str]
) -> None:
    method = "POST" if path in BODIES else "GET"
    url = guarded_service.url + path
    answer = httpx.request(method, url, json=BODIES.get(path), headers=headers)
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"] == "Bearer"
    assert "Authorization: Bearer KEY" in message_of(path, answer)


@pytest.mark.parametrize("path", PROBES)
def test_probes_need_no_key(guarded_service: RunningService, path: str) -> None:
    answer = httpx.get(guarded_service.url + path)
    assert (answer.status_code, answer.json()) == (200, {"status": "ok"})


@pytest.mark.parametrize("key", ["Bearer first-key", "bearer second-key", "Bearer  second-key"])
def test_every_key_opens_every_route(guarded_service: RunningService, key: str) -> None:
    for path in GETS:
        answer = httpx.get(guarded_service.url + path, headers={"authorization": key})
        assert answer.status_code == 200, path


def test_without_keys_the_service_is_open(http: httpx.Client) -> None:
    assert http.get("/info", headers={"authorization": "Bearer anything"}).status_code == 200


# --- what is not JSON, or not ours ----------------------------------------------------------------

NOT_JSON = {
    "nothing": b"",
    "half": b'{"inputs": "a"',
    "NaN": b'{"inputs": NaN, "input": NaN, "texts": NaN, "query": NaN}',
    "infinity": b'{"dimensions": Infinity}',
    "a lone surrogate": b'{"inputs": "\\ud800", "input": "\\ud800"}',
    "no Unicode": b'{"inputs": "\xff"}',
    "a form": b"inputs=a",
    "10,000 lists": b'{"inputs": ' + b"[" * 10_000 + b"]" * 10_000 + b"}",
    "10,000 objects": b'{"a":' * 10_000 + b"1" + b"}" * 10_000,
}


@pytest.mark.parametrize("body", NOT_JSON.values(), ids=NOT_JSON)
@pytest.mark.parametrize("path", BODIES)
def test_what_is_no_json_is_refused(http: httpx.Client, path: str, body: bytes) -> None:
    answer = http.post(path, content=body, headers={"content-type": "application/json"})
    assert answer.status_code == bad_input(path)
    message_of(path, answer)


@pytest.mark.parametrize("value", [5, "text", True, None, [], [1], {}], ids=str)
@pytest.mark.parametrize("path", BODIES)
def test_a_body_of_another_type_is_refused(guarded: httpx.Client, path: str, value: object) -> None:
    answer = guarded.post(path, json=value)
    assert answer.status_code == bad_input(path)
    assert "a number with" not in message_of(path, answer)


@pytest.mark.parametrize("content_type", ["application/json", "text/plain", "", None])
def test_json_is_json_whatever_it_is_labelled(http: httpx.Client, content_type: str | None) -> None:
    """`curl -d` labels it a form, and others say nothing."""
    headers = {} if content_type is None else {"content-type": content_type}
    answer = http.post("/embed", content=b'{"text": "Foxes jump."}', headers=headers)
    assert answer.status_code == 200
    form = {"content-type": "application/x-www-form-urlencoded"}
    assert http.post("/embed", content=b'{"text": "a"}', headers=form).status_code == 200


@pytest.mark.parametrize("path", BODIES)
def test_other_content_types_are_refused(guarded: httpx.Client, path: str) -> None:
    body = json.dumps(BODIES[path]).encode()
    for content_type in ("application/xml", "multipart/form-data; boundary=x", "image/png"):
        answer = guarded.post(path, content=body, headers={"content-type": content_type})
        assert answer.status_code == bad_input(path)
        message_of(path, answer)


# --- fields ---------------------------------------------------------------------------------------

FIELDS: list[tuple[str, dict[str, Any], str]] = [
    ("/embed", {"inputs": 5}, "inputs must be a text, a list of texts, a list of token ids"),
    ("/embed", {"inputs": None}, "got null"),
    ("/embed", {"inputs": True}, "got a boolean"),
    ("/embed", {"inputs": {}}, "got an object"),
    ("/embed", {"inputs": ["a", 1]}, r"inputs\[1\] must be a text as \[0\] is, got 1"),
    ("/embed", {"inputs": [1, "a"]}, r"inputs\[1\] must be a text or a token id, got a string"),
    ("/embed", {"inputs": [True]}, r"inputs\[0\] must be a text or a token id, got a boolean"),
    ("/embed", {"inputs": [1.0]}, r"got 1\.0"),
    ("/embed", {"inputs": [-1]}, "got -1"),
    ("/embed", {"inputs": [10**30]}, r"got 1e\+30"),
    ("/embed", {"inputs": [2**63]}, "token id"),
    ("/embed", {"inputs": [30_522]}, "token id"),
    ("/embed", {"inputs": [[1], ["a"]]}, r"inputs\[1\]\[0\] must be a token id"),
    ("/embed", {"inputs": [[1], 2]}, r"inputs\[1\] must be a list as \[0\] is, got 2"),
    ("/embed", {}, "inputs is missing"),
    ("/embed", {"inputs": "a", "truncate": 1}, "truncate must be true or false, got 1"),
    ("/embed", {"inputs": "a", "normalize": "no"}, "normalize must be true or false"),
    ("/embed", {"inputs": "a", "dimensions": 0}, "dimensions must be >= 1, got 0"),
    ("/embed", {"inputs": "a", "dimensions": 385}, "between 1 and 384, got 385"),
    ("/embed", {"inputs": "a", "dimensions": True}, "must be a whole number, got a boolean"),
    ("/embed", {"inputs": "a", "dimensions": 2.0}, r"must be a whole number, got 2\.0"),
    ("/embed", {"inputs": "a", "dimensions": 10**18}, "between 1 and 384"),
    ("/embed", {"inputs": "a", "dimensions": 10**30}, "dimensions must be a whole number"),
    ("/embed", {"inputs": "a", "prompt_name": "x"}, "prompt_name must be 'query'"),
    ("/embed", {"text": 5}, "text must be a string, got 5"),
    ("/embed", {"text": ["a"]}, "text must be a string, got a list"),
    ("/", {"inputs": {"source_sentence": "a"}}, r"inputs\.sentences is missing"),
    ("/similarity", {"inputs": "a"}, "inputs must be an object, got a string"),
    ("/tokenize", {"inputs": [1]}, r"inputs\[0\] must be a text, got 1"),
    ("/rerank", {"query": "a"}, "texts is missing"),
    ("/rerank", {"query": "a", "texts": "b"}, "texts must be a list, got a string"),
    ("/rerank", {"query": ["a"], "texts": []}, "query must be a string, got a list"),
    ("/v1/embeddings", {"input": [None]}, r"input\[0\] must be a text or a token id, got null"),
    ("/v1/embeddings", {"input": "a", "encoding_format": "hex"}, "encoding_format must be"),
    ("/v1/embeddings", {"input": "a", "model": 5}, "model must be a string, got 5"),
    ("/v1/embeddings", {"input": "a", "user": 5}, "user must be a string, got 5"),
    ("/v1/rerank", {"query": "a", "documents": "b"}, "documents must be a list of texts"),
    ("/v1/rerank", {"query": "a", "documents": [{"title": "b"}]}, r"documents\[0\] must be"),
    ("/v1/rerank", {"query": "a", "documents": ["b"], "top_n": -1}, "top_n must be >= 0, got -1"),
    ("/v1/rerank", {"query": "a", "documents": ["b"], "top_n": True}, "got a boolean"),
    ("/v1/rerank", {"documents": ["b"]}, "query is missing"),
    ("/api/embed", {"model": "mini-m3"}, "input is missing"),
    ("/api/embed", {"input": "a"}, "model is missing"),
    ("/api/embed", {"model": "mini-m3", "input": [["a"]]}, r"input\[0\] must be a text"),
    ("/api/embeddings", {"model": "mini-m3", "prompt": ["a"]}, "prompt must be a string"),
    ("/v1/m3", {"texts": "a"}, "texts must be a list of strings"),
    ("/v1/m3", {"texts": ["a"], "heads": []}, "at least one"),
    ("/v1/m3", {"texts": ["a"], "batch_size": 1}, "no field 'batch_size'"),
    ("/v1/m3", {"texts": ["a"], "batchSize": 0}, "batchSize must be"),
    ("/query", {"input": {"action": "train"}}, "action must be"),
    ("/query", {"query": "a"}, 'needs "input"'),
]


@pytest.mark.parametrize(("path", "body", "message"), FIELDS)
def test_fields_are_refused_by_name(
    guarded: httpx.Client, path: str, body: dict[str, Any], message: str
) -> None:
    answer = guarded.post(path, json=body)
    assert answer.status_code == bad_input(path)
    assert re.search(message, message_of(path, answer))


def test_several_problems_are_told_together(guarded: httpx.Client) -> None:
    answer = guarded.post("/embed", json={"inputs": 1, "truncate": 2, "normalize": 3})
    first, second, third = answer.json()["error"].split("; ")
    assert first.startswith("inputs must")
    assert second.startswith("truncate must")
    assert third.startswith("normalize must")


def test_a_refusal_quotes_no_text(guarded: httpx.Client) -> None:
    secret = "s3cr3t words"
    for path, body in BODIES.items():
        for name in body:
            for value in ({"key": [secret]}, [[secret]], [secret, 5]):
                answer = guarded.post(path, json={**body, name: value})
                assert answer.status_code >= 400, path
                assert secret not in answer.text, path


@pytest.mark.parametrize("path", ["/embed", "/", "/embed_sparse", "/embed_all", "/v1/embeddings"])
def test_an_empty_list_is_refused_where_the_contracts_own_servers_refuse_it(
    guarded: httpx.Client, path: str
) -> None:
    name = "input" if path == "/v1/embeddings" else "inputs"
    answer = guarded.post(path, json={name: []})
    assert answer.status_code == 400
    assert "at least one text" in message_of(path, answer)
    if path != "/v1/embeddings":
        assert answer.json()["error_type"] == "Empty"


def test_an_empty_list_is_answered_where_they_answer_it(guarded: httpx.Client) -> None:
    embed = guarded.post("/api/embed", json={"model": "mini-m3", "input": []})
    assert embed.json()["embeddings"] == []
    m3 = guarded.post("/v1/m3", json={"texts": []})
    assert m3.json()["results"] == []
    rerank = guarded.post("/v1/rerank", json={"query": "a", "documents": []})
    assert rerank.json()["results"] == []


def test_fields_of_other_versions_are_ignored(guarded: httpx.Client) -> None:
    for path in ("/embed", "/v1/embeddings", "/api/embed", "/v1/rerank"):
        body = {**BODIES[path], "of_another_version": {"a": [1]}}
        assert guarded.post(path, json=body).status_code == 200


# --- limits ---------------------------------------------------------------------------------------

TOO_LONG = [
    ("/embed", {"inputs": [LONG]}, 413),
    ("/embed", {"inputs": [LONG], "truncate": False}, 413),
    ("/embed_sparse", {"inputs": ["a", LONG]}, 413),
    ("/embed_all", {"inputs": [LONG]}, 413),
    ("/rerank", {"query": "a", "texts": [LONG]}, 413),
    ("/embed", {"inputs": list(range(1000, 1256))}, 413),
    ("/v1/embeddings", {"input": LONG}, 400),
    ("/v1/embeddings", {"input": list(range(1000, 1256))}, 400),
    ("/v1/rerank", {"query": "a", "documents": [LONG]}, 400),
    ("/api/embed", {"model": "mini-m3", "input": LONG, "truncate": False}, 400),
    ("/api/embeddings", {"model": "mini-m3", "prompt": LONG}, 400),
    ("/v1/m3", {"texts": [LONG]}, 413),
    ("/query", {"input": {"query": LONG}}, 413),
]


@pytest.mark.parametrize(("path", "body", "status"), TOO_LONG)
def test_texts_that_may_not_be_cut_are_refused(
    guarded: httpx.Client, path: str, body: dict[str, Any], status: int
) -> None:
    answer = guarded.post(path, json=body)
    assert answer.status_code == status
    assert "longer than the 256 tokens" in message_of(path, answer)


def test_a_request_may_allow_cutting(guarded: httpx.Client) -> None:
    answer = guarded.post("/embed", json={"inputs": [LONG], "truncate": True})
    assert answer.status_code == 200
    assert answer.headers["x-truncated-texts"] == "1"
    assert answer.headers["x-compute-tokens"] == "256"


MANY = ["a"] * 9
TOO_MANY = [
    ("/embed", {"inputs": MANY}, 413),
    ("/embed_sparse", {"inputs": MANY}, 413),
    ("/rerank", {"query": "a", "texts": MANY}, 413),
    ("/similarity", {"inputs": {"source_sentence": "a", "sentences": MANY}}, 413),
    ("/tokenize", {"inputs": MANY}, 413),
    ("/v1/embeddings", {"input": MANY}, 400),
    ("/v1/rerank", {"query": "a", "documents": MANY}, 400),
    ("/api/embed", {"model": "mini-m3", "input": MANY}, 400),
    ("/v1/m3", {"texts": MANY}, 413),
    ("/query", {"input": {"action": "embed_batch", "texts": MANY}}, 413),
]


@pytest.mark.parametrize(("path", "body", "status"), TOO_MANY)
def test_too_many_texts_are_refused(
    guarded: httpx.Client, path: str, body: dict[str, Any], status: int
) -> None:
    answer = guarded.post(path, json=body)
    assert answer.status_code == status
    assert "more than the 8" in message_of(path, answer)


def test_too_many_tokens_are_refused(guarded: httpx.Client) -> None:
    answer = guarded.post("/embed", json={"inputs": ["fox " * 200] * 4})
    assert answer.status_code == 413
    assert "more than the 600 that one request may hold" in answer.json()["error"]


async def test_a_served_name_that_the_model_has_anyway_changes_nothing() -> None:
    async with running(served_names=("mini-m3", "other")) as service:
        plain = (await service.get("/info")).json
        assert plain["model_id"] == "mini-m3"
        assert plain["unified_embeddings"]["names"] == ["mini-m3", "other"]


def test_colbert_vectors_that_would_fill_the_memory_are_refused(
    http: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service_module, "_MOST_NUMBERS", 384 * 20)
    texts = ["fox " * 6] * 3  # 8 tokens each, with the special ones
    for path, body in {"/embed_all": {"inputs": texts}, "/v1/m3": {"texts": texts}}.items():
        answer = http.post(path, json=body)
        assert answer.status_code == 413
        assert "24 tokens are more than the 20" in message_of(path, answer)
    assert http.post("/embed_all", json={"inputs": texts[:2]}).status_code == 200
    assert http.post("/v1/m3", json={"texts": texts, "heads": ["dense"]}).status_code == 200


def test_more_documents_than_can_be_held_for_reranking_are_refused(
    http: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service_module, "_MOST_SCORED", 384 * 20)
    texts = ["fox " * 6] * 3  # 8 tokens each, with the special ones
    for path, name in {"/rerank": "texts", "/v1/rerank": "documents"}.items():
        answer = http.post(path, json={"query": "fox", name: texts})
        assert answer.status_code in (400, 413)
        assert "24 tokens are more than the 20" in message_of(path, answer)
        assert http.post(path, json={"query": "fox", name: texts[:2]}).status_code == 200


def test_large_answers_are_those_of_small_ones(
    http: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is written piece by piece reads the same."""
    texts = ["Foxes jump.", "Dogs sleep.", "Foxes jump over lazy dogs."]
    requests: dict[str, dict[str, Any]] = {
        "/embed_all": {"inputs": texts},
        "/embed_sparse": {"inputs": texts},
        "/tokenize": {"inputs": texts},
        "/v1/m3": {"texts": texts},
        "/query": {"input": {"action": "embed_batch", "texts": texts, "heads": ["sparse"]}},
    }
    expected = {path: http.post(path, json=body).json() for path, body in requests.items()}
    monkeypatch.setattr(schemas, "_QUICK_TOKENS", 0)
    monkeypatch.setattr(tei, "_TOKENS_AT_A_TIME", 2)
    for path, body in requests.items():
        assert http.post(path, json=body).json() == expected[path], path


@pytest.mark.parametrize("path", BODIES)
def test_a_body_over_the_limit_is_refused(guarded: httpx.Client, path: str) -> None:
    def chunks() -> Iterator[bytes]:
        yield from [b" " * 5_000] * 5

    for content in (b" " * 20_001, chunks()):
        answer = guarded.post(path, content=content)
        assert answer.status_code == 413
        assert "20000 bytes" in message_of(path, answer)


# --- models ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path", ["/v1/embeddings", "/v1/rerank", "/v2/rerank", "/api/embed", "/api/embeddings"]
)
def test_another_model_is_never_answered_for(guarded: httpx.Client, path: str) -> None:
    answer = guarded.post(path, json={**BODIES[path], "model": "bge-m3"})
    assert answer.status_code == 404
    assert "'bge-m3' is not served here; 'mini-m3' is" in message_of(path, answer)


# --- routes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", BODIES)
@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE"])
def test_routes_take_post_only(guarded: httpx.Client, path: str, method: str) -> None:
    answer = guarded.request(method, path)
    assert answer.status_code == 405
    assert answer.headers["allow"] == "POST"
    assert "does not take" in message_of(path, answer)


@pytest.mark.parametrize("path", ["/nowhere", "/embed/", "/v1/chat/completions", "/api/generate"])
def test_what_is_no_route_is_not_found(guarded: httpx.Client, path: str) -> None:
    answer = guarded.post(path, json={})
    assert answer.status_code == 404
    assert "/openapi.json" in message_of(path, answer)


@pytest.mark.parametrize("path", NOT_STARTED)
def test_what_was_not_started_says_how(guarded: httpx.Client, path: str) -> None:
    answer = guarded.post(path, json=BODIES[path])
    assert answer.status_code == 404
    assert "start the service with --" in message_of(path, answer)


# --- headers --------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", [*BODIES, *GETS, *PROBES, "/nowhere"])
def test_every_answer_carries_its_id_its_model_and_its_time(
    guarded: httpx.Client, guarded_service: RunningService, path: str
) -> None:
    method = "POST" if path in BODIES else "GET"
    headers = {"x-request-id": "client-7"}
    answer = guarded.request(method, path, json=BODIES.get(path), headers=headers)
    assert answer.headers["x-request-id"] == "client-7"
    assert answer.headers["x-model-fingerprint"] == guarded_service.service.fingerprint
    assert float(answer.headers["x-total-time"]) > 0


@pytest.mark.parametrize("given", ["", "a b", "x" * 129, "<script>", "a;b"])
def test_ids_that_could_do_harm_are_replaced(guarded: httpx.Client, given: str) -> None:
    answer = guarded.get("/health", headers={"x-request-id": given})
    assert len(answer.headers["x-request-id"]) == 32
    assert given not in answer.headers.values() or not given


def test_times_are_told_part_by_part(guarded: httpx.Client) -> None:
    headers = guarded.post("/embed", json={"inputs": "Foxes jump."}).headers
    parts = [
        float(headers[name]) for name in ("x-tokenization-time", "x-queue-time", "x-inference-time")
    ]
    assert all(part >= 0 for part in parts)
    assert sum(parts) <= float(headers["x-total-time"])


# --- bodies made to stop the event loop ---------------------------------------------------------

MANY = 1000
LISTS: list[tuple[str, dict[str, Any]]] = [
    ("/embed", {"inputs": [{}] * MANY}),
    ("/", {"inputs": {"source_sentence": "a", "sentences": [[]] * MANY}}),
    ("/embed_sparse", {"inputs": ["a", *[[]] * MANY]}),
    ("/embed_all", {"inputs": [["a"]] * MANY}),
    ("/rerank", {"query": "a", "texts": [[]] * MANY}),
    ("/rerank", {"query": "a", "documents": [[]] * MANY}),
    ("/similarity", {"inputs": {"source_sentence": "a", "sentences": [[]] * MANY}}),
    ("/tokenize", {"inputs": [[]] * MANY}),
    ("/v1/embeddings", {"input": [{}] * MANY}),
    ("/v1/rerank", {"query": "a", "documents": [[]] * MANY}),
    ("/v2/rerank", {"query": "a", "documents": [[]] * MANY}),
    ("/api/embed", {"model": "mini-m3", "input": [[]] * MANY}),
    ("/v1/m3", {"texts": [[]] * MANY}),
    ("/v1/m3", {"texts": ["a"], "heads": [[]] * MANY}),
    ("/query", {"input": {"action": "embed_batch", "texts": [[]] * MANY}}),
    ("/search", {"query": "a", "filters": [{}] * MANY}),
    ("/search", {"query": "a", "filters": [{"key": 1}] * 50}),
    ("/embed_image", {"images": [[]] * MANY}),
    ("/embed_image", {"texts": [[]] * MANY}),
]


@pytest.mark.parametrize(("path", "body"), LISTS)
def test_only_the_first_bad_item_of_a_list_is_looked_at(
    guarded: httpx.Client, path: str, body: dict[str, Any]
) -> None:
    answer = guarded.post(path, json=body)
    assert answer.status_code == bad_input(path)
    message = message_of(path, answer)
    # pydantic's way of collecting an error for each item takes a minute for what 16 MiB hold.
    assert re.search(r"and \d+ more", message) is None, message


@pytest.mark.parametrize("path", BODIES)
def test_bodies_of_millions_of_values_are_refused_before_they_are_checked(
    http: httpx.Client, path: str
) -> None:
    name = next(iter(BODIES[path])).encode()
    values = b",".join([b"[]"] * 1_050_000)
    answer = http.post(path, content=b'{"' + name + b'":[' + values + b"]}")
    assert answer.status_code == 413
    assert message_of(path, answer).startswith("the body holds more than 1048576 values")


@pytest.mark.parametrize(
    ("value", "count"),
    [(1, 0), ({}, 0), ([], 0), ({"a": [1, 2], "b": 3}, 4), ([[], [[]], [1]], 5), ([[[[1]]]], 4)],
)
def test_values_are_counted_at_every_depth(value: object, count: int) -> None:
    assert holds_at_most(value, count)
    assert count == 0 or not holds_at_most(value, count - 1)
