"""Two models of one dimension whose vectors do not compare, and a collection of each."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from llama_index.core.schema import TextNode
from qdrant_client import models as qm

from unified_embeddings.embedders.cached import Vectors
from unified_embeddings.embedders.fake import FakeEmbedder
from unified_embeddings.llama.text import UnifiedTextEmbedding
from unified_embeddings.llama.vector_store import build_vector_store
from unified_embeddings.stores.opening import Client
from unified_embeddings.types import HeadName

TEXTS = [
    "Foxes jump over dogs.",
    "Dogs sleep at noon.",
    "The sea is blue and calm.",
    "Rankings order what was found.",
    "A band plays at noon by the sea.",
    "Two lists merge into one ranking.",
]
_SUBJECTS = ["foxes", "dogs", "sea", "band", "lists"]
_VERBS = ["jump", "noon", "blue", "plays", "merge", "ranking", "calm", "order", "sleep"]
QUESTIONS = [f"{subject} {verb}?" for subject in _SUBJECTS for verb in _VERBS]


class TurnedEmbedder(FakeEmbedder):
    """A FakeEmbedder in another space: its vectors are turned by one place."""

    def _embed(self, words: list[str], heads: frozenset[HeadName]) -> Vectors:
        vectors = super()._embed(words, heads)
        dense = vectors.get("dense")
        if isinstance(dense, np.ndarray):
            vectors["dense"] = np.roll(dense, 1)
        return vectors


OLD = FakeEmbedder(heads=("dense",), model_name="old")
NEW = TurnedEmbedder(model_name="new")


def fill(client: Client, name: str, embedder: FakeEmbedder, texts: Sequence[str] = TEXTS) -> None:
    """Make a collection of the texts; the ids are the same in every collection."""
    store = build_vector_store(embedder, name, client=client)
    nodes = [
        TextNode(id_=f"00000000-0000-4000-8000-{number:012}", text=text)
        for number, text in enumerate(texts)
    ]
    store.add(UnifiedTextEmbedding(embedder)(nodes))


def point(client: Client, alias: str, collection: str) -> None:
    """Let an alias name a collection, in one operation."""
    creation = qm.CreateAlias(collection_name=collection, alias_name=alias)
    client.update_collection_aliases([qm.CreateAliasOperation(create_alias=creation)])
