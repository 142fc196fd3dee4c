"""The layouts of other stores by their names.

What lives here: which there are. What does not: each of them.
"""

from __future__ import annotations

from typing import Literal, TypeAlias, get_args

from unified_embeddings.bulk.chroma_layout import ChromaLayout
from unified_embeddings.bulk.pinecone_layout import PineconeDocumentsLayout, PineconeLayout
from unified_embeddings.bulk.upsert_layouts import UpsertLayout

LayoutName: TypeAlias = Literal["chroma", "pinecone", "pinecone-documents", "qdrant"]
LAYOUT_NAMES: tuple[LayoutName, ...] = get_args(LayoutName)


def is_layout(name: str) -> bool:
    """Tell whether an output's format is another store's layout."""
    return name in LAYOUT_NAMES


def make_layout(name: LayoutName) -> UpsertLayout:
    """Return a layout by its name."""
    if name == "chroma":
        return ChromaLayout()
    if name == "pinecone":
        return PineconeLayout()
    if name == "pinecone-documents":
        return PineconeDocumentsLayout()
    # LlamaIndex, whose payloads it writes, takes a second to import.
    from unified_embeddings.bulk.qdrant_layout import QdrantLayout

    return QdrantLayout()
