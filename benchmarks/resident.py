"""Memory of each engine in a process of its own: loaded, at work, and over many texts."""

from __future__ import annotations

import time
from pathlib import Path

from context import Bench
from peers import Peer
from report import (
    Axes,
    Results,
    Row,
    bound,
    colours,
    figure,
    number,
    paragraphs,
    reasons,
    slope,
    table,
)
from workers import UnavailableError, Worker

TITLE = "Memory"
_LONG_TOKENS = 8192
_SHORT_TOKENS = 6
_BATCH = 50
_SAMPLES = 20
_WORDS = 2000
_LOADED_LIMITS = {"ours-onnx-int8": 0.6, "ours-torch-bf16": 1.3}
"""Maximum GB of an engine that is loaded."""
_PEAK_LIMIT = 3.0
_GROWTH_LIMIT = 2.0


def measure(bench: Bench) -> Results:
    """Measure one engine after the other, alone."""
    rows = bench.rows()
    for peer in bench.peers:
        row = rows[peer.name]
        if row["reason"]:
            continue
        try:
            with bench.start(peer) as worker:
                _measure(bench, peer, worker, row)
        except UnavailableError as error:
            row["reason"] = str(error)
        bench.say(f"memory: {peer.label}: {row['reason'] or 'done'}")
    long_tokens = min(_LONG_TOKENS, bench.words.limit)
    return {"long_tokens": long_tokens, "many": bench.scale.many, "rows": rows}


def tables(results: Results) -> str:
    """Return the gigabytes, and what many texts add."""
    rows = results["rows"]
    head = (
        "engine",
        "loaded, GB",
        "after documents, GB",
        "peak until then, GB",
        f"peak at {results['long_tokens']:,} tokens, GB",
        "texts",
        "MB per 1,000 texts",
    )
    lines = []
    for row in rows.values():
        if "loaded" in row:
            texts = row["many"][-1][0] if row.get("many") else None
            lines.append(
                (
                    row["label"],
                    _gigabytes(row["loaded"]),
                    _gigabytes(row.get("documents")),
                    _gigabytes(row.get("peak")),
                    _gigabytes(row.get("long_peak")),
                    number(texts),
                    number(row.get("slope"), 1),
                )
            )
    return paragraphs(
        "Resident memory of a process with one engine, libraries and mapped files included. "
        "Loaded: after its first query. Documents: one round of mixed lengths, as under Speed, at "
        "the library's default batch size. Then many short different texts, with samples in "
        "between; the last column is the slope of the line through the later half of the samples. "
        "Then one text of the given length.",
        table(head, lines),
        reasons(rows),
    )


def bounds(results: Results) -> list[Row]:
    """Return the bounds that ours must keep."""
    long_tokens = results["long_tokens"]
    bounds = []
    for name, limit in _LOADED_LIMITS.items():
        row = results["rows"].get(name, {})
        label = name.replace("-", " ")
        texts = row["many"][-1][0] if row.get("many") else results["many"]
        loaded, peak = _to_gigabytes(row.get("loaded")), _to_gigabytes(row.get("long_peak"))
        growth = row.get("slope")
        bounds += [
            bound(f"{label}: resident after load, GB", loaded, limit),
            bound(f"{label}: peak at {long_tokens:,} tokens, GB", peak, _PEAK_LIMIT),
            bound(f"{label}: MB per 1,000 texts, over {texts:,}", growth, _GROWTH_LIMIT),
        ]
    return bounds


def plot(results: Results, path: Path, title: str) -> None:
    """Draw bars for each engine, and a line over the many texts."""
    rows = {name: row for name, row in results["rows"].items() if "loaded" in row}
    with figure(path, title, 2, 2.5 + 0.5 * len(rows)) as (left, right):
        _plot_sizes(left, rows, results["long_tokens"])
        _plot_growth(right, rows)


def _plot_sizes(axes: Axes, rows: dict[str, Row], long_tokens: int) -> None:
    labels = {
        "loaded": "loaded",
        "documents": "after documents",
        "long_peak": f"peak at {long_tokens:,} tokens",
    }
    for i, (kind, label) in enumerate(labels.items()):
        places = [place + (i - 1) * 0.27 for place in range(len(rows))]
        sizes = [_to_gigabytes(row.get(kind)) or 0.0 for row in rows.values()]
        bars = axes.barh(places, sizes, height=0.25, label=label)
        axes.bar_label(bars, [f" {size:.2f}" for size in sizes], fontsize=7)
    axes.set_yticks(range(len(rows)), [row["label"] for row in rows.values()])
    axes.invert_yaxis()
    axes.margins(x=0.1)
    axes.set_xlabel("GB of resident memory (less is better)")
    axes.legend(fontsize=8)


def _plot_growth(axes: Axes, rows: dict[str, Row]) -> None:
    colour = colours()
    for name, row in rows.items():
        if row.get("many"):
            texts = [point[0] for point in row["many"]]
            sizes = [point[1] / 1e9 for point in row["many"]]
            axes.plot(texts, sizes, color=colour[name], label=row["label"])
    axes.set_ylim(bottom=0)
    axes.set_xlabel("short texts embedded")
    axes.set_ylabel("GB of resident memory (flat is good)")
    axes.legend(fontsize=7)


def _measure(bench: Bench, peer: Peer, worker: Worker, row: Row) -> None:
    """Fill in one row step by step, so that what was measured before a failure is kept."""
    row["loaded"] = worker.ask("memory")["resident"]
    documents = bench.words.mix(bench.rng, bench.scale.documents, bench.scale.outlier)
    worker.ask("documents", texts=documents, batch_size=peer.batch_size)
    memory = worker.ask("memory", reset=True)
    row["documents"], row["peak"] = memory["resident"], memory["peak"]
    row["many"] = _watch(bench, peer, worker)
    later = row["many"][len(row["many"]) // 2 :]
    if len(later) > 1:
        row["slope"] = slope([(texts / 1000, size / 1e6) for texts, size in later])
    last_texts = row["many"][-1][0]
    if last_texts < bench.scale.many:
        row["reason"] = f"stopped after {last_texts:,} texts: too slow for more"
    worker.ask("memory", reset=True)
    long_text = bench.words.text(bench.rng, _LONG_TOKENS)
    worker.ask("documents", texts=[long_text], batch_size=peer.batch_size)
    row["long_peak"] = worker.ask("memory")["peak"]


def _watch(bench: Bench, peer: Peer, worker: Worker) -> list[tuple[int, int]]:
    """Embed many short texts and return (texts so far, resident bytes) of about 20 samples.

    The texts are different but made of few words. A token table that is mapped from a file becomes
    resident as words are first met, which is not a leak.
    """
    points = [(0, worker.ask("memory")["resident"])]
    deadline = time.monotonic() + bench.scale.many_seconds
    interval = max(_BATCH, bench.scale.many // _SAMPLES)
    for start in range(0, bench.scale.many, _BATCH):
        texts = [bench.words.text(bench.rng, _SHORT_TOKENS, most=_WORDS) for _ in range(_BATCH)]
        worker.ask("documents", texts=texts, batch_size=peer.batch_size)
        done = start + _BATCH
        if done % interval == 0:
            points.append((done, worker.ask("memory")["resident"]))
            if time.monotonic() > deadline:
                break
    return points


def _to_gigabytes(size: float | None) -> float | None:
    return None if size is None else size / 1e9


def _gigabytes(size: float | None) -> str:
    return number(_to_gigabytes(size), 2)
