"""Growth: the cost against the number of texts, and against the length of one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from context import Bench
from peers import Peer
from report import bound, colours, exponent, figure, number, plain_ticks, reasons, table
from workers import UnavailableError, Worker

TITLE = "Growth"
_TOKENS = 64
_LINEAR_FROM = 16
_LINEAR = 1.1


def measure(bench: Bench) -> dict[str, Any]:
    """Each engine after the other, alone, so that long texts have the memory."""
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


def tables(results: dict[str, Any]) -> str:
    """Seconds at each point."""
    rows = {name: row for name, row in results["rows"].items() if row.get("texts")}
    texts = table(
        (
            "engine",
            *(f"{n} texts" for n in results["texts"]),
            f"exponent from {_LINEAR_FROM} texts",
        ),
        (
            (row["label"], *_cells(row["texts"], results["texts"]), number(_growth(row), 2))
            for row in rows.values()
        ),
    )
    tokens = table(
        ("engine", *(f"{n:,} tokens" for n in results["tokens"])),
        ((row["label"], *_cells(row["tokens"], results["tokens"])) for row in rows.values()),
    )
    return "\n\n".join(filter(None, (
        f"Seconds for n different texts of {_TOKENS} tokens each; an exponent of 1 is linear.",
        texts,
        "Seconds for one text; a length over the model's own limit is left out.",
        tokens,
        reasons(results["rows"]),
    )))  # fmt: skip


def bounds(results: dict[str, Any]) -> list[dict[str, Any]]:
    """Ours is linear in the number of texts."""
    return [
        bound(f"{row['label']}: cost as the number of texts to the power of", _growth(row), _LINEAR)
        for row in results["rows"].values()
        if row["library"] == "unified-embeddings" and row.get("texts")
    ]


def plot(results: dict[str, Any], path: Path, title: str) -> None:
    """Two double-logarithmic panels."""
    rows = results["rows"]
    colour = colours()
    with figure(path, title, 2, 5.5) as panels:
        for axes, kind, label in zip(
            panels,
            ("texts", "tokens"),
            (f"texts of {_TOKENS} tokens each", "tokens of one text"),
            strict=True,
        ):
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


def _measure(bench: Bench, peer: Peer, worker: Worker, row: dict[str, Any]) -> None:
    """Both lines of points, each until one would take too long."""
    scale, stopped = bench.scale, []
    for kind, sizes in (
        ("texts", [(n, [_TOKENS] * n) for n in scale.growth_texts]),
        ("tokens", [(n, [n]) for n in scale.growth_tokens if n <= bench.words.limit]),
    ):
        for size, lengths in sizes:
            if _expected(row[kind], size) > scale.point_seconds:
                stopped.append(f"{size:,} {kind} would take over {scale.point_seconds:g} s")
                break
            row[kind].append((size, _seconds(bench, peer, worker, lengths)))
    row["reason"] = "; ".join(stopped) or None


def _expected(points: list[tuple[int, float]], size: int) -> float:
    """Seconds if the cost goes on in proportion."""
    return points[-1][1] * size / points[-1][0] if points else 0.0


def _seconds(bench: Bench, peer: Peer, worker: Worker, lengths: list[int]) -> float:
    """The least of three, or of one where it is slow; new texts each time."""
    seconds: list[float] = []
    while not seconds or (len(seconds) < 3 and sum(seconds) < bench.scale.point_seconds / 10):
        texts = [bench.words.text(bench.rng, length) for length in lengths]
        seconds.append(worker.ask("documents", peer=peer.name, texts=texts)["seconds"])
    return min(seconds)


def _growth(row: dict[str, Any]) -> float | None:
    points = [(n, seconds) for n, seconds in row["texts"] if n >= _LINEAR_FROM]
    return exponent(points) if len(points) > 1 else None


def _cells(points: list[tuple[int, float]], sizes: list[int]) -> list[str]:
    found = dict(points)
    return [number(found.get(size), 3 if found.get(size, 1) < 1 else 1) for size in sizes]
