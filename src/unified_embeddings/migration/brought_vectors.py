"""The vectors that callers of a dual-writing store bring, and those of the other side's model.

What lives here: embedding nodes and questions for the side whose vectors callers do not bring. What
does not: the target's points (`dual_target`), which are always embedded here.
"""

from __future__ import annotations

from dataclasses import dataclass

from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.schema import BaseNode, MetadataMode
from llama_index.core.vector_stores.types import VectorStoreQuery

from unified_embeddings.embedders.base import TextEmbedder
from unified_embeddings.errors import InputError
from unified_embeddings.migration.record import Side


@dataclass(frozen=True)
class BroughtVectors:
    """Whose vectors callers bring, and both models.

    Attributes:
        side: Whose vectors callers bring.
        embedder: The new model's.
        source_model: The old model; None where it was not given.
    """

    side: Side
    embedder: TextEmbedder
    source_model: BaseEmbedding | None

    def __post_init__(self) -> None:
        if self.side not in ("source", "target"):
            raise InputError(f"brings must be 'source' or 'target', got {self.side!r:.80}")
        if self.side == "target" and self.source_model is None:
            raise InputError(
                "callers bring the new model's embeddings: give source_model, the old one, so that "
                "the old collection stays right for a rollback"
            )

    def nodes_for_source(self, nodes: list[BaseNode]) -> list[BaseNode]:
        """Return nodes with the old model's embeddings."""
        if self.side == "source" or not nodes:
            return nodes
        assert self.source_model is not None
        texts = [node.get_content(metadata_mode=MetadataMode.EMBED) for node in nodes]
        embeddings = self.source_model.get_text_embedding_batch(texts)
        return [
            node.model_copy(update={"embedding": embedding})
            for node, embedding in zip(nodes, embeddings, strict=True)
        ]

    def query_for(self, query: VectorStoreQuery, side: Side) -> VectorStoreQuery:
        """Return a query with a vector of a side's own model.

        Raises:
            InputError: If it brings the other side's, and no text to embed.
        """
        if side == self.side or query.query_embedding is None:
            return query
        if not query.query_str:
            raise InputError(
                f"the {side} answers now, and the query brings a vector of the other model and no "
                "text to embed: give query_str, as LlamaIndex's retrievers do"
            )
        changed = VectorStoreQuery(**vars(query))
        changed.query_embedding = self._embed(query.query_str, side)
        return changed

    def _embed(self, question: str, side: Side) -> list[float]:
        if side == "source":
            assert self.source_model is not None  # else callers bring the source's
            return self.source_model.get_query_embedding(question)
        dense = self.embedder.encode_query(question).dense
        assert dense is not None
        embedding: list[float] = dense[0].tolist()
        return embedding
