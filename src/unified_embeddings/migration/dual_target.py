"""What a dual-writing store does with the new collection.

What lives here: points made from the payloads that the source stores, so that a later comparison
finds both sides equal. What does not: when it is called, and what its errors mean (`dual_store`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llama_index.core.schema import BaseNode
from llama_index.core.vector_stores.types import MetadataFilters
from llama_index.core.vector_stores.utils import node_to_metadata_dict
from llama_index.vector_stores.qdrant import QdrantVectorStore
from qdrant_client import models as qm

from unified_embeddings.embedders.base import TextEmbedder
from unified_embeddings.llama.fields import to_point_id
from unified_embeddings.llama.filters import select_points
from unified_embeddings.llama.fingerprinted_store import FingerprintedStore
from unified_embeddings.llama.layouts import PayloadReader, SourceText, UnreadablePoint
from unified_embeddings.llama.payloads import build_payloads
from unified_embeddings.migration.embedding import (
    InProcessEmbedding,
    TextVectors,
    build_point,
)
from unified_embeddings.migration.errors import MigrationError
from unified_embeddings.migration.record import MigrationRecord, PointId
from unified_embeddings.migration.sides import Collection
from unified_embeddings.stores.copy_points import plain_id
from unified_embeddings.stores.errors import store_errors
from unified_embeddings.stores.opening import Client

_PAGE = 1_000


@dataclass(frozen=True)
class Prepared:
    """What a call of `add` changes in the target.

    Attributes:
        points: Points to write.
        without: Ids of nodes without vectors; what the target holds for them is outdated.
        problems: Id → why it has none, of texts that the model fails on.
    """

    points: Sequence[qm.PointStruct]
    without: Sequence[PointId]
    problems: Mapping[PointId, str]


class TargetWriter:
    """Writes into the target what the source is given.

    Args:
        client: Of the place.
        record: The migration's.
        embedder: The new model's.
    """

    def __init__(self, client: Client, record: MigrationRecord, embedder: TextEmbedder) -> None:
        self.collection = Collection(client, record.target)
        self.alias = record.alias
        self._reader = PayloadReader("llama_index")
        self._embedding = InProcessEmbedding(embedder)

    def prepare(self, payloads: Mapping[PointId, Mapping[str, Any]]) -> Prepared:
        """Embed the texts of payloads.

        Raises:
            UnifiedEmbeddingsError: If the model fails for reasons that are not a text's.
        """
        contents = [self._reader.read(point_id, value) for point_id, value in payloads.items()]
        texts = [content for content in contents if isinstance(content, SourceText)]
        without = [content.point_id for content in contents if isinstance(content, UnreadablePoint)]
        points: list[qm.PointStruct] = []
        problems: dict[PointId, str] = {}
        outcomes = self._embedding.embed([content.text for content in texts]) if texts else []
        for content, outcome in zip(texts, outcomes, strict=True):
            if isinstance(outcome, TextVectors):
                points.append(build_point(content, outcome))
            else:
                problems[content.point_id] = outcome
        return Prepared(points, [*without, *problems], problems)

    def write(self, prepared: Prepared) -> None:
        """Write points, and remove those that have no vectors now.

        Raises:
            StoreError: If the target refuses.
            MigrationError: If a text could not be embedded; the others are written.
        """
        self.collection.remove(prepared.without)
        self.collection.write(prepared.points, insert_only=False)
        if prepared.problems:
            point_id, problem = next(iter(prepared.problems.items()))
            raise MigrationError(
                f"{len(prepared.problems)} texts cannot be embedded, such as that of {point_id!r}: "
                f"{problem}"
            )

    def delete_like(
        self,
        example: Collection,
        follower: Collection,
        node_ids: Sequence[str] | None,
        filters: MetadataFilters | None,
    ) -> None:
        """Delete from one side what the other side's store has just deleted.

        The two stores may understand ids and filters together in different ways, so the follower
        deletes those of the points concerned that the example does not have any more.
        """
        concerned: set[PointId] = set()
        if node_ids is not None:
            concerned |= {
                plain_id(to_point_id(node_id, index)) for index, node_id in enumerate(node_ids)
            }
        if filters is not None:
            concerned |= _matching(follower, filters)
        wanted = sorted(concerned, key=str)
        existing = example.existing(wanted)
        follower.remove([point_id for point_id in wanted if point_id not in existing])


def stored_payloads(
    source: QdrantVectorStore, nodes: Sequence[BaseNode]
) -> dict[PointId, dict[str, Any]]:
    """Return what the source's store stores of nodes, by point id.

    Raises:
        InputError: If an id or metadata cannot be stored.
    """
    if isinstance(source, FingerprintedStore):
        payloads = build_payloads(nodes)
    else:
        payloads = [
            node_to_metadata_dict(node, remove_text=False, flat_metadata=source.flat_metadata)
            for node in nodes
        ]
    point_ids = [plain_id(to_point_id(node.node_id, index)) for index, node in enumerate(nodes)]
    return dict(zip(point_ids, payloads, strict=True))


def _matching(collection: Collection, filters: MetadataFilters) -> set[PointId]:
    """Return the ids of the points that match filters."""
    selected = select_points(None, filters)
    found: set[PointId] = set()
    offset = None
    while True:
        with store_errors(collection.name, "finding the nodes to delete"):
            records, offset = collection.client.scroll(
                collection.name,
                scroll_filter=selected,
                limit=_PAGE,
                offset=offset,
                with_payload=False,
                with_vectors=False,
            )
        found |= {plain_id(record.id) for record in records}
        if offset is None:
            return found
