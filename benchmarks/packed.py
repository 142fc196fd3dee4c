"""What eight short queries take in one packed call, against eight calls.

    python benchmarks/packed.py                     a full-size BGE-M3 with random weights
    python benchmarks/packed.py --model FOLDER      a checkpoint of your own
    python benchmarks/packed.py --engines onnx --precisions int8 --rounds 9

The queries are new in each round and have 16 tokens each, or 8 to 30 different ones. Both ways take
turns. Shown are medians of the rounds, and the median and the range of each round's ratio. "CPU" is
the time of all threads, user and system.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

import full_size
from report import table
from unified_embeddings import BGE_M3_Embedder
from unified_embeddings.engines.base import Engine
from unified_embeddings.types import HeadName

_LENGTHS = {"16 tokens each": [16] * 8, "8 to 30 tokens": [8, 11, 14, 17, 20, 23, 26, 30]}
_HEADS: frozenset[HeadName] = frozenset({"dense", "sparse"})
_REPEATED = 3
"""Calls of a turn. A single one may take less than a step of the processor's clock."""
_UNTIL_THREADS_SLEEP = 0.001
"""Seconds after which the system has counted what idle threads have used."""

Queries: TypeAlias = Sequence[NDArray[np.int32]]
"""Token ids of each query."""


def main() -> None:
    """Measure both ways on all engines and print a table."""
    options = _parse()
    folder = options.model or full_size.make(options.work / "unified-embeddings-full-size")
    rows = []
    for name in options.engines:
        for precision in options.precisions if name == "onnx" else ["fp32"]:
            embedder = BGE_M3_Embedder(folder, engine=name, precision=precision, device="cpu")
            engine = embedder._load()[1]
            for kind, lengths in _LENGTHS.items():
                rows.append([f"{name} {precision}", kind, *_compare(engine, lengths, options)])
                print("  ".join(rows[-1]), flush=True)
    head = ["engine", "8 queries of", "one call: ms", "eight calls: ms", "ratio", "of rounds"]
    print("\n" + table([*head, "CPU ratio", "of rounds"], rows))


def _compare(engine: Engine, lengths: list[int], options: argparse.Namespace) -> list[str]:
    rng = np.random.default_rng(0)
    together: list[tuple[float, float]] = []
    alone: list[tuple[float, float]] = []
    for number in range(options.rounds + 1):
        # Ids that every vocabulary of the tests and of the models has.
        queries = [rng.integers(5, 30, length, dtype=np.int32) for length in lengths]
        turns = [_time(engine, [queries]), _time(engine, [[query] for query in queries])]
        if number > 0:  # the first round prepares kernels
            together.append(turns[0])
            alone.append(turns[1])
    cells = [
        f"{1000 * statistics.median(wall for wall, _ in way):.1f}" for way in (together, alone)
    ]
    for clock in (0, 1):
        ratios = [one[clock] / eight[clock] for one, eight in zip(together, alone, strict=True)]
        cells += [f"{statistics.median(ratios):.2f}", f"{min(ratios):.2f} to {max(ratios):.2f}"]
    return cells


def _time(engine: Engine, calls: Sequence[Queries]) -> tuple[float, float]:
    """Return the seconds, by the clock and of all threads, of running these calls."""
    used, begun = time.process_time(), time.perf_counter()
    for _ in range(_REPEATED):
        for queries in calls:
            engine.run(queries, _HEADS, "query")
    elapsed = time.perf_counter() - begun
    time.sleep(_UNTIL_THREADS_SLEEP)
    return elapsed / _REPEATED, (time.process_time() - used) / _REPEATED


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--model", type=Path, help="a checkpoint's folder")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--engines", type=lambda text: text.split(","), default=["onnx", "torch"])
    parser.add_argument("--precisions", type=lambda text: text.split(","), default=["int8", "fp32"])
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()))
    return parser.parse_args()


if __name__ == "__main__":
    main()
