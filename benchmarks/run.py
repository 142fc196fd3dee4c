"""Compare ours with other engines of BGE-M3 on one machine.

    python benchmarks/run.py                              a full-size BGE-M3 with random weights
    python benchmarks/run.py --model FOLDER               a checkpoint of your own
    python benchmarks/run.py --parts cold,memory          only some parts; the others are kept
    python benchmarks/run.py --engines ours-onnx,flag     engines whose names contain one of these

The others are FlagEmbedding, sentence-transformers, bge-m3-lite, CTranslate2, OpenVINO and
llama.cpp. Those that are not installed are rows that say what pip installs; none of them is a
dependency of this project. Every engine has a process of its own and the same number of threads.
The program prints tables, and writes for each part a JSON file and a plot into `docs/benchmarks/`,
and `README.md`, a page of all parts. A part is written as soon as it is done. What cannot run here
is a row with the reason.

`machine.json` in the same folder is the whole run in one file: the processor's flags, the versions,
the kernels that the libraries take, what `auto` chooses, and all results. It is what is sent in
from a machine of another kind (docs/kernels.md), and names no user, host or folder.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import os
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cold_start
import growth
import kernels
import machine
import peers
import record
import report
import resident
import speed
import speed_bounds
import speed_report
from context import QUICK, Bench, Scale
from report import Results, Row
from unified_embeddings.system.hardware import cpu


@dataclass(frozen=True)
class Part:
    """One part of the benchmarks.

    Attributes:
        title: Its heading.
        measure: Measure it.
        tables: Show its results in Markdown.
        bounds: Compare its results with what is required.
        plot: Draw its results into a PNG file with a title.
    """

    title: str
    measure: Callable[[Bench], Results]
    tables: Callable[[Results], str]
    bounds: Callable[[Results], list[Row]]
    plot: Callable[[Results, Path, str], None]


PARTS = {
    "speed": Part(
        speed.TITLE, speed.measure, speed_report.tables, speed_bounds.bounds, speed_report.plot
    ),
    "cold": Part(
        cold_start.TITLE, cold_start.measure, cold_start.tables, cold_start.bounds, cold_start.plot
    ),
    "memory": Part(
        resident.TITLE, resident.measure, resident.tables, resident.bounds, resident.plot
    ),
    "growth": Part(growth.TITLE, growth.measure, growth.tables, growth.bounds, growth.plot),
}
_SIZES = (
    "rounds", "documents", "outlier", "equal", "paragraphs", "trial_documents", "queries", "many",
)  # fmt: skip
"""Options that change the scale."""
_PASSIVE = {"OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "1000", "KMP_BLOCKTIME": "0"}
"""Makes threads of OpenMP sleep while they wait: GCC's runtime after the microseconds that the
engine `torch` gives it too, and LLVM's at once."""
_TEMPORARY = Path(tempfile.gettempdir())
_LIBRARIES = (
    "unified-embeddings", "torch", "transformers", "tokenizers", "onnxruntime", "FlagEmbedding",
    "sentence-transformers", "bge-m3-lite", "ctranslate2", "openvino", "nncf", "llama-cpp-python",
    "gguf",
)  # fmt: skip


def main(arguments: list[str] | None = None) -> None:
    """Measure the parts that the command line names and write their results."""
    options = _parse_arguments(arguments)
    _require_readable_results(options.out, options.parts)
    _limit_threads(options.threads)
    if options.passive:
        os.environ |= _PASSIVE
    folder = options.model or _random_model()
    scale = QUICK if options.quick else Scale()
    for name in _SIZES:
        size = getattr(options, name)
        if size is not None:
            scale = replace(scale, **{name: size})
    bench = Bench(
        folder=folder.resolve(),
        work=options.work,
        peers=options.engines,
        scale=scale,
        threads=options.threads,
        timeout=options.timeout,
        slow=options.slow,
        deadline=time.monotonic() + 60 * options.minutes,
    )
    about = machine.about(
        "run.py",
        sys.argv[1:] if arguments is None else arguments,
        _LIBRARIES,
        options.threads,
        weights=options.model.name if options.model else "random, full size (568M)",
    )
    options.out.mkdir(parents=True, exist_ok=True)
    found_kernels = kernels.describe()
    for name in options.parts:
        print(f"{PARTS[name].title} ...", flush=True)
        _run_part(name, bench, about, options.out)
        record.write(options.out, about, found_kernels, report.read(options.out, PARTS))


def _require_readable_results(out: Path, parts: list[str]) -> None:
    """Refuse to start if the page could not be made from the results that are kept.

    Raises:
        SystemExit: If an older version of this program wrote them in another form.
    """
    for name, content in report.read(out, PARTS).items():
        if name in parts:
            continue
        try:
            PARTS[name].tables(content["results"])
        except (AttributeError, KeyError, TypeError) as error:
            raise SystemExit(
                f"{name}.json was written by an older version of this program; measure that part "
                f"too: --parts {','.join([name, *parts])}"
            ) from error


def _random_model() -> Path:
    import full_size  # it imports torch, which a checkpoint of one's own does not need

    return full_size.make(_TEMPORARY / "unified-embeddings-full-size")


def _run_part(name: str, bench: Bench, about: dict[str, Any], out: Path) -> None:
    """Measure one part; write its JSON, its plot and the page."""
    part = PARTS[name]
    results = part.measure(bench)
    bounds = part.bounds(results)
    has_plot = importlib.util.find_spec("matplotlib") is not None
    content = {
        "title": part.title,
        "about": about,
        "plot": has_plot,
        "bounds": bounds,
        "results": results,
    }
    text = json.dumps(content, indent=1, ensure_ascii=False) + "\n"
    (out / f"{name}.json").write_text(text, "utf-8")
    # From here on all results come from JSON, in which the keys of dicts are strings.
    contents = report.read(out, PARTS)
    if has_plot:
        title = f"{part.title}: {report.title_of(about)}"
        part.plot(contents[name]["results"], out / f"{name}.png", title)
    else:
        print("no plot: matplotlib is not installed; pip install 'unified-embeddings[plot]'")
    tables = {key: PARTS[key].tables(found["results"]) for key, found in contents.items()}
    page = out / "README.md"
    page.write_text(report.page(contents, tables) + report.written_by_hand(page), "utf-8")
    print(f"\n{tables[name]}\n")
    if bounds:
        print(f"{report.bounds_table(bounds)}\n", flush=True)


def _parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    """Read the command line and exit with a message if it is wrong."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--model", type=Path, help="a checkpoint in BGE-M3's layout; default: random weights")
    add("--parts", type=_names, default=list(PARTS), help=f"of {','.join(PARTS)}; default: all")
    add("--engines", type=_names, default=[], help=f"all, or parts of: {', '.join(peers.PEERS)}")
    add("--threads", type=int, default=cpu().cores, help="of each engine; default: all cores")
    add("--rounds", type=_positive, help="of documents and queries; default: 5")
    add("--documents", type=_positive, help="of mixed lengths, per round; default: 64")
    add("--outlier", type=_positive, help="tokens of the one long text among them; default: 1,400")
    add("--equal", type=_count, help="documents of 128 tokens, per round; default: 64; 0: none")
    add("--paragraphs", type=_count,
        help="documents of mixed lengths without an outlier; default: 256; 0: none")  # fmt: skip
    add("--trial-documents", type=_positive,
        help="documents on which batch sizes are tried, at most; default: 64")  # fmt: skip
    add("--queries", type=_positive, help="of each length, over all rounds; default: 100")
    add("--many", type=_positive, help="short texts over which memory is watched; default: 10,000")
    add("--quick", action="store_true", help="little of everything, to see that it runs")
    add("--slow", action="store_true", help="also bf16 on a CPU without amx_bf16")
    add("--minutes", type=float, default=math.inf,
        help="begin no round of speed after that, except the first")  # fmt: skip
    add("--passive", action="store_true",
        help="threads of OpenMP sleep while they wait: for a machine with other work, where "
        "spinning takes time from the thread that is waited for")  # fmt: skip
    add("--timeout", type=float, default=900, help="seconds for one answer of an engine")
    add("--out", type=Path, default=machine.ROOT / "docs" / "benchmarks", help="for the results")
    add("--work", type=Path, default=_TEMPORARY / "unified-embeddings-benchmarks",
        help="for files made from the checkpoint; kept")  # fmt: skip
    options = parser.parse_args(arguments)
    _check_options(parser, options)
    return options


def _check_options(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """Turn names into engines and parts in order; exit with a message if something is wrong."""
    try:
        options.engines = peers.choose_peers(options.engines)
    except ValueError as error:
        parser.error(str(error))
    for name in options.parts:
        if name not in PARTS:
            parser.error(f"there is no part {name!r}; choose from {', '.join(PARTS)}")
    options.parts = [name for name in PARTS if name in options.parts]
    if options.model and not (options.model / "config.json").is_file():
        parser.error(f"{options.model} has no config.json: it is not a checkpoint's folder")
    if not 1 <= options.threads <= cpu().cores:
        parser.error(f"--threads must be 1 to {cpu().cores}, the cores of this machine")


def _names(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _count(text: str) -> int:
    number = int(text)
    if number < 0:
        raise argparse.ArgumentTypeError(f"must be at least 0, got {text}")
    return number


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {text}")
    return number


def _limit_threads(threads: int) -> None:
    """Give every engine's process that many cores, and tell its libraries to use as many threads.

    The processes inherit both from this one.
    """
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[name] = str(threads)
    os.environ["HF_HUB_OFFLINE"] = "1"


if __name__ == "__main__":
    main()
