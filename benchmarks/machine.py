"""What a benchmark was run on: the machine, the versions, the commit, the command line."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
import shlex
import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import psutil

from unified_embeddings.system.hardware import cpu

ROOT = Path(__file__).resolve().parents[1]


def about(
    script: str, arguments: Sequence[str], libraries: Iterable[str], threads: int, **more: Any
) -> dict[str, Any]:
    """What was measured, on what, and how to do it again."""
    return {
        "machine": {
            "cpu": cpu().name,
            "flags": list(cpu().flags),
            "cores": os.cpu_count(),
            "memory": psutil.virtual_memory().total,
            "system": platform.platform(),
        },
        "versions": {"Python": platform.python_version(), **versions(libraries)},
        "threads": threads,
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        "commit": _commit(),
        **more,
        "command": shlex.join(["python", f"benchmarks/{script}", *map(_short, arguments)]),
    }


def versions(libraries: Iterable[str]) -> dict[str, str]:
    """The versions of those that are installed."""
    found = {}
    for name in libraries:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _short(argument: str) -> str:
    """An argument without the folders of this machine."""
    return Path(argument).name if os.sep in argument else argument


def _commit() -> str | None:
    """The code's commit, marked where it was changed since; None outside of git."""
    try:
        done = subprocess.run(
            ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--exclude=*"],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()
