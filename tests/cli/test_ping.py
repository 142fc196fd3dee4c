"""The commands over a running service: `ping`, and `index` and `search` without a model here."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from embedding_service import Service, encode64, running, status
from unified_embeddings.cli import app as cli
from unified_embeddings.embedders.fake import FakeEmbedder

KEY = "s3cret-key"
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def shared_service() -> Iterator[Service]:
    with running(FakeEmbedder()) as running_service:
        yield running_service


@pytest.fixture
def service(shared_service: Service) -> Service:
    shared_service.reset(FakeEmbedder(16))
    return shared_service


@pytest.fixture
def run(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run the command in this process; return its exit code and what it printed."""
    monkeypatch.chdir(tmp_path)

    def run_command(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["unified-embeddings", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        out, err = capsys.readouterr()
        assert "Traceback" not in out + err
        assert KEY not in out + err
        return int(ended.value.code or 0), out, err

    return run_command


REQUESTS = {
    "GET /health", "GET /ready", "GET /info", "GET /metrics", "GET /v1/models", "GET /api/tags",
    "GET /api/version", "POST /tokenize", "POST /v1/m3", "POST /embed", "POST /v1/embeddings",
    "POST /api/embed", "POST /api/embeddings", "POST /query", "POST /embed_sparse",
    "POST /embed_all", "POST /rerank", "POST /v1/rerank",
}  # fmt: skip


class TestPing:
    def test_a_service_in_order(self, service: Service, run: Run) -> None:
        code, out, err = run("ping", service.url)
        assert (code, err) == (0, "")
        lines = out.splitlines()
        assert lines[0].startswith("fake: dense, sparse, colbert; 16 numbers; ")
        assert lines[1].split() == ["contract", "request", "status", "ms", "answer"]
        assert max(map(len, lines)) < 80
        assert lines[-1] == "20 of 20 contracts answer as they should"
        for request in REQUESTS:
            assert any(request in line and " 200 " in line for line in lines), request
        assert sum("16 numbers, the same" in line for line in lines) == 7

    def test_as_json(self, service: Service, run: Run) -> None:
        code, out, _ = run("ping", service.url, "--json")
        assert code == 0
        report = json.loads(out)
        assert report["ok"] is True
        assert {row["request"] for row in report["results"]} == REQUESTS
        for row in report["results"]:
            assert row["ok"] is True
            assert row["status"] == 200
            assert row["milliseconds"] > 0

    @pytest.mark.parametrize(
        ("path", "spoil", "problem"),
        [
            ("/v1/embeddings", lambda d: d["data"][0]["embedding"].reverse(), "differs from the"),
            ("/api/embed", lambda d: d["embeddings"][0].pop(), "dense of 16 numbers"),
            ("/embed_sparse", lambda d: d[0][0].update(value=9.0), "differs from the vector"),
            ("/embed_sparse", lambda d: d[0].pop(), "its tokens are not those of /v1/m3"),
            ("/embed_all", lambda d: d.pop(), "expected 0 in []"),
            ("/rerank", lambda d: d.reverse(), "own text is not ranked before another"),
            ("/v1/rerank", lambda d: d.pop("results"), "expected 'results'"),
            ("/v1/m3", lambda d: d["results"].clear(), "expected results of 1 texts"),
            ("/v1/models", lambda d: d["data"].clear(), "it lists no model"),
            ("/tokenize", lambda d: d[0].clear(), "expected tokens with ids"),
            ("/query", lambda d: d.clear(), "expected 'embeddings'"),
        ],
    )
    def test_an_answer_that_differs(
        self, service: Service, run: Run, path: str, spoil: Callable[[Any], Any], problem: str
    ) -> None:
        def change(asked: str, data: Any) -> None:
            if asked == path:
                spoil(data)

        service.change = change
        code, out, _ = run("ping", service.url, "--json")
        assert code == 1
        report = json.loads(out)
        assert report["ok"] is False
        failed = {row["request"]: row["note"] for row in report["results"] if not row["ok"]}
        assert problem in failed[f"POST {path}" if path != "/v1/models" else f"GET {path}"]

    def test_a_difference_of_a_millionth_is_one(self, service: Service, run: Run) -> None:
        def change(path: str, data: Any) -> None:
            if path == "/api/embeddings":
                data["embedding"][3] += differences[-1]

        differences = [2e-6]
        service.change = change
        assert run("ping", service.url)[0] == 1
        differences.append(5e-7)
        assert run("ping", service.url)[0] == 0

    def test_vectors_of_both_roles_are_right(self, service: Service, run: Run) -> None:
        """A model with prefixes has two vectors of a text, and a contract gives one of them."""
        as_query = FakeEmbedder(16, model_name="prefixed").encode_query("as a query").dense
        assert as_query is not None

        def change(path: str, data: Any) -> None:
            if path == "/v1/m3" and not service.bodies(path)[-1]["isPassage"]:
                data["results"][0]["dense"] = encode64(as_query[0])
            if path == "/query" and "embedding" in data:
                data["embedding"] = as_query[0].tolist()

        service.change = change
        assert run("ping", service.url)[0] == 0

    def test_a_contract_that_fails(self, service: Service, run: Run) -> None:
        def change(path: str, data: Any) -> None:
            if path == "/rerank":
                raise RuntimeError

        service.change = change
        code, out, _ = run("ping", service.url)
        assert code == 1
        (line,) = [line for line in out.splitlines() if "FAILED" in line]
        assert "POST /rerank" in line
        assert "500" in line
        assert out.splitlines()[-1] == "19 of 20 contracts answer as they should"

    def test_only_what_the_model_gives_is_tried(self, service: Service, run: Run) -> None:
        service.embedder = FakeEmbedder(16, heads=("dense",))
        code, out, _ = run("ping", service.url, "--json")
        assert code == 0
        requests = {row["request"] for row in json.loads(out)["results"]}
        assert REQUESTS - requests == {
            "POST /embed_sparse", "POST /embed_all", "POST /rerank", "POST /v1/rerank"
        }  # fmt: skip

    def test_the_key(self, service: Service, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
        service.api_key = KEY
        code, _, err = run("ping", service.url)
        assert code == 1
        assert "status 401" in err
        assert "UNIFIED_EMBEDDINGS_API_KEY or --api-key" in err
        monkeypatch.setenv("UNIFIED_EMBEDDINGS_API_KEY", KEY)
        assert run("ping", service.url)[0] == 0
        monkeypatch.delenv("UNIFIED_EMBEDDINGS_API_KEY")
        assert run("ping", service.url, "--api-key", KEY)[0] == 0

    def test_no_service(self, service: Service, run: Run) -> None:
        code, out, err = run("ping", "http://127.0.0.1:1")
        assert (code, out) == (1, "")
        assert "GET /info failed" in err
        assert "Is the service running?" in err
        code, _, err = run("ping", "127.0.0.1:8000")
        assert code == 1
        assert "must begin with http://" in err
        service.script = [status(200, {"model_id": "tei"})]
        code, _, err = run("ping", service.url)
        assert code == 1
        assert "another kind of service" in err
        service.script = [status(503, {"error": "the model is being loaded"})]
        code, _, err = run("ping", service.url)
        assert code == 1
        assert "the model is being loaded" in err
        assert "Try again once it is ready" in err


class TestIndexAndSearch:
    def test_with_the_model_elsewhere(
        self, service: Service, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        service.api_key = KEY
        monkeypatch.setenv("UNIFIED_EMBEDDINGS_API_KEY", KEY)
        files = tmp_path / "files"
        files.mkdir()
        (files / "fox.txt").write_text("Foxes jump over lazy dogs.")
        (files / "sea.txt").write_text("The sea is calm tonight.")
        (files / "table.csv").write_text("animal,sound\n" + "fox,yip\ncow,moo\n" * 300)
        code, out, err = run("index", files, "--model-url", service.url)
        assert (code, err) == (0, "")
        assert "3 files indexed" in out
        assert len(service.bodies("/tokenize")) < 40  # of 600 rows: they go together
        monkeypatch.setenv("UNIFIED_EMBEDDINGS_URL", service.url)
        code, out, _ = run("search", "Which foxes jump?", "--json", "-k", "1")
        assert code == 0
        (found,) = json.loads(out)
        assert found["text"] == "Foxes jump over lazy dogs."
        assert {path for path, _ in service.asked} == {"/info", "/tokenize", "/v1/m3"}

    def test_another_model_is_refused(
        self, service: Service, run: Run, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        Path("fox.txt").write_text("Foxes jump.")
        monkeypatch.setenv("UNIFIED_EMBEDDINGS_URL", service.url)
        assert run("index", "fox.txt")[0] == 0
        code, _, err = run("search", "fox", "-m", "bge-m3")
        assert code == 1
        assert "'bge-m3'" in err
        assert "has 'fake'" in err
        service.embedder = FakeEmbedder(16, model_name="other")
        code, _, err = run("search", "fox")
        assert code == 1
        assert "was made with 'fake'" in err

    def test_doctor_says_where_the_model_is(
        self, service: Service, run: Run, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("UNIFIED_EMBEDDINGS_URL", service.url)
        code, out, _ = run("doctor", "--json")
        assert code == 0
        assert json.loads(out)["Chosen"] == {
            "service": service.url,
            "model": "fake",
            "vectors": "dense, sparse, colbert",
        }
        service.script = [status(404)]
        code, out, _ = run("doctor", "--json")
        assert code == 0
        assert "no such path" in json.loads(out)["Chosen"]["problem"]
