"""One process per engine: the parent's handle on it, and the process itself.

A process answers one request at a time and sleeps in between, so that several can live side by
side and be measured in turn. Requests and answers are lines of JSON. What libraries print goes to a
log, whose last line explains a process that died.
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
from folders import without_folders

GEMM = "gemm"
"""Name of the process that measures how fast the machine multiplies matrices."""

Answer = dict[str, Any]
"""The answer to a command: names and numbers, as JSON."""


class UnavailableError(Exception):
    """An engine that cannot run here; the message says why, without folders."""

    def __init__(self, reason: str) -> None:
        super().__init__(without_folders(reason.strip())[:300])


class Worker:
    """A process that holds one model.

    Args:
        peer: Name of the peer, or `GEMM`.
        folder: Folder that its model is loaded from.
        timeout: Maximum seconds for an answer; then the process is killed.
    """

    def __init__(self, peer: str, folder: Path, timeout: float) -> None:
        self._timeout = timeout
        self._timed_out = False
        self._log = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115 — see close
        self._process = subprocess.Popen(
            [sys.executable, __file__, peer, str(folder)],
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

    def ask(self, command: str, **arguments: object) -> Answer:
        """Run one command in the process and return its answer.

        Raises:
            UnavailableError: If it fails, takes too long, or the process is gone.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        timer = threading.Timer(self._timeout, self._time_out)
        timer.start()
        try:
            self._process.stdin.write(json.dumps({"command": command, **arguments}) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        finally:
            timer.cancel()
        if not line:
            raise UnavailableError(self._cause_of_death())
        answer: Answer = json.loads(line)
        if "error" in answer:
            raise UnavailableError(answer["error"])
        return answer

    def close(self) -> None:
        """Kill the process."""
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._log):
            if stream is not None:
                with contextlib.suppress(BrokenPipeError):
                    stream.close()

    def _time_out(self) -> None:
        self._timed_out = True
        self._process.kill()

    def _cause_of_death(self) -> str:
        code = self._process.wait()
        if self._timed_out:
            return f"no answer within {self._timeout:.0f} s"
        if code == -signal.SIGKILL:
            return "its process was killed, as happens where memory runs out"
        self._log.seek(0)
        lines = [line for line in self._log.read().splitlines() if line.strip()]
        if lines:
            return f"its process ended with {code}: {lines[-1]}"
        return f"its process ended with {code}"


# --- the process itself ---------------------------------------------------------------------------


class _Clock:
    """The time since it was made: of the wall clock, and of the processor.

    The second is the user and system time of all threads of this process, spinning ones included.
    """

    def __init__(self) -> None:
        self._wall, self._cpu = time.perf_counter(), time.process_time()

    def seconds(self) -> float:
        """Return the seconds that have passed."""
        return time.perf_counter() - self._wall

    def cpu_seconds(self) -> float:
        """Return the seconds that this process's threads have run, all together."""
        return time.process_time() - self._cpu


class _Commands:
    """The commands of a process: each public method is one, and returns its answer."""

    def __init__(self, peer: str, folder: Path) -> None:
        self._peer_name = peer
        self._folder = folder
        self._model: peers.Model = None

    @property
    def _peer(self) -> peers.Peer:
        return peers.PEERS[self._peer_name]

    def load(self, query: str) -> Answer:
        """Load the model and run it once, since some libraries load with their first text."""
        started = time.perf_counter()
        self._model = self._peer.load(self._folder)
        self._peer.query(self._model, query)
        return {"seconds": time.perf_counter() - started}

    def documents(self, texts: list[str], batch_size: int | None) -> Answer:
        """Embed documents and return the seconds, of the clock and of the processor."""
        clock = _Clock()
        self._peer.documents(self._model, texts, batch_size)
        return {"seconds": clock.seconds(), "cpu_seconds": clock.cpu_seconds()}

    def queries(self, texts: list[str]) -> Answer:
        """Embed queries one by one and return the seconds of each, as above."""
        seconds, cpu_seconds = [], []
        for text in texts:
            clock = _Clock()
            self._peer.query(self._model, text)
            seconds.append(clock.seconds())
            cpu_seconds.append(clock.cpu_seconds())
        return {"seconds": seconds, "cpu_seconds": cpu_seconds}

    def dense(self, texts: list[str], batch_size: int | None) -> Answer:
        """Embed documents and return their dense vectors."""
        found = self._peer.dense(self._peer.documents(self._model, texts, batch_size))
        return {"dense": [[float(number) for number in vector] for vector in found]}

    def memory(self, reset: bool = False) -> Answer:
        """Return the resident bytes now, and their maximum since the start or the last reset."""
        answer = {"resident": psutil.Process().memory_info().rss, "peak": _peak_bytes()}
        if reset:
            # Linux, Documentation/filesystems/proc: writing 5 resets the peak to what is resident.
            with contextlib.suppress(OSError):
                Path("/proc/self/clear_refs").write_text("5", "ascii")
        return answer

    def prepare(self, target: str) -> Answer:
        """Write the files that the peer needs from the checkpoint."""
        make = self._peer.make
        assert make is not None
        started = time.perf_counter()
        make(self._folder, Path(target))
        return {"seconds": time.perf_counter() - started}

    def gemm(self, precision: str, repeats: int) -> Answer:
        """Return the FLOP/s of (2048, 1024) x (1024, 4096), the largest product of a layer."""
        import torch

        dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
        left = torch.randn(2048, 1024, dtype=dtype)
        right = torch.randn(1024, 4096, dtype=dtype)
        torch.mm(left, right)
        seconds = []
        for _ in range(repeats):
            started = time.perf_counter()
            torch.mm(left, right)
            seconds.append(time.perf_counter() - started)
        return {"flops": 2 * 2048 * 1024 * 4096 / statistics.median(seconds)}


def _peak_bytes() -> int:
    """Return the maximum of the resident bytes.

    Linux keeps it in VmHWM. ru_maxrss is the fallback: it starts at the parent's value.
    """
    status = Path("/proc/self/status")
    if status.exists():
        match = re.search(r"^VmHWM:\s+(\d+) kB", status.read_text("ascii"), re.MULTILINE)
        if match:
            return int(match[1]) * 1024
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _serve(commands: _Commands) -> None:
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what libraries print must not come between the answers
    for line in sys.stdin:
        request = json.loads(line)
        # The commands arrive by name, from the parent above and nobody else.
        command: Callable[..., Answer] = getattr(commands, request.pop("command"))
        try:
            answer = command(**request)
        except Exception as error:  # any failure of an engine is a row, not a crash
            traceback.print_exc()
            first_line = (str(error).strip().splitlines() or [""])[0]
            answer = {"error": f"{type(error).__name__}: {first_line}"}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    _serve(_Commands(sys.argv[1], Path(sys.argv[2])))
    os._exit(0)  # FlagEmbedding raises in its __del__ at a normal exit
