"""RemoteEmbedder: the service's own vectors, asked for once, and clear words when it misbehaves."""

from __future__ import annotations

import asyncio
import copy
import datetime
import ipaddress
import pickle
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from starlette.applications import Starlette
from starlette.responses import Response
from starlette.routing import Route

from embedding_service import Service, encode64, running, serve_app, status
from unified_embeddings import (
    EmbeddingCache,
    FingerprintMismatchError,
    InputError,
    ModelLoadError,
    OverloadedError,
    RemoteEmbedder,
    ServiceError,
    UnifiedEmbeddingsError,
    UnifiedSentenceSplitter,
    UnifiedSparseEmbedding,
    UnifiedTextEmbedding,
    make_embedder,
)
from unified_embeddings.embedders import remote_transport
from unified_embeddings.embedders.fake import FakeEmbedder
from unified_embeddings.models.catalogue import MODELS
from unified_embeddings.models.fusion import DEFAULT_FUSION
from unified_embeddings.types import Embeddings

KEY = "s3cret-key"
TEXTS = ["Foxes jump over lazy dogs.", "", "Füchse springen \u2028 über Hunde.", "a a b " * 40]


@pytest.fixture(scope="module")
def shared_service() -> Iterator[Service]:
    with running(FakeEmbedder()) as running_service:
        yield running_service


@pytest.fixture
def service(shared_service: Service) -> Service:
    shared_service.reset(FakeEmbedder(16, max_length=40))
    return shared_service


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds that the transport wanted to sleep before it asked again; none is slept."""
    slept: list[float] = []
    clock = SimpleNamespace(sleep=slept.append, monotonic=time.monotonic, time=time.time)
    monkeypatch.setattr(remote_transport, "time", clock)
    return slept


def assert_same(found: Embeddings, expected: Embeddings) -> None:
    """Bit for bit, and of the same types."""
    assert set(found) == set(expected)
    if expected.dense is not None and found.dense is not None:
        assert found.dense.dtype == np.float32
        np.testing.assert_array_equal(found.dense, expected.dense)
    for mine, theirs in zip(found.sparse or [], expected.sparse or [], strict=True):
        np.testing.assert_array_equal(mine.indices, theirs.indices)
        np.testing.assert_array_equal(mine.values, theirs.values)
    for rows, their_rows in zip(found.colbert or [], expected.colbert or [], strict=True):
        assert rows.dtype == np.float32
        np.testing.assert_array_equal(rows, their_rows)


class TestVectors:
    def test_are_the_services_own_bit_for_bit(self, service: Service) -> None:
        embedder = RemoteEmbedder(service.url)
        found = embedder.encode_documents(TEXTS, colbert=True)
        assert_same(found, service.embedder.encode_documents(TEXTS, colbert=True))
        assert len(found) == 4
        found = embedder.encode_queries(TEXTS[::-1], sparse=False)
        assert_same(found, service.embedder.encode_queries(TEXTS[::-1], sparse=False))

    def test_a_services_calibration_is_its_models(
        self, service: Service, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        calibration = MODELS["mini-m3"].calibration
        monkeypatch.setattr(FakeEmbedder, "calibration", calibration)
        assert calibration is not None
        assert RemoteEmbedder(service.url).calibration == calibration

    def test_what_the_model_is_is_what_the_service_says(self, service: Service) -> None:
        embedder, local = RemoteEmbedder(service.url), service.embedder
        for name in (
            "model_name", "heads", "dimension", "max_length", "document_length", "fingerprint",
            "former_fingerprints", "revision", "sparse_idf", "fusion", "calibration",
        ):  # fmt: skip
            assert getattr(embedder, name) == getattr(local, name), name
        assert embedder.fusion == DEFAULT_FUSION
        assert (embedder.info.engine, embedder.info.precision) == ("fake", "fp32")
        assert embedder.models == ()
        assert service.paths() == ["/info"]

    def test_a_vector_is_fetched_once(self, service: Service) -> None:
        embedder = RemoteEmbedder(service.url)
        embedder.encode_documents(["fox", "dog", "fox"])
        embedder.encode_documents(["dog", "cat"])
        embedder.encode_documents(["fox"], dense=True, sparse=False, colbert=True)
        bodies = service.bodies("/v1/m3")
        assert [body["texts"] for body in bodies] == [["fox", "dog"], ["cat"], ["fox"]]
        assert [body["heads"] for body in bodies] == [
            ["dense", "sparse"], ["dense", "sparse"], ["colbert"]
        ]  # fmt: skip
        assert embedder.stats().texts == 6
        assert embedder.stats().forwards == 3

    def test_roles_are_told_apart(self, service: Service) -> None:
        embedder = RemoteEmbedder(service.url)
        embedder.encode_documents(["fox"])
        embedder.encode_query("fox")
        assert [body["isPassage"] for body in service.bodies("/v1/m3")] == [True, False]

    def test_threads_that_ask_for_one_text_send_one_request(self, service: Service) -> None:
        embedder = RemoteEmbedder(service.url)
        with ThreadPoolExecutor(16) as threads:
            found = list(threads.map(embedder.encode_query, ["fox"] * 64))
        assert len(service.bodies("/v1/m3")) == len(service.bodies("/info")) == 1
        for embeddings in found:
            assert_same(embeddings, service.embedder.encode_query("fox"))

    def test_no_text_gives_no_vector_and_no_request_for_any(self, service: Service) -> None:
        found = RemoteEmbedder(service.url).encode_documents([])
        assert found.dense is not None
        assert found.dense.shape == (0, 16)
        assert service.paths() == ["/info"]

    def test_a_head_that_the_service_lacks_is_refused_here(self, service: Service) -> None:
        service.embedder = FakeEmbedder(16, heads=("dense",))
        embedder = RemoteEmbedder(service.url)
        with pytest.raises(InputError, match="gives dense vectors, no colbert ones"):
            embedder.encode_query("fox", colbert=True)
        assert embedder.encode_query("fox").sparse is None
        assert service.paths() == ["/info", "/v1/m3"]

    def test_bad_texts_are_named_before_anything_is_sent(self, service: Service) -> None:
        embedder = RemoteEmbedder(service.url)
        assert embedder.heads
        with pytest.raises(InputError, match="item 1: expected a str, got int") as raised:
            embedder.encode_documents(["fox", 7])  # type: ignore[list-item]
        assert raised.value.index == 1
        with pytest.raises(InputError, match="texts, not token ids"):
            embedder.require_token_ids([1, 2])
        assert service.paths() == ["/info"]


class TestLargeLists:
    def test_are_split_by_number_and_the_order_is_kept(self, service: Service) -> None:
        texts = [f"text {i}" for i in range(10)]
        found = RemoteEmbedder(service.url, texts_per_request=4).encode_documents(texts)
        assert [len(body["texts"]) for body in service.bodies("/v1/m3")] == [4, 4, 2]
        assert_same(found, service.embedder.encode_documents(texts))

    def test_the_services_own_limit_holds_if_it_is_less(self, service: Service) -> None:
        service.max_texts = 3
        RemoteEmbedder(service.url).encode_documents([f"text {i}" for i in range(7)])
        assert [len(body["texts"]) for body in service.bodies("/v1/m3")] == [3, 3, 1]

    def test_are_split_by_bytes_and_a_longer_text_goes_alone(self, service: Service) -> None:
        texts = ["ä" * 10, "b" * 20, "c" * 100, "d"]  # 20, 20, 100 and 1 bytes
        RemoteEmbedder(service.url, bytes_per_request=40).encode_documents(texts)
        sizes = [[len(text.encode()) for text in b["texts"]] for b in service.bodies("/v1/m3")]
        assert sizes == [[20, 20], [100], [1]]

    def test_colbert_vectors_are_asked_for_in_smaller_requests(self, service: Service) -> None:
        embedder = RemoteEmbedder(service.url, bytes_per_request=320)
        embedder.encode_documents(["a" * 15, "b" * 5, "c" * 5], colbert=True)
        assert [len(body["texts"]) for body in service.bodies("/v1/m3")] == [2, 1]

    def test_a_request_that_is_too_large_is_halved(self, service: Service) -> None:
        texts = [f"text {i}" for i in range(5)]
        embedder = RemoteEmbedder(service.url)
        assert embedder.heads
        service.script = [status(413), status(413)]
        assert_same(embedder.encode_documents(texts), service.embedder.encode_documents(texts))
        assert [len(b["texts"]) for b in service.bodies("/v1/m3")] == [5, 2, 1, 1, 3]

    def test_one_text_that_is_too_large_is_an_error(self, service: Service) -> None:
        embedder = RemoteEmbedder(service.url)
        assert embedder.heads
        service.script = [status(413, {"error": "the body has more than 64 MiB"})]
        with pytest.raises(ServiceError, match="status 413: the body has more than 64 MiB"):
            embedder.encode_query("fox")


class TestRetries:
    @pytest.mark.parametrize("code", [429, 502, 503, 504])
    def test_what_passes_is_tried_again(
        self, service: Service, waits: list[float], code: int
    ) -> None:
        service.script = [status(code), status(code), status(code)]
        assert RemoteEmbedder(service.url).dimension == 16
        assert len(service.asked) == 4
        for wait, most in zip(waits, (0.25, 0.5, 1.0), strict=True):
            assert most / 2 <= wait <= most

    @pytest.mark.parametrize("code", [400, 401, 403, 404, 405, 413, 422, 500])
    def test_nothing_else_is(self, service: Service, waits: list[float], code: int) -> None:
        service.script = [status(code)] * 3
        with pytest.raises(ServiceError, match=f"status {code}") as raised:
            RemoteEmbedder(service.url).dimension  # noqa: B018
        assert raised.value.status == code
        assert raised.value.url == service.url
        assert (len(service.asked), waits) == (1, [])

    def test_retry_after_is_honoured(self, service: Service, waits: list[float]) -> None:
        later = datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(seconds=10)
        service.script = [
            status(429, headers={"retry-after": "3"}),
            status(503, headers={"retry-after": later.strftime("%a, %d %b %Y %H:%M:%S GMT")}),
        ]
        assert RemoteEmbedder(service.url).dimension == 16
        assert 3 <= waits[0] <= 3.75
        assert 8 <= waits[1] <= 12.5

    def test_a_service_that_wants_too_long_a_pause_is_not_waited_for(
        self, service: Service, waits: list[float]
    ) -> None:
        service.script = [status(429, headers={"retry-after": "3600"})] * 2
        with pytest.raises(OverloadedError, match=r"asks to wait 3600 s.*try again later"):
            RemoteEmbedder(service.url).dimension  # noqa: B018
        assert (len(service.asked), waits) == (1, [])

    def test_an_overloaded_service_is_said_to_be_so(
        self, service: Service, waits: list[float]
    ) -> None:
        service.script = [status(429, {"error": "9,000 tokens are waiting"})] * 9
        with pytest.raises(OverloadedError, match="too much to do: 9,000 tokens are waiting"):
            RemoteEmbedder(service.url, retries=2).dimension  # noqa: B018
        assert len(service.asked) == 3

    def test_a_failure_is_not_kept(self, service: Service) -> None:
        embedder = RemoteEmbedder(service.url, retries=0)
        service.script = [status(500)]
        with pytest.raises(ServiceError):
            embedder.encode_query("fox")
        assert_same(embedder.encode_query("fox"), service.embedder.encode_query("fox"))

    def test_a_connection_that_ends_without_an_answer_is_tried_again(
        self, waits: list[float]
    ) -> None:
        with (
            listening(lambda connection: connection.close()) as (url, accepted),
            pytest.raises(ServiceError, match="GET /info failed") as raised,
        ):
            RemoteEmbedder(url, retries=2).dimension  # noqa: B018
        assert raised.value.status is None
        assert len(accepted) == 3

    def test_a_port_where_nobody_listens(self, waits: list[float]) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            url = f"http://127.0.0.1:{free.getsockname()[1]}"
        with pytest.raises(ServiceError, match=r"refused.*check that it runs.*ping URL"):
            RemoteEmbedder(url).dimension  # noqa: B018
        assert len(waits) == 3


class TestOneModel:
    def test_a_service_that_got_another_model_gives_no_vector(self, service: Service) -> None:
        embedder = RemoteEmbedder(service.url)
        first = embedder.encode_query("fox")
        expected = embedder.fingerprint
        service.embedder = FakeEmbedder(16, model_name="other")
        with pytest.raises(FingerprintMismatchError, match="none of these were kept") as raised:
            embedder.encode_documents(["fox", "dog"])
        assert raised.value.expected == expected
        assert raised.value.found == service.embedder.fingerprint
        with pytest.raises(FingerprintMismatchError):
            embedder.tokenise("dog")
        assert_same(embedder.encode_query("fox"), first)
        assert embedder.cache.stats().entries == 2
        assert pickle.loads(pickle.dumps(raised.value)).found == raised.value.found

    def test_the_body_counts_too(self, service: Service) -> None:
        def change(path: str, data: Any) -> None:
            if path == "/v1/m3":
                data["fingerprint"] = "0" * 32

        service.change = change
        with pytest.raises(FingerprintMismatchError, match=r"0{32}"):
            RemoteEmbedder(service.url).encode_query("fox")

    def test_the_model_asked_for(self, service: Service) -> None:
        assert RemoteEmbedder(service.url, model="fake").dimension == 16
        with pytest.raises(ModelLoadError, match=r"'arctic'.* has 'fake'.*Leave the model out"):
            RemoteEmbedder(service.url, model="arctic").encode_query("fox")

    @pytest.mark.parametrize(
        ("served", "hub_id", "name", "is_same"),
        [
            ("bge-m3", "BAAI/bge-m3", "BAAI/bge-m3", True),
            ("BAAI/bge-m3", "BAAI/bge-m3", "bge-m3", True),
            ("/models/mine", "/models/mine", "/models/mine", True),
            ("bge-large-splade", "BAAI/bge-large-en-v1.5", "bge-large-splade", True),
            ("bge-large-splade", "BAAI/bge-large-en-v1.5", "BAAI/bge-large-en-v1.5", False),
            ("mini-m3", "mini-m3", "bge-m3", False),
        ],
    )
    def test_is_known_by_each_of_its_names(
        self, service: Service, served: str, hub_id: str, name: str, is_same: bool
    ) -> None:
        def change(path: str, data: Any) -> None:
            data["model_id"] = hub_id

        service.embedder = FakeEmbedder(16, model_name=served)
        service.change = change
        embedder = RemoteEmbedder(service.url, model=name)
        if is_same:
            assert embedder.model_name == served
        else:
            with pytest.raises(ModelLoadError):
                embedder.model_name  # noqa: B018

    def test_the_fingerprint_asked_for(self, service: Service) -> None:
        right = service.embedder.fingerprint
        assert RemoteEmbedder(service.url, expected_fingerprint=right).dimension == 16
        with pytest.raises(FingerprintMismatchError, match=r"f{32}"):
            RemoteEmbedder(service.url, expected_fingerprint="f" * 32).dimension  # noqa: B018


def _set(*path: str | int, to: object) -> Callable[[Any], None]:
    def change(data: Any) -> None:
        for step in path[:-1]:
            data = data[step]
        data[path[-1]] = to

    return change


def _swap_results(data: Any) -> None:
    data["results"].reverse()


NAN = float("nan")
NARROW = {"shape": [1, 8], "dtype": "float32", "data": encode64(np.ones(8, "f4"))}
BAD_VECTORS: dict[str, tuple[Callable[[Any], None], str]] = {
    "too few results": (lambda data: data["results"].pop(), "results of 2 texts, got 1"),
    "no results": (lambda data: data.pop("results"), "results of 2 texts, got no"),
    "results swapped": (_swap_results, "result 0 is of another text"),
    "dense missing": (lambda data: data["results"][1].pop("dense"), "result 1: dense was asked"),
    "dense null": (_set("results", 0, "dense", to=None), "dense was asked for"),
    "dense too short": (
        _set("results", 0, "dense", to=encode64(np.ones(15, "f4"))),
        r"dense of 16 numbers, got shape \(15,\)",
    ),
    "dense NaN": (
        _set("results", 0, "dense", to=encode64(np.full(16, NAN, "f4"))),
        "dense holds NaN",
    ),
    "dense no base64": (_set("results", 0, "dense", to="????"), "no base64"),
    "dense cut": (_set("results", 0, "dense", to="AAAA"), "no base64 of float32"),
    "dense of texts": (_set("results", 0, "dense", to=["1.0"] * 16), "is no number"),
    "sparse unsorted": (
        _set("results", 0, "sparse", to={"indices": [7, 3], "values": [1.0, 1.0]}),
        "sparse: indices must be ascending",
    ),
    "sparse repeated": (
        _set("results", 0, "sparse", to={"indices": [3, 3], "values": [1.0, 1.0]}),
        "ascending and unique",
    ),
    "sparse zero": (
        _set("results", 0, "sparse", to={"indices": [3], "values": [0.0]}),
        "finite and > 0",
    ),
    "sparse infinite": (
        _set("results", 0, "sparse", to={"indices": [3], "values": [1e300]}),
        "finite and > 0",
    ),
    "sparse uneven": (
        _set("results", 0, "sparse", to={"indices": [3, 4], "values": [1.0]}),
        "same length",
    ),
    "sparse ids of text": (
        _set("results", 0, "sparse", to={"indices": ["3"], "values": [1.0]}),
        "must be integers",
    ),
    "sparse ids true": (
        _set("results", 0, "sparse", to={"indices": [True], "values": [1.0]}),
        "must be integers",
    ),
    "sparse ids too large": (
        _set("results", 0, "sparse", to={"indices": [2**70], "values": [1.0]}),
        "sparse: indices must",
    ),
    "sparse nested": (
        _set("results", 0, "sparse", to={"indices": [[3]], "values": [[1.0]]}),
        "is no number",
    ),
    "colbert float16": (_set("results", 0, "colbert", "dtype", to="float16"), "as float32"),
    "colbert of another size": (
        _set("results", 0, "colbert", "shape", to=[2, 16]),
        "colbert holds 48 numbers, not 2 x 16",
    ),
    "colbert empty": (
        _set("results", 0, "colbert", to={"shape": [0, 16], "dtype": "float32", "data": ""}),
        "whole number >= 1",
    ),
    "colbert widths differ": (
        _set("results", 0, "colbert", to=NARROW),
        r"one width, got \[8, 16\]",
    ),
    "no usage": (lambda data: data.pop("usage"), "usage as a JSON object"),
    "no fingerprint": (lambda data: data.pop("fingerprint"), "which model's vectors"),
}


class TestBadAnswers:
    @pytest.mark.parametrize("name", BAD_VECTORS)
    def test_no_bad_vector_reaches_the_cache(self, service: Service, name: str) -> None:
        spoil, problem = BAD_VECTORS[name]

        def change(path: str, data: Any) -> None:
            if path == "/v1/m3":
                spoil(data)

        service.change = change
        embedder = RemoteEmbedder(service.url)
        with pytest.raises(ServiceError, match=problem):
            embedder.encode_documents(["fox jumps", "dog"], colbert=True)
        assert embedder.cache.stats().entries == 0
        service.change = lambda path, data: None
        assert len(embedder.encode_documents(["fox jumps", "dog"], colbert=True)) == 2

    @pytest.mark.parametrize(
        ("spoil", "problem"),
        [
            (lambda data: data.pop("unified_embeddings"), "another kind of service"),
            (_set("unified_embeddings", "dimension", to="16"), "dimension as a whole number"),
            (_set("unified_embeddings", "heads", to=["words"]), "heads as some of dense, sparse"),
            (_set("unified_embeddings", "fingerprint", to="x"), "32 hex digits"),
            (_set("unified_embeddings", "fusion", to={"weights": [0, 0]}), "fusion is not usable"),
            (
                _set("unified_embeddings", "calibration", to={"intercept": 1}),
                "calibration is not usable: it takes .* needs",
            ),
            (_set("max_client_batch_size", to=0), "max_client_batch_size as a whole number"),
        ],
    )
    def test_what_it_says_of_itself(
        self, service: Service, spoil: Callable[[Any], None], problem: str
    ) -> None:
        service.change = lambda path, data: spoil(data)
        with pytest.raises(ServiceError, match=f"GET /info failed: .*{problem}"):
            RemoteEmbedder(service.url).dimension  # noqa: B018

    def test_a_page_in_its_place(self, service: Service) -> None:
        service.script = [status(200, "<html><title>Sign in</title></html>")]
        with pytest.raises(ServiceError, match=r"expected JSON.*text/html.*'<html>.*page before"):
            RemoteEmbedder(service.url).dimension  # noqa: B018

    def test_a_redirect_is_named_and_not_followed(self, service: Service) -> None:
        elsewhere = {"location": "https://else.where/info"}
        service.script = [status(308, headers=elsewhere)]
        with pytest.raises(ServiceError, match=r"redirects to https://else\.where/info, which"):
            RemoteEmbedder(service.url).dimension  # noqa: B018
        assert service.paths() == ["/info"]

    def test_a_path_too_much(self, service: Service) -> None:
        with pytest.raises(ServiceError, match=r"no such path.*without /v1 or /embed"):
            RemoteEmbedder(f"{service.url}/v1").dimension  # noqa: B018

    def test_control_characters_do_not_get_through(self, service: Service) -> None:
        service.script = [status(400, {"error": "no\x1b[2J\nthanks" + "x" * 1000})]
        with pytest.raises(ServiceError) as raised:
            RemoteEmbedder(service.url).dimension  # noqa: B018
        assert "\x1b" not in str(raised.value)
        assert "no [2J thanks" in str(raised.value)
        assert len(str(raised.value)) < 500


class TestTimeOuts:
    def test_a_service_that_says_nothing(self) -> None:
        with (
            listening(lambda connection: None) as (url, accepted),
            pytest.raises(ServiceError, match=r"no answer within 0.2 s; raise timeout"),
        ):
            RemoteEmbedder(url, timeout=0.2).dimension  # noqa: B018
        assert len(accepted) == 1  # it may still be at work on it: not asked again

    def test_a_service_that_dribbles(self) -> None:
        stopped = threading.Event()

        def dribble(connection: socket.socket) -> None:
            connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n")
            for _ in range(1000):
                if stopped.wait(0.02):
                    return
                connection.sendall(b" ")

        with listening(dribble) as (url, _):
            try:
                with pytest.raises(ServiceError, match=r"no answer within 0.3 s"):
                    RemoteEmbedder(url, timeout=0.3).dimension  # noqa: B018
            finally:
                stopped.set()


class TestKeys:
    def test_the_key_is_sent(self, service: Service) -> None:
        service.api_key = KEY
        assert RemoteEmbedder(service.url, api_key=KEY).dimension == 16
        with pytest.raises(ServiceError, match=r"needs a key: give api_key \(status 401: no such"):
            RemoteEmbedder(service.url).dimension  # noqa: B018
        with pytest.raises(ServiceError, match="does not accept this key") as raised:
            RemoteEmbedder(service.url, api_key="wr0ng").dimension  # noqa: B018
        assert "wr0ng" not in str(raised.value)

    @pytest.mark.parametrize("key", ["", "two words", "line\nend", "schlüssel", 7, b"bytes"])
    def test_a_key_that_fits_no_header_is_not_shown(self, key: Any) -> None:
        with pytest.raises(InputError, match="api_key must be a text of printable") as raised:
            RemoteEmbedder("http://127.0.0.1:1", api_key=key)
        if key:
            assert str(key) not in str(raised.value)

    def test_it_is_in_a_pickle_and_nowhere_else(self, service: Service) -> None:
        service.api_key = KEY
        embedder = RemoteEmbedder(service.url, api_key=KEY, texts_per_request=7)
        adapter, sparse = UnifiedTextEmbedding(embedder), UnifiedSparseEmbedding(embedder)
        shown = [
            repr(embedder), str(embedder.options), repr(adapter), str(adapter.to_dict()),
            repr(sparse), str(sparse.model_dump()),
            str(UnifiedSentenceSplitter(embedder).to_dict()),
        ]  # fmt: skip
        assert all(KEY not in text for text in shown)
        for again in (pickle.loads(pickle.dumps(embedder)), copy.deepcopy(embedder)):
            assert again.options == embedder.options
            assert_same(again.encode_query("fox"), service.embedder.encode_query("fox"))

    @pytest.mark.parametrize("kind", [UnifiedTextEmbedding, UnifiedSparseEmbedding])
    def test_given_among_an_adapters_options_it_is_not_kept_there(
        self, service: Service, kind: Any
    ) -> None:
        service.api_key = KEY
        adapter = kind(model_name="fake", options={"url": service.url, "api_key": KEY})
        assert len(adapter.get_query_embedding("fox")) > 0
        assert adapter.options == {"url": service.url}
        assert KEY not in str(adapter.model_dump()) + repr(adapter)
        for copied in (copy.deepcopy(adapter), pickle.loads(pickle.dumps(adapter))):
            assert copied.get_query_embedding("fox") == adapter.get_query_embedding("fox")

    def test_a_splitter_takes_it_into_another_process(self, service: Service) -> None:
        service.api_key = KEY
        splitter = UnifiedSentenceSplitter(RemoteEmbedder(service.url, api_key=KEY))
        again = pickle.loads(pickle.dumps(splitter))
        assert again.split_text("Foxes jump.") == ["Foxes jump."]

    def test_an_adapter_comes_back_without_it(self, service: Service) -> None:
        stored = UnifiedTextEmbedding(RemoteEmbedder(service.url, retries=0)).to_dict()
        again = UnifiedTextEmbedding.from_dict(stored)
        assert isinstance(again.embedder, RemoteEmbedder)
        assert again.embedder.options == {**again.embedder.options, "retries": 0}
        expected = service.embedder.encode_query("fox").dense
        assert expected is not None
        assert again.get_query_embedding("fox") == expected[0].tolist()
        service.embedder = FakeEmbedder(16, model_name="other")
        with pytest.raises(ModelLoadError, match="'fake'"):
            UnifiedTextEmbedding.from_dict(stored).get_query_embedding("fox")


class TestArguments:
    @pytest.mark.parametrize(
        ("url", "problem"),
        [
            ("127.0.0.1:8000", "begin with http"),
            ("ftp://127.0.0.1", "begin with http"),
            ("file:///etc/passwd", "begin with http"),
            ("http://", "begin with http"),
            ("http://127.0.0.1:99999", "no address"),
            ("http://127.0.0.1:8000?x=1", "must end before"),
            ("http://127.0.0.1:8000#x", "must end before"),
            ("http://127.0.0.1:80 00", "must not hold spaces"),
            ("http://[::1", "no address"),
            (None, "must be a str"),
        ],
    )
    def test_an_address_that_is_none(self, url: Any, problem: str) -> None:
        with pytest.raises(InputError, match=problem):
            RemoteEmbedder(url)

    def test_a_password_in_the_address_is_refused_and_not_shown(self) -> None:
        for url in ("http://me:hunter2@127.0.0.1", "http://hunter2@127.0.0.1:1"):
            with pytest.raises(InputError, match="must not hold a user name") as raised:
                RemoteEmbedder(url)
            assert "hunter2" not in str(raised.value)

    def test_a_slash_at_the_end_and_a_path_before_are_fine(self, service: Service) -> None:
        assert RemoteEmbedder(f"{service.url}/").dimension == 16
        assert RemoteEmbedder("https://host/embeddings/").url == "https://host/embeddings"

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("timeout", 0), ("timeout", float("nan")), ("timeout", "1"), ("timeout", True),
            ("connect_timeout", -1), ("retries", -1), ("retries", 1.5), ("max_connections", 0),
            ("texts_per_request", 0), ("bytes_per_request", 0), ("max_retry_wait", 0),
            ("cache", 7),
        ],
    )  # fmt: skip
    def test_numbers_out_of_range(self, name: str, value: Any) -> None:
        with pytest.raises(InputError, match=name):
            RemoteEmbedder("http://127.0.0.1:1", **{name: value})

    def test_making_one_sends_nothing(self, service: Service) -> None:
        embedder = RemoteEmbedder(service.url)
        assert repr(embedder) == f"RemoteEmbedder({service.url!r})"
        assert service.asked == []

    def test_make_embedder_takes_an_address(self, service: Service) -> None:
        embedder = make_embedder("fake", url=service.url, cache=None)
        assert embedder.dimension == 16
        with pytest.raises(InputError, match="with url there is no engine, max_length"):
            make_embedder("fake", url=service.url, engine="onnx", max_length=7)
        with pytest.raises(InputError, match="leave spec and sparse_model out"):
            make_embedder("fake", url=service.url, sparse_model="other")


class TestSurroundings:
    def test_proxies_and_netrc_of_the_environment_are_not_used(
        self, service: Service, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, "http://127.0.0.1:1")
        netrc = tmp_path / "netrc"
        netrc.write_text("machine 127.0.0.1 login me password hunter2\n")
        monkeypatch.setenv("NETRC", str(netrc))
        assert RemoteEmbedder(service.url).dimension == 16
        assert "authorization" not in service.headers[0]

    def test_answers_are_asked_for_uncompressed_on_kept_connections(self, service: Service) -> None:
        embedder = RemoteEmbedder(service.url)
        for i in range(5):
            embedder.encode_query(f"query {i}")
        assert {headers["accept-encoding"] for headers in service.headers} == {"identity"}
        assert {headers.get("connection") for headers in service.headers} == {"keep-alive"}

    def test_http_at_an_https_address(self, service: Service) -> None:
        url = service.url.replace("http:", "https:")
        with pytest.raises(ServiceError, match=r"no secure connection.*ca_file.*http://"):
            RemoteEmbedder(url, retries=0).dimension  # noqa: B018

    def test_a_certificate_of_ones_own(self, tmp_path: Path) -> None:
        certificate, key = make_certificate(tmp_path)

        async def answer(request: Any) -> Response:
            return Response("{}", media_type="application/json")

        routes = [Route("/{path:path}", answer)]
        server, thread, url = serve_app(Starlette(routes=routes), certificate, key)
        try:
            with pytest.raises(ServiceError, match=r"no secure connection \(.*certificate"):
                RemoteEmbedder(url).dimension  # noqa: B018
            with pytest.raises(ServiceError, match="another kind of service"):
                RemoteEmbedder(url, ca_file=str(certificate)).dimension  # noqa: B018
        finally:
            server.should_exit = server.force_exit = True
            thread.join(30)
        with pytest.raises(InputError, match="cannot be read as certificates"):
            RemoteEmbedder(url, ca_file=str(tmp_path / "none.pem")).dimension  # noqa: B018

    def test_a_forked_process_does_not_share_connections(
        self, service: Service, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        embedder = RemoteEmbedder(service.url)
        assert embedder.dimension == 16
        before = embedder._transport._open_pool()
        assert embedder._transport._open_pool() is before
        monkeypatch.setattr(remote_transport.os, "getpid", lambda: -1)
        after = embedder._transport._open_pool()
        assert after.client is not before.client
        assert after.threads is not before.threads

    def test_closed(self, service: Service) -> None:
        with RemoteEmbedder(service.url) as embedder:
            first = embedder.encode_query("fox")
        embedder.close()
        assert_same(embedder.encode_query("fox"), first)  # from the cache
        with pytest.raises(UnifiedEmbeddingsError, match="closed; make a new one"):
            embedder.encode_query("dog")
        with pytest.raises(UnifiedEmbeddingsError, match="closed; make a new one"):
            asyncio.run(embedder.aencode_query("dog"))

    def test_a_disk_cache_outlives_the_service(self, service: Service, tmp_path: Path) -> None:
        path = tmp_path / "vectors.db"
        with RemoteEmbedder(service.url, cache=EmbeddingCache(path=path)) as embedder:
            first = embedder.encode_query("fox")
            embedder.cache.close()
        again = RemoteEmbedder(service.url, cache=EmbeddingCache(path=path))
        assert_same(again.encode_query("fox"), first)
        assert len(service.bodies("/v1/m3")) == 1
        again.cache.close()


class TestCoroutines:
    def test_give_the_same_vectors(self, service: Service) -> None:
        embedder, local = RemoteEmbedder(service.url), service.embedder

        async def ask() -> None:
            assert_same(await embedder.aencode_query("fox"), local.encode_query("fox"))
            found = await embedder.aencode_documents(TEXTS, colbert=True)
            assert_same(found, local.encode_documents(TEXTS, colbert=True))
            found = await embedder.aencode_queries(TEXTS, sparse=False)
            assert_same(found, local.encode_queries(TEXTS, sparse=False))

        asyncio.run(ask())

    def test_of_many_loops_and_threads_use_one_embedder(self, service: Service) -> None:
        embedder = RemoteEmbedder(service.url, max_connections=4)

        def run_loops(number: int) -> None:
            async def ask() -> list[Embeddings]:
                texts = [f"text {number} {i}" for i in range(8)]
                return await asyncio.gather(*map(embedder.aencode_query, texts))

            for _ in range(3):  # one loop after the other
                for i, found in enumerate(asyncio.run(ask())):
                    assert_same(found, service.embedder.encode_query(f"text {number} {i}"))

        with ThreadPoolExecutor(4) as threads:
            list(threads.map(run_loops, range(4)))
        assert len(service.bodies("/v1/m3")) == 4 * 8

    def test_the_loop_goes_on_while_the_service_works(self, service: Service) -> None:
        embedder = RemoteEmbedder(service.url)
        released = threading.Event()

        def hold(path: str, data: Any) -> None:
            if path == "/v1/m3":
                assert released.wait(30)

        service.change = hold

        async def ask() -> None:
            asked = asyncio.create_task(embedder.aencode_query("fox"))
            while not service.bodies("/v1/m3"):  # only a loop that runs gets out of here
                await asyncio.sleep(0.01)
            released.set()
            assert_same(await asked, service.embedder.encode_query("fox"))

        asyncio.run(ask())

    def test_one_that_is_cancelled_ends_at_once_and_harms_nobody(self, service: Service) -> None:
        embedder = RemoteEmbedder(service.url)
        released = threading.Event()

        def hold(path: str, data: Any) -> None:
            if path == "/v1/m3":
                assert released.wait(30)

        service.change = hold

        async def ask() -> Embeddings:
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(embedder.aencode_query("fox"), 0.2)
            waiting = asyncio.create_task(embedder.aencode_query("fox"))
            await asyncio.sleep(0.1)
            released.set()
            return await waiting

        assert_same(asyncio.run(ask()), service.embedder.encode_query("fox"))
        assert len(service.bodies("/v1/m3")) == 1

    def test_llama_index_waits_in_the_embedders_threads(self, service: Service) -> None:
        names: list[str] = []

        class Noting(RemoteEmbedder):
            def encode_query(self, *arguments: Any, **options: Any) -> Embeddings:
                names.append(threading.current_thread().name)
                return super().encode_query(*arguments, **options)

        model = UnifiedTextEmbedding(Noting(service.url))
        assert len(asyncio.run(model.aget_query_embedding("fox"))) == 16
        assert names[0].startswith("remote-embed")

    def test_a_local_embedder_has_them_too(self) -> None:
        embedder = FakeEmbedder()
        found = asyncio.run(embedder.aencode_documents(TEXTS, colbert=True))
        assert_same(found, embedder.encode_documents(TEXTS, colbert=True))
        with pytest.raises(InputError, match="item 0"):
            asyncio.run(embedder.aencode_queries([None]))  # type: ignore[list-item]


class TestTokens:
    def test_are_the_models_own_and_remembered(self, service: Service) -> None:
        embedder = RemoteEmbedder(service.url)
        for _ in range(3):
            assert embedder.tokenise(TEXTS[0]) == service.embedder.tokenise(TEXTS[0])
        embedder.tokenise("")
        assert service.bodies("/tokenize") == [
            {"inputs": [TEXTS[0]], "add_special_tokens": False},
            {"inputs": [""], "add_special_tokens": False},
        ]
        embedder.tokenise(TEXTS[0]).append(7)  # the caller's own copy
        assert embedder.tokenise(TEXTS[0]) == service.embedder.tokenise(TEXTS[0])
        with pytest.raises(InputError, match="lone surrogate"):
            embedder.tokenise("\ud800")

    def test_special_ones_are_left_out(self, service: Service) -> None:
        def change(path: str, data: Any) -> None:
            if path == "/tokenize":
                data[0].insert(0, {"id": 0, "text": "<s>", "special": True})

        service.change = change
        embedder = RemoteEmbedder(service.url)
        assert embedder.tokenise("fox") == service.embedder.tokenise("fox")

    def test_a_splitter_asks_seldom_and_splits_alike(self, service: Service) -> None:
        text = " ".join(f"Sentence {i} says that foxes jump over lazy dogs." for i in range(300))
        local = UnifiedSentenceSplitter(service.embedder, chunk_size=32)
        remote = UnifiedSentenceSplitter(RemoteEmbedder(service.url), chunk_size=32)
        chunks = remote.split_text(text)
        assert chunks == local.split_text(text)
        asked = service.bodies("/tokenize")
        assert sum(len(body["inputs"]) for body in asked) < 3 * 300
        assert len(asked) < len(chunks) + 20
        asked.clear()

    def test_memory_is_bounded(self, service: Service) -> None:
        embedder = RemoteEmbedder(service.url)
        long_texts = [letter * 400_000 for letter in "abc"]
        for text in (*long_texts, long_texts[0]):
            embedder.tokenise(text)
        assert len(service.bodies("/tokenize")) == 4  # the first was forgotten for the third
        embedder.tokenise(long_texts[2])
        assert len(service.bodies("/tokenize")) == 4

    @pytest.mark.parametrize(
        "answer", [{}, [], [[{"id": "1"}]], [[{"id": -1}]], [[7]], [7], [[], []]]
    )
    def test_answers_that_are_none(self, service: Service, answer: Any) -> None:
        embedder = RemoteEmbedder(service.url)
        assert embedder.heads
        service.script = [status(200, answer)] if answer else [empty(answer)]
        with pytest.raises(ServiceError, match="POST /tokenize failed: its answer cannot be used"):
            embedder.tokenise("fox")


def empty(answer: Any) -> Any:
    text = "{}" if answer == {} else "[]"
    return lambda request, body: Response(text, media_type="application/json")


class listening:  # noqa: N801 — reads as a statement
    """A port whose connections are handed to a function, each after its request was read."""

    def __init__(self, handle: Callable[[socket.socket], None]) -> None:
        self._handle = handle
        self._server = socket.create_server(("127.0.0.1", 0))
        self._accepted: list[socket.socket] = []

    def __enter__(self) -> tuple[str, list[socket.socket]]:
        threading.Thread(target=self._run, daemon=True).start()
        return f"http://127.0.0.1:{self._server.getsockname()[1]}", self._accepted

    def __exit__(self, *_: object) -> None:
        self._server.close()
        for connection in self._accepted:
            connection.close()

    def _run(self) -> None:
        while True:
            try:
                connection, _ = self._server.accept()
                self._accepted.append(connection)
                connection.recv(65536)
                self._handle(connection)
            except OSError:
                if self._server.fileno() < 0:
                    return


def make_certificate(folder: Path) -> tuple[Path, Path]:
    """A certificate for 127.0.0.1 that nobody has signed but itself, and its key."""
    x509 = pytest.importorskip("cryptography.x509")
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.datetime.now(datetime.timezone.utc)
    day = datetime.timedelta(days=1)
    address = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
    builder = x509.CertificateBuilder(
        name, name, key.public_key(), x509.random_serial_number(), now - day, now + day
    )
    certificate = builder.add_extension(
        x509.SubjectAlternativeName([address]), critical=False
    ).sign(key, hashes.SHA256())
    certificate_file, key_file = folder / "certificate.pem", folder / "key.pem"
    certificate_file.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    key_file.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    ssl.create_default_context().load_verify_locations(certificate_file)
    return certificate_file, key_file
