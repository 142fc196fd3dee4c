"""Growth: the cost by the number of texts, and by the length of one text."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from context import Bench
from peers import Peer
from report import (
    Results,
    Row,
    bound,
    colours,
    exponent,
    figure,
    number,
    paragraphs,
    plain_ticks,
    reasons,
    table,
)
from workers import UnavailableError, Worker

TITLE = "Growth"
_TOKENS = 64
_LINEAR_FROM = 16
"""Number of texts from which the cost must be linear; below it, fixed costs dominate."""
_LINEAR = 1.1
_REPEATS = 3


def measure(bench: Bench) -> Results:
    """Measure one engine after the other, alone, so that long texts have the memory."""
    rows = bench.rows()
    for peer in bench.peers:
        row = rows[peer.name]
        if row["reason"]:
            continue
        row |= {"texts": [], "tokens": []}
        try:
            with bench.start(peer) as worker:
                _measure(bench, peer, worker, row)
        except UnavailableError as error:
            row["reason"] = str(error)
        bench.say(f"growth: {peer.label}: {row['reason'] or 'done'}")
    scale = bench.scale
    return {"texts": scale.growth_texts, "tokens": scale.growth_tokens, "rows": rows}


def tables(results: Results) -> str:
    """Return the seconds of each point."""
    rows = [row for row in results["rows"].values() if row.get("texts")]
    head_of_texts = [
        "engine",
        *(f"{size} texts" for size in results["texts"]),
        f"exponent from {_LINEAR_FROM} texts",
    ]
    head_of_tokens = ["engine", *(f"{size:,} tokens" for size in results["tokens"])]
    texts, tokens = [], []
    for row in rows:
        cells = _cells(row["texts"], results["texts"])
        texts.append([row["label"], *cells, number(_growth(row), 2)])
        tokens.append([row["label"], *_cells(row["tokens"], results["tokens"])])
    return paragraphs(
        f"Seconds for n different texts of {_TOKENS} tokens each, at each library's default batch "
        "size; an exponent of 1 is linear.",
        table(head_of_texts, texts),
        "Seconds for one text. Lengths over the model's own limit are omitted.",
        table(head_of_tokens, tokens),
        reasons(results["rows"]),
    )


def bounds(results: Results) -> list[Row]:
    """Return the bound: our cost is linear in the number of texts."""
    bounds = []
    for row in results["rows"].values():
        if row["library"] == "unified-embeddings" and row.get("texts"):
            text = f"{row['label']}: cost as the number of texts to the power of"
            bounds.append(bound(text, _growth(row), _LINEAR))
    return bounds


def plot(results: Results, path: Path, title: str) -> None:
    """Draw two panels with logarithmic axes."""
    rows = results["rows"]
    colour = colours()
    labels = {"texts": f"texts of {_TOKENS} tokens each", "tokens": "tokens of one text"}
    with figure(path, title, 2, 5.5) as panels:
        for axes, (kind, label) in zip(panels, labels.items(), strict=True):
            for name, row in rows.items():
                if row.get(kind):
                    sizes, seconds = zip(*row[kind], strict=True)
                    axes.plot(sizes, seconds, "o-", color=colour[name], label=row["label"])
            axes.set_xscale("log")
            axes.set_yscale("log")
            plain_ticks(axes.xaxis, results[kind])
            axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.6g}")
            axes.set_xlabel(f"{label}, logarithmic")
            axes.set_ylabel("seconds, logarithmic (less is better)")
            axes.grid(visible=True, alpha=0.3)
        panels[0].legend(fontsize=7)


def _measure(bench: Bench, peer: Peer, worker: Worker, row: Row) -> None:
    """Measure both series of points, each until a point would take too long."""
    scale = bench.scale
    by_number = {size: [_TOKENS] * size for size in scale.growth_texts}
    by_length = {size: [size] for size in scale.growth_tokens if size <= bench.words.limit}
    stopped = []
    for kind, points in (("texts", by_number), ("tokens", by_length)):
        for size, lengths in points.items():
            if _expected_seconds(row[kind], size) > scale.point_seconds:
                stopped.append(f"{size:,} {kind} would take over {scale.point_seconds:g} s")
                break
            row[kind].append((size, _seconds(bench, peer, worker, lengths)))
    row["reason"] = "; ".join(stopped) or None


def _expected_seconds(points: list[tuple[int, float]], size: int) -> float:
    """Return the time of the next point if the cost stays proportional."""
    if not points:
        return 0.0
    last_size, last_seconds = points[-1]
    return last_seconds * size / last_size


def _seconds(bench: Bench, peer: Peer, worker: Worker, lengths: list[int]) -> float:
    """Return the fastest of three runs, or of one if it is slow; new texts each time."""
    enough = bench.scale.point_seconds / 10
    seconds: list[float] = []
    while not seconds or (len(seconds) < _REPEATS and sum(seconds) < enough):
        texts = [bench.words.text(bench.rng, length) for length in lengths]
        answer = worker.ask("documents", texts=texts, batch_size=peer.batch_size)
        seconds.append(answer["seconds"])
    return min(seconds)


def _growth(row: Row) -> float | None:
    points = [(size, seconds) for size, seconds in row["texts"] if size >= _LINEAR_FROM]
    return exponent(points) if len(points) > 1 else None


def _cells(points: list[tuple[int, float]], sizes: Sequence[int]) -> list[str]:
    seconds = dict(points)
    cells = []
    for size in sizes:
        digits = 3 if seconds.get(size, 1) < 1 else 1
        cells.append(number(seconds.get(size), digits))
    return cells
