"""The benchmark's load: it counts what it sent, and every request is another text."""

from __future__ import annotations

import asyncio
import itertools
import json
from pathlib import Path
from typing import Any

import pytest
from gated import PATIENCE
from running import running

import serving
from load import Job, make_requests, run


@pytest.fixture
def job(tmp_path: Path) -> Job:
    texts = tmp_path / "texts.json"
    texts.write_text(json.dumps([f"text {number}" for number in range(50)]))
    return Job("127.0.0.1", 0, "/embed", "inputs", str(texts), 4, requests=40)


def with_port(job: Job, port: int, **changes: Any) -> Job:
    return Job(**{**vars(job), "port": port, **changes})


async def test_it_sends_so_many_requests_and_counts_their_texts(
    job: Job, capsys: pytest.CaptureFixture[str]
) -> None:
    async with running() as service:
        sizes = with_port(job, service.port, sizes=(2,), report_every=10)
        result = await asyncio.wait_for(run(sizes), PATIENCE)
        text = (await service.get("/metrics")).body.decode()
    assert result["status"]["200"]["count"] == 40
    assert result["texts_per_second"] * result["seconds"] == pytest.approx(80)
    assert 'route="/embed",status="200"} 40.0' in text
    told = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["answered"] for line in told] == [10, 20, 30, 40]


async def test_it_tells_refusals_and_broken_connections_apart(job: Job) -> None:
    async with running(max_body_bytes=5) as service:
        result = await asyncio.wait_for(run(with_port(job, service.port)), PATIENCE)
    # A refused body closes its connection, so that each of the four asks once.
    assert result["status"]["413"]["count"] == 4
    assert result["texts_per_second"] == 0


def test_requests_hold_different_texts_in_the_same_order_each_time(job: Job) -> None:
    texts = json.loads(Path(job.texts).read_text())
    first = [content for content, _ in itertools.islice(make_requests(job, texts), 50)]
    again = [content for content, _ in itertools.islice(make_requests(job, texts), 50)]
    assert first == again
    bodies = [json.loads(content.partition(b"\r\n\r\n")[2])["inputs"] for content in first]
    assert sorted(text for body in bodies for text in body) == sorted(texts)


def test_the_tables_show_what_was_measured() -> None:
    status = {"count": 7, "p50": 0.002, "p99": 0.004, "max": 0.0041}
    results = {
        "engine_texts_per_second": [90.0, 110.0],
        "rows": [
            {"label": "a", "clients": 8, "texts_per_second": 95.0, "status": {"200": status}},
            {"label": "b", "reason": "b: not installed"},
        ],
        "lone": [{"label": "engine", "p50": 0.001, "p99": 0.002}],
        "overload": {"status": {"200": status, "429": status}},
    }
    shown = serving._tables(results)
    assert "in batches: 100 texts/s" in shown
    assert " ".join(shown.replace("|", "").split()).count("a 8 95 95 2.00 4.00 none") == 1
    assert "b: not installed" in shown
    assert "7 refusals: p50 2.00 ms, p99 4.00 ms, max 4.10 ms" in shown
