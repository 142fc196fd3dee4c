"""BGE-M3 by its public name."""

from __future__ import annotations

from unified_embeddings.embedders.single_model import ModelEmbedder


class BGE_M3_Embedder(ModelEmbedder):
    """BGE-M3, or any checkpoint in its layout: every vector of a text from one forward pass.

    The arguments are ModelEmbedder's: `model_name`, and by keyword `engine`, `precision`, `device`,
    `max_length`, `batch_tokens`, `cache`, `revision`, `local_files_only`, `trust_remote_code`; so
    are the errors.

    Example:
        >>> from unified_embeddings import BGE_M3_Embedder
        >>> embedder = BGE_M3_Embedder("mini-m3")    # "BAAI/bge-m3" is the default
        >>> embeddings = embedder.encode_documents(["Foxes jump.", "Dogs sleep."], colbert=True)
        >>> embeddings.dense.shape, len(embeddings.sparse), embeddings.colbert[0].shape
        ((2, 384), 2, (4, 384))
    """
