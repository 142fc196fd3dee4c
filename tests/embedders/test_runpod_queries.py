"""Queries embedded by RunPod: its envelope, its waiting jobs, and one model on both sides."""

from __future__ import annotations

import asyncio
import copy
import pickle
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from embedding_service import answer_query, serve_app
from unified_embeddings import (
    FingerprintMismatchError,
    InputError,
    ServiceError,
    UnifiedSentenceSplitter,
    UnifiedTextEmbedding,
)
from unified_embeddings.config.pipeline import UnifiedEmbeddingConfig
from unified_embeddings.embedders import runpod_queries
from unified_embeddings.embedders.base import TextEmbedder
from unified_embeddings.embedders.fake import FakeEmbedder
from unified_embeddings.embedders.runpod_queries import RunPodEndpoint, RunPodQueryEmbedder

KEY, ENDPOINT = "rp-s3cret", "abc123xyz"


class RunPod:
    """RunPod's API as far as a query needs it.

    Attributes:
        embedder: What the endpoint's worker runs.
        polls: How often a job is not done before it is: first in the queue, then in progress.
        ended: How a job ends.
        knows_heads: Whether the worker knows "heads", which document 002's own does not.
        change: Called with each output before it is sent.
        asked: Method and path of each request, and its body.
    """

    def __init__(self, embedder: TextEmbedder) -> None:
        self.url = ""
        self._lock = threading.Lock()
        self.reset(embedder)

    def reset(self, embedder: TextEmbedder) -> None:
        self.embedder = embedder
        self.polls = 0
        self.ended: dict[str, Any] | None = None
        self.knows_heads = True
        self.change: Any = lambda output: None
        self.asked: list[tuple[str, Any]] = []
        self._left: dict[str, tuple[int, dict[str, Any]]] = {}

    async def runsync(self, request: Request) -> Response:
        body = await request.json()
        self.asked.append(("POST runsync", body))
        if request.headers.get("authorization") != f"Bearer {KEY}":
            return JSONResponse({"error": "unauthorized"}, 401)
        if request.path_params["endpoint"] != ENDPOINT:
            return JSONResponse({"error": "endpoint not found"}, 404)
        job = dict(body["input"])
        if not self.knows_heads:
            job.pop("heads", None)
        ended = self.ended
        if ended is None:
            output = answer_query(self.embedder, job)
            self.change(output)
            ended = {"status": "COMPLETED", "output": output}
        with self._lock:
            job_id = f"sync-{len(self.asked)}-u1"
            self._left[job_id] = (self.polls, ended)
        return self._tell(job_id)

    async def status(self, request: Request) -> Response:
        self.asked.append(("GET status", request.path_params["job"]))
        assert request.headers.get("authorization") == f"Bearer {KEY}"
        return self._tell(request.path_params["job"])

    def _tell(self, job_id: str) -> Response:
        left, ended = self._left[job_id]
        self._left[job_id] = (left - 1, ended)
        if left > 0:
            waiting = "IN_QUEUE" if left > 1 else "IN_PROGRESS"
            return JSONResponse({"id": job_id, "status": waiting})
        return JSONResponse({"id": job_id, "delayTime": 3, "executionTime": 9, **ended})

    def jobs(self) -> list[dict[str, Any]]:
        return [body["input"] for path, body in self.asked if path == "POST runsync"]


@contextmanager
def running(embedder: TextEmbedder) -> Iterator[RunPod]:
    api = RunPod(embedder)
    routes = [
        Route("/v2/{endpoint}/runsync", api.runsync, methods=["POST"]),
        Route("/v2/{endpoint}/status/{job}", api.status),
    ]
    server, thread, url = serve_app(Starlette(routes=routes))
    api.url = f"{url}/v2"
    try:
        yield api
    finally:
        server.should_exit = server.force_exit = True
        thread.join(30)


@pytest.fixture(scope="module")
def shared_api() -> Iterator[RunPod]:
    with running(FakeEmbedder()) as running_api:
        yield running_api


@pytest.fixture
def api(shared_api: RunPod) -> RunPod:
    shared_api.reset(FakeEmbedder(16))
    return shared_api


def make(api: RunPod, documents: TextEmbedder | None = None, **options: Any) -> RunPodQueryEmbedder:
    endpoint = RunPodEndpoint(ENDPOINT, api_key=KEY, url=api.url, **options)
    return RunPodQueryEmbedder(documents or FakeEmbedder(16), endpoint)


class TestQueries:
    def test_are_the_endpoints_vectors_and_documents_the_models(self, api: RunPod) -> None:
        documents = FakeEmbedder(16)
        embedder = make(api, documents)
        found = embedder.encode_query("Which foxes jump?")
        expected = api.embedder.encode_query("Which foxes jump?")
        assert found.dense is not None
        assert expected.dense is not None
        np.testing.assert_array_equal(found.dense, expected.dense)
        assert found.sparse == expected.sparse
        assert documents.stats().texts == 0
        embedder.encode_documents(["Foxes jump.", "Dogs sleep."])
        assert documents.stats().texts == 2
        assert api.jobs() == [
            {
                "action": "embed_query",
                "queries": ["Which foxes jump?"],
                "heads": ["dense", "sparse"],
            }
        ]
        assert embedder.stats().forwards == 2

    def test_a_dense_query_is_asked_for_as_document_002_has_it(self, api: RunPod) -> None:
        api.knows_heads = False
        found = make(api).encode_query("fox", sparse=False)
        assert found.sparse is None
        assert api.jobs() == [{"action": "embed_query", "queries": ["fox"]}]

    def test_a_query_is_asked_once(self, api: RunPod) -> None:
        embedder = make(api)
        embedder.encode_queries(["fox", "dog", "fox"])
        embedder.encode_queries(["dog", "cat"])
        assert [job["queries"] for job in api.jobs()] == [["fox", "dog"], ["cat"]]

    def test_and_a_document_of_the_same_words_is_not_taken_for_it(self, api: RunPod) -> None:
        api.embedder = FakeEmbedder(16, model_name="slightly other vectors")
        embedder = make(api)
        embedder.encode_query("fox")
        embedder.encode_documents(["fox"])
        assert embedder.documents.stats().forwards == 1

    def test_an_endpoint_without_sparse_vectors_is_refused(self, api: RunPod) -> None:
        api.knows_heads = False
        embedder = make(api)
        with pytest.raises(ServiceError, match=r"gives no sparse vectors.*mode='dense'"):
            embedder.encode_query("fox")
        assert embedder.cache.stats().entries == 0

    def test_it_has_no_colbert_vectors(self, api: RunPod) -> None:
        embedder = make(api)
        assert embedder.heads == ("dense", "sparse")
        with pytest.raises(InputError, match="no colbert ones"):
            embedder.encode_query("fox", colbert=True)

    def test_coroutines(self, api: RunPod) -> None:
        embedder = make(api)

        async def ask() -> list[Any]:
            return await asyncio.gather(*(embedder.aencode_query(f"q {i}") for i in range(20)))

        for i, found in enumerate(asyncio.run(ask())):
            assert found.sparse == api.embedder.encode_query(f"q {i}").sparse


class TestJobs:
    def test_one_that_waits_is_looked_at_until_it_is_done(self, api: RunPod) -> None:
        api.polls = 3
        assert len(make(api).encode_query("fox")) == 1
        assert [path for path, _ in api.asked] == ["POST runsync", *["GET status"] * 3]

    def test_but_not_for_ever(self, api: RunPod, monkeypatch: pytest.MonkeyPatch) -> None:
        slept: list[float] = []
        clock = SimpleNamespace(sleep=slept.append, monotonic=lambda: sum(slept))
        monkeypatch.setattr(runpod_queries, "time", clock)
        api.polls = 10**6
        with pytest.raises(ServiceError, match=r"still IN_QUEUE after 60 s.*min workers 1"):
            make(api).encode_query("fox")
        assert 59 <= sum(slept) <= 60
        assert max(slept) == 1

    @pytest.mark.parametrize(
        ("ended", "problem"),
        [
            ({"status": "FAILED", "error": "CUDA out of memory"}, "'FAILED': 'CUDA out of memory'"),
            ({"status": "CANCELLED"}, "CANCELLED"),
            ({"status": "TIMED_OUT"}, "TIMED_OUT"),
            ({"status": "COMPLETED", "output": {"error": "no query"}}, "no query"),
            ({"status": "COMPLETED"}, "expected output as a JSON object"),
            ({"status": "COMPLETED", "output": [1.0]}, "expected output as a JSON object"),
            ({"status": None}, "expected RunPod's id, status and output"),
        ],
    )
    def test_one_that_failed_says_why(
        self, api: RunPod, ended: dict[str, Any], problem: str
    ) -> None:
        api.ended = ended
        with pytest.raises(ServiceError, match=problem):
            make(api).encode_query("fox")

    @pytest.mark.parametrize(
        ("output", "problem"),
        [
            ({"embedding": [1.0] * 16}, "embeddings of 1 queries"),
            ({"embeddings": []}, "embeddings of 1 queries"),
            ({"embeddings": [[1.0] * 15]}, "dense of 16 numbers, got shape"),
            ({"embeddings": [[1e300] * 16]}, "NaN or infinity"),
            ({"embeddings": [[1.0] * 16], "sparse": []}, "no sparse vectors"),
            (
                {"embeddings": [[1.0] * 16], "sparse": [{"indices": [2, 1], "values": [1, 1]}]},
                "ascending",
            ),
        ],
    )
    def test_outputs_that_are_none(self, api: RunPod, output: dict[str, Any], problem: str) -> None:
        def change(data: dict[str, Any]) -> None:
            data.clear()
            data.update(output)

        api.change = change
        embedder = make(api)
        with pytest.raises(ServiceError, match=problem):
            embedder.encode_query("fox")
        assert embedder.cache.stats().entries == 0

    def test_the_wrong_key_or_endpoint(self, api: RunPod) -> None:
        wrong = RunPodEndpoint(ENDPOINT, api_key="wr0ng", url=api.url)
        with pytest.raises(ServiceError, match="does not accept this key") as raised:
            RunPodQueryEmbedder(FakeEmbedder(16), wrong).encode_query("fox")
        assert "wr0ng" not in str(raised.value)
        other = RunPodEndpoint("other", api_key=KEY, url=api.url)
        with pytest.raises(ServiceError, match=r"no such path.*Check the endpoint's id"):
            RunPodQueryEmbedder(FakeEmbedder(16), other).encode_query("fox")

    @pytest.mark.parametrize("endpoint", ["", "../v1", "a/b", "a b", None])
    def test_an_id_that_is_none(self, endpoint: Any) -> None:
        with pytest.raises(InputError, match="id of a RunPod endpoint"):
            RunPodEndpoint(endpoint, api_key=KEY)


class TestOneModel:
    def test_vectors_of_another_width_are_refused(self, api: RunPod) -> None:
        with pytest.raises(ServiceError, match=r"dense of 32 numbers, got shape \(16,\)"):
            make(api, FakeEmbedder(32)).encode_query("fox")

    def test_a_fingerprint_counts_if_there_is_one(self, api: RunPod) -> None:
        api.change = lambda output: output.update(fingerprint=api.embedder.fingerprint)
        assert len(make(api).encode_query("fox")) == 1
        with pytest.raises(FingerprintMismatchError):
            make(api, FakeEmbedder(16, model_name="other")).encode_query("fox")

    def test_compare_tells_whether_both_run_one_model(self, api: RunPod) -> None:
        assert make(api).compare("Which foxes jump?") == pytest.approx(1, abs=1e-6)

        def negate(output: dict[str, Any]) -> None:
            output["embeddings"] = [[-number for number in output["embeddings"][0]]]

        api.change = negate
        assert make(api).compare("Which foxes jump?") == pytest.approx(-1, abs=1e-6)

    def test_it_is_its_documents_in_everything_else(self, api: RunPod) -> None:
        documents = FakeEmbedder(16, max_length=77)
        embedder = make(api, documents)
        for name in (
            "model_name", "models", "dimension", "max_length", "document_length", "fingerprint",
            "former_fingerprints", "revision", "fusion", "sparse_idf",
        ):  # fmt: skip
            assert getattr(embedder, name) == getattr(documents, name), name
        assert embedder.tokenise("fox dog") == documents.tokenise("fox dog")
        assert embedder.measure(["fox dog"]) == documents.measure(["fox dog"])
        assert UnifiedSentenceSplitter(embedder).chunk_size == 75

    def test_it_pickles_with_its_key_and_shows_it_nowhere(self, api: RunPod) -> None:
        embedder = make(api)
        adapter = UnifiedTextEmbedding(embedder)
        for text in (repr(embedder), str(embedder.options), repr(adapter), str(adapter.to_dict())):
            assert KEY not in text
        for again in (pickle.loads(pickle.dumps(embedder)), copy.deepcopy(embedder)):
            assert len(again.encode_query("fox")) == 1
        with pytest.raises(InputError, match=r"runpod_query_endpoint_id.*give the embedder"):
            UnifiedTextEmbedding.from_dict(adapter.to_dict())


class TestConfig:
    def environ(self, api: RunPod, **more: str) -> dict[str, str]:
        return {
            "UNIFIED_EMBEDDINGS_MODEL": "mini-m3",
            "BACKEND_EMBED_QUERY": "runpod",
            "RUNPOD_API_KEY": KEY,
            "RUNPOD_QUERY_ENDPOINT_ID": ENDPOINT,
            "RUNPOD_ENDPOINT_BASE_URL": api.url,
            **more,
        }

    def test_document_002s_variables_are_all_it_takes(self) -> None:
        model = UnifiedEmbeddingConfig("mini-m3", precision="fp32", device="cpu").embedder
        with running(model) as api:
            config = UnifiedEmbeddingConfig.from_env(
                self.environ(api, UNIFIED_EMBEDDINGS_PRECISION="fp32")
            )
            found = config.embedder.encode_query("Which foxes jump?")
            assert len(api.jobs()) == 1
            assert isinstance(config.embedder, RunPodQueryEmbedder)
            expected = model.encode_query("Which foxes jump?")
            assert found.dense is not None
            assert expected.dense is not None
            np.testing.assert_array_equal(found.dense, expected.dense)
            assert config.embedder.compare() == pytest.approx(1, abs=1e-5)
            again = pickle.loads(pickle.dumps(config))
            assert isinstance(again.embedder, RunPodQueryEmbedder)

    def test_arguments_do_the_same(self, api: RunPod) -> None:
        config = UnifiedEmbeddingConfig(
            "mini-m3",
            query_backend="runpod",
            runpod_api_key=KEY,
            runpod_query_endpoint_id=ENDPOINT,
            runpod_url=api.url,
        )
        assert isinstance(config.embedder, RunPodQueryEmbedder)
        assert config.embedder.endpoint.url == f"{api.url}/{ENDPOINT}"

    @pytest.mark.parametrize("variable", ["RUNPOD_API_KEY", "RUNPOD_QUERY_ENDPOINT_ID"])
    def test_what_is_missing_is_named(self, api: RunPod, variable: str) -> None:
        with pytest.raises(InputError, match=variable):
            UnifiedEmbeddingConfig.from_env(self.environ(api, **{variable: " "}))

    def test_another_backend_is_none(self, api: RunPod) -> None:
        with pytest.raises(InputError, match=r"BACKEND_EMBED_QUERY.*local, runpod, got 'modal'"):
            UnifiedEmbeddingConfig.from_env(self.environ(api, BACKEND_EMBED_QUERY="modal"))
        with pytest.raises(InputError, match="no queries to embed elsewhere"):
            UnifiedEmbeddingConfig.from_env(self.environ(api, UNIFIED_EMBEDDINGS_MODEL="jina-clip"))
        with pytest.raises(InputError, match="no effect without query_backend"):
            UnifiedEmbeddingConfig("mini-m3", runpod_api_key=KEY)

    @pytest.mark.parametrize("backend", ["", "local", "LOCAL"])
    def test_runpods_variables_alone_change_nothing(self, api: RunPod, backend: str) -> None:
        environ = self.environ(api, BACKEND_EMBED_QUERY=backend)
        config = UnifiedEmbeddingConfig.from_env(environ)
        assert not isinstance(config.embedder, RunPodQueryEmbedder)
