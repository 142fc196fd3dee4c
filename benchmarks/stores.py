"""Qdrant in this process: local mode, EdgeQdrantClient, and the latter with an index, side by side.

    python benchmarks/stores.py --sizes 1000,10000,50000,200000 --local-up-to 10000 --optimize

Hybrid queries and whole calls of the retriever in turn on the same questions; writing, reopening,
memory and disk; recall beside every figure that an index had a part in. Prints tables and writes
`stores.json` and `stores.png` (with `--data gaussian`: `stores-gaussian`), anew after each size.
What the figures mean is in docs/benchmarks/README.md.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import machine
import report
from points import DATA, Recipe
from report import bound, figure, number, plain_ticks, ranged, table
from store_run import LABELS, Run
from unified_embeddings.system.hardware import cpu

TITLE = "Stores"
COLOURS = {"local": "#7a7a7a", "edge": "#2f7fd0", "optimized": "#4aa5a0"}
_SIZES = "1000,10000,50000,200000"
_LOCAL_MOST = 10_000
"""Points written to local mode's folder at most: its time a point grows with their number."""
_AT = 10_000
_RATIO, _QUICK = 50, {10_000: 6, 50_000: 25}
"""What ours is to reach: times local mode at `_AT` points; the retriever's p50 in ms by points."""
_LIBRARIES = (
    "unified-embeddings", "qdrant-client", "qdrant-edge-py", "llama-index-core",
    "llama-index-vector-stores-qdrant", "numpy",
)  # fmt: skip
_MEGA = 1e6


def main(arguments: list[str] | None = None) -> None:
    given = _parsed(arguments)
    given.out.mkdir(parents=True, exist_ok=True)
    about = machine.about(
        "stores.py",
        sys.argv[1:] if arguments is None else arguments,
        _LIBRARIES,
        cpu().cores,
        weights="none, made-up vectors",
    )
    try:
        with _work_folder(given.work) as work:
            run = Run(given, Recipe(given.data), work)
            for results in run.measure():
                _write(results, about, given.out)
    except KeyboardInterrupt:
        print("\nstopped; the sizes that were done are written", flush=True)
        sys.exit(130)
    print(f"\n{tables(results)}\n\n{report.bounds_table(bounds(results))}", flush=True)


@contextmanager
def _work_folder(kept: Path | None) -> Iterator[Path]:
    """Where collections are made: a folder that is kept, or one that is gone at the end."""
    if kept is not None:
        kept.mkdir(parents=True, exist_ok=True)
        yield kept.resolve()
        return
    with tempfile.TemporaryDirectory(prefix="unified-embeddings-stores-") as made:
        yield Path(made)


def _write(results: dict[str, Any], about: dict[str, Any], out: Path) -> None:
    """The JSON file and the plot of what has been measured so far."""
    name = "stores" if results["data"] == DATA[0] else f"stores-{results['data']}"
    plotted = importlib.util.find_spec("matplotlib") is not None
    content = {
        "title": TITLE,
        "about": about,
        "plot": plotted,
        "bounds": bounds(results),
        "results": results,
    }
    text = json.dumps(content, indent=1, ensure_ascii=False) + "\n"
    (out / f"{name}.json").write_text(text, "utf-8")
    if plotted:
        found = about["machine"]
        title = f"{TITLE}: {found['cpu']}, {about['threads']} cores; {results['data']} vectors"
        plot(results, out / f"{name}.png", title)
    else:
        print("no plot: matplotlib is not installed; pip install 'unified-embeddings[plot]'")


def _parsed(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--sizes", type=_numbers, default=_SIZES, help=f"points; default: {_SIZES}")
    add("--local-up-to", type=int, default=_LOCAL_MOST, metavar="POINTS",
        help="local mode over a folder for sizes up to this; default and most: 10,000")  # fmt: skip
    add("--in-memory-up-to", type=int, default=0, metavar="POINTS",
        help="local mode in memory for sizes above that and up to this; default: none")  # fmt: skip
    add("--optimize", action="store_true", help="also with an index, and its recall")
    add("--data", choices=DATA, default=DATA[0], help="kind of dense vectors; default: clustered")
    add("--queries", type=int, default=200, help="for each figure; default: 200")
    add("--local-queries", type=int, default=40, help="of them for local mode; default: 40")
    add("--starts", type=int, default=3, help="new processes for each store; default: 3")
    add("--out", type=Path, default=machine.ROOT / "docs" / "benchmarks", help="for the results")
    add("--work", type=Path,
        help="keep the collections here, and use those of an earlier run")  # fmt: skip
    given = parser.parse_args(arguments)
    if not 0 <= given.local_up_to <= _LOCAL_MOST:
        parser.error(
            f"--local-up-to must be 0 to {_LOCAL_MOST:,}: a folder of more takes local mode "
            "hours to write; --in-memory-up-to measures its queries"
        )
    for name in ("queries", "local_queries", "starts"):
        if getattr(given, name) < 1:
            parser.error(f"--{name.replace('_', '-')} must be at least 1")
    return given


def _numbers(text: str) -> list[int]:
    """Whole numbers above 0 between commas, in ascending order."""
    found = sorted({int(part.replace("_", "")) for part in text.split(",") if part.strip()})
    if not found or found[0] < 1:
        raise argparse.ArgumentTypeError("sizes are whole numbers above 0, between commas")
    return found


# --- showing --------------------------------------------------------------------------------------


def tables(results: dict[str, Any]) -> str:
    """Queries with their recall; then writing, reopening, memory and disk."""
    found = [
        (f"{int(size):,}, {row['label']}{' in memory' if row['in'] == 'memory' else ''}",
         name, row, one["times_local"].get(name, {}))
        for size, one in results["sizes"].items() for name, row in one["rows"].items()
    ]  # fmt: skip
    asked = table(
        ("points, store", "hybrid query, p50 ms (p10 to p90)", "times local mode",
         "retriever, p50 ms (p10 to p90)", "times local mode", "recall@10 dense", "fused"),
        (
            (label, _spread(row["query_ms"], 2), _middle(times.get("query")),
             _spread(row["retriever_ms"], 2), _middle(times.get("retriever")),
             number(row.get("recall", {}).get("dense"), 3),
             number(row.get("recall", {}).get("fused"), 3))
            for label, _, row, times in found
        ),
    )  # fmt: skip
    kept = table(
        ("points, store", "points/s", "optimize, s", "reopened, s (range)", "resident, MB",
         "shared out (PSS), MB", "anonymous, MB", "its mapped files, MB", "before opening, MB",
         "on disk, MB"),
        (
            (label, number(row.get("write", {}).get("points_per_second")),
             number(row.get("optimize_seconds"), 1),
             ranged(row["reopen_seconds"]["all"], 2) if "reopen_seconds" in row else "-",
             *_memory(row.get("memory")), number(row["disk"]["held"] / _MEGA) if "disk" in row
             else "-")
            for label, _, row, _ in found
        ),
    )  # fmt: skip
    llama = results["llama_index"]
    return "\n\n".join((
        f"{results['data']} vectors; up to {results['queries']} queries a figure.",
        asked,
        kept,
        f"LlamaIndex's add(), edge, {llama['points']:,} points: "
        f"{_spread(llama['points_per_second'])} points/s.",
    ))  # fmt: skip


def bounds(results: dict[str, Any]) -> list[dict[str, Any]]:
    """What ours is to reach, with the recall where there is an index."""
    found = []
    sizes = results["sizes"]
    at = sizes.get(str(_AT), {}).get("times_local", {})
    for name, row in sizes.get(str(_AT), {"rows": {"edge": {}}})["rows"].items():
        if name != "local":
            text = f"hybrid query, {_AT:,} points, {_named(name, row)}: times local mode"
            times = at.get(name, {}).get("query", {}).get("p50")
            found.append(bound(text, times, _RATIO, least=True))
    for size, limit in _QUICK.items():
        for name, row in sizes.get(str(size), {"rows": {"edge": {}}})["rows"].items():
            if name != "local":
                text = f"retriever, {size:,} points, {_named(name, row)}: p50 ms"
                found.append(bound(text, row.get("retriever_ms", {}).get("p50"), limit))
    return found


def plot(results: dict[str, Any], path: Path, title: str) -> None:
    """Two double-logarithmic panels: queries and the retriever, against the number of points."""
    sizes = [int(size) for size in results["sizes"]]
    with figure(path, title, 2, 5) as panels:
        for axes, kind, label in zip(
            panels,
            ("query_ms", "retriever_ms"),
            ("hybrid query", "retriever"),
            strict=True,
        ):
            for name, colour in COLOURS.items():
                points = [
                    (int(size), one["rows"][name][kind])
                    for size, one in results["sizes"].items()
                    if name in one["rows"]
                ]
                if points:
                    middle = [times["p50"] for _, times in points]
                    errors = [
                        [times["p50"] - times["p10"] for _, times in points],
                        [times["p90"] - times["p50"] for _, times in points],
                    ]
                    axes.errorbar(
                        [size for size, _ in points], middle, yerr=errors, fmt="o-",
                        capsize=3, color=colour, label=_in_plot(results, name),
                    )  # fmt: skip
            axes.set_xscale("log")
            axes.set_yscale("log")
            plain_ticks(axes.xaxis, sizes)
            axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.6g}")
            axes.set_xlabel("points, logarithmic (less time is better)")
            axes.set_ylabel(f"{label}: p50 in ms (p10 to p90), log")
            axes.grid(visible=True, alpha=0.3)
            axes.legend(fontsize=8)


def _in_plot(results: dict[str, Any], name: str) -> str:
    """A line's name, an index's with its least recall."""
    rows = [one["rows"][name] for one in results["sizes"].values() if name in one["rows"]]
    if name == "optimized":
        return f"{LABELS[name]} (fused recall from {min(r['recall']['fused'] for r in rows):.3f})"
    above = [row for row in rows if row["in"] == "memory"]
    return f"{LABELS[name]}{', the largest in memory' if above else ''}"


def _named(name: str, row: dict[str, Any]) -> str:
    if name != "optimized":
        return LABELS[name]
    return (
        f"{LABELS[name]} (recall {row['recall']['dense']:.3f}, fused {row['recall']['fused']:.3f})"
    )


def _spread(found: dict[str, float], digits: int = 0) -> str:
    low, high = number(found["p10"], digits), number(found["p90"], digits)
    return f"{number(found['p50'], digits)} ({low} to {high})"


def _middle(found: dict[str, float] | None) -> str:
    return number(found["p50"], 1) if found else "-"


def _memory(found: dict[str, dict[str, int | None]] | None) -> list[str]:
    if found is None:
        return ["-"] * 5
    after = found["after"]
    values = [after[name] for name in ("resident", "proportional", "anonymous", "files")]
    return [_megabytes(value) for value in (*values, found["before"]["resident"])]


def _megabytes(value: int | None) -> str:
    return number(None if value is None else value / _MEGA)


if __name__ == "__main__":
    main()
