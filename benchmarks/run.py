"""Ours beside FlagEmbedding, sentence-transformers and bge-m3-lite: one machine, equal threads.

    python benchmarks/run.py                              a full-size BGE-M3 with random weights
    python benchmarks/run.py --model FOLDER               a checkpoint of your own
    python benchmarks/run.py --parts cold,memory          some parts anew; the others stay
    python benchmarks/run.py --engines ours-onnx,flag     those whose names hold one of these

Prints tables, and writes for each part a JSON file and a plot into `docs/benchmarks/`, and a page
of all parts, `README.md`. A part is written as soon as it is done. What cannot run here is a row
with the reason.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import cold_start
import growth
import machine
import peers
import report
import resident
import speed
from context import QUICK, Bench, Scale
from unified_embeddings.system.hardware import cpu

PARTS: dict[str, ModuleType] = {
    "speed": speed,
    "cold": cold_start,
    "memory": resident,
    "growth": growth,
}
"""Name → a module with TITLE, measure, tables, bounds and plot."""
_SIZES = ("rounds", "documents", "outlier", "queries", "many")
_TEMPORARY = Path(tempfile.gettempdir())
_LIBRARIES = (
    "unified-embeddings", "torch", "transformers", "tokenizers", "onnxruntime", "FlagEmbedding",
    "sentence-transformers", "bge-m3-lite",
)  # fmt: skip


def main(arguments: list[str] | None = None) -> None:
    given = _parsed(arguments)
    _limit_threads(given.threads)
    folder = given.model or _random_model()
    scale = QUICK if given.quick else Scale()
    asked = {name: getattr(given, name) for name in _SIZES}
    scale = replace(scale, **{name: number for name, number in asked.items() if number})
    bench = Bench(
        folder=folder.resolve(),
        work=given.work,
        peers=given.engines,
        scale=scale,
        threads=given.threads,
        timeout=given.timeout,
        slow=given.slow,
    )
    about = machine.about(
        "run.py",
        sys.argv[1:] if arguments is None else arguments,
        _LIBRARIES,
        given.threads,
        weights=given.model.name if given.model else "random, full size (568M)",
    )
    given.out.mkdir(parents=True, exist_ok=True)
    for name in given.parts:
        print(f"{PARTS[name].TITLE} ...", flush=True)
        _run(name, bench, about, given.out)


def _random_model() -> Path:
    import full_size  # it imports torch, which a checkpoint of one's own does without

    return full_size.make(_TEMPORARY / "unified-embeddings-full-size")


def _run(name: str, bench: Bench, about: dict[str, Any], out: Path) -> None:
    """Measure one part; write its JSON, its plot and the page with it."""
    part = PARTS[name]
    results = part.measure(bench)
    plotted = importlib.util.find_spec("matplotlib") is not None
    content = {
        "title": part.TITLE,
        "about": about,
        "plot": plotted,
        "bounds": part.bounds(results),
        "results": results,
    }
    (out / f"{name}.json").write_text(
        json.dumps(content, indent=1, ensure_ascii=False) + "\n", "utf-8"
    )
    found = report.read(out, PARTS)
    if plotted:
        title = f"{part.TITLE}: {report.title_of(about)}"
        part.plot(found[name]["results"], out / f"{name}.png", title)
    else:
        print("no plot: matplotlib is not installed; pip install 'unified-embeddings[plot]'")
    tables = {key: PARTS[key].tables(one["results"]) for key, one in found.items()}
    page = out / "README.md"
    page.write_text(report.page(found, tables) + report.written_by_hand(page), "utf-8")
    print(f"\n{tables[name]}\n")
    if content["bounds"]:
        print(f"{report.bounds_table(content['bounds'])}\n", flush=True)


def _parsed(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--model", type=Path, help="a checkpoint in BGE-M3's layout; default: random weights")
    add("--parts", type=_listed, default=list(PARTS), help=f"of {','.join(PARTS)}; default: all")
    add("--engines", type=_listed, default=[], help=f"all, or parts of: {', '.join(peers.PEERS)}")
    add("--threads", type=int, default=cpu().cores, help="of each engine; default: all cores")
    add("--rounds", type=int, help="of documents and queries; default: 5")
    add("--documents", type=int, help="texts a round; default: 64")
    add("--outlier", type=int, help="tokens of the one long text among them; default: 1,400")
    add("--queries", type=int, help="of each length, over all rounds; default: 100")
    add("--many", type=int, help="short texts over which memory is watched; default: 10,000")
    add("--quick", action="store_true", help="little of everything: to see that it runs")
    add("--slow", action="store_true", help="also bf16 on a CPU without amx_bf16")
    add("--timeout", type=float, default=900, help="seconds for one answer of an engine")
    add("--out", type=Path, default=machine.ROOT / "docs" / "benchmarks", help="where results go")
    add("--work", type=Path, default=_TEMPORARY / "unified-embeddings-benchmarks",
        help="where files made from the checkpoint are kept")  # fmt: skip
    given = parser.parse_args(arguments)
    try:
        given.engines = peers.chosen(given.engines)
    except ValueError as error:
        parser.error(str(error))
    for name in given.parts:
        if name not in PARTS:
            parser.error(f"no part {name!r}; there are {', '.join(PARTS)}")
    if given.model and not (given.model / "config.json").is_file():
        parser.error(f"{given.model} holds no config.json: it is not a checkpoint's folder")
    if not 1 <= given.threads <= cpu().cores:
        parser.error(f"--threads must be 1 to {cpu().cores}, the cores here")
    return given


def _listed(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _limit_threads(threads: int) -> None:
    """Give every engine's process that many threads: as many cores, and the libraries told."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[name] = str(threads)
    os.environ["HF_HUB_OFFLINE"] = "1"


if __name__ == "__main__":
    main()
