"""The light endpoint: its routes and errors, whose turn it is, and how the process ends."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from command import environment, start
from query_process import Endpoint, endpoint, wait_until
from unified_embeddings import ModelEmbedder
from unified_embeddings.embedders.fake import FakeEmbedder
from unified_embeddings.errors import InputError, ModelLoadError, UnifiedEmbeddingsError
from unified_embeddings.serving.api_keys import ApiKeys, load_keys
from unified_embeddings.serving.query_server import listen
from unified_embeddings.serving.query_settings import QuerySettings, query_embedder
from unified_embeddings.types import Embeddings

FAKE = FakeEmbedder(8)


class Gate(FakeEmbedder):
    """An embedder whose texts wait until they are let through; "bad" raises."""

    def __init__(self) -> None:
        super().__init__(8)
        self.opened = threading.Event()
        self.seen: list[str] = []

    def _encode(self, texts: list[str], *arguments: Any, **options: Any) -> Embeddings:
        if texts[0].startswith("warm-up"):
            return super()._encode(texts, *arguments, **options)
        self.seen += texts
        assert self.opened.wait(60)
        if "bad" in texts:
            raise RuntimeError("secret text inside")
        return super()._encode(texts, *arguments, **options)


@pytest.fixture(scope="module")
def fake() -> Iterator[Endpoint]:
    with endpoint(lambda: FAKE) as running:
        running.wait_until_ready()
        yield running


@pytest.fixture
def gate() -> Iterator[Gate]:
    made = Gate()
    yield made
    made.opened.set()


class TestAnswers:
    @pytest.mark.parametrize("path", ["/query", "/"])
    def test_a_query(self, fake: Endpoint, path: str) -> None:
        reply = fake.ask(path, {"input": {"action": "embed_query", "query": "red fox"}})
        assert reply.status == 200
        assert reply.headers["content-type"] == "application/json"
        expected = FAKE.encode_query("red fox").dense
        assert expected is not None
        assert list(reply.json) == ["embedding"]
        assert np.array_equal(np.array(reply.json["embedding"], np.float32), expected[0])

    def test_more_texts_than_one_step_takes(self, fake: Endpoint) -> None:
        texts = [f"text number {i}" for i in range(50)]
        payload = {"action": "embed_batch", "texts": texts, "heads": ["dense", "sparse", "colbert"]}
        reply = fake.ask(payload={"input": payload})
        expected = FAKE.encode_documents(texts, colbert=True)
        assert expected.sparse is not None
        assert expected.colbert is not None
        assert np.array_equal(np.array(reply.json["embeddings"], np.float32), expected.dense)
        assert reply.json["sparse"] == [vector.to_qdrant() for vector in expected.sparse]
        assert reply.json["colbert"] == [rows.tolist() for rows in expected.colbert]

    def test_no_texts(self, fake: Endpoint) -> None:
        reply = fake.ask(payload={"input": {"action": "embed_batch", "texts": []}})
        assert (reply.status, reply.json) == (200, {"embeddings": []})

    def test_every_answer_carries_its_times_and_the_fingerprint(self, fake: Endpoint) -> None:
        headers = fake.query().headers
        assert headers["x-model-fingerprint"] == FAKE.fingerprint
        assert len(headers["x-request-id"]) == 32
        for name in ("x-queue-time", "x-inference-time", "x-total-time"):
            assert float(headers[name]) >= 0

    def test_a_request_keeps_its_id(self, fake: Endpoint) -> None:
        given = fake.ask(payload={"input": {"query": "a"}}, headers={"x-request-id": "mine-1"})
        assert given.headers["x-request-id"] == "mine-1"
        odd = fake.ask(payload={}, headers={"x-request-id": "a b"})
        assert odd.headers["x-request-id"] != "a b"

    def test_runsync_wraps_the_answer_as_runpod_does(self, fake: Endpoint) -> None:
        reply = fake.ask("/runsync", {"input": {"query": "red fox"}})
        assert reply.status == 200
        assert reply.json["status"] == "COMPLETED"
        assert reply.json["id"].startswith("sync-")
        assert reply.json["output"] == fake.query("red fox").json
        assert reply.headers["x-model-fingerprint"] == FAKE.fingerprint

    def test_runsync_tells_a_failed_job_in_its_body(self, fake: Endpoint) -> None:
        reply = fake.ask("/runsync", {"input": {"query": 1}})
        assert reply.status == 200
        assert reply.json["status"] == "FAILED"
        assert reply.json["error"] == "query must be a string, got a number"

    def test_health(self, fake: Endpoint) -> None:
        ok = {"status": "ok", "endpoint": "query", "runtime": "none-cpu"}
        assert fake.ask("/health", method="GET", body=b"").json == ok
        assert fake.ask(payload={"input": {"action": "health_check"}}).json == ok
        assert fake.ask("/runsync", {"input": {"action": "health_check"}}).json["output"] == ok


class TestErrors:
    @pytest.mark.parametrize(
        ("body", "status", "message"),
        [
            (b"", 400, "the body is not JSON in UTF-8"),
            (b"{", 400, "the body is not JSON in UTF-8"),
            (b'{"input": {"query": "\xff"}}', 400, "the body is not JSON in UTF-8"),
            (b'{"input": NaN}', 400, "NaN is not a JSON number"),
            (b'{"input": ' + b"9" * 10_000 + b"}", 400, "the body is not JSON in UTF-8"),
            (b"[" * 100_000, 400, "nested too deep"),
            (b"[]", 422, "the request must be a JSON object, got a list"),
            (b'{"input": {"query": 5}}', 422, "query must be a string, got a number"),
            (b'{"input": {"query": "\\ud800"}}', 422, "lone surrogate"),
            (b'{"input": {"queries": ["a", 5]}}', 422, "queries[1] must be a string"),
        ],
    )
    def test_what_cannot_be_answered_says_why(
        self, fake: Endpoint, body: bytes, status: int, message: str
    ) -> None:
        reply = fake.ask(body=body)
        assert reply.status == status
        assert list(reply.json) == ["error"]
        assert message in reply.json["error"]
        assert "Traceback" not in reply.json["error"]

    def test_unknown_routes_and_methods(self, fake: Endpoint) -> None:
        missing = fake.ask("/embed", {})
        assert (missing.status, list(missing.json)) == (404, ["error"])
        wrong = fake.ask("/query", method="GET", body=b"")
        assert (wrong.status, list(wrong.json)) == (405, ["error"])
        assert wrong.headers["allow"] == "POST"

    def test_a_head_that_the_model_lacks(self) -> None:
        with endpoint(lambda: FakeEmbedder(8, heads=("dense",))) as dense_only:
            reply = dense_only.query(heads=["dense", "sparse"])
        assert reply.status == 422
        assert "this model gives dense vectors, no sparse ones" in reply.json["error"]

    def test_a_body_over_the_limit_is_not_read(self) -> None:
        with endpoint(lambda: FAKE, max_body_bytes=1000) as small:
            announced = small.ask(body=b" " * 1001)
            assert announced.status == 413
            assert "larger than 1,000 bytes" in announced.json["error"]
            connection = small.connect()
            chunks = (b" " * 600 for _ in range(2))
            connection.request("POST", "/query", chunks, encode_chunked=True)
            assert connection.getresponse().status == 413
            connection.close()
            assert small.ask(body=b"1" * 1000).status != 413
            huge = {"content-length": "9" * 30}
            assert small.ask(body=b"", headers=huge).status in (400, 413)
            assert small.query().status == 200

    def test_a_body_that_does_not_arrive_ends(self) -> None:
        with endpoint(lambda: FAKE, receive_timeout=0.2) as impatient:
            with socket.create_connection(("127.0.0.1", impatient.port), timeout=30) as slow:
                slow.sendall(b"POST /query HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\n{")
                assert b" 408 " in slow.recv(100)
            assert impatient.query().status == 200


class TestKeys:
    def test_a_request_must_bring_one_of_the_keys(self) -> None:
        with endpoint(lambda: FAKE, api_keys=("first-key", "second")) as closed:
            closed.wait_until_ready()  # /health needs none

            def status(authorization: str | None, path: str = "/query") -> int:
                headers = {} if authorization is None else {"Authorization": authorization}
                return closed.ask(path, {"input": {"query": "a"}}, headers=headers).status

            assert status("Bearer first-key") == 200
            assert status("bearer second") == 200
            assert status("Bearer second", "/runsync") == 200
            for refused in (None, "", "Bearer", "Bearer third", "Basic second", "second", "ééé"):
                assert status(refused) == 401
            assert status(None, "/runsync") == 401
            assert status(None, "/") == 401
            reply = closed.ask(payload={})
            assert reply.headers["www-authenticate"] == "Bearer"
            assert "Authorization: Bearer KEY" in reply.json["error"]

    def test_without_keys_all_may_pass(self) -> None:
        assert ApiKeys(()).accept(None)

    def test_keys_come_from_the_environment_and_a_file(self, tmp_path: Path) -> None:
        file = tmp_path / "keys"
        file.write_text("# ours\n\n  one \ntwo\n")
        assert load_keys(" zero,, ", file) == ("zero", "one", "two")
        assert load_keys("", None) == ()

    def test_a_file_without_a_key_does_not_leave_the_endpoint_open(self, tmp_path: Path) -> None:
        file = tmp_path / "keys"
        with pytest.raises(InputError, match="cannot be read"):
            load_keys("", file)
        file.write_text("# none\n")
        with pytest.raises(InputError, match="holds none"):
            load_keys("zero", file)
        with pytest.raises(InputError, match="printable ASCII"):
            load_keys("schlüssel", None)


class TestTurns:
    def test_requests_wait_while_the_model_loads(self) -> None:
        loaded = threading.Event()

        def load() -> FakeEmbedder:
            assert loaded.wait(60)
            return FAKE

        with endpoint(load) as loading, ThreadPoolExecutor(4) as clients:
            health = loading.ask("/health", method="GET", body=b"")
            assert health.status == 503
            assert "still being loaded" in health.json["error"]
            assert loading.ask(payload={"input": {"action": "health_check"}}).status == 503
            replies = [clients.submit(loading.query, f"text {i}") for i in range(4)]
            wait_until(lambda: len(loading.worker._jobs) == 4)
            loaded.set()
            for i, reply in enumerate(replies):
                expected = FAKE.encode_query(f"text {i}").dense
                assert expected is not None
                assert reply.result().json["embedding"] == expected[0].tolist()

    def test_a_model_that_loads_too_long_is_no_reason_to_hang(self) -> None:
        loaded = threading.Event()

        def load() -> FakeEmbedder:
            assert loaded.wait(60)
            return FAKE

        with endpoint(load, request_timeout=0.2) as loading:
            reply = loading.query()
            assert reply.status == 503
            assert reply.headers["retry-after"] == "1"
            assert "still being loaded after 0.2 s" in reply.json["error"]
            assert not loading.worker._jobs
            loaded.set()

    def test_more_requests_than_may_wait_get_429_at_once(self, gate: Gate) -> None:
        with endpoint(lambda: gate, queue_size=2) as busy, ThreadPoolExecutor(2) as clients:
            busy.wait_until_ready()
            waiting = [clients.submit(busy.query, f"text {i}") for i in range(2)]
            wait_until(lambda: len(busy.worker._jobs) == 2)
            refused = busy.query("one too many")
            assert refused.status == 429
            assert int(refused.headers["retry-after"]) >= 1
            assert "as many as may" in refused.json["error"]
            assert busy.ask("/health", method="GET", body=b"").status == 200
            gate.opened.set()
            assert [reply.result().status for reply in waiting] == [200, 200]
            assert busy.query().status == 200
        assert "one too many" not in gate.seen

    def test_a_request_that_takes_too_long_gives_its_place_back(self, gate: Gate) -> None:
        with endpoint(lambda: gate, queue_size=2, request_timeout=0.2) as busy:
            busy.wait_until_ready()
            late = busy.query()
            assert late.status == 504
            assert "it took more than 0.2 s" in late.json["error"]
            behind = busy.query("behind it")
            assert behind.status == 504
            assert "its turn did not come within 0.2 s" in behind.json["error"]
            stuck = busy.ask("/health", method="GET", body=b"")
            assert stuck.status == 503
            assert "busy with one request" in stuck.json["error"]
            gate.opened.set()
            wait_until(lambda: busy.query().status == 200)
        assert "behind it" not in gate.seen

    def test_work_for_a_client_that_has_gone_ends(self, gate: Gate) -> None:
        texts = [f"text {i}" for i in range(64)]
        with endpoint(lambda: gate) as busy:
            busy.wait_until_ready()
            gone, behind = busy.connect(), busy.connect()
            body = json.dumps({"input": {"action": "embed_batch", "texts": texts}})
            gone.request("POST", "/query", body)
            wait_until(lambda: bool(gate.seen))
            behind.request("POST", "/query", json.dumps({"input": {"query": "behind"}}))
            wait_until(lambda: len(busy.worker._jobs) == 2)
            gone.close()
            behind.close()
            wait_until(lambda: not busy.worker._jobs)
            gate.opened.set()
            assert busy.query("last").status == 200
        assert len(gate.seen) < len(texts)
        assert "behind" not in gate.seen

    def test_what_goes_wrong_with_one_request_is_its_own(
        self, gate: Gate, caplog: pytest.LogCaptureFixture
    ) -> None:
        gate.opened.set()
        with endpoint(lambda: gate) as running:
            reply = running.query("bad")
            assert reply.status == 500
            assert reply.json == {"error": "something went wrong inside; the log has more"}
            assert running.query("good").status == 200
            assert running.ask("/health", method="GET", body=b"").status == 200
        assert "RuntimeError" in caplog.text
        assert "secret" not in caplog.text

    def test_many_clients_get_each_their_own_answer(self, fake: Endpoint) -> None:
        def ask(number: int) -> bool:
            reply = fake.query(f"word{number} and word{number + 1}")
            expected = FAKE.encode_query(f"word{number} and word{number + 1}").dense
            assert expected is not None
            return bool(reply.json["embedding"] == expected[0].tolist())

        with ThreadPoolExecutor(16) as clients:
            assert all(clients.map(ask, range(200)))

    def test_a_first_request_without_texts_proves_no_model(self) -> None:
        loaded = threading.Event()

        class Broken(FakeEmbedder):
            def _encode(self, texts: list[str], *arguments: Any, **options: Any) -> Embeddings:
                if texts:
                    raise ModelLoadError("m", "it is broken")
                return super()._encode(texts, *arguments, **options)

        def load() -> FakeEmbedder:
            assert loaded.wait(60)
            return Broken(8)

        with endpoint(load) as broken, ThreadPoolExecutor(1) as client:
            payload = {"input": {"action": "embed_batch", "texts": []}}
            empty = client.submit(broken.ask, payload=payload)
            wait_until(lambda: len(broken.worker._jobs) == 1)
            loaded.set()
            assert empty.result().json == {"embeddings": []}
            wait_until(lambda: broken.worker.error is not None)
            assert broken.ask("/health", method="GET", body=b"").status == 503

    def test_a_model_that_cannot_be_loaded_is_told(self) -> None:
        def load() -> FakeEmbedder:
            raise ModelLoadError("m", "it is broken")

        failed = threading.Event()
        with endpoint(load) as broken:
            broken.worker.on_failure = failed.set
            wait_until(lambda: broken.worker.error is not None)
            health = broken.ask("/health", method="GET", body=b"")
            assert (health.status, health.json) == (503, {"error": "the model could not be loaded"})
            assert broken.query().status == 503


class TestSettings:
    @pytest.mark.parametrize(
        ("variables", "message"),
        [
            ({}, "name the model: --model FOLDER"),
            ({"UNIFIED_EMBEDDINGS_MODEL": "bge-m3"}, "bge-m3 is not an exported model; make one"),
            ({"GPU_DEVICE": "cuda:0"}, "GPU_DEVICE='cuda:0' names a GPU, and serve-query runs on"),
            ({"UNIFIED_EMBEDDINGS_DEVICE": "mps"}, "UNIFIED_EMBEDDINGS_DEVICE='mps' names a GPU"),
            ({"UNIFIED_EMBEDDINGS_ENGINE": "torch"}, "has the engine 'onnx' only"),
            ({"UNIFIED_EMBEDDINGS_SPARSE_MODEL": "splade"}, "names a second model"),
        ],
    )
    def test_what_it_cannot_do_is_refused_at_once(
        self, variables: dict[str, str], message: str, exported: Path
    ) -> None:
        given = variables
        if variables and "UNIFIED_EMBEDDINGS_MODEL" not in variables:
            given = {"UNIFIED_EMBEDDINGS_MODEL": str(exported), **variables}
        with pytest.raises(InputError, match=message):
            query_embedder(None, given)

    @pytest.mark.parametrize("device", ["", "cpu", "auto"])
    def test_the_environment_reaches_the_model(self, exported: Path, device: str) -> None:
        variables = {
            "UNIFIED_EMBEDDINGS_MAX_LENGTH": "16",
            "QUANTIZATION": "fp32",
            "GPU_DEVICE": device,
        }
        embedder = query_embedder(str(exported), variables)()
        assert embedder.max_length == 16
        with pytest.raises(InputError, match=r"int8 was requested, but .* was exported in fp32"):
            query_embedder(str(exported), {"QUANTIZATION": "int8"})()

    @pytest.mark.parametrize(
        "values", [{"port": -1}, {"queue_size": 0}, {"request_timeout": 0}, {"drain_timeout": -1}]
    )
    def test_settings_out_of_range_are_refused(self, values: dict[str, Any]) -> None:
        with pytest.raises(InputError, match=next(iter(values))):
            QuerySettings(**values)


@pytest.fixture(scope="module")
def exported(xlmr: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from unified_embeddings.export.folder import export_onnx

    return export_onnx(xlmr, tmp_path_factory.mktemp("exported") / "onnx")


class TestProcess:
    def test_it_starts_answers_and_drains(self, exported: Path, tmp_path: Path) -> None:
        process = start("serve-query", "--model", exported, "--port", "0", cwd=tmp_path)
        try:
            running = Endpoint(port_of(process), None)  # type: ignore[arg-type]
            reply = running.query("red fox", heads=["dense", "sparse"])
            embedder = ModelEmbedder(str(exported))
            expected = embedder.encode_query("red fox")
            assert expected.dense is not None
            assert expected.sparse is not None
            assert reply.json["embedding"] == expected.dense[0].tolist()
            assert reply.json["sparse"] == expected.sparse[0].to_qdrant()
            assert running.ask("/health", method="GET", body=b"").json["runtime"] == "onnx-cpu"
            assert_drains(process, running)
        finally:
            process.kill()

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ((), "error: name the model"),
            (("--model", "nowhere"), "error: nowhere is not an exported model"),
            (("--port", "many"), "invalid int value: 'many'"),
            (("--gpu",), "unrecognized arguments: --gpu"),
            (("--request-timeout", "nan"), "request_timeout must be seconds > 0"),
            (("--api-key-file", "nowhere"), "error: the file of API keys nowhere cannot be read"),
        ],
    )
    def test_wrong_usage_is_told_without_a_traceback(
        self, arguments: tuple[str, ...], message: str, tmp_path: Path
    ) -> None:
        ended = run_to_end(*arguments, cwd=tmp_path)
        assert ended.returncode in (1, 2)
        assert message in ended.stderr
        assert "Traceback" not in ended.stderr

    def test_the_other_subcommands_parser_hands_it_over(
        self, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
    ) -> None:
        from unified_embeddings.cli import app, entry

        for begin in (app.main, entry.main):
            monkeypatch.setattr(sys, "argv", ["unified-embeddings", "serve-query", "-m", "nowhere"])
            with pytest.raises(SystemExit) as ended:
                begin()
            assert ended.value.code == 1
            assert "error: nowhere is not an exported model" in capfd.readouterr().err
            monkeypatch.setattr(sys, "argv", ["unified-embeddings", "serve-query", "--help"])
            with pytest.raises(SystemExit) as ended:
                begin()
            assert not ended.value.code
            assert "--queue-size" in capfd.readouterr().out
        monkeypatch.setattr(sys, "argv", ["unified-embeddings", "--help"])
        with pytest.raises(SystemExit):
            entry.main()
        assert "serve-query" in capfd.readouterr().out

    def test_an_answers_packets_do_not_wait_for_each_other(self) -> None:
        with listen("127.0.0.1", 0) as listener:
            with socket.create_connection(listener.getsockname()):
                accepted, _ = listener.accept()
            with accepted:
                assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)

    def test_a_port_in_use_is_told(self, exported: Path, tmp_path: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = str(taken.getsockname()[1])
            ended = run_to_end("--model", str(exported), "--port", port, cwd=tmp_path)
        assert ended.returncode == 1
        assert ended.stderr == (
            f"error: cannot listen on 127.0.0.1:{port}: Address already in use; choose another "
            "--host or --port\n"
        )

    def test_a_broken_model_ends_the_process(self, exported: Path, tmp_path: Path) -> None:
        broken = tmp_path / "broken"
        broken.mkdir()
        for path in exported.iterdir():
            (broken / path.name).write_bytes(path.read_bytes())
        (broken / "model.onnx").write_bytes(b"no graph")
        ended = run_to_end("--model", str(broken), "--port", "0", cwd=tmp_path)
        assert ended.returncode == 1
        assert "error: Cannot load model" in ended.stderr
        assert "Traceback" not in ended.stderr

    def test_variables_are_options(self, exported: Path, tmp_path: Path) -> None:
        wrong = run_to_end(cwd=tmp_path, UNIFIED_EMBEDDINGS_PORT="x")
        assert "UNIFIED_EMBEDDINGS_PORT='x' is not usable" in wrong.stderr
        variables = {"UNIFIED_EMBEDDINGS_MODEL": str(exported), "UNIFIED_EMBEDDINGS_API_KEYS": "k"}
        process = subprocess.Popen(
            [sys.executable, "-m", "unified_embeddings", "serve-query", "--port", "0"],
            cwd=tmp_path, env=environment(**variables), stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        try:
            running = Endpoint(port_of(process), None)  # type: ignore[arg-type]
            assert running.query().status == 401
            process.send_signal(signal.SIGINT)
            assert process.wait(60) == 130
        finally:
            process.kill()

    def test_a_pass_that_hangs_does_not_keep_the_process(self, tmp_path: Path) -> None:
        process = subprocess.Popen(
            [sys.executable, "-c", HANGING], cwd=tmp_path, env=environment(),
            stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        try:
            running = Endpoint(port_of(process), None)  # type: ignore[arg-type]
            running.wait_until_ready()
            connection = running.connect()
            connection.request("POST", "/query", json.dumps({"input": {"query": "hang"}}))
            assert process.stderr is not None
            while "it hangs" not in process.stderr.readline():
                assert process.poll() is None
            process.terminate()
            response = connection.getresponse()
            assert response.status == 503
            assert "shutting down" in json.loads(response.read())["error"]
            assert process.wait(60) == 0
            assert "Traceback" not in process.stderr.read()
        finally:
            process.kill()

    def test_it_serves_on_when_nobody_reads_what_it_prints(
        self, exported: Path, tmp_path: Path
    ) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        arguments = ("serve-query", "--model", exported, "--port", str(port))
        process = start(*arguments, cwd=tmp_path)
        try:
            assert process.stderr is not None
            process.stderr.close()
            running = Endpoint(port, None)  # type: ignore[arg-type]
            wait_until(lambda: is_open(port))
            assert running.query().status == 200
            assert running.query().status == 200
            process.terminate()
            assert process.wait(60) == 0
        finally:
            process.kill()

    def test_neither_torch_nor_llama_index_is_imported(self, exported: Path) -> None:
        code = (
            "import os, sys\n"
            "from unified_embeddings.cli import entry, serve_query\n"
            "from unified_embeddings.serving import query_endpoint, query_server, query_settings\n"
            "embedder = query_settings.query_embedder(sys.argv[1], {})()\n"
            "embedder.encode_query('red fox')\n"
            "import uvicorn, uvicorn.protocols.http.h11_impl\n"
            "absent = {'torch', 'transformers', 'llama_index', 'typer', 'pydantic', 'fastapi',\n"
            "          'huggingface_hub', 'httpx', 'PIL', 'qdrant_client', 'safetensors', 'onnx'}\n"
            "print(sorted(absent & set(sys.modules)))\n"
        )
        done = subprocess.run(
            [sys.executable, "-c", code, str(exported)],
            capture_output=True, text=True, check=False, env=environment(),
        )  # fmt: skip
        assert done.stdout.strip() == "[]", done.stdout + done.stderr


HANGING = """
import sys, time
from unified_embeddings.embedders.fake import FakeEmbedder
from unified_embeddings.serving.query_server import serve
from unified_embeddings.serving.query_server import listen
from unified_embeddings.serving.query_settings import QuerySettings
class Hanging(FakeEmbedder):
    def _encode(self, texts, *arguments, **options):
        if texts == ["hang"]:
            print("it hangs", file=sys.stderr, flush=True)
            time.sleep(600)
        return super()._encode(texts, *arguments, **options)
serve(lambda: Hanging(8), QuerySettings(port=0, drain_timeout=1.0))
"""


def run_to_end(*arguments: str, cwd: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "unified_embeddings", "serve-query", *arguments],
        cwd=cwd, env=environment(**variables), capture_output=True, text=True, timeout=120,
        check=False,
    )  # fmt: skip


def is_open(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False


def port_of(process: subprocess.Popen[str]) -> int:
    """Read the port from the first line that the process prints."""
    assert process.stderr is not None
    line = process.stderr.readline()
    assert line.startswith("listening on http://127.0.0.1:"), line + process.stderr.read()
    return int(line.split(":")[2].split(";")[0])


def assert_drains(process: subprocess.Popen[str], running: Endpoint) -> None:
    """SIGTERM under load: every request that was taken is answered, and the code is 0."""
    connections = [running.connect() for _ in range(8)]
    for number, connection in enumerate(connections):
        texts = [f"red fox {number} {i} " * 40 for i in range(32)]
        body = json.dumps({"input": {"action": "embed_batch", "texts": texts}})
        connection.request("POST", "/query", body)
    # Connections are taken in their order: those before this one have been.
    assert running.ask("/health", method="GET", body=b"").status == 200
    os.kill(process.pid, signal.SIGTERM)
    for connection in connections:
        response = connection.getresponse()
        assert response.status == 200
        assert len(json.loads(response.read())["embeddings"]) == 32
    assert process.wait(60) == 0
    assert process.stderr is not None
    log = process.stderr.read()
    assert "Traceback" not in log
    assert "fox" not in log


def test_an_error_of_the_package_is_told_in_words() -> None:
    class Failing(FakeEmbedder):
        def _encode(self, texts: list[str], *arguments: Any, **options: Any) -> Embeddings:
            if texts[0].startswith("warm-up"):
                return super()._encode(texts, *arguments, **options)
            raise UnifiedEmbeddingsError("the weights are gone")

    with endpoint(lambda: Failing(8)) as failing:
        failing.wait_until_ready()
        reply = failing.query()
    assert (reply.status, reply.json) == (500, {"error": "the weights are gone"})
