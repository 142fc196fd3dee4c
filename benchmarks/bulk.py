"""Bulk embedding: beside other libraries, the cost of the parts, kills, and memory.

    python benchmarks/bulk.py                       # beside sentence-transformers and Ray Data
    python benchmarks/bulk.py --parts               # embed_rows against the embedder alone
    python benchmarks/bulk.py --kills 20 --rows 100000
    python benchmarks/bulk.py --memory --rows 1000000

What lives here: the rows, starting jobs in turn and watching their processes. What does not: the
jobs (`bulk_jobs`).
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from unified_embeddings.bulk.job import sha256_of

_SCRIPT = Path(__file__).with_name("bulk_jobs.py")
_POLL = 0.05
_MIB = 2**20
_PEERS = {"ours": None, "sentence-transformers": "sentence_transformers", "ray": "ray"}
"""The jobs that are compared, each with the library that it needs."""
_NEEDED = 2
"""Points of memory that tell whether it grows."""


class JobFailedError(Exception):
    """A job ended with an error; the message is its last line."""


@dataclass(frozen=True)
class Outcome:
    """How a job went.

    Attributes:
        seconds: From the start of its process to the end.
        peak: The most resident bytes of its process and all below it, shared pages counted in each.
        rows: Rows of the input.
        resumed: Rows that an earlier run had done.
        steady: Rows per second without starting up and writing the outputs.
    """

    seconds: float
    peak: int
    rows: int
    resumed: int
    steady: float


def write_rows(path: Path, count: int, words: tuple[int, int], seed: int = 0) -> None:
    """Write rows of random words, no two alike."""
    rng = random.Random(seed)
    vocabulary = [f"{first}{last}" for first in _FIRST for last in _LAST]
    with path.open("w", encoding="utf-8") as lines:
        for number in range(count):
            text = " ".join(rng.choices(vocabulary, k=rng.randint(*words)))
            lines.write(json.dumps({"id": number, "text": f"{text} {number}"}) + "\n")


_FIRST = ("sun", "moon", "star", "rain", "snow", "wind", "fire", "wood", "iron", "gold")
_LAST = ("light", "fall", "storm", "work", "land", "stone", "man", "house", " and", " of")


def run_job(
    name: str,
    source: Path,
    folder: Path,
    model: str,
    workers: int,
    *,
    threads: int | None = None,
    kill_after: float | None = None,
) -> Outcome | None:
    """Run a job in a process of its own, and watch its memory.

    Args:
        name: Of the job.
        source: Its rows.
        folder: Of its outputs.
        model: A name or a folder.
        workers: Processes that compute.
        threads: Of each process, where the job does not set them itself.
        kill_after: Seconds after which it is killed.

    Returns:
        None if it was killed.

    Raises:
        JobFailedError: If it ends with an error.
    """
    # Ours would take a GPU by itself; the others are held to the CPU.
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": ""}
    if threads is not None:
        environment["OMP_NUM_THREADS"] = str(threads)
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        begun = time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, str(_SCRIPT), name, str(source), str(folder), model, str(workers)],
            stdout=out,
            stderr=err,
            env=environment,
        )
        peak = 0
        try:
            while process.poll() is None:
                peak = max(peak, _tree_memory(process.pid))
                if kill_after is not None and time.perf_counter() - begun > kill_after:
                    process.kill()
                    process.wait()
                    return None
                time.sleep(_POLL)
        finally:
            process.kill()
            process.wait()
        seconds = time.perf_counter() - begun
        out.seek(0)
        err.seek(0)
        if process.returncode:
            lines = err.read().decode(errors="replace").strip().splitlines() or ["no message"]
            raise JobFailedError(lines[-1])
        answer = json.loads(out.read().decode().strip().splitlines()[-1])
    return Outcome(
        seconds=seconds,
        peak=peak,
        rows=int(answer["rows"]),
        resumed=int(answer.get("resumed", 0)),
        steady=float(answer["steady"]),
    )


def _tree_memory(pid: int) -> int:
    total = 0
    with contextlib.suppress(psutil.Error):
        parent = psutil.Process(pid)
        for process in [parent, *parent.children(recursive=True)]:
            with contextlib.suppress(psutil.Error):
                total += process.memory_info().rss
    return total


def compare(work: Path, rows: int, rounds: int, workers: int) -> None:
    """Measure this package and the others in turn, on the same rows with the same weights."""
    from unified_embeddings.models.mini_m3 import mini_m3_folder

    source = work / "rows.jsonl"
    write_rows(source, rows, (8, 80))
    threads = max(1, (os.cpu_count() or 1) // workers)
    outcomes: dict[str, list[Outcome]] = {}
    for turn in range(rounds):
        for name, library in _PEERS.items():
            if library is not None and importlib.util.find_spec(library) is None:
                if not turn:
                    _say(f"{name}: skipped, {library} is not installed")
                continue
            model = "mini-m3" if name == "ours" else str(mini_m3_folder())
            folder = work / f"{name}-{turn}"
            try:
                outcome = run_job(name, source, folder, model, workers, threads=threads)
            except JobFailedError as error:
                _say(f"{name}: failed: {error}")
                continue
            assert outcome is not None
            outcomes.setdefault(name, []).append(outcome)
    for name, several in outcomes.items():
        _say(
            f"{name}: {statistics.median(o.rows / o.seconds for o in several):,.1f} rows/s with "
            f"start and writing, {statistics.median(o.steady for o in several):,.1f} steady, "
            f"peak {max(o.peak for o in several) / _MIB:,.0f} MiB over all processes"
        )
    for name in outcomes.keys() - {"ours"}:
        pairs = zip(outcomes["ours"], outcomes[name], strict=False)
        ratios = [other.seconds / own.seconds for own, other in pairs]
        _say(f"ours is {statistics.median(ratios):.2f} times as fast as {name} ({_each(ratios)})")


def measure_parts(work: Path, rows: int, rounds: int) -> None:
    """Measure the steady rate of `embed_rows` against the embedder's alone, in turn."""
    source = work / "rows.jsonl"
    write_rows(source, rows, (8, 80))
    ratios = []
    for turn in range(rounds):
        steady = {}
        order = ("ours", "bare") if turn % 2 else ("bare", "ours")
        for name in order:
            outcome = run_job(name, source, work / f"{name}-{turn}", "mini-m3", 1)
            assert outcome is not None
            steady[name] = outcome.steady
        ratios.append(steady["ours"] / steady["bare"])
        _say(f"round {turn + 1}: {steady['ours']:,.1f} rows/s of {steady['bare']:,.1f}")
    cost = 100 * (1 - statistics.median(ratios))
    _say(f"the parts cost {cost:.1f}% (median of {rounds}; ratios {_each(ratios)}); wanted <= 3%")


def measure_kills(work: Path, rows: int, kills: int, model: str) -> bool:
    """Kill a job at random moments, resume it, and compare its outputs with a whole run's."""
    source = work / "rows.jsonl"
    write_rows(source, rows, (3, 12))
    whole = run_job("ours", source, work / "whole", model, 1)
    assert whole is not None
    _say(f"without a kill: {whole.seconds:.1f} s")
    rng = random.Random(1)
    share = whole.seconds / (kills + 1)
    done = 0
    for number in range(kills):
        # A start takes its time each run, so the moments lie behind it.
        outcome = run_job(
            "ours", source, work / "killed", model, 1, kill_after=_START + rng.uniform(0, 2 * share)
        )
        if outcome is not None:
            _say(f"finished before kill {number + 1}")
            break
        done += 1
    last = run_job("ours", source, work / "killed", model, 1)
    assert last is not None
    same = _digests(work / "whole") == _digests(work / "killed")
    _say(f"{done} kills; the last run kept {last.resumed:,} of {last.rows:,} rows")
    _say("outputs byte-identical" if same else "OUTPUTS DIFFER")
    return same


_START = 1.5
"""Seconds that a job takes at least to its first part."""


def measure_memory(work: Path, most: int) -> bool:
    """Measure the peak of jobs of more and more rows with the shipped test double."""
    sizes = [size for size in (10_000, 50_000, 200_000, 1_000_000) if size <= most]
    peaks = []
    for size in sizes:
        source = work / f"{size}.jsonl"
        write_rows(source, size, (3, 12))
        outcome = run_job("ours", source, work / str(size), "fake", 1)
        assert outcome is not None
        peaks.append(outcome.peak)
        _say(
            f"{size:,} rows: peak {outcome.peak / _MIB:,.0f} MiB, {outcome.steady:,.0f} rows/s "
            f"steady, {outcome.seconds:.1f} s"
        )
    if len(peaks) < _NEEDED:
        return True
    growth = peaks[-1] / peaks[0]
    _say(f"memory at {sizes[-1]:,} rows is {growth:.2f} times that at {sizes[0]:,}")
    return growth < _FLAT


_FLAT = 1.25


def _digests(folder: Path) -> dict[str, str]:
    found = {}
    for file in sorted(folder.glob("*")):
        if file.suffix in (".npy", ".npz", ".jsonl"):
            found[file.name] = sha256_of(file)
    return found


def _each(numbers: Sequence[float]) -> str:
    return ", ".join(f"{value:.3f}" for value in numbers)


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what the command line asks for; return 1 if a promise is not kept."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--rows", type=int, default=2_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--parts", action="store_true", help="the cost of the parts")
    parser.add_argument("--kills", type=int, help="kill and resume so many times")
    parser.add_argument("--model", default="mini-m3", help='for --kills; "fake" is quick')
    parser.add_argument("--memory", action="store_true", help="up to --rows rows")
    asked = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        if asked.memory:
            return 0 if measure_memory(work, asked.rows) else 1
        if asked.kills is not None:
            return 0 if measure_kills(work, asked.rows, asked.kills, asked.model) else 1
        if asked.parts:
            measure_parts(work, asked.rows, asked.rounds)
        else:
            compare(work, asked.rows, asked.rounds, asked.workers)
    return 0


if __name__ == "__main__":
    sys.exit(main())
