"""A collection that is searched for the service.

What lives here: opening the collection once, and putting the rankings of a question side by side.
What does not: the search itself (`retrievers`).
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal

from unified_embeddings.config.pipeline import UnifiedEmbeddingConfig
from unified_embeddings.errors import InputError, StoreError
from unified_embeddings.llama.payloads import RETRIEVAL_KEY, own_metadata
from unified_embeddings.serving.settings import ServiceSettings
from unified_embeddings.stores.errors import store_errors
from unified_embeddings.stores.opening import Client, open_folder
from unified_embeddings.types import Options

if TYPE_CHECKING:
    from llama_index.core.schema import NodeWithScore
    from llama_index.core.vector_stores import MetadataFilters

    from unified_embeddings.retrievers.timing import SearchStats

Mode = Literal["hybrid", "dense", "sparse"]
_LISTS = ("dense", "sparse")
KEYWORD_LIST = "bm25"
"""A list that only some collections have."""


class Search:
    """One collection, opened for reading.

    Args:
        config: Of the model that made it.
        settings: With the collection's name and its place.

    Raises:
        StoreError: If the collection does not exist, or cannot be opened.
        FingerprintMismatchError: If another model made it.
    """

    def __init__(self, config: UnifiedEmbeddingConfig, settings: ServiceSettings) -> None:
        assert settings.collection is not None
        self._config = config
        name = settings.collection
        if settings.qdrant_url:
            from qdrant_client import QdrantClient

            client: Client = QdrantClient(url=settings.qdrant_url, check_compatibility=False)
            place = settings.qdrant_url
        else:
            client = open_folder(str(settings.store_path))
            place = str(settings.store_path)
        with store_errors(name, f"opening at {place}"):
            exists = client.collection_exists(name)
        if not exists:
            raise StoreError(name, f"opening at {place}", "it does not exist; index files first")
        self._store = config.vector_store(name, client=client)
        self._lock = threading.Lock()
        self._stats: dict[str, SearchStats] = {}

    @property
    def client(self) -> Client:
        """Return the client of the collection's place."""
        client: Client = self._store.client
        return client

    def stats(self) -> tuple[SearchStats, ...]:
        """Return how many questions were answered in each mode, and how long that took."""
        with self._lock:
            return tuple(self._stats.values())

    def find(
        self,
        question: str,
        *,
        top_k: int,
        mode: Mode | None,
        rerank: bool,
        conditions: Sequence[Mapping[str, object]],
    ) -> list[dict[str, object]]:
        """Return the passages that answer a question best, with their rank in each list.

        Args:
            question: Any text that is not blank.
            top_k: How many passages to return.
            mode: The vectors to search by; None takes all that the model gives.
            rerank: Whether ColBERT orders the candidates.
            conditions: On metadata: key, operator, value. All must hold.

        Raises:
            InputError: If the question is blank, or a condition cannot be honoured.
            StoreError: If the store fails.
        """
        if not question.strip():
            raise InputError("the query is blank; ask a question")
        options: Options = {
            "filters": to_filters(conditions),
            "similarity_top_k": top_k,
            "rerank": "colbert" if rerank else None,
        }
        if mode is not None:
            options["mode"] = mode
        retriever = self._config.retriever(self._store, **options)
        try:
            nodes = retriever.retrieve(question)
        finally:
            self._count(retriever.stats())
        return [describe_passage(scored) for scored in nodes]

    def _count(self, all_stats: Sequence[SearchStats]) -> None:
        """Add what one question's retriever has counted."""
        with self._lock:
            for stats in all_stats:
                counted = self._stats.get(stats.mode)
                self._stats[stats.mode] = stats if counted is None else counted + stats


def describe_passage(scored: NodeWithScore) -> dict[str, object]:
    """Return a found passage as values that JSON can hold, with its rank in each list."""
    return {
        "id": scored.node.node_id,
        "score": float(scored.score or 0.0),
        "text": scored.node.get_content(),
        "metadata": own_metadata(scored.node),
        "ranks": _read_ranks(scored),
    }


def describe_relevance(scored: NodeWithScore) -> dict[str, object]:
    """Return how likely a found passage is relevant, and whether the answer is weak, if known."""
    note: Mapping[str, object] = scored.node.metadata[RETRIEVAL_KEY]
    return {name: note[name] for name in ("relevance", "weak") if name in note}


def _read_ranks(scored: NodeWithScore) -> dict[str, int | None]:
    """Return a passage's rank in each list; None where it was not searched or lacks it."""
    places: Mapping[str, Mapping[str, int] | None] = scored.node.metadata[RETRIEVAL_KEY]
    ranks: dict[str, int | None] = {}
    for name in _LISTS:
        place = places.get(name)
        ranks[name] = None if place is None else place["rank"]
    if KEYWORD_LIST in places:
        place = places[KEYWORD_LIST]
        ranks[KEYWORD_LIST] = None if place is None else place["rank"]
    return ranks


def to_filters(conditions: Sequence[Mapping[str, object]]) -> MetadataFilters | None:
    """Return conditions as LlamaIndex's filters; None if there are none.

    Raises:
        InputError: If LlamaIndex does not know an operator, or takes no such value.
    """
    if not conditions:
        return None
    from llama_index.core.vector_stores import FilterOperator, MetadataFilters
    from pydantic import ValidationError

    try:
        return MetadataFilters.model_validate({"filters": [dict(item) for item in conditions]})
    except ValidationError as error:
        _, index, *fields = error.errors()[0]["loc"]
        if "operator" in fields:
            known = ", ".join(operator.value for operator in FilterOperator)
            problem = f"operator must be one of {known}"
        else:
            # LlamaIndex's words are about whichever type of value it tried first.
            problem = "value must be a text, a number, or a list of texts or of numbers"
        raise InputError(f"filters[{index}].{problem}") from None
