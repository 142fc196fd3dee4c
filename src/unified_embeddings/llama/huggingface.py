"""An embedder of dense vectors as LlamaIndex's HuggingFaceEmbedding.

What lives here: the adapter. What does not: the vectors (`embedders`), and models that also give
sparse vectors (`text`).
"""

from __future__ import annotations

from io import BytesIO
from typing import Any, cast

from llama_index.core.base.embeddings.base import BaseEmbedding, Embedding
from llama_index.core.bridge.pydantic import Field, PrivateAttr
from llama_index.embeddings.huggingface import HuggingFaceEmbedding

from unified_embeddings.embedders.base import TextEmbedder
from unified_embeddings.embedders.factory import make_embedder
from unified_embeddings.embedders.single_model import ModelEmbedder
from unified_embeddings.errors import InputError
from unified_embeddings.llama.text import TEXTS_PER_CALL, ValidatedTexts, to_lists
from unified_embeddings.validation import require_texts


class UnifiedHuggingFaceEmbedding(ValidatedTexts, HuggingFaceEmbedding):
    """A HuggingFaceEmbedding whose vectors come from an embedder, so that the model loads once.

    The stock class would load the weights a second time, next to the retriever's. It does not know
    a model's prefixes unless told. With some models it downloads whatever looks like an image's URL
    in a text. Here its one seam, `_embed`, asks the embedder, and so gets the embedder's cache,
    prefixes, pooling and normalisation.

    Args:
        embedder: A single model that gives dense vectors. None makes one from `model_name` and
            `options`, which is what `to_dict` stores.
        **fields: LlamaIndex's own: embed_batch_size, callback_manager, num_workers.

    Raises:
        InputError: If the embedder consists of two models or gives no dense vectors, or as
            BGE_M3_Embedder does.

    Example:
        The line marked SKIP needs the model's weights.

        >>> from unified_embeddings import UnifiedHuggingFaceEmbedding
        >>> model = UnifiedHuggingFaceEmbedding(model_name="e5-small-v2")
        >>> model.query_instruction, model.text_instruction
        ('query: ', 'passage: ')
        >>> len(model.get_query_embedding("Which foxes jump?"))    # doctest: +SKIP
        384
    """

    options: dict[str, Any] = Field(
        default_factory=dict, description="BGE_M3_Embedder's other options, without the cache."
    )
    _embedder: ModelEmbedder = PrivateAttr()

    def __init__(self, embedder: ModelEmbedder | None = None, **fields: Any) -> None:
        chosen: TextEmbedder | None = embedder
        if chosen is None:
            chosen = make_embedder(fields.get("model_name", ""), **fields.get("options", {}))
        if not isinstance(chosen, ModelEmbedder) or "dense" not in chosen.heads:
            raise InputError(
                f"{chosen.model_name!r} is not one model that gives dense vectors; use a "
                "UnifiedTextEmbedding for two"
            )
        fields |= {
            "model_name": chosen.model_name,
            "options": chosen.options,
            "max_length": chosen.options["max_length"],
            "normalize": chosen.spec.normalise,
            "query_instruction": chosen.spec.query_prefix or None,
            "text_instruction": chosen.spec.document_prefix or None,
        }
        fields.setdefault("embed_batch_size", TEXTS_PER_CALL)
        # This skips HuggingFaceEmbedding's own constructor, which would load the model.
        BaseEmbedding.__init__(self, **fields)
        self._embedder = chosen
        self._parallel_process = False

    @classmethod
    def class_name(cls) -> str:
        """Return LlamaIndex's name for this class in serialised form."""
        return "UnifiedHuggingFaceEmbedding"

    @property
    def embedder(self) -> ModelEmbedder:
        """The embedder that computes the vectors."""
        return self._embedder

    def _embed(
        self, inputs: list[str | BytesIO], prompt_name: str | None = None
    ) -> list[Embedding]:
        # The stock class takes images here too. `require_texts` rejects them.
        texts = require_texts(cast("list[str]", inputs))
        if prompt_name == "query":
            embeddings = self._embedder.encode_queries(texts, dense=True, sparse=False)
        else:
            embeddings = self._embedder.encode_documents(texts, dense=True, sparse=False)
        return to_lists(embeddings.dense)
