"""Where our own time goes on a GPU: the stages of a query, and of a call with many documents.

What lives here: timing the stages one after another, which in a call of the embedder overlap. What
does not: comparing engines (`gpu`).
"""

from __future__ import annotations

import statistics
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from unified_embeddings.embedders.batching import group_into_batches
from unified_embeddings.embedders.finishing import finish_vectors, require_finite
from unified_embeddings.embedders.tokenization import Tokenizer
from unified_embeddings.engines import registry
from unified_embeddings.engines.base import PipelinedEngine
from unified_embeddings.models.checkpoint import Checkpoint
from unified_embeddings.models.resolve import resolve
from unified_embeddings.types import HeadName, IntArray

STAGES = ("tokenise", "start", "wait", "finish")
_HEADS: frozenset[HeadName] = frozenset(("dense", "sparse"))
_BUDGET = 16_384
_REPEATS = 15


def measure(
    folder: Path,
    device: str,
    make_queries: Callable[[int], list[str]],
    make_documents: Callable[[str], list[str]],
) -> dict[str, Any]:
    """Return the milliseconds of each stage, medians, for several works.

    "start" is tokens to the GPU and starting its kernels, "wait" what the GPU still takes then,
    "finish" the outputs' way into vectors. "gpu" is how long the GPU was at work or waited for
    kernels, from the first to the last; None on a CPU.

    Args:
        folder: The checkpoint.
        device: Where the model runs.
        make_queries: Makes so many queries.
        make_documents: Makes the documents of a kind.
    """
    stages = _Stages(folder, device)
    works: dict[str, Callable[[], list[str]]] = {
        "one query": lambda: make_queries(1),
        "8 queries": lambda: make_queries(8),
        "32 queries": lambda: make_queries(32),
        "documents, equal": lambda: make_documents("equal"),
        "documents, mixed": lambda: make_documents("mixed"),
    }
    results = {}
    for name, make_texts in works.items():
        repeats = 5 if name.startswith("documents") else _REPEATS
        for _ in range(3):  # the first passes of a size are slower
            stages.run(make_texts())
        rounds = [stages.run(make_texts()) for _ in range(repeats)]
        medians: dict[str, float | None] = {}
        for stage in STAGES:
            medians[stage] = statistics.median(each[stage] for each in rounds)
        medians["gpu"] = None
        if device != "cpu":
            medians["gpu"] = statistics.median(each["gpu"] for each in rounds)
        results[name] = medians
    return results


class _Stages:
    """Our own path, taken apart."""

    def __init__(self, folder: Path, device: str) -> None:
        self._checkpoint: Checkpoint = resolve(str(folder))
        precision = "fp32" if device == "cpu" else "fp16"
        runtime = registry.plan("torch", precision, device, lambda: self._checkpoint)
        engine = registry.load(self._checkpoint, runtime)
        assert isinstance(engine, PipelinedEngine)
        self._engine = engine
        self._tokenizer = Tokenizer(self._checkpoint, 8192)
        self._has_gpu = device != "cpu"

    def run(self, texts: Sequence[str]) -> dict[str, float]:
        """Return the milliseconds of each stage for these texts, batch after batch."""
        times = dict.fromkeys((*STAGES, "gpu"), 0.0)
        begun = time.perf_counter()
        tokenised = self._tokenizer(texts)
        batches = []
        for places in group_into_batches(tokenised, _BUDGET, padded=False):
            batches.append([tokenised[place].ids for place in places])
        times["tokenise"] = 1000 * (time.perf_counter() - begun)
        for batch in batches:
            self._run_batch(batch, times)
        return times

    def _run_batch(self, batch: list[IntArray], times: dict[str, float]) -> None:
        if self._has_gpu:
            first = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
            last = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
            first.record()
        begun = time.perf_counter()
        wait = self._engine.start(batch, _HEADS)
        started = time.perf_counter()
        if self._has_gpu:
            last.record()
        raw = wait()
        waited = time.perf_counter()
        require_finite(self._checkpoint, raw, self._engine.runtime)
        vectors = finish_vectors(
            raw, batch, self._tokenizer.special_ids, normalise=True, sum_repeats=False
        )
        assert len(list(vectors)) == len(batch)
        finished = time.perf_counter()
        times["start"] += 1000 * (started - begun)
        times["wait"] += 1000 * (waited - started)
        times["finish"] += 1000 * (finished - waited)
        if self._has_gpu:
            last.synchronize()
            times["gpu"] += first.elapsed_time(last)


def describe(device: str) -> dict[str, Any] | None:
    """Return what the GPU is; None for a CPU."""
    if device == "cpu":
        return None
    properties = torch.cuda.get_device_properties(device)
    return {
        "name": properties.name,
        "memory": properties.total_memory,
        "multiprocessors": properties.multi_processor_count,
        "cuda": torch.version.cuda,
        "driver": _driver(),
    }


def _driver() -> str | None:
    try:
        done = subprocess.run(
            ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.split()[0]
