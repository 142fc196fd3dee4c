"""Dense-only models as LlamaIndex's HuggingFaceEmbedding, over the shared embedder."""

from __future__ import annotations

from typing import Any

from llama_index.core.base.embeddings.base import BaseEmbedding, Embedding
from llama_index.core.bridge.pydantic import Field, PrivateAttr
from llama_index.embeddings.huggingface import HuggingFaceEmbedding

from unified_embeddings.embedders.factory import make_embedder
from unified_embeddings.embedders.single_model import ModelEmbedder
from unified_embeddings.errors import InputError
from unified_embeddings.llama.text import ValidatedTexts
from unified_embeddings.validation import require_texts

_BATCH = 128
"""Texts LlamaIndex hands over at once; the embedder forms its own batches from them."""


class UnifiedHuggingFaceEmbedding(ValidatedTexts, HuggingFaceEmbedding):
    """A HuggingFaceEmbedding whose vectors come from an embedder, so that the model is held once.

    The stock class would load the weights a second time beside the retriever's, would not know the
    model's prefixes unless told, and fetches whatever looks like an image's URL in a text for some
    models. Here its one seam, `_embed`, asks the embedder: its cache, prefixes, pooling and
    normalisation.

    Args:
        embedder: A model that gives dense vectors; None makes one from `model_name` and `options`,
            as `to_dict` gives them.
        **fields: LlamaIndex's own: embed_batch_size, callback_manager, num_workers.

    Raises:
        As BGE_M3_Embedder.
    """

    options: dict[str, Any] = Field(
        default_factory=dict, description="BGE_M3_Embedder's other options, without the cache."
    )
    _embedder: ModelEmbedder = PrivateAttr()

    def __init__(self, embedder: ModelEmbedder | None = None, **fields: Any) -> None:
        made = embedder or make_embedder(fields.get("model_name", ""), **fields.get("options", {}))
        if not isinstance(made, ModelEmbedder) or "dense" not in made.heads:
            raise InputError(
                f"{made.model_name!r} is not one model that gives dense vectors; take a "
                "UnifiedTextEmbedding for two"
            )
        embedder, spec = made, made.spec
        fields |= {
            "model_name": embedder.model_name,
            "options": embedder.options,
            "max_length": embedder.options["max_length"],
            "normalize": spec.normalise,
            "query_instruction": spec.query_prefix or None,
            "text_instruction": spec.document_prefix or None,
        }
        # Past HuggingFaceEmbedding's own constructor, which would load the model.
        BaseEmbedding.__init__(self, **{"embed_batch_size": _BATCH, **fields})
        self._embedder = embedder
        self._parallel_process = False

    @classmethod
    def class_name(cls) -> str:
        """What LlamaIndex calls this class in serialised form."""
        return "UnifiedHuggingFaceEmbedding"

    @property
    def embedder(self) -> ModelEmbedder:
        """What does the work."""
        return self._embedder

    def _embed(self, inputs: list[Any], prompt_name: str | None = None) -> list[Embedding]:
        texts = require_texts(inputs)
        encode = self._embedder.encode_documents
        if prompt_name == "query":
            encode = self._embedder.encode_queries
        dense = encode(texts, dense=True, sparse=False).dense
        assert dense is not None
        rows: list[Embedding] = dense.tolist()
        return rows
