"""Measure what a model's identity costs when a process starts.

    python tools/measure_identity.py FOLDER [FOLDER ...]

For each model: the time to its fingerprint with nothing remembered and the files dropped from the
system's cache where that is allowed (cold), with nothing remembered and the files in memory (read),
and remembered. Each in a process of its own, without the time of its imports.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

_PROGRAM = """
import sys, time
from unified_embeddings.embedders.single_model import ModelEmbedder
embedder = ModelEmbedder(sys.argv[1], local_files_only=True)
started = time.perf_counter()
fingerprint = embedder.fingerprint
print(time.perf_counter() - started, fingerprint)
"""
_ROUNDS = 5


def main() -> None:
    """Print a line for each model."""
    for model in sys.argv[1:]:
        size = sum(path.stat().st_size for path in Path(model).rglob("*") if path.is_file())
        with tempfile.TemporaryDirectory() as cache:
            drop_from_memory(Path(model))
            cold = measure(model, cache)
            remembered = [measure(model, cache) for _ in range(_ROUNDS)]
        read = []
        for _ in range(_ROUNDS):
            with tempfile.TemporaryDirectory() as cache:
                read.append(measure(model, cache))
        print(
            f"{model}: {size / 1e9:.2f} GB; cold {cold:.2f} s, read {statistics.median(read):.2f} "
            f"s, remembered {statistics.median(remembered) * 1000:.0f} ms"
        )


def measure(model: str, cache: str) -> float:
    """Return the seconds to a model's fingerprint in a new process."""
    ended = subprocess.run(
        [sys.executable, "-c", _PROGRAM, model],
        env={**os.environ, "XDG_CACHE_HOME": cache},
        capture_output=True,
        text=True,
        check=True,
    )
    return float(ended.stdout.split()[0])


def drop_from_memory(folder: Path) -> None:
    """Ask the system to forget the files' pages, so that they are read from the disk."""
    for path in folder.rglob("*"):
        if path.is_file() and hasattr(os, "posix_fadvise"):
            with path.open("rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


if __name__ == "__main__":
    main()
