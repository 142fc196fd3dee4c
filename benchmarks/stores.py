"""Compare Qdrant in this process: local mode, EdgeQdrantClient, and the latter with an index.

    python benchmarks/stores.py --sizes 1000,10000,50000,200000 --local-up-to 10000 --optimize

All stores are asked the same questions in turn: hybrid queries and whole calls of the retriever.
Writing, reopening, memory and disk usage are measured too, and recall for every figure in which an
index has a part. The program prints tables and writes `stores.json` and `stores.png` (with `--data
gaussian`: `stores-gaussian`) after each size. docs/benchmarks/README.md explains the figures.
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

import machine
import report
from points import DATA, Recipe
from report import Axes, Results, Row, bound, figure, number, plain_ticks, ranged, table
from store_collections import LABELS
from store_run import Run
from unified_embeddings.system.hardware import cpu

TITLE = "Stores"
COLOURS = {"local": "#7a7a7a", "edge": "#2f7fd0", "optimized": "#4aa5a0"}
_SIZES = "1000,10000,50000,200000"
_LOCAL_MAXIMUM = 10_000
"""Maximum number of points in local mode's folder: its time per point grows with their number."""
_RATIO_SIZE, _RATIO_LIMIT = 10_000, 50
"""Bound: how many times faster than local mode a hybrid query must be, at this many points."""
_RETRIEVER_LIMITS = {10_000: 6, 50_000: 25}
"""Bounds: number of points → maximum p50 of the retriever in ms."""
_LIBRARIES = (
    "unified-embeddings", "qdrant-client", "qdrant-edge-py", "llama-index-core",
    "llama-index-vector-stores-qdrant", "numpy",
)  # fmt: skip
_MEGA = 1e6
_QUERY_HEAD = (
    "points, store", "hybrid query, p50 ms (p10 to p90)", "times local mode",
    "retriever, p50 ms (p10 to p90)", "times local mode", "recall@10 dense", "fused",
)  # fmt: skip
_STORAGE_HEAD = (
    "points, store", "points/s", "optimize, s", "reopened, s (range)", "resident, MB",
    "shared out (PSS), MB", "anonymous, MB", "its mapped files, MB", "before opening, MB",
    "on disk, MB",
)  # fmt: skip


def main(arguments: list[str] | None = None) -> None:
    """Measure all sizes that the command line names and write their results."""
    options = _parse_arguments(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    about = machine.about(
        "stores.py",
        sys.argv[1:] if arguments is None else arguments,
        _LIBRARIES,
        cpu().cores,
        weights="none, made-up vectors",
    )
    try:
        with _work_folder(options.work) as work:
            run = Run(options, Recipe(options.data), work)
            for results in run.measure():
                _write(results, about, options.out)
    except KeyboardInterrupt:
        print("\nstopped; the sizes that were done are written", flush=True)
        sys.exit(130)
    print(f"\n{tables(results)}\n\n{report.bounds_table(bounds(results))}", flush=True)


@contextmanager
def _work_folder(folder: Path | None) -> Iterator[Path]:
    """Yield the folder for collections: the given one, or one that is removed at the end."""
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        yield folder.resolve()
        return
    with tempfile.TemporaryDirectory(prefix="unified-embeddings-stores-") as temporary:
        yield Path(temporary)


def _write(results: Results, about: Row, out: Path) -> None:
    """Write the JSON file and the plot of what has been measured so far."""
    name = "stores" if results["data"] == DATA[0] else f"stores-{results['data']}"
    has_plot = importlib.util.find_spec("matplotlib") is not None
    content = {
        "title": TITLE,
        "about": about,
        "plot": has_plot,
        "bounds": bounds(results),
        "results": results,
    }
    text = json.dumps(content, indent=1, ensure_ascii=False) + "\n"
    (out / f"{name}.json").write_text(text, "utf-8")
    if has_plot:
        processor = about["machine"]["cpu"]
        title = f"{TITLE}: {processor}, {about['threads']} cores; {results['data']} vectors"
        plot(results, out / f"{name}.png", title)
    else:
        print("no plot: matplotlib is not installed; pip install 'unified-embeddings[plot]'")


def _parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    """Read the command line and exit with a message if it is wrong."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--sizes", type=_sizes, default=_SIZES, help=f"points; default: {_SIZES}")
    add("--local-up-to", type=int, default=_LOCAL_MAXIMUM, metavar="POINTS",
        help="local mode over a folder, up to this size; default and maximum: 10,000")  # fmt: skip
    add("--in-memory-up-to", type=int, default=0, metavar="POINTS",
        help="local mode in memory for larger sizes, up to this one; default: none")  # fmt: skip
    add("--optimize", action="store_true", help="also with an index, and its recall")
    add("--data", choices=DATA, default=DATA[0], help="kind of dense vectors; default: clustered")
    add("--queries", type=int, default=200, help="for each figure; default: 200")
    add("--local-queries", type=int, default=40, help="of them for local mode; default: 40")
    add("--starts", type=int, default=3, help="new processes for each store; default: 3")
    add("--out", type=Path, default=machine.ROOT / "docs" / "benchmarks", help="for the results")
    add("--work", type=Path,
        help="keep the collections here, and use those of an earlier run")  # fmt: skip
    options = parser.parse_args(arguments)
    if not 0 <= options.local_up_to <= _LOCAL_MAXIMUM:
        parser.error(
            f"--local-up-to must be 0 to {_LOCAL_MAXIMUM:,}: local mode takes hours to write a "
            "larger folder; --in-memory-up-to measures its queries"
        )
    for name in ("queries", "local_queries", "starts"):
        if getattr(options, name) < 1:
            parser.error(f"--{name.replace('_', '-')} must be at least 1")
    return options


def _sizes(text: str) -> list[int]:
    """Read whole numbers above 0, separated by commas; return them in ascending order."""
    sizes = sorted({int(part.replace("_", "")) for part in text.split(",") if part.strip()})
    if not sizes or sizes[0] < 1:
        raise argparse.ArgumentTypeError("sizes are whole numbers above 0, separated by commas")
    return sizes


# --- showing --------------------------------------------------------------------------------------


def tables(results: Results) -> str:
    """Return queries with their recall; then writing, reopening, memory and disk usage."""
    queries, storage = [], []
    for size, measured in results["sizes"].items():
        for name, row in measured["rows"].items():
            label = f"{int(size):,}, {row['label']}"
            if row["in"] == "memory":
                label += " in memory"
            ratios = measured["times_local"].get(name, {})
            queries.append(_query_cells(label, row, ratios))
            storage.append(_storage_cells(label, row))
    llama = results["llama_index"]
    return report.paragraphs(
        f"{results['data']} vectors; up to {results['queries']} queries for each figure.",
        table(_QUERY_HEAD, queries),
        table(_STORAGE_HEAD, storage),
        f"LlamaIndex's add(), edge, {llama['points']:,} points: "
        f"{_percentiles(llama['points_per_second'])} points/s.",
    )


def bounds(results: Results) -> list[Row]:
    """Return what ours must reach, with the recall if there is an index."""
    not_measured: Results = {"rows": {"edge": {}}, "times_local": {}}
    bounds = []
    measured = results["sizes"].get(str(_RATIO_SIZE), not_measured)
    for name, row in measured["rows"].items():
        if name != "local":
            ratio = measured["times_local"].get(name, {}).get("query", {}).get("p50")
            label = f"hybrid query, {_RATIO_SIZE:,} points, {_label_with_recall(name, row)}"
            bounds.append(bound(f"{label}: times local mode", ratio, _RATIO_LIMIT, least=True))
    for size, limit in _RETRIEVER_LIMITS.items():
        for name, row in results["sizes"].get(str(size), not_measured)["rows"].items():
            if name != "local":
                milliseconds = row.get("retriever_ms", {}).get("p50")
                label = f"retriever, {size:,} points, {_label_with_recall(name, row)}"
                bounds.append(bound(f"{label}: p50 ms", milliseconds, limit))
    return bounds


def plot(results: Results, path: Path, title: str) -> None:
    """Draw queries and the retriever against the number of points, with logarithmic axes."""
    labels = {"query_ms": "hybrid query", "retriever_ms": "retriever"}
    with figure(path, title, 2, 5) as panels:
        for axes, (kind, label) in zip(panels, labels.items(), strict=True):
            for name in COLOURS:
                _plot_store(axes, results, name, kind)
            axes.set_xscale("log")
            axes.set_yscale("log")
            plain_ticks(axes.xaxis, [int(size) for size in results["sizes"]])
            axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.6g}")
            axes.set_xlabel("points, logarithmic (less time is better)")
            axes.set_ylabel(f"{label}: p50 in ms (p10 to p90), log")
            axes.grid(visible=True, alpha=0.3)
            axes.legend(fontsize=8)


def _plot_store(axes: Axes, results: Results, name: str, kind: str) -> None:
    """Draw one store's line, with its spread."""
    sizes, times = [], []
    for size, measured in results["sizes"].items():
        if name in measured["rows"]:
            sizes.append(int(size))
            times.append(measured["rows"][name][kind])
    if not sizes:
        return
    medians = [time["p50"] for time in times]
    below = [time["p50"] - time["p10"] for time in times]
    above = [time["p90"] - time["p50"] for time in times]
    axes.errorbar(
        sizes,
        medians,
        yerr=[below, above],
        fmt="o-",
        capsize=3,
        color=COLOURS[name],
        label=_line_label(results, name),
    )


def _line_label(results: Results, name: str) -> str:
    """Return a line's label; that of an index states its lowest recall."""
    rows = [
        measured["rows"][name] for measured in results["sizes"].values() if name in measured["rows"]
    ]
    if name == "optimized":
        lowest = min(row["recall"]["fused"] for row in rows)
        return f"{LABELS[name]} (fused recall from {lowest:.3f})"
    if any(row["in"] == "memory" for row in rows):
        return f"{LABELS[name]}, the largest in memory"
    return LABELS[name]


def _label_with_recall(name: str, row: Row) -> str:
    if name != "optimized":
        return LABELS[name]
    recall = row["recall"]
    return f"{LABELS[name]} (recall {recall['dense']:.3f}, fused {recall['fused']:.3f})"


def _query_cells(label: str, row: Row, ratios: Row) -> list[str]:
    recall = row.get("recall", {})
    return [
        label,
        _percentiles(row["query_ms"], 2),
        _median(ratios.get("query")),
        _percentiles(row["retriever_ms"], 2),
        _median(ratios.get("retriever")),
        number(recall.get("dense"), 3),
        number(recall.get("fused"), 3),
    ]


def _storage_cells(label: str, row: Row) -> list[str]:
    reopened = "-"
    if "reopen_seconds" in row:
        reopened = ranged(row["reopen_seconds"]["all"], 2)
    disk = row.get("disk", {})
    return [
        label,
        number(row.get("write", {}).get("points_per_second")),
        number(row.get("optimize_seconds"), 1),
        reopened,
        *_memory_cells(row.get("memory")),
        _megabytes(disk.get("held")),
    ]


def _memory_cells(memory: Row | None) -> list[str]:
    if memory is None:
        return ["-"] * 5
    after = memory["after"]
    sizes = [after[name] for name in ("resident", "proportional", "anonymous", "files")]
    sizes.append(memory["before"]["resident"])
    return [_megabytes(size) for size in sizes]


def _percentiles(values: dict[str, float], digits: int = 0) -> str:
    low, high = number(values["p10"], digits), number(values["p90"], digits)
    return f"{number(values['p50'], digits)} ({low} to {high})"


def _median(values: dict[str, float] | None) -> str:
    return number(values["p50"], 1) if values else "-"


def _megabytes(size: int | None) -> str:
    return number(None if size is None else size / _MEGA)


if __name__ == "__main__":
    main()
