"""The hybrid retriever in DSPy: as a module of a program, and as `dspy.configure(rm=...)`.

What lives here: what DSPy asks of a search, and what its programs read from the answer. What does
not: searching (`retrievers.hybrid`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from unified_embeddings.errors import InputError, MissingExtraError
from unified_embeddings.retrievers.hybrid import UnifiedHybridRetriever
from unified_embeddings.validation import require_whole_number

try:
    import dspy
except ImportError as error:
    raise MissingExtraError("DSPy", extra="dspy") from error

if TYPE_CHECKING:
    from llama_index.core.schema import NodeWithScore
    from llama_index.core.vector_stores.types import MetadataFilters


@dataclass(frozen=True)
class Passage:
    """One passage found, as `dspy.Retrieve` reads it from its retrieval model.

    Attributes:
        long_text: The text, under the name that DSPy asks for.
        id: The node's id.
        score: The retriever's score; larger is better.
        metadata: The node's metadata; `_retrieval` holds its ranks and scores in the lists.
    """

    long_text: str
    id: str
    score: float
    metadata: dict[str, Any]


class DspyRetrieve(dspy.Module):  # type: ignore[misc]  # untyped
    """A DSPy module that finds passages with UnifiedHybridRetriever.

    Call it in a program as `self.retrieve(question)`, or `await self.retrieve.acall(question)`. The
    prediction has four lists of one length, best first: `passages` (texts), `ids`, `scores` and
    `metadata`. They are empty where nothing is found. It is safe to call from several threads,
    which `dspy.Parallel`, `dspy.Evaluate` and the optimisers do. Copies share the retriever.

    Args:
        retriever: Searches; its own options say how.
        k: The most passages of an answer; None for the retriever's `similarity_top_k`.

    Raises:
        InputError: If the retriever is another, or `k` is below 1.
        MissingExtraError: If DSPy is not installed; importing this module raises it.

    Example:
        >>> from llama_index.core.schema import TextNode
        >>> from qdrant_client import QdrantClient
        >>> from unified_embeddings import UnifiedHybridRetriever, UnifiedTextEmbedding
        >>> from unified_embeddings.dspy.search import DspyRetrieve
        >>> from unified_embeddings.embedders.fake import FakeEmbedder
        >>> from unified_embeddings.llama.vector_store import build_vector_store
        >>> embedder = FakeEmbedder()
        >>> store = build_vector_store(embedder, "docs", client=QdrantClient(":memory:"))
        >>> nodes = [TextNode(text="Foxes jump over dogs."), TextNode(text="The sea is calm.")]
        >>> ids = store.add(UnifiedTextEmbedding(embedder)(nodes))
        >>> retrieve = DspyRetrieve(UnifiedHybridRetriever(store, embedder), k=1)
        >>> retrieve("Which foxes jump?").passages
        ['Foxes jump over dogs.']
    """

    def __init__(self, retriever: UnifiedHybridRetriever, *, k: int | None = None) -> None:
        super().__init__()
        self.retriever = _require_retriever(retriever)
        self.k = _require_k(k)

    def forward(
        self, query: str, k: int | None = None, filters: MetadataFilters | None = None
    ) -> dspy.Prediction:
        """Return the passages that answer a question best.

        Args:
            query: The question.
            k: The most passages; None for the number given at the beginning.
            filters: LlamaIndex's metadata filters for this question; None for the retriever's own.

        Raises:
            InputError: If the question is not a text, or blank, or `k` is below 1.
            StoreError: If Qdrant fails, or the collection does not exist.
        """
        found = self.retriever.retrieve(query, similarity_top_k=self._choose(k), filters=filters)
        return _to_prediction(_to_passages(found))

    async def aforward(
        self, query: str, k: int | None = None, filters: MetadataFilters | None = None
    ) -> dspy.Prediction:
        """Like `forward`, but without blocking the event loop."""
        found = await self.retriever.aretrieve(
            query, similarity_top_k=self._choose(k), filters=filters
        )
        return _to_prediction(_to_passages(found))

    def _choose(self, k: int | None) -> int | None:
        return self.k if k is None else _require_k(k)


class DspyRM:
    """A retrieval model for `dspy.configure(rm=...)`, which `dspy.Retrieve` then asks.

    `dspy.Retrieve` keeps the texts alone; take `DspyRetrieve` where ids, scores or metadata matter.

    Args:
        retriever: Searches; its own options say how.

    Raises:
        InputError: If the retriever is another.
        MissingExtraError: If DSPy is not installed; importing this module raises it.

    Example:
        >>> import dspy
        >>> from llama_index.core.schema import TextNode
        >>> from qdrant_client import QdrantClient
        >>> from unified_embeddings import UnifiedHybridRetriever, UnifiedTextEmbedding
        >>> from unified_embeddings.dspy.search import DspyRM
        >>> from unified_embeddings.embedders.fake import FakeEmbedder
        >>> from unified_embeddings.llama.vector_store import build_vector_store
        >>> embedder = FakeEmbedder()
        >>> store = build_vector_store(embedder, "docs", client=QdrantClient(":memory:"))
        >>> nodes = [TextNode(text="Foxes jump over dogs."), TextNode(text="The sea is calm.")]
        >>> ids = store.add(UnifiedTextEmbedding(embedder)(nodes))
        >>> with dspy.context(rm=DspyRM(UnifiedHybridRetriever(store, embedder))):
        ...     dspy.Retrieve(k=1)("Which foxes jump?").passages
        ['Foxes jump over dogs.']
    """

    def __init__(self, retriever: UnifiedHybridRetriever) -> None:
        self.retriever = _require_retriever(retriever)

    def __call__(
        self, query: str, k: int | None = None, filters: MetadataFilters | None = None
    ) -> list[Passage]:
        """Return the passages that answer a question best, best first.

        Args:
            query: The question.
            k: The most passages; None for the retriever's `similarity_top_k`.
            filters: LlamaIndex's metadata filters for this question; None for the retriever's own.

        Raises:
            InputError: If the question is not a text, or blank, or `k` is below 1.
            StoreError: If Qdrant fails, or the collection does not exist.
        """
        found = self.retriever.retrieve(query, similarity_top_k=_require_k(k), filters=filters)
        return _to_passages(found)


def _to_passages(nodes: Sequence[NodeWithScore]) -> list[Passage]:
    return [
        Passage(
            long_text=found.node.get_content(),
            id=found.node.node_id,
            score=found.get_score(raise_error=True),
            metadata=dict(found.node.metadata),
        )
        for found in nodes
    ]


def _to_prediction(passages: Sequence[Passage]) -> dspy.Prediction:
    return dspy.Prediction(
        passages=[passage.long_text for passage in passages],
        ids=[passage.id for passage in passages],
        scores=[passage.score for passage in passages],
        metadata=[passage.metadata for passage in passages],
    )


def _require_k(k: int | None) -> int | None:
    return None if k is None else require_whole_number("k", k)


def _require_retriever(retriever: object) -> UnifiedHybridRetriever:
    if not isinstance(retriever, UnifiedHybridRetriever):
        raise InputError(
            f"expected a UnifiedHybridRetriever, got {type(retriever).__name__}; make one over the "
            "store, for example with UnifiedEmbeddingConfig.retriever"
        )
    return retriever
