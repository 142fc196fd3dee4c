"""Cold start: from a new process to its first vector, by stage, on a warm page cache.

What lives here: starting it again and again. What does not: the process itself (`first_vector`).
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from context import Bench
from peers import Peer
from report import bound, figure, number, ranged, reasons, spread, table
from workers import UnavailableError

TITLE = "Cold start"
STAGES = ("interpreter", "imports", "tokenizer and weights", "first query")
_TOKENS = 16
_LIMIT = 1.5
_SCRIPT = Path(__file__).with_name("first_vector.py")


def measure(bench: Bench) -> dict[str, Any]:
    """Start each engine anew `bench.scale.starts` times, in turn."""
    rows = bench.rows(bench.loaded_peers)
    samples: dict[str, list[dict[str, float]]] = {name: [] for name in rows}
    uncounted = bench.scale.warm_starts
    for turn in range(uncounted + bench.scale.starts):
        for peer in bench.loaded_peers:
            if rows[peer.name]["reason"]:
                continue
            texts = [bench.words.text(bench.rng, _TOKENS) for _ in range(4)]
            found = _start(bench, peer, texts)
            if isinstance(found, str):
                rows[peer.name]["reason"] = found
            elif turn >= uncounted:
                samples[peer.name].append(found)
        bench.say("cold start: a round done")
    for name, starts in samples.items():
        if starts:
            rows[name] |= _summary(starts)
    return {"starts": bench.scale.starts, "query_tokens": _TOKENS, "rows": rows}


def tables(results: dict[str, Any]) -> str:
    """Each engine's median start, and where it goes."""
    rows = results["rows"]
    drawn = table(
        ("engine", "seconds to the first vector (range)", *STAGES),
        (
            (row["label"], ranged(row["seconds"], 2),
             *(number(row["stages"][stage], 2) for stage in STAGES))
            for row in rows.values() if "seconds" in row
        ),
    )  # fmt: skip
    return "\n\n".join(filter(None, (
        f"Seconds, medians of {results['starts']} new processes; the page cache is warm. Imports "
        "are all of them, whenever they happen. First query: what a later one takes; a first one's "
        "time beyond that is the weights'.",
        drawn,
        reasons(rows),
    )))  # fmt: skip


def bounds(results: dict[str, Any]) -> list[dict[str, Any]]:
    """ONNX int8 starts in 1.5 s."""
    row = results["rows"].get("ours-onnx-int8", {})
    measured = row["seconds"]["median"] if "seconds" in row else None
    return [bound("cold start of ONNX int8, s", measured, _LIMIT)]


def plot(results: dict[str, Any], path: Path, title: str) -> None:
    """One bar an engine, one colour a stage."""
    rows = {name: row for name, row in results["rows"].items() if "seconds" in row}
    with figure(path, title, 1, 1.5 + 0.4 * len(rows)) as (axes,):
        labels, left = [row["label"] for row in rows.values()], [0.0] * len(rows)
        for stage in STAGES:
            widths = [row["stages"][stage] for row in rows.values()]
            axes.barh(labels, widths, left=left, label=stage)
            left = [a + b for a, b in zip(left, widths, strict=True)]
        for y, end in enumerate(left):
            axes.text(end, y, f" {end:.2f}", va="center", fontsize=8)
        axes.margins(x=0.12)
        axes.invert_yaxis()
        axes.set_xlabel("seconds from a new process to its first vector (less is better)")
        axes.legend(fontsize=8)


def _start(bench: Bench, peer: Peer, texts: list[str]) -> dict[str, float] | str:
    """One start's stages in seconds, or why there is none."""
    try:
        folder = bench.folder_for(peer)
        done = subprocess.run(
            [sys.executable, str(_SCRIPT), peer.name, str(folder), str(time.monotonic()), *texts],
            capture_output=True, text=True, timeout=bench.timeout, check=False,
        )  # fmt: skip
    except UnavailableError as error:
        return str(error)
    except subprocess.TimeoutExpired:
        return f"no vector within {bench.timeout:.0f} s"
    lines = done.stdout.splitlines()
    if done.returncode or not lines:
        return str(UnavailableError((done.stderr.strip().splitlines() or ["no answer"])[-1]))
    found: dict[str, float] = json.loads(lines[-1])
    return found


def _summary(starts: list[dict[str, float]]) -> dict[str, Any]:
    return {
        "seconds": spread([sum(stages.values()) for stages in starts]),
        "stages": {stage: statistics.median(one[stage] for one in starts) for stage in STAGES},
    }
