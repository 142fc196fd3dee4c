"""The light endpoint with full-size weights: how soon it answers, and the memory it takes.

    python benchmarks/light_endpoint.py [--starts 9] [--precision int8] [--python PATH]

Each start is a new process of `unified-embeddings serve-query` over a random full-size BGE-M3,
exported once; the page cache is warm. A client connects as soon as the port is open and sends one
query. In turn with it starts its peer: the same engine behind a plain FastAPI application that
imports, loads and then listens. `--python` names the interpreter of another environment, such as
one made of requirements/query.txt; FastAPI is then left out if it is not there. Printed are medians
and ranges; CPU seconds are those of the process until its first answer. The program fails if the
light endpoint takes more than 1.5 s in int8.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Literal

import psutil

import full_size

_LIMIT = 1.5
_LATER = 20
_QUERY = "abc def ghi jkl mno pqr stu vwx yza bcd efg hij klm nop"
"""Fourteen words of the random model's vocabulary: 16 tokens."""
_PLAIN = """\
import sys
from fastapi import FastAPI
import uvicorn
from unified_embeddings.embedders.factory import make_embedder
embedder = make_embedder(sys.argv[1], engine="onnx", cache=None)
embedder.encode_query("warm-up", sparse=False)
app = FastAPI()
@app.post("/query")
def query(body: dict) -> dict:
    vectors = embedder.encode_query(body["input"]["query"], sparse=False)
    return {"embedding": vectors.dense[0].tolist()}
uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[2]), log_level="error")
"""


def main() -> None:
    """Export the model if needed, start both in turn, and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    temporary = Path(tempfile.gettempdir())
    parser.add_argument("--starts", type=int, default=9)
    parser.add_argument("--precision", default="int8", choices=["int8", "fp32"])
    parser.add_argument("--python", type=Path, default=Path(sys.executable))
    parser.add_argument("--models", type=Path, default=temporary / "unified-embeddings-full-size")
    options = parser.parse_args()
    folder = _export(options.models, options.precision)
    commands: dict[str, list[str | Path]] = {
        "serve-query": ["-m", "unified_embeddings", "serve-query", "--model", folder, "--port"],
        "plain FastAPI": ["-c", _PLAIN, folder],
    }
    has_fastapi = subprocess.run(
        [options.python, "-c", "import fastapi"], capture_output=True, check=False
    )
    if has_fastapi.returncode:
        del commands["plain FastAPI"]
    rows: dict[str, list[dict[str, float]]] = {name: [] for name in commands}
    for turn in range(options.starts + 1):
        for name, command in commands.items():
            figures = _start([options.python, *command])
            if turn:  # the first only warms the page cache
                rows[name].append(figures)
    for name, starts in rows.items():
        print(f"{name}, {options.precision}, {options.starts} starts")
        for figure in starts[0]:
            _print_figure(figure, [start[figure] for start in starts])
    medians = {name: _median(starts, "first answer, s") for name, starts in rows.items()}
    if "plain FastAPI" in medians:
        ratio = medians["plain FastAPI"] / medians["serve-query"]
        print(f"serve-query answers {ratio:.2f} times as soon")
    if options.precision == "int8" and medians["serve-query"] > _LIMIT:
        sys.exit(f"expected the first answer within {_LIMIT} s")


def _export(models: Path, precision: Literal["int8", "fp32"]) -> Path:
    """Return the full-size model's export, which is written if it is not there."""
    from unified_embeddings.export.folder import export_onnx

    folder = models.with_name(f"{models.name}-{precision}")
    if not (folder / "export.json").is_file():
        export_onnx(str(full_size.make(models)), folder, precision=precision)
    return folder


def _start(command: list[str | Path]) -> dict[str, float]:
    """Return the figures of one start."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    began = time.monotonic()
    process = subprocess.Popen([*command, str(port)], stderr=subprocess.DEVNULL)
    try:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        connection.sock = _connect(port, process)
        opened = time.monotonic()
        _ask(connection, _QUERY)
        answered = time.monotonic()
        child = psutil.Process(process.pid)
        times, memory = child.cpu_times(), child.memory_info()
        later = [_ask(connection, f"{_QUERY[:-3]} {chr(97 + i) * 3}") for i in range(_LATER)]
    finally:
        process.terminate()
        process.wait(60)
    return {
        "port open, s": opened - began,
        "first answer, s": answered - began,
        "CPU until then, s": times.user + times.system,
        "later query, ms": 1000 * statistics.median(later),
        "resident after the first answer, MB": memory.rss / 1e6,
    }


def _connect(port: int, process: subprocess.Popen[bytes]) -> socket.socket:
    while process.poll() is None:
        with contextlib.suppress(ConnectionRefusedError):
            connected = socket.create_connection(("127.0.0.1", port))
            # As http.client does: otherwise a request's body waits 40 ms behind its head.
            connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            return connected
        time.sleep(0.002)
    raise SystemExit(f"the endpoint ended with code {process.returncode}")


def _ask(connection: http.client.HTTPConnection, query: str) -> float:
    """Return the seconds until the answer."""
    began = time.monotonic()
    body = json.dumps({"input": {"query": query}})
    connection.request("POST", "/query", body, {"content-type": "application/json"})
    response = connection.getresponse()
    answer = json.loads(response.read())
    if len(answer.get("embedding", ())) != full_size.WIDTH:
        raise SystemExit(f"expected a vector, got {answer!r:.200}")
    return time.monotonic() - began


def _median(starts: list[dict[str, float]], figure: str) -> float:
    return statistics.median(start[figure] for start in starts)


def _print_figure(name: str, samples: list[float]) -> None:
    digits = 0 if name.endswith("MB") else 2
    low, high = min(samples), max(samples)
    middle = statistics.median(samples)
    print(f"  {name}: {middle:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})")


if __name__ == "__main__":
    main()
