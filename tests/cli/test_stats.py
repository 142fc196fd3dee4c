"""`stats`: of a running service, of a collection, and the dashboard."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from llama_index.core.schema import TextNode

from embedding_service import running, status
from qdrant_server import running_server
from running_service import RunningService
from unified_embeddings.cli import app as cli
from unified_embeddings.cli.service_stats import summarise
from unified_embeddings.cli.shared import format_bytes
from unified_embeddings.embedders.fake import FakeEmbedder
from unified_embeddings.llama.text import UnifiedTextEmbedding
from unified_embeddings.llama.vector_store import build_vector_store
from unified_embeddings.monitoring.dashboard import build_dashboard
from unified_embeddings.monitoring.reading import read_metrics
from unified_embeddings.stores.opening import open_folder

Run = Callable[..., tuple[int, str, str]]


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
        return int(ended.value.code or 0), out, err

    return run_command


def fill(client: Any, name: str, count: int, model: str = "fake") -> None:
    embedder = FakeEmbedder(8, model_name=model)
    store = build_vector_store(embedder, name, client=client)
    nodes = [TextNode(text=f"text {number}") for number in range(count)]
    store.add(UnifiedTextEmbedding(embedder)(nodes))


class TestCollections:
    def test_a_store_is_a_table_of_its_collections(self, run: Run) -> None:
        with open_folder("qdrant_data") as client:
            fill(client, "animals", 1)
            fill(client, "plants", 1234, "other[bold]")
        code, out, _ = run("stats")
        assert code == 0
        heading, first, second = (line.split() for line in out.splitlines())
        assert heading == [
            "collection", "points", "documents", "indexed", "bytes", "vectors", "model",
        ]  # fmt: skip
        assert (first[0], first[1]) == ("animals", "1")
        assert (second[0], second[1]) == ("plants", "1,234")
        assert second[-4:] == ["8", "+", "sparse", "other[bold]"]
        assert first[5] in ("kB", "MB")

    def test_one_collection_is_a_list_of_facts(self, run: Run) -> None:
        with open_folder("elsewhere") as client:
            fill(client, "animals", 2)
        code, out, _ = run("stats", "--path", "elsewhere", "-c", "animals")
        assert code == 0
        facts = dict(line.split(maxsplit=1) for line in out.splitlines())
        assert facts["points"] == "2"
        assert facts["model"] == "fake"
        assert facts["fingerprint"] == FakeEmbedder(8).fingerprint
        assert facts["dense"] == "text-dense (8)"

    def test_json_has_the_same_of_a_server(self, run: Run) -> None:
        with running_server() as (url, client):
            fill(client, "animals", 3)
            code, out, _ = run("stats", "--url", url, "--json")
        assert code == 0
        (size,) = json.loads(out)
        assert size["points"] == 3
        assert size["bytes"] is None
        assert size["dense"] == {"text-dense": 8}

    def test_a_store_that_is_empty_or_missing_says_so(self, run: Run) -> None:
        open_folder("qdrant_data").close()
        assert run("stats")[1] == "the store has no collections\n"
        code, _, err = run("stats", "--path", "none")
        assert code == 1
        assert "there is no such folder" in err
        code, _, err = run("stats", "-c", "none")
        assert code == 1
        assert "existing collections: none" in err


class TestService:
    def test_what_it_has_done(self, service: RunningService, run: Run) -> None:
        import httpx

        for _ in range(2):
            assert httpx.post(f"{service.url}/embed", json={"inputs": "foxes"}).status_code == 200
        httpx.post(f"{service.url}/embed", json={"inputs": 5})
        code, out, _ = run("stats", service.url, "--json")
        assert code == 0
        facts = json.loads(out)
        assert facts["model"] == "mini-m3"
        assert (facts["workers"], facts["workers_ready"]) == (1, 1)
        assert facts["requests"] >= 3
        assert facts["requests_refused_or_failed"] >= 1
        assert facts["texts"] >= 2
        assert 0 < facts["batch_fill"] <= 1
        assert 0 < facts["cache_found"] < 1
        assert facts["request_seconds_median"] > 0
        assert facts["forward_seconds_median"] > 0
        assert facts["process_resident_bytes"] > 10_000_000
        assert facts["gpu_memory_used_bytes"] is None
        code, out, _ = run("stats", service.url)
        assert code == 0
        lines = dict(line.split("  ", 1) for line in out.splitlines())
        assert lines["model"].strip() == "mini-m3"
        assert lines["process resident bytes"].strip().endswith("B")
        assert lines["batch fill"].strip().endswith("%")
        assert lines["request seconds median"].strip().endswith("ms")

    def test_a_service_with_a_key_wants_it(self, guarded_service: RunningService, run: Run) -> None:
        code, _, err = run("stats", guarded_service.url)
        assert code == 1
        assert "UNIFIED_EMBEDDINGS_API_KEY" in err
        code, _, err = run("stats", guarded_service.url, "--api-key", "first-key")
        assert (code, err) == (0, "")

    def test_no_service_another_server_or_a_wrong_address_is_an_error(self, run: Run) -> None:
        code, _, err = run("stats", "http://127.0.0.1:9")
        assert code == 1
        assert "Is the service running?" in err
        with running(FakeEmbedder()) as other:
            code, _, err = run("stats", other.url)
            assert code == 1
            assert "holds no metrics of unified-embeddings" in err
            other.script = [status(200, "<html>")]
            code, _, err = run("stats", other.url)
            assert code == 1
            assert "not in Prometheus's text format: '<html>'" in err
            assert "unified-embeddings serve" in err
        code, _, err = run("stats", "nonsense")
        assert code == 1
        assert "http" in err
        code, _, err = run("stats", "http://127.0.0.1:9", "-c", "animals")
        assert code == 1
        assert "not both" in err


def test_the_numbers_of_several_workers_are_added_up() -> None:
    """By hand: 4 requests that do work, of which one failed, in buckets up to 0.1 s and 0.5 s."""
    lines = [
        'ready{worker="0"} 1',
        'ready{worker="1"} 0',
        'requests_total{route="/embed",status="200",worker="0"} 3',
        'requests_total{route="/embed",status="422",worker="1"} 1',
        'requests_total{route="/metrics",status="200",worker="1"} 90',
        'requests_total{route="/ready",status="503",worker="1"} 5',
        'request_seconds_bucket{route="/embed",le="0.1",worker="0"} 3',
        'request_seconds_bucket{route="/embed",le="0.1",worker="1"} 0',
        'request_seconds_bucket{route="/embed",le="0.5",worker="1"} 1',
        'request_seconds_bucket{route="/embed",le="0.5",worker="0"} 3',
        'request_seconds_bucket{route="/embed",le="+Inf",worker="0"} 3',
        'request_seconds_bucket{route="/embed",le="+Inf",worker="1"} 1',
        'request_seconds_bucket{route="/metrics",le="0.1",worker="1"} 90',
        'tokens_total{worker="0"} 300',
        'batch_capacity_tokens_total{worker="0"} 400',
        'cache_hits_total{worker="0"} 3',
        'cache_misses_total{worker="1"} 1',
    ]
    facts = summarise(read_metrics("\n".join(f"unified_embeddings_{line}" for line in lines)))
    assert (facts["workers"], facts["workers_ready"]) == (2, 1)
    assert (facts["requests"], facts["requests_refused_or_failed"]) == (4, 1)
    assert facts["request_seconds_median"] == pytest.approx(0.1 * 2 / 3)
    assert facts["request_seconds_p95"] == pytest.approx(0.1 + 0.4 * 0.8)
    assert facts["batch_fill"] == 0.75
    assert facts["cache_found"] == 0.75
    assert facts["texts"] is None


def test_the_dashboard_is_printed_as_json(run: Run) -> None:
    code, out, _ = run("stats", "--dashboard")
    assert code == 0
    assert json.loads(out) == build_dashboard()


@pytest.mark.parametrize(
    ("count", "shown"),
    [(0, "0 B"), (999, "999 B"), (1000, "1 kB"), (999_600, "1 MB"), (1_234_567_890, "1.23 GB")],
)
def test_bytes_in_decimal_units(count: int, shown: str) -> None:
    assert format_bytes(count) == shown


def test_what_a_worker_cannot_measure_is_not_known() -> None:
    metrics = read_metrics(
        "unified_embeddings_ready 1\nunified_embeddings_process_resident_bytes NaN"
    )
    assert summarise(metrics)["process_resident_bytes"] is None


def test_the_dashboard_is_of_no_service(run: Run) -> None:
    code, out, err = run("stats", "--dashboard", "http://127.0.0.1:8000")
    assert (code, out) == (1, "")
    assert "--dashboard is the same for every service and store; give none" in err
