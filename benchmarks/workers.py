"""One process per engine: the parent's handle on it, and the process itself.

A process answers one request at a time and sleeps in between, so that several can live beside each
other and be measured in turn. Requests and answers are lines of JSON; what libraries print goes to
a log, whose last line explains a process that died.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

import psutil

import peers

GEMM = "gemm"
"""The process that measures the machine's own rate of matrix products."""


class UnavailableError(Exception):
    """An engine that cannot run here; the message says why, without folders."""

    def __init__(self, reason: str) -> None:
        super().__init__(re.sub(r"(?<![\w/])(?:/[\w.+@-]+)+/(?=\w)", "", reason.strip())[:300])


class Worker:
    """A process that holds one model.

    Args:
        process: The `Peer.process` it is, or `GEMM`.
        folder: What its model is loaded from.
        timeout: Seconds an answer may take; then the process is ended.
    """

    def __init__(self, process: str, folder: Path, timeout: float) -> None:
        self._timeout, self._late = timeout, False
        self._log = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115 — see close
        self._process = subprocess.Popen(
            [sys.executable, __file__, process, str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
        )

    def __enter__(self) -> Worker:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def ask(self, do: str, **given: object) -> dict[str, Any]:
        """Have one command done.

        Raises:
            UnavailableError: If it fails, takes too long, or the process is gone.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        timer = threading.Timer(self._timeout, self._give_up)
        timer.start()
        try:
            self._process.stdin.write(json.dumps({"do": do, **given}) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        finally:
            timer.cancel()
        if not line:
            raise UnavailableError(self._epitaph())
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise UnavailableError(answer["error"])
        return answer

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._log):
            if stream is not None:
                with contextlib.suppress(BrokenPipeError):
                    stream.close()

    def _give_up(self) -> None:
        self._late = True
        self._process.kill()

    def _epitaph(self) -> str:
        code = self._process.wait()
        if self._late:
            return f"no answer within {self._timeout:.0f} s"
        if code == -signal.SIGKILL:
            return "its process was killed, as happens where memory runs out"
        self._log.seek(0)
        lines = [line for line in self._log.read().splitlines() if line.strip()]
        return f"its process ended with {code}" + (f": {lines[-1]}" if lines else "")


# --- the process itself ---------------------------------------------------------------------------


class _Commands:
    """What a process does when asked; each method is a command, its result the answer."""

    def __init__(self, process: str, folder: Path) -> None:
        self._process, self._folder = process, folder
        self._model: Any = None

    def load(self, query: str) -> dict[str, Any]:
        """Load the model and run it once: some load with their first text."""
        peer = next(peer for peer in peers.PEERS.values() if peer.process == self._process)
        started = time.perf_counter()
        self._model = peer.load(self._folder)
        peer.query(self._model, query)
        return {"seconds": time.perf_counter() - started}

    def documents(self, peer: str, texts: list[str]) -> dict[str, Any]:
        started = time.perf_counter()
        peers.PEERS[peer].documents(self._model, texts)
        return {"seconds": time.perf_counter() - started}

    def queries(self, peer: str, texts: list[str]) -> dict[str, Any]:
        seconds = []
        for text in texts:
            started = time.perf_counter()
            peers.PEERS[peer].query(self._model, text)
            seconds.append(time.perf_counter() - started)
        return {"seconds": seconds}

    def memory(self, reset: bool = False) -> dict[str, Any]:
        """Resident bytes now, and at most since the start or the last reset."""
        answer = {"resident": psutil.Process().memory_info().rss, "peak": _peak()}
        if reset:
            # Linux, Documentation/filesystems/proc: 5 sets the peak back to what is resident.
            with contextlib.suppress(OSError):
                Path("/proc/self/clear_refs").write_text("5", "ascii")
        return answer

    def prepare(self, peer: str, target: str) -> dict[str, Any]:
        """Write the files a peer needs from the checkpoint."""
        make = peers.PEERS[peer].make
        assert make is not None
        started = time.perf_counter()
        make(self._folder, Path(target))
        return {"seconds": time.perf_counter() - started}

    def gemm(self, precision: str, repeats: int) -> dict[str, Any]:
        """FLOP/s of (2048, 1024) x (1024, 4096), a middle layer's largest product."""
        import torch

        kind = {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
        left, right = torch.randn(2048, 1024, dtype=kind), torch.randn(1024, 4096, dtype=kind)
        torch.mm(left, right)
        seconds = []
        for _ in range(repeats):
            started = time.perf_counter()
            torch.mm(left, right)
            seconds.append(time.perf_counter() - started)
        return {"flops": 2 * 2048 * 1024 * 4096 / statistics.median(seconds)}


def _peak() -> int:
    """Most resident bytes. Not ru_maxrss where there is better: it starts at the parent's."""
    status = Path("/proc/self/status")
    if status.exists():
        found = re.search(r"^VmHWM:\s+(\d+) kB", status.read_text("ascii"), re.MULTILINE)
        if found:
            return int(found[1]) * 1024
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _serve(commands: _Commands) -> None:
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what libraries print must not get between the answers
    for line in sys.stdin:
        request = json.loads(line)
        do: Callable[..., dict[str, Any]] = getattr(commands, request.pop("do"))
        try:
            answer = do(**request)
        except Exception as error:  # any failure of an engine is a row, not a crash
            traceback.print_exc()
            text = str(error).strip().splitlines()
            answer = {"error": f"{type(error).__name__}: {text[0] if text else ''}"}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    _serve(_Commands(sys.argv[1], Path(sys.argv[2])))
    os._exit(0)  # FlagEmbedding raises in its __del__ at a normal exit
