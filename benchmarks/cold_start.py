"""Cold start: from a new process to its first vector, by stage, with a warm page cache.

What lives here: starting processes again and again. What does not: the process itself
(`first_vector`).
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

from context import Bench
from peers import Peer
from report import (
    Results,
    Row,
    bound,
    figure,
    number,
    paragraphs,
    ranged,
    reasons,
    spread,
    table,
)
from workers import UnavailableError

TITLE = "Cold start"
STAGES = ("interpreter", "imports", "tokenizer and weights", "first query")
_TOKENS = 16
_QUERIES = 4
"""The first is part of the start; the others tell what a later query takes."""
_LIMIT = 1.5
_SCRIPT = Path(__file__).with_name("first_vector.py")


def measure(bench: Bench) -> Results:
    """Start each engine `bench.scale.starts` times, in turn."""
    rows = bench.rows()
    samples: dict[str, list[dict[str, float]]] = {name: [] for name in rows}
    warm_starts = bench.scale.warm_starts
    for turn in range(warm_starts + bench.scale.starts):
        for peer in bench.peers:
            row = rows[peer.name]
            if row["reason"]:
                continue
            texts = [bench.words.text(bench.rng, _TOKENS) for _ in range(_QUERIES)]
            try:
                stages = _start(bench, peer, texts)
            except UnavailableError as error:
                row["reason"] = str(error)
                continue
            if turn >= warm_starts:
                samples[peer.name].append(stages)
        bench.say(f"cold start: round {turn + 1} of {warm_starts + bench.scale.starts} done")
    for name, starts in samples.items():
        if starts:
            rows[name] |= _summary(starts)
    return {"starts": bench.scale.starts, "query_tokens": _TOKENS, "rows": rows}


def tables(results: Results) -> str:
    """Return each engine's median start and its stages."""
    rows = results["rows"]
    lines = []
    for row in rows.values():
        if "seconds" in row:
            stages = [number(row["stages"][stage], 2) for stage in STAGES]
            lines.append([row["label"], ranged(row["seconds"], 2), *stages])
    return paragraphs(
        f"Seconds, medians of {results['starts']} new processes; the page cache is warm. Imports: "
        "all of them, whenever they happen. First query: what a later query takes. The rest of the "
        "first query's time counts as loading the weights.",
        table(("engine", "seconds to the first vector (range)", *STAGES), lines),
        reasons(rows),
    )


def bounds(results: Results) -> list[Row]:
    """Return the bound: ONNX int8 starts in 1.5 s."""
    row = results["rows"].get("ours-onnx-int8", {})
    measured = row.get("seconds", {}).get("median")
    return [bound("cold start of ONNX int8, s", measured, _LIMIT)]


def plot(results: Results, path: Path, title: str) -> None:
    """Draw one bar per engine and one colour per stage."""
    rows = {name: row for name, row in results["rows"].items() if "seconds" in row}
    with figure(path, title, 1, 1.5 + 0.4 * len(rows)) as (axes,):
        labels = [row["label"] for row in rows.values()]
        ends = [0.0] * len(rows)
        for stage in STAGES:
            widths = [row["stages"][stage] for row in rows.values()]
            axes.barh(labels, widths, left=ends, label=stage)
            ends = [end + width for end, width in zip(ends, widths, strict=True)]
        for place, end in enumerate(ends):
            axes.text(end, place, f" {end:.2f}", va="center", fontsize=8)
        axes.margins(x=0.12)
        axes.invert_yaxis()
        axes.set_xlabel("seconds from a new process to its first vector (less is better)")
        axes.legend(fontsize=8)


def _start(bench: Bench, peer: Peer, texts: list[str]) -> dict[str, float]:
    """Return the stages of one start in seconds.

    Raises:
        UnavailableError: If the process gives no vector.
    """
    folder = bench.folder_for(peer)
    try:
        done = subprocess.run(
            [sys.executable, str(_SCRIPT), peer.name, str(folder), str(time.monotonic()), *texts],
            capture_output=True, text=True, timeout=bench.timeout, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        raise UnavailableError(f"no vector within {bench.timeout:.0f} s") from error
    lines = done.stdout.splitlines()
    if done.returncode or not lines:
        problems = done.stderr.strip().splitlines() or ["no answer"]
        raise UnavailableError(problems[-1])
    stages: dict[str, float] = json.loads(lines[-1])
    return stages


def _summary(starts: list[dict[str, float]]) -> Row:
    medians = {stage: statistics.median(start[stage] for start in starts) for stage in STAGES}
    return {
        "seconds": spread([sum(stages.values()) for stages in starts]),
        "stages": medians,
    }
