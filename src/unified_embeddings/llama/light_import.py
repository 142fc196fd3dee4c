"""Importing of LlamaIndex what a search needs, a third of its modules.

What lives here: that, and what it takes to leave the rest out (ADR 42). What does not: the import
hook (`system.lazy_packages`).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from unified_embeddings.system.lazy_packages import lazy_packages


@contextlib.contextmanager
def light_llama_index() -> Iterator[None]:
    """Import LlamaIndex lazily during the block, or during the function that it decorates.

    The `__init__` of `llama_index.core` imports every kind of index, memory and agent, which takes
    half a second. Whatever asks for one of them, then or later, gets it.
    """
    with lazy_packages("llama_index"):
        import llama_index.core

        # Each CallbackManager asks for it, and would have all of that imported to find None.
        vars(llama_index.core).setdefault("global_handler", None)
        yield
