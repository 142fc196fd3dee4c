"""Memory of each engine in a process of its own: loaded, at work, and over many texts."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from context import Bench
from peers import Peer
from report import bound, colours, figure, number, reasons, slope, table
from workers import UnavailableError, Worker

TITLE = "Memory"
_LONG = 8192
_SHORT = 6
_BATCH = 50
_SAMPLES = 20
_WORDS = 2000
_LIMITS = {"ours-onnx-int8": 0.6, "ours-torch-bf16": 1.3}
_PEAK, _FLAT = 3.0, 2.0


def measure(bench: Bench) -> dict[str, Any]:
    """Each engine after the other, alone."""
    rows = bench.rows(bench.loaded_peers)
    for peer in bench.loaded_peers:
        row = rows[peer.name]
        if row["reason"]:
            continue
        try:
            with bench.start(peer) as worker:
                _measure(bench, peer, worker, row)
        except UnavailableError as error:
            row["reason"] = str(error)
        bench.say(f"memory: {peer.label}: {row['reason'] or 'done'}")
    return {"long_tokens": min(_LONG, bench.words.limit), "many": bench.scale.many, "rows": rows}


def tables(results: dict[str, Any]) -> str:
    """Gigabytes, and what many texts add."""
    rows = results["rows"]
    drawn = table(
        ("engine", "loaded, GB", "after documents, GB", "peak until then, GB",
         f"peak at {results['long_tokens']:,} tokens, GB", "texts", "MB per 1,000 texts"),
        (
            (row["label"], _gb(row["loaded"]), _gb(row.get("documents")), _gb(row.get("peak")),
             _gb(row.get("long_peak")), number(row["many"][-1][0] if row.get("many") else None),
             number(row.get("slope"), 1))
            for row in rows.values() if "loaded" in row
        ),
    )  # fmt: skip
    return "\n\n".join(filter(None, (
        "Resident memory of a process with one engine, libraries and mapped files included. "
        "Loaded: after its first query. Documents: those of one round of speed. Then many short "
        "different texts, sampled as they go; the last column is the line through the later half "
        "of the samples. Then one text of the given length. Of several batch sizes only the first "
        "is here.",
        drawn,
        reasons(rows),
    )))  # fmt: skip


def bounds(results: dict[str, Any]) -> list[dict[str, Any]]:
    """What ours is to keep to."""
    found = []
    for name, limit in _LIMITS.items():
        row = results["rows"].get(name, {})
        label = name.replace("-", " ")
        texts = row["many"][-1][0] if row.get("many") else results["many"]
        found += [
            bound(f"{label}: resident after load, GB", _in(row.get("loaded"), 1e9), limit),
            bound(
                f"{label}: peak at {results['long_tokens']:,} tokens, GB",
                _in(row.get("long_peak"), 1e9),
                _PEAK,
            ),
            bound(
                f"{label}: MB per 1,000 texts, over {texts:,}",
                row.get("slope"),
                _FLAT,
            ),
        ]
    return found


def plot(results: dict[str, Any], path: Path, title: str) -> None:
    """Bars for each engine; a line over the many texts."""
    rows = {name: row for name, row in results["rows"].items() if "loaded" in row}
    colour = colours()
    kinds = {
        "loaded": "loaded",
        "documents": "after documents",
        "long_peak": f"peak at {results['long_tokens']:,} tokens",
    }
    with figure(path, title, 2, 2.5 + 0.5 * len(rows)) as (left, right):
        for i, (kind, label) in enumerate(kinds.items()):
            places = [place + (i - 1) * 0.27 for place in range(len(rows))]
            sizes = [(row.get(kind) or 0) / 1e9 for row in rows.values()]
            bars = left.barh(places, sizes, height=0.25, label=label)
            left.bar_label(bars, [f" {size:.2f}" for size in sizes], fontsize=7)
        left.set_yticks(range(len(rows)), [row["label"] for row in rows.values()])
        left.invert_yaxis()
        left.margins(x=0.1)
        left.set_xlabel("GB of resident memory (less is better)")
        left.legend(fontsize=8)
        for name, row in rows.items():
            if row.get("many"):
                texts = [point[0] for point in row["many"]]
                sizes = [point[1] / 1e9 for point in row["many"]]
                right.plot(texts, sizes, color=colour[name], label=row["label"])
        right.set_ylim(bottom=0)
        right.set_xlabel("short texts embedded")
        right.set_ylabel("GB of resident memory (flat is good)")
        right.legend(fontsize=7)


def _measure(bench: Bench, peer: Peer, worker: Worker, row: dict[str, Any]) -> None:
    """Fill in one row, step by step: what was measured before a failure stays."""
    row["loaded"] = worker.ask("memory")["resident"]
    documents = bench.words.mix(bench.rng, bench.scale.documents, bench.scale.outlier)
    worker.ask("documents", peer=peer.name, texts=documents)
    found = worker.ask("memory", reset=True)
    row["documents"], row["peak"] = found["resident"], found["peak"]
    row["many"] = _watch(bench, peer, worker)
    later = [(texts / 1000, size / 1e6) for texts, size in row["many"][len(row["many"]) // 2 :]]
    if len(later) > 1:
        row["slope"] = slope(later)
    if row["many"][-1][0] < bench.scale.many:
        row["reason"] = f"stopped after {row['many'][-1][0]:,} texts: too slow for more"
    worker.ask("memory", reset=True)
    worker.ask("documents", peer=peer.name, texts=[bench.words.text(bench.rng, _LONG)])
    row["long_peak"] = worker.ask("memory")["peak"]


def _watch(bench: Bench, peer: Peer, worker: Worker) -> list[tuple[int, int]]:
    """(texts so far, resident bytes), `_SAMPLES` times on the way; few words, many texts.

    Few words, since a token table that is mapped from a file comes in as words are first met, which
    is no leak.
    """
    points = [(0, worker.ask("memory")["resident"])]
    ends = time.monotonic() + bench.scale.many_seconds
    every = max(_BATCH, bench.scale.many // _SAMPLES)
    for done in range(0, bench.scale.many, _BATCH):
        texts = [bench.words.text(bench.rng, _SHORT, most=_WORDS) for _ in range(_BATCH)]
        worker.ask("documents", peer=peer.name, texts=texts)
        if (done + _BATCH) % every == 0:
            points.append((done + _BATCH, worker.ask("memory")["resident"]))
            if time.monotonic() > ends:
                break
    return points


def _in(size: float | None, unit: float) -> float | None:
    return None if size is None else size / unit


def _gb(size: float | None) -> str:
    return number(_in(size, 1e9), 2)
