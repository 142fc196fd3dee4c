"""Python's collector of reference cycles, paused while many objects are made that stay."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator


@contextlib.contextmanager
def paused_collector() -> Iterator[None]:
    """Look for no reference cycles during the block, or during the function that it decorates.

    Python looks through its objects for cycles whenever many new ones were made. Importing
    LlamaIndex, qdrant-client and torch makes half a million that stay, and a fifth of the time that
    it takes is spent on that. Garbage in cycles is kept meanwhile, so it is for what ends soon.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
