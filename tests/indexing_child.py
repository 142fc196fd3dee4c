"""Runs of `index_paths` in processes that are killed, for `llama/test_index_killed.py`.

Started as a program, it loads the libraries once. For each line on standard input it forks a
process that indexes, and kills it after so many function calls or seconds:

    calls 12000
    seconds 0.35
    end

It answers each line with "killed" or "ended".
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path
from types import FrameType
from typing import Any

from unified_embeddings.embedders.fake import FakeEmbedder
from unified_embeddings.llama import adding, indexing, text_files
from unified_embeddings.llama.vector_store import build_vector_store
from unified_embeddings.stores.opening import open_folder


def index(folder: Path, calls: int | None) -> None:
    """Index once, in small batches; with `calls`, kill this process at that function call."""
    text_files.BATCH_CHUNKS = adding.BATCH_CHUNKS = 8
    if calls is not None:
        sys.setprofile(killer(calls))
    client = open_folder(folder / "store")
    embedder = FakeEmbedder()
    store = build_vector_store(embedder, "notes", client=client)
    indexing.index_paths([folder / "docs"], store, embedder, chunk_tokens=32, prune=True)
    sys.setprofile(None)
    client.close()


def killer(calls: int) -> Any:
    """Return a profiler that kills this process with SIGKILL."""
    left = calls

    def count(frame: FrameType, event: str, argument: Any) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            os.kill(os.getpid(), signal.SIGKILL)

    return count


def run(folder: Path, how: str, amount: float) -> str:
    """Index in a process of its own, and return "killed" or "ended"."""
    child = os.fork()
    if child == 0:
        try:
            index(folder, int(amount) if how == "calls" else None)
        except BaseException:
            import traceback

            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    if how == "seconds":
        time.sleep(amount)
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        return "killed"
    return "ended" if os.WEXITSTATUS(status) == 0 else "failed"


if __name__ == "__main__":
    for line in sys.stdin:
        order, _, number = line.strip().partition(" ")
        print(run(Path(sys.argv[1]), order, float(number or 0)), flush=True)
