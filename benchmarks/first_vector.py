"""A new process up to its first vector, timed by stage from within; see `cold_start`.

    python benchmarks/first_vector.py NAME FOLDER STARTED QUERY...

STARTED is `time.monotonic()` of the program that starts it. Prints the stages' seconds as JSON.
"""

from __future__ import annotations

import time

_FIRST_LINE = time.monotonic()

import builtins  # noqa: E402 — the clock comes first
import json  # noqa: E402
import os  # noqa: E402
import statistics  # noqa: E402
import sys  # noqa: E402
import threading  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any  # noqa: E402


class _ImportClock:
    """The seconds that the main thread spends in import statements, anywhere in the program.

    It replaces `builtins.__import__`. Imports of imports are counted once, by the outermost one.
    """

    def __init__(self) -> None:
        self.seconds = 0.0
        self._import = builtins.__import__
        self._depth = 0
        self._started = 0.0
        builtins.__import__ = self._timed_import

    def _timed_import(self, *arguments: Any, **options: Any) -> Any:
        if threading.current_thread() is not threading.main_thread():
            return self._import(*arguments, **options)
        if self._depth == 0:
            self._started = time.monotonic()
        self._depth += 1
        try:
            return self._import(*arguments, **options)
        finally:
            self._depth -= 1
            if self._depth == 0:
                self.seconds += time.monotonic() - self._started


def _stages(name: str, folder: Path, started: float, queries: list[str]) -> dict[str, float]:
    clock = _ImportClock()
    import peers

    peer = peers.PEERS[name]
    model = peer.load(folder)
    peer.query(model, queries[0])
    total, imports = time.monotonic() - started, clock.seconds
    later = []
    for query in queries[1:]:
        query_started = time.monotonic()
        peer.query(model, query)
        later.append(time.monotonic() - query_started)
    stages = {
        "interpreter": _FIRST_LINE - started,
        "imports": imports,
        "first query": statistics.median(later),
    }
    # Some libraries load with their first text. What the first query takes longer than a later one
    # therefore counts as loading.
    rest = total - sum(stages.values())
    return {**stages, "tokenizer and weights": max(0.0, rest)}


if __name__ == "__main__":
    print(json.dumps(_stages(sys.argv[1], Path(sys.argv[2]), float(sys.argv[3]), sys.argv[4:])))
    sys.stdout.flush()
    os._exit(0)  # FlagEmbedding raises in its __del__ at a normal exit
