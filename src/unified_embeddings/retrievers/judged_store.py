"""A temporary collection of judged documents, so that a model can be asked about them.

What lives here: one point per document, in an embedded store that goes with its folder. What does
not: asking (`runs`), and collections that are in use, which are only read.
"""

from __future__ import annotations

import itertools
import tempfile
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

from llama_index.core.schema import TextNode

from unified_embeddings.embedders.base import TextEmbedder
from unified_embeddings.llama.fingerprinted_store import FingerprintedStore
from unified_embeddings.llama.vector_store import build_vector_store
from unified_embeddings.types import HeadName

DOCUMENT_FIELD = "document"
"""Field of the payload that names the document, as `collect_run` takes it."""
_COLLECTION = "judged"
_DOCUMENTS_PER_BATCH = 256


@contextmanager
def open_judged_store(
    embedder: TextEmbedder,
    documents: Mapping[str, str],
    *,
    on_documents: Callable[[int], None] | None = None,
) -> Iterator[FingerprintedStore]:
    """Embed documents into a store in a temporary folder, each as one point.

    Args:
        embedder: Gives the dense vectors, and the sparse ones if it has any.
        documents: Id → text.
        on_documents: Called with the number of documents just stored.

    Yields:
        The store, until the context ends.

    Raises:
        StoreError: If the folder cannot be written.
    """
    with tempfile.TemporaryDirectory(prefix="unified-embeddings-") as folder:
        store = build_vector_store(embedder, _COLLECTION, path=folder)
        try:
            remaining = iter(documents.items())
            while batch := list(itertools.islice(remaining, _DOCUMENTS_PER_BATCH)):
                store.add(_embed(embedder, batch))
                if on_documents is not None:
                    on_documents(len(batch))
            yield store
        finally:
            store.client.close()


def _embed(embedder: TextEmbedder, documents: Sequence[tuple[str, str]]) -> list[TextNode]:
    # The store asks for the sparse vectors afterwards, and finds them in the cache.
    heads: list[HeadName] = [head for head in embedder.heads if head != "colbert"]
    texts = [text for _, text in documents]
    dense = embedder.encode(texts, role="document", heads=heads).dense
    assert dense is not None
    nodes = []
    for (document_id, text), vector in zip(documents, dense, strict=True):
        node = TextNode(
            id_=str(uuid.uuid5(uuid.NAMESPACE_URL, document_id)),
            text=text,
            metadata={DOCUMENT_FIELD: document_id},
            excluded_embed_metadata_keys=[DOCUMENT_FIELD],
            embedding=vector.tolist(),
        )
        nodes.append(node)
    return nodes
