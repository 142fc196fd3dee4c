"""Compare our service with a naive one of the same engine, and with the engine itself.

    python benchmarks/serving.py                          30 s for each of 1, 8, 64, 512 clients
    python benchmarks/serving.py --peer other=127.0.0.1:7997/v1/embeddings
                                                          a running service of the same model, too
    python benchmarks/serving.py --soak 100000            only the memory over so many requests

Every request holds one text, a title with its abstract, a passage or a question. The caches are
off. What is measured:

1. The engine: the same texts in batches in a process without HTTP, before and after the services.
2. Each service under load: texts per second, latency, and the statuses that came.
3. A lone query, against the engine's own time for a query.
4. Over the limit: how long a refusal takes while the queue is full.

The program prints tables and writes `serving.json` into --out. What cannot run here is a row with
the reason.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import os
import random
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psutil

import machine
from load import Job
from report import Results, number, percentile, table
from unified_embeddings import UnifiedEmbeddingConfig

_HERE = Path(__file__).parent
_DATA = machine.ROOT.parent / "shared" / "data"
_COMMAND = Path(sys.executable).with_name("unified-embeddings")
_LIBRARIES = ("unified-embeddings", "fastapi", "uvicorn", "uvloop", "torch", "onnxruntime")
_SEED = 11
_START_SECONDS = 120
_BATCH = 64
"""Texts of one call of the engine."""
_MIXED_SIZES = (*[1] * 18, 4, 32)
"""Texts of a request in the soak."""
_REPORTS = 20
"""How often the soak looks at the memory."""
_FULL_QUEUE = 4096
"""Tokens that may wait where refusals are measured."""


@dataclass(frozen=True)
class Target:
    """A service that is measured.

    Attributes:
        label: What it is.
        job: How it is asked.
        process: Its process, None for one that was running already.
    """

    label: str
    job: Job
    process: psutil.Process | None


def main(arguments: Sequence[str]) -> None:
    """Measure, print and write."""
    options = _parse(arguments)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    with tempfile.TemporaryDirectory() as folder:
        texts, queries = read_texts(options.data)
        texts_file, queries_file = Path(folder) / "texts.json", Path(folder) / "queries.json"
        texts_file.write_text(json.dumps(texts), "utf-8")
        queries_file.write_text(json.dumps(queries), "utf-8")
        if options.soak:
            results = _soak(options, texts_file, Path(folder))
            print(_soak_table(results))
        else:
            results = _compare(options, texts_file, queries_file, Path(folder))
            print(_tables(results))
    results["about"] = machine.about(
        "serving.py", arguments, _LIBRARIES, os.cpu_count() or 1, weights=options.model
    )
    options.out.mkdir(parents=True, exist_ok=True)
    name = "serving_soak.json" if options.soak else "serving.json"
    (options.out / name).write_text(json.dumps(results, indent=2) + "\n", "utf-8")


def read_texts(folder: Path) -> tuple[list[str], list[str]]:
    """Return the texts and the queries of a folder's corpora, each once, in one random order."""
    documents: dict[str, None] = {}
    queries: dict[str, None] = {}
    for name, texts in (("corpus", documents), ("queries", queries)):
        for file in sorted(folder.glob(f"**/{name}.jsonl")):
            if file.parent.name in ("ar", "de", "zh"):
                continue
            for line in file.read_text("utf-8").splitlines():
                row = json.loads(line)
                texts[f"{row.get('title', '')} {row['text']}".strip()] = None
    if not documents or not queries:
        raise SystemExit(f"{folder} has no corpus.jsonl and queries.jsonl; name another --data")
    mixed, questions = [*documents, *queries], list(queries)
    # Shuffled, so that whatever part of them is measured has the same lengths.
    random.Random(_SEED).shuffle(mixed)
    random.Random(_SEED).shuffle(questions)
    return mixed, questions


# --- what is measured -----------------------------------------------------------------------------


def _compare(options: Any, texts: Path, queries: Path, folder: Path) -> Results:
    embedder = UnifiedEmbeddingConfig(options.model, cache=None).embedder
    bare = [_measure_engine(embedder, json.loads(texts.read_text("utf-8")), options.seconds)]
    lone = _measure_lone(embedder, json.loads(queries.read_text("utf-8")), options.seconds / 3)
    rows: list[Results] = []
    lone_rows = [{"label": "engine", **lone}]
    for target in _targets(options, folder):
        if isinstance(target, str):
            rows.append({"label": target.split(":")[0], "reason": target})
            continue
        for clients in options.clients:
            job = replace(target.job, texts=str(texts), clients=clients, seconds=options.seconds)
            rows.append({"label": target.label, "clients": clients, **_run_load(job, folder)})
            print(_row_line(rows[-1]), file=sys.stderr, flush=True)
        job = replace(target.job, texts=str(queries), clients=1, seconds=options.seconds / 3)
        latency = _run_load(job, folder)["status"]["200"]
        lone_rows.append({"label": target.label, "p50": latency["p50"], "p99": latency["p99"]})
    bare.append(_measure_engine(embedder, json.loads(texts.read_text("utf-8")), options.seconds))
    return {
        "engine_texts_per_second": bare,
        "rows": rows,
        "lone": lone_rows,
        "overload": _overload(options, texts, folder),
    }


def _measure_engine(embedder: Any, texts: list[str], seconds: float) -> float:
    """Return the texts per second of the engine alone, in batches."""
    started, done = time.perf_counter(), 0
    while time.perf_counter() - started < seconds:
        begin = done % len(texts)
        batch = texts[begin : begin + _BATCH]
        embedder.encode_documents(batch, sparse=False)
        done += len(batch)
    return done / (time.perf_counter() - started)


def _measure_lone(embedder: Any, queries: list[str], seconds: float) -> dict[str, float]:
    """Return the engine's own time for one query after the other."""
    latencies: list[float] = []
    started = time.perf_counter()
    while time.perf_counter() - started < seconds:
        begun = time.perf_counter()
        embedder.encode([queries[len(latencies) % len(queries)]], role="document", heads=("dense",))
        latencies.append(time.perf_counter() - begun)
    return {"p50": percentile(latencies, 50), "p99": percentile(latencies, 99)}


def _overload(options: Any, texts: Path, folder: Path) -> Results:
    """Return how long a refusal takes while large requests keep the queue full."""
    with _ours(options, folder, "--max-waiting-tokens", str(_FULL_QUEUE)) as target:
        flood = replace(
            target.job, texts=str(texts), clients=64, sizes=(16,), seconds=options.seconds / 3
        )
        return _run_load(flood, folder)


def _soak(options: Any, texts: Path, folder: Path) -> Results:
    """Return the resident bytes over many requests of mixed sizes."""
    memory: list[tuple[int, int]] = []
    with _ours(options, folder) as target:
        assert target.process is not None
        memory.append((0, target.process.memory_info().rss))
        job = replace(
            target.job,
            texts=str(texts),
            clients=32,
            requests=options.soak,
            sizes=_MIXED_SIZES,
            report_every=max(1, options.soak // _REPORTS),
        )
        with _start_load(job, folder) as process:
            assert process.stdout is not None
            for line in process.stdout:
                answer = json.loads(line)
                if "answered" not in answer:
                    return {"memory": memory, **answer}
                memory.append((answer["answered"], target.process.memory_info().rss))
                print(f"{memory[-1][0]:,} requests, {memory[-1][1] / 1e6:,.1f} MB", flush=True)
    raise SystemExit("the load ended without a result")


# --- processes ------------------------------------------------------------------------------------


def _run_load(job: Job, folder: Path) -> Results:
    with _start_load(job, folder) as process:
        output, _ = process.communicate()
    if process.returncode:
        raise SystemExit(f"load.py ended with {process.returncode}")
    result: Results = json.loads(output.splitlines()[-1])
    return result


def _start_load(job: Job, folder: Path) -> subprocess.Popen[str]:
    file = folder / "job.json"
    job.write(file)
    command = [sys.executable, str(_HERE / "load.py"), str(file)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def _targets(options: Any, folder: Path) -> Iterator[Target | str]:
    """Yield each service while it runs, or why it cannot."""
    with _ours(options, folder) as target:
        yield target
    with _naive(options, folder) as target:
        yield target
    if importlib.util.find_spec("infinity_emb") is None:
        yield "infinity: not installed; start it elsewhere and name it with --peer"
    for peer in options.peer:
        label, _, address = peer.partition("=")
        host, _, path = address.partition("/")
        name, _, port = host.partition(":")
        key = "input" if path.endswith("embeddings") else "inputs"
        yield Target(label, Job(name, int(port), f"/{path}", key, "", 1), None)


@contextlib.contextmanager
def _ours(options: Any, folder: Path, *further: str) -> Iterator[Target]:
    port = _free_port()
    command = [str(_COMMAND), "serve", "--model", options.model, "--port", str(port), *further]
    with _running("unified-embeddings", command, port, folder) as target:
        yield target


@contextlib.contextmanager
def _naive(options: Any, folder: Path) -> Iterator[Target]:
    port = _free_port()
    command = [sys.executable, str(_HERE / "naive_service.py"), options.model, str(port)]
    with _running("naive FastAPI", command, port, folder) as target:
        yield target


@contextlib.contextmanager
def _running(label: str, command: list[str], port: int, folder: Path) -> Iterator[Target]:
    environment = os.environ | {"UNIFIED_EMBEDDINGS_CACHE_BYTES": "0"}
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        try:
            _wait_until_ready(process, port, folder / "log")
            job = Job("127.0.0.1", port, "/embed", "inputs", "", 1)
            yield Target(label, job, psutil.Process(process.pid))
        finally:
            process.terminate()
            process.wait()


def _wait_until_ready(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    started = time.perf_counter()
    while process.poll() is None and time.perf_counter() - started < _START_SECONDS:
        address = f"http://127.0.0.1:{port}/ready"
        with contextlib.suppress(OSError), urllib.request.urlopen(address, timeout=5):
            return
        time.sleep(0.1)
    raise SystemExit(f"a service did not start:\n{log.read_text('utf-8')[-2000:]}")


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


# --- what is shown --------------------------------------------------------------------------------


def _tables(results: Results) -> str:
    engine = sum(results["engine_texts_per_second"]) / len(results["engine_texts_per_second"])
    lines = []
    for row in results["rows"]:
        if "reason" in row:
            lines.append((row["label"], "-", "-", "-", "-", "-", row["reason"]))
            continue
        good = row["status"].get("200", {})
        others = {name: each["count"] for name, each in row["status"].items() if name != "200"}
        lines.append(
            (
                row["label"],
                str(row["clients"]),
                number(row["texts_per_second"]),
                number(100 * row["texts_per_second"] / engine),
                _milliseconds(good.get("p50")),
                _milliseconds(good.get("p99")),
                ", ".join(f"{count} x {name}" for name, count in others.items()) or "none",
            )
        )
    head = ("service", "clients", "texts/s", "% of engine", "p50, ms", "p99, ms", "other statuses")
    lone = [
        (row["label"], _milliseconds(row["p50"]), _milliseconds(row["p99"]))
        for row in results["lone"]
    ]
    refused = results["overload"]["status"].get("429")
    refusals = "no request was refused"
    if refused is not None:
        refusals = (
            f"{refused['count']} refusals: p50 {_milliseconds(refused['p50'])} ms, "
            f"p99 {_milliseconds(refused['p99'])} ms, max {_milliseconds(refused['max'])} ms"
        )
    return "\n\n".join(
        (
            f"The engine alone, in batches: {number(engine)} texts/s",
            table(head, lines),
            "A lone query:",
            table(("", "p50, ms", "p99, ms"), lone),
            f"With the queue full: {refusals}",
        )
    )


def _row_line(row: Results) -> str:
    return f"{row['label']}, {row['clients']} clients: {row['texts_per_second']:,.0f} texts/s"


def _milliseconds(seconds: float | None) -> str:
    return number(None if seconds is None else 1000 * seconds, 2)


def _soak_table(results: Results) -> str:
    rows = [(f"{count:,}", number(size / 1e6, 1)) for count, size in results["memory"]]
    return table(("requests", "resident, MB"), rows)


def _parse(arguments: Sequence[str]) -> Any:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="mini-m3", help="a name, hub id or folder")
    parser.add_argument("--seconds", type=float, default=30.0, help="of each measurement")
    parser.add_argument("--clients", type=_read_numbers, default=[1, 8, 64, 512])
    parser.add_argument("--data", type=Path, default=_DATA, help="folder with corpora")
    parser.add_argument("--peer", action="append", default=[], help="NAME=HOST:PORT/PATH")
    parser.add_argument("--soak", type=int, help="only this: so many requests of mixed sizes")
    parser.add_argument("--out", type=Path, default=machine.ROOT / "docs" / "benchmarks")
    return parser.parse_args(arguments)


def _read_numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


if __name__ == "__main__":
    main(sys.argv[1:])
