"""Python's collector of reference cycles, paused while a process starts.

What lives here: pausing it. What does not: what is imported meanwhile.
"""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator


@contextlib.contextmanager
def paused_collector() -> Iterator[None]:
    """Look for no reference cycles during the block, or during the function that it decorates.

    Importing LlamaIndex, qdrant-client and torch makes a million objects that stay. Looking through
    them over and over for cycles, of which there are hardly any, is a fifth of the time that
    `search` takes. It is for what ends soon: garbage in cycles is kept meanwhile.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
