"""The retriever that does what a page shows."""

from __future__ import annotations

from unified_embeddings.inspector.library import OpenedCollection
from unified_embeddings.inspector.parameters import SearchOptions
from unified_embeddings.inspector.searching import choose_mode
from unified_embeddings.llama.conditions import parse_conditions, to_filters
from unified_embeddings.retrievers.hybrid import UnifiedHybridRetriever
from unified_embeddings.types import Options


def make_retriever(
    opened: OpenedCollection, options: SearchOptions, *, top_k: int | None = None
) -> UnifiedHybridRetriever:
    """Return a retriever with a page's options.

    Args:
        opened: What it searches.
        options: As the page has them.
        top_k: How many nodes it returns, in place of the page's number.

    Raises:
        InputError: If an option cannot be used.
        FingerprintMismatchError: If another model made the collection.
        StoreError: If Qdrant fails.
    """
    arguments: Options = {
        "similarity_top_k": top_k or options.top_k,
        "mode": choose_mode(opened, options),
        "rerank": "colbert" if options.rerank else None,
        "filters": to_filters(parse_conditions(options.conditions, option="the filter")),
    }
    if options.candidates is not None:
        arguments["candidates"] = options.candidates
    if options.weights is not None:
        arguments["weights"] = options.weights
    return opened.config.retriever(opened.store, **arguments)
