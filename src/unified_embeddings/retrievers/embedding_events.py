"""LlamaIndex's embedding events around what a retriever embeds.

The retrievers ask an embedder for several vectors in one pass, past LlamaIndex's embedding classes,
which would otherwise report it to token counters, callbacks and tracing.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from llama_index.core import instrumentation
from llama_index.core.callbacks import CallbackManager, CBEventType, EventPayload
from llama_index.core.instrumentation.events.embedding import (
    EmbeddingEndEvent,
    EmbeddingStartEvent,
    SparseEmbeddingEndEvent,
    SparseEmbeddingStartEvent,
)

from unified_embeddings.types import FloatArray, SparseVector

_DISPATCHER = instrumentation.get_dispatcher(__name__)  # type: ignore[attr-defined]


@dataclass
class Embedded:
    """What was embedded; set within `embedding_events`.

    Attributes:
        dense: Dense vectors, (n, d); None if there are none.
        sparse: n sparse vectors; None if there are none.
    """

    dense: FloatArray | None = None
    sparse: Sequence[SparseVector] | None = None


@contextlib.contextmanager
def embedding_events(
    callback_manager: CallbackManager,
    model_name: str,
    texts: Sequence[str],
    *,
    dense: bool = False,
    sparse: bool = False,
) -> Iterator[Embedded]:
    """Emit LlamaIndex's events before and after the body, which embeds texts.

    Args:
        callback_manager: Gets an event of the type EMBEDDING.
        model_name: The model's name.
        texts: n texts that are embedded.
        dense: Whether dense vectors are asked for.
        sparse: Whether sparse vectors are asked for.

    Yields:
        Where the body puts the vectors.
    """
    model = {"class_name": "TextEmbedder", "model_name": model_name}
    if dense:
        _DISPATCHER.event(EmbeddingStartEvent(model_dict=model))
    if sparse:
        _DISPATCHER.event(SparseEmbeddingStartEvent(model_dict=model))
    embedded = Embedded()
    with callback_manager.event(
        CBEventType.EMBEDDING, payload={EventPayload.SERIALIZED: model}
    ) as event:
        yield embedded
        rows = [] if embedded.dense is None else embedded.dense.tolist()
        event.on_end(payload={EventPayload.CHUNKS: list(texts), EventPayload.EMBEDDINGS: rows})
    if dense:
        _DISPATCHER.event(EmbeddingEndEvent(chunks=list(texts), embeddings=rows))
    if sparse:
        weights = [dict(vector) for vector in embedded.sparse or ()]
        _DISPATCHER.event(SparseEmbeddingEndEvent(chunks=list(texts), embeddings=weights))
