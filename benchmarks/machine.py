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
    script: str,
    arguments: Sequence[str],
    libraries: Iterable[str],
    threads: int,
    *,
    weights: str,
) -> dict[str, Any]:
    """Return what was measured, on what, and how to repeat it.

    Args:
        script: File name of the benchmark.
        arguments: Its command line.
        libraries: Distributions whose versions matter.
        threads: Threads of each engine.
        weights: The weights of the models, in words.
    """
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
        "weights": weights,
        "command": shlex.join(
            ["python", f"benchmarks/{script}", *(_without_folder(text) for text in arguments)]
        ),
    }


def versions(libraries: Iterable[str]) -> dict[str, str]:
    """Return the versions of those libraries that are installed."""
    installed = {}
    for name in libraries:
        try:
            installed[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return installed


def _without_folder(argument: str) -> str:
    """Return an argument without the folders of this machine."""
    name, equals, value = argument.partition("=")
    if equals and name.startswith("--"):
        return f"{name}={_without_folder(value)}"
    return Path(argument).name if os.sep in argument else argument


def _commit() -> str | None:
    """Return the commit of the code, marked if files have changed since; None outside of git."""
    try:
        done = subprocess.run(
            ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--exclude=*"],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()
