"""The installed command, run in a process of its own or in this one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from unified_embeddings.cli import app

COMMAND = Path(sys.executable).with_name("unified-embeddings")


FORGET = ("FORCE_COLOR", "NO_COLOR", "TTY_COMPATIBLE", "COLUMNS", "PYTHONWARNINGS")


@dataclass(frozen=True)
class Ended:
    """How a run of the command ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    def names(self) -> set[str]:
        return {row["metadata"]["file_name"] for row in self.json}


def run_here(
    arguments: Iterable[object], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Ended:
    """Run the command in this process; it must never print a traceback."""
    capsys.readouterr()
    monkeypatch.setattr(sys, "argv", ["unified-embeddings", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        app.main()
    out, err = capsys.readouterr()
    assert "Traceback" not in out + err
    code = ended.value.code
    assert code is None or isinstance(code, int)
    return Ended(code or 0, out, err)


Run = Callable[..., Ended]


def environment(**more: str) -> dict[str, str]:
    """A plain one for a process: offline, on a terminal type that could show colours."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("UNIFIED_EMBEDDINGS_") and name not in FORGET
    }
    # One thread: tiny models gain nothing from more, and tests may run side by side.
    return kept | {"HF_HUB_OFFLINE": "1", "TERM": "xterm-256color", "OMP_NUM_THREADS": "1"} | more


def start(*arguments: str | Path, cwd: Path, **options: Any) -> subprocess.Popen[str]:
    """The installed command in a process of its own."""
    return subprocess.Popen(
        [COMMAND, *map(str, arguments)],
        cwd=cwd,
        env=environment(XDG_CACHE_HOME=str(cwd / "cache")),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        encoding="utf-8",
        **options,
    )


def finish(process: subprocess.Popen[str]) -> Ended:
    try:
        out, err = process.communicate(timeout=120)
    finally:
        process.kill()
    assert "Traceback" not in out + err
    return Ended(process.returncode, out, err)


class Lines:
    """The lines that a process prints on both of its outputs, as they come."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self._lines: list[str] = []
        self._readers = [
            threading.Thread(target=self._read, args=(stream,), daemon=True)
            for stream in (process.stdout, process.stderr)
        ]
        for reader in self._readers:
            reader.start()

    def _read(self, stream: Iterator[str]) -> None:
        for line in stream:
            self._lines.append(line.rstrip("\n"))

    def hold(self, words: str) -> bool:
        for reader in self._readers:
            reader.join(timeout=60)
        return any(words in line for line in self._lines)

    def wait_for(self, words: str) -> str:
        """Return the first line with some words."""
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            for line in list(self._lines):
                if words in line:
                    return line
            ended = self._process.poll() is not None
            if ended and not any(reader.is_alive() for reader in self._readers):
                break
            time.sleep(0.05)
        raise AssertionError(f"no line with {words!r} in {self._lines}")
