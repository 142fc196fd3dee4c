"""Clears a collection in processes that are killed, for `stores/test_edge_clearing.py`.

Started as a program, it loads the libraries once. For each line on standard input it forks a
process that opens the store and clears the collection "docs" under the alias "live", and kills it
after so many function calls or seconds:

    calls 120
    seconds 0.02

It answers each line with "killed" or "ended".
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

from indexing_child import killer
from unified_embeddings import EdgeQdrantClient


def clear(folder: Path, calls: int | None) -> None:
    """Clear once; with `calls`, kill this process at that function call after opening."""
    client = EdgeQdrantClient(folder)
    client.count("live")
    if calls is not None:
        sys.setprofile(killer(calls))
    client.clear("live")
    sys.setprofile(None)
    client.close()


def run(folder: Path, how: str, amount: float) -> str:
    """Clear in a process of its own, and return "killed", "ended" or "failed"."""
    child = os.fork()
    if child == 0:
        try:
            clear(folder, int(amount) if how == "calls" else None)
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
        print(run(Path(sys.argv[1]), order, float(number)), flush=True)
