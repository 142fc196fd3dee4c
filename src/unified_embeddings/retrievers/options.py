"""Checks of what a retriever is made from.

What lives here: the store and the callback manager. What does not: the options of a search
(`search.options`), and metadata filters (`llama.filters`).
"""

from __future__ import annotations

from llama_index.core.callbacks import CallbackManager
from llama_index.vector_stores.qdrant import QdrantVectorStore

from unified_embeddings.errors import InputError


def check_store(store: object) -> None:
    """Reject anything but a QdrantVectorStore.

    Raises:
        InputError: If it is something else.
    """
    if not isinstance(store, QdrantVectorStore):
        raise InputError(f"vector_store must be a QdrantVectorStore, not {type(store).__name__}")


def check_callbacks(callback_manager: object) -> None:
    """Reject anything but LlamaIndex's CallbackManager or None.

    Raises:
        InputError: If it is something else.
    """
    if not isinstance(callback_manager, CallbackManager | None):
        kind = type(callback_manager).__name__
        raise InputError(f"callback_manager must be a CallbackManager, not {kind}")
