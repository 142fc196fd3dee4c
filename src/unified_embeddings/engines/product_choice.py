"""Which of two products is faster on this machine, by the number of rows.

What lives here: measuring it once, and remembering it for this process and for later ones. What
does not: the products (`products`).

Which is faster depends on the processor: on some with AVX2, MKL's product is a tenth faster for
many rows than oneDNN's; on AMD's with AVX-512, it is half as fast (ADR 40). No flag tells, so the
two are timed on weights of the first layer when a model is loaded.
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

import torch

from unified_embeddings.system.files import make_folder, replace_file
from unified_embeddings.system.hardware import cpu, kernel_variables

NEVER = 0
"""Stands for a number of rows: the plain product is never faster."""

_LOG = logging.getLogger(__name__)
_WORTH_MEASURING = 2**20
"""Numbers of a weight below which nothing is measured: a small model's passes take milliseconds."""
_TRIED_ROWS = (64, 256)
"""Numbers of rows at which both are timed. Fewer rows are never worth the plain product, which
rearranges all of the weight for them."""
_ROUNDS = 3
_MARGIN = 0.95
"""The plain product is taken if it needs less than this share of the other's time."""

_KnownRows = dict[str, int]
_known_rows: _KnownRows = {}
"""What this process has measured or read, by `_describe`."""
_lock = threading.Lock()

TimedProduct = Callable[[torch.Tensor], torch.Tensor]


def rows_for_plain(packed: TimedProduct, plain: TimedProduct, shape: Sequence[int]) -> int:
    """Return from how many rows on the plain product is faster; `NEVER` if it is not.

    The first call for a shape measures, which takes tens of milliseconds, and writes the answer
    into the user's cache folder. Later calls on this machine read it: processes that work together,
    or after each other, round alike.

    Args:
        packed: The product on reordered weights.
        plain: The product on weights as they are in the file.
        shape: Rows and columns of the weight.
    """
    rows, columns = shape
    if rows * columns < _WORTH_MEASURING:
        return NEVER
    key = _describe(shape)
    with _lock:
        if key not in _known_rows:
            _known_rows[key] = _recall_or_measure(key, packed, plain, columns)
        return _known_rows[key]


def first_faster(packed_times: Mapping[int, float], plain_times: Mapping[int, float]) -> int:
    """Return the fewest rows from which on the plain product is faster; `NEVER` if none.

    Args:
        packed_times: Rows → seconds of the product on reordered weights.
        plain_times: The same of the plain product.

    Example:
        >>> first_faster({64: 1.0, 256: 4.0}, {64: 2.0, 256: 3.0})
        256
    """
    first = NEVER
    for rows in sorted(packed_times, reverse=True):
        if plain_times[rows] >= _MARGIN * packed_times[rows]:
            break
        first = rows
    return first


def _recall_or_measure(key: str, packed: TimedProduct, plain: TimedProduct, columns: int) -> int:
    import platformdirs

    folder = platformdirs.user_cache_path("unified-embeddings")
    note = folder / f"products-{hashlib.sha256(key.encode()).hexdigest()[:24]}.json"
    remembered = _read(note, key)
    if remembered is not None:
        return remembered
    rows = _measure(packed, plain, columns)
    # Another process may have measured at the same time. The one that wrote first is right.
    remembered = _read(note, key)
    if remembered is not None:
        return remembered
    try:
        make_folder(folder)
        replace_file(note, json.dumps({"measured": key, "rows": rows}).encode())
    except OSError as error:
        _LOG.info("Which product is faster is measured in each process: %s", error)
    return rows


def _read(note: Path, key: str) -> int | None:
    """Return what a file says; None if there is none, or it says nothing that can be used."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        content = json.loads(note.read_text("utf-8"))
        if content["measured"] == key and content["rows"] in (NEVER, *_TRIED_ROWS):
            return int(content["rows"])
    return None


def _measure(packed: TimedProduct, plain: TimedProduct, columns: int) -> int:
    packed_times: dict[int, float] = {}
    plain_times: dict[int, float] = {}
    with torch.inference_mode():
        for rows in _TRIED_ROWS:
            x = torch.ones(rows, columns)
            for _ in range(_ROUNDS):
                # In turns, so that whatever else runs here disturbs both.
                for product, times in ((packed, packed_times), (plain, plain_times)):
                    seconds = _time(product, x)
                    times[rows] = min(seconds, times.get(rows, seconds))
    rows = first_faster(packed_times, plain_times)
    _LOG.info("Products on reordered and on plain weights: %s, %s", packed_times, plain_times)
    return rows


def _time(product: TimedProduct, x: torch.Tensor) -> float:
    """Return the processor seconds of all threads: elapsed time tells what else runs here."""
    begun = time.process_time()
    product(x)
    return time.process_time() - begun


def _describe(shape: Sequence[int]) -> str:
    """Return everything that the answer depends on."""
    facts = [torch.__version__, cpu().name, *cpu().flags, *kernel_variables()]
    facts += [str(torch.get_num_threads()), "x".join(map(str, shape))]
    return " ".join(facts)
