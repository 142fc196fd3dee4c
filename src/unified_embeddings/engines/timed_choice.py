"""Which of two ways to compute is faster on this machine, by the size of the input.

What lives here: timing them once, and remembering it for this process and for later ones. What does
not: what is timed (`products`, `attention`).

Which is faster depends on the processor: on some with AVX2, MKL's product is a tenth faster for
many rows than oneDNN's; on AMD's with AVX-512, it is half as fast (ADR 40). No flag tells, so they
are timed when a model is loaded.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, TypeAlias

import torch

from unified_embeddings._version import __version__
from unified_embeddings.system.files import make_folder, replace_file
from unified_embeddings.system.hardware import cpu, kernel_variables, wait_settings

NEVER = 0
"""Stands for a size: the other way is never faster."""

_LOG = logging.getLogger(__name__)
_ROUNDS = 7
"""Fewer are not enough on a busy machine: an answer is kept."""
_TURN_SECONDS = 0.02
"""Processor seconds of a turn, at least. A single call may take less than a step of the clock."""
_UNTIL_THREADS_SLEEP = 0.001
"""Seconds that torch's idle threads need to fall asleep, unless they spin for long."""
_MARGIN = 0.95
"""The other way is taken if it needs less than this share of the usual one's time."""

_known_sizes: dict[str, int] = {}
"""What this process has measured or read, by `_describe`."""
_lock = threading.Lock()

TimedWork: TypeAlias = Callable[[torch.Tensor], torch.Tensor]


class Trial(NamedTuple):
    """Two ways to compute the same, to be timed against each other.

    Attributes:
        name: What is computed, with all that its time depends on beside the machine.
        sizes: Sizes of the input at which both are timed.
        make_input: Makes an input of one of these sizes.
        usual: The way that smaller inputs always take.
        other: The way that may be faster for larger ones.
    """

    name: str
    sizes: Sequence[int]
    make_input: Callable[[int], torch.Tensor]
    usual: TimedWork
    other: TimedWork


def first_faster_size(trial: Trial) -> int:
    """Return from which size on the other way is faster; `NEVER` if it is not.

    The first call for a trial measures, which takes half a second of processor time, and writes the
    answer into the user's cache folder. Later calls on this machine read it: processes that work
    together, or after each other, round alike.
    """
    key = _describe(trial)
    with _lock:
        if key not in _known_sizes:
            _known_sizes[key] = _recall_or_measure(key, trial)
        return _known_sizes[key]


def first_faster(usual_times: Mapping[int, float], other_times: Mapping[int, float]) -> int:
    """Return the smallest size from which on the other way is faster; `NEVER` if there is none.

    Args:
        usual_times: Size → seconds of the usual way.
        other_times: The same of the other way.

    Example:
        >>> first_faster({64: 1.0, 256: 4.0}, {64: 2.0, 256: 3.0})
        256
    """
    first = NEVER
    for size in sorted(usual_times, reverse=True):
        if other_times[size] >= _MARGIN * usual_times[size]:
            break
        first = size
    return first


def _recall_or_measure(key: str, trial: Trial) -> int:
    import platformdirs

    folder = platformdirs.user_cache_path("unified-embeddings")
    note = folder / f"timed-{hashlib.sha256(key.encode()).hexdigest()[:24]}.json"
    remembered = _read(note, key, trial.sizes)
    if remembered is not None:
        return remembered
    size = _measure(trial)
    # Another process may have measured at the same time. What it has written stands. Two that end
    # at the same moment may differ until one of them starts anew.
    remembered = _read(note, key, trial.sizes)
    if remembered is not None:
        return remembered
    try:
        make_folder(folder)
        replace_file(note, json.dumps({"measured": key, "size": size}).encode())
    except OSError as error:
        _LOG.info("Which way is faster is measured in each process: %s", error)
    return size


def _read(note: Path, key: str, sizes: Sequence[int]) -> int | None:
    """Return what a file says; None if there is none, or it says nothing that can be used."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError, RecursionError):
        content = json.loads(note.read_text("utf-8"))
        if content["measured"] == key and content["size"] in (NEVER, *sizes):
            return int(content["size"])
    return None


def _measure(trial: Trial) -> int:
    usual_times: dict[int, float] = {}
    other_times: dict[int, float] = {}
    with torch.inference_mode():
        for size in trial.sizes:
            x = trial.make_input(size)
            # The first call of a size takes longer: oneDNN compiles its kernels.
            trial.usual(x)
            trial.other(x)
            for _ in range(_ROUNDS):
                # In turns, so that whatever else runs here disturbs both.
                for work, times in ((trial.usual, usual_times), (trial.other, other_times)):
                    seconds = _time(work, x)
                    times[size] = min(seconds, times.get(size, seconds))
    size = first_faster(usual_times, other_times)
    _LOG.info("Timed %s: %s, %s; from %d", trial.name, usual_times, other_times, size)
    return size


def _time(work: TimedWork, x: torch.Tensor) -> float:
    """Return the processor seconds of all threads: elapsed time tells what else runs here."""
    begun = time.process_time()
    calls, used = 0, 0.0
    while calls == 0 or used < _TURN_SECONDS:
        work(x)
        calls += 1
        used = time.process_time() - begun
    # Linux adds a running thread's time to its process's only every few milliseconds, and when the
    # thread sleeps.
    time.sleep(_UNTIL_THREADS_SLEEP)
    return (time.process_time() - begun) / calls


def _describe(trial: Trial) -> str:
    """Return everything that the answer depends on."""
    facts = [__version__, torch.__version__, cpu().name, *cpu().flags]
    facts += [*kernel_variables(), *wait_settings()]
    facts += [str(torch.get_num_threads()), trial.name, *map(str, trial.sizes)]
    return " ".join(facts)
