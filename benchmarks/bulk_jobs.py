"""One bulk job in a process of its own, as `bulk` starts it: this package's, or another library's.

What lives here: the jobs. What does not: their rows, and measuring them (`bulk`).
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

SLICE = 64
"""Texts of one call of the model, in each job."""


def read_texts(source: Path) -> list[str]:
    """Return the texts of a file of JSON lines."""
    with source.open(encoding="utf-8") as lines:
        return [json.loads(line)["text"] for line in lines]


def make_fake(**_: Any) -> Any:
    """Make the shipped test double, for jobs that measure everything but the model."""
    from unified_embeddings.embedders.fake import FakeEmbedder

    return FakeEmbedder(dimension=384, cache=None)


def ours(source: Path, folder: Path, model: str, workers: int) -> dict[str, float]:
    """Run `embed_rows`; the steady rate is that between its first and its last part."""
    from unified_embeddings.bulk.options import BulkOptions, Progress
    from unified_embeddings.bulk.run import embed_rows
    from unified_embeddings.embedders.factory import make_embedder

    told: list[tuple[float, int, int]] = []

    def note(progress: Progress) -> None:
        if progress.phase == "computing":
            told.append((time.perf_counter(), progress.rows, progress.resumed))

    options = BulkOptions(
        models=[model], formats=("npy",), max_workers=workers, batch_size=SLICE, dedupe=True
    )
    # By the module's own name: as part of the main module a worker could not import it.
    make = importlib.import_module("bulk_jobs").make_fake if model == "fake" else make_embedder
    (report,) = embed_rows(source, folder, options, on_progress=note, make=make)
    computed = [(moment, rows) for moment, rows, resumed in told if rows > resumed]
    steady = 0.0
    if len(computed) > 2:
        (first, first_rows), (last, last_rows) = computed[0], computed[-1]
        steady = (last_rows - first_rows) / (last - first)
    return {"rows": report.rows, "resumed": report.resumed, "steady": steady}


def bare(source: Path, folder: Path, model: str, workers: int) -> dict[str, float]:  # noqa: ARG001 — every job has these
    """Call the embedder alone on windows of rows, longest first, as a worker does."""
    from unified_embeddings.embedders.factory import make_embedder

    texts = read_texts(source)
    with make_embedder(model, cache=None, batch_tokens=4096) as embedder:
        embedder.encode(texts[:SLICE], role="document", heads=("dense",))
        begun = time.perf_counter()
        for start in range(0, len(texts), 256):
            window = sorted(texts[start : start + 256], key=len, reverse=True)
            for place in range(0, len(window), SLICE):
                embedder.encode(window[place : place + SLICE], role="document", heads=("dense",))
        seconds = time.perf_counter() - begun
    return {"rows": len(texts), "steady": len(texts) / seconds}


def sentence_transformers(source: Path, folder: Path, model: str, workers: int) -> dict[str, float]:
    """Encode with sentence-transformers' processes, and save the array."""
    from sentence_transformers import SentenceTransformer

    texts = read_texts(source)
    loaded = SentenceTransformer(model, device="cpu")
    pool = loaded.start_multi_process_pool(["cpu"] * workers)
    try:
        begun = time.perf_counter()
        vectors = loaded.encode(texts, pool=pool, batch_size=SLICE, normalize_embeddings=True)
        seconds = time.perf_counter() - begun
    finally:
        loaded.stop_multi_process_pool(pool)
    folder.mkdir(parents=True)
    np.save(folder / "vectors.npy", vectors)
    return {"rows": len(texts), "steady": len(texts) / seconds}


class _Encoder:
    """What each of Ray's actors runs."""

    def __init__(self, model: str) -> None:
        from sentence_transformers import SentenceTransformer

        self._model = SentenceTransformer(model, device="cpu")

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        batch["embedding"] = self._model.encode(
            list(batch["text"]), batch_size=SLICE, normalize_embeddings=True
        )
        return batch


def ray_data(source: Path, folder: Path, model: str, workers: int) -> dict[str, float]:
    """Run a Ray Data pipeline that writes Parquet."""
    import ray

    # A cluster of its own, also where one is running on this machine.
    # Two more than the actors take: reading and writing would wait for a processor for ever.
    ray.init("local", num_cpus=workers + 2, include_dashboard=False, log_to_driver=False)
    begun = time.perf_counter()
    rows = ray.data.read_json(str(source), lines=True)
    embedded = rows.map_batches(
        _Encoder, fn_constructor_args=(model,), batch_size=256, concurrency=workers
    )
    embedded.write_parquet(str(folder))
    seconds = time.perf_counter() - begun
    count = rows.count()
    ray.shutdown()
    return {"rows": count, "steady": count / seconds}


JOBS: dict[str, Callable[[Path, Path, str, int], dict[str, float]]] = {
    "ours": ours,
    "bare": bare,
    "sentence-transformers": sentence_transformers,
    "ray": ray_data,
}


def main() -> None:
    """Run the job that the arguments name, and print what it says as the last line."""
    name, source, folder, model, workers = sys.argv[1:]
    answer = JOBS[name](Path(source), Path(folder), model, int(workers))
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()
    os._exit(0)  # Some libraries' threads would keep the process for seconds.


if __name__ == "__main__":
    main()
