"""Adding heads to a collection that holds dense vectors, which stay as they are.

What lives here: vectors added in place, point by point. What does not: a server that is too old for
that, where a second collection is filled (`parallel_vectors`), and the vectors (`heads`).

Which points lack a vector is asked of the collection itself. So an interrupted run is resumed by
the next one, whatever stopped it, and points that others add meanwhile are seen.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from qdrant_client import models as qm

from unified_embeddings.embedders.base import TextEmbedder
from unified_embeddings.errors import InputError, StoreError
from unified_embeddings.llama.layouts import (
    Payload,
    PayloadReader,
    UnreadablePoint,
    choose_reader,
)
from unified_embeddings.migration.heads import (
    UNWATCHED,
    Addition,
    Vectors,
    Watching,
    check_heads,
    find_lacking,
)
from unified_embeddings.migration.parallel_vectors import copy_with_heads, switch_to_copy
from unified_embeddings.migration.probes import DETECTED, Layout
from unified_embeddings.migration.vector_names import complete_params, create_names
from unified_embeddings.search.keywords import check_addable, open_keywords
from unified_embeddings.stores.copy_points import PointId, plain_id
from unified_embeddings.stores.errors import store_errors
from unified_embeddings.stores.keyword_list import record_keywords
from unified_embeddings.stores.opening import Client, make_thread_safe
from unified_embeddings.stores.request_sizes import split_by_size
from unified_embeddings.stores.sampling import sample_ids
from unified_embeddings.stores.schema import record_colbert, stored_colbert
from unified_embeddings.stores.stored_colbert import (
    COLBERT_VECTOR,
    FULL,
    StoredColbert,
    check_stored_colbert,
)
from unified_embeddings.types import HeadName

_POINTS_PER_PAGE = 64
_SAMPLE = 200
"""Points whose payloads show the layout."""
_PASSES = 5
"""Each sees what was added during the one before."""
_ATTEMPTS = 3
"""How often a point is embedded whose text changes meanwhile."""


@dataclass(frozen=True)
class AddedVectorsReport:
    """What came of adding heads to a collection.

    Attributes:
        collection: The collection's name.
        target: The collection that has the heads now: the same, or the new one.
        heads: The heads that were asked for.
        keywords: The keyword list that was asked for; "" if none was.
        added: Points that got vectors in this run.
        total: Points of the target.
        problems: Why points have no vectors → how many.
        alias: The alias that names the target now; "" if none was switched.
        seconds: Duration.
    """

    collection: str
    target: str
    heads: tuple[HeadName, ...]
    keywords: str
    added: int
    total: int
    problems: dict[str, int]
    alias: str
    seconds: float

    @property
    def is_in_place(self) -> bool:
        """Whether the collection itself got the vectors."""
        return self.target == self.collection


def add_vectors(
    client: Client,
    name: str,
    embedder: TextEmbedder,
    heads: Sequence[HeadName],
    *,
    colbert: StoredColbert | None = None,
    keywords: str | None = None,
    layout: Layout = DETECTED,
    copy_to: str | None = None,
    alias: str = "",
    watching: Watching = UNWATCHED,
) -> AddedVectorsReport:
    """Add the vectors of heads to each point of a collection, which keeps the vectors it has.

    They are added in place where the store can do it: the embedded store, qdrant-client's local
    mode, and servers of Qdrant 1.18 or later. Elsewhere, and if `copy_to` is given, a second
    collection gets copies of all points, with the new vectors and with payloads as LlamaIndex has
    them. The first one stays.

    To resume an interrupted run, make the same call again.

    Args:
        client: Client of the collection's place.
        name: The collection's name, not an alias.
        embedder: Embedder of the model that made the collection.
        heads: "sparse", "colbert" or both; none of them only copies, with `copy_to`, or adds a
            keyword list alone.
        colbert: How ColBERT vectors are pooled and quantised. None takes the collection's own way
            if it stores some, or else stores every row in float32.
        keywords: "bm25", "bm25:german" and so on adds a keyword list, which takes no model.
        layout: How its payloads are laid out; seen from a sample unless named.
        copy_to: Name of a second collection to fill instead; where the store cannot add vectors in
            place, one is named after the heads.
        alias: An alias of the collection by which it is reached. If a second collection is filled,
            the alias names that one once it is complete.
        watching: What is told meanwhile.

    Raises:
        FingerprintMismatchError: If another model made the collection.
        InputError: If the model does not give these heads, or the layout cannot be seen.
        StoreError: If the collection does not record its model, has other vectors of these names
            or stores ColBERT vectors in another way, or Qdrant fails.

    Example:
        >>> from llama_index.core.schema import TextNode
        >>> from qdrant_client import QdrantClient
        >>> from unified_embeddings import UnifiedTextEmbedding
        >>> from unified_embeddings.embedders.fake import FakeEmbedder
        >>> from unified_embeddings.llama.vector_store import build_vector_store
        >>> from unified_embeddings.migration.added_vectors import add_vectors
        >>> client, embedder = QdrantClient(":memory:"), FakeEmbedder()
        >>> store = build_vector_store(embedder, "docs", client=client)
        >>> nodes = [TextNode(text="Foxes jump."), TextNode(text="The sea is calm.")]
        >>> ids = store.add(UnifiedTextEmbedding(embedder)(nodes))
        >>> add_vectors(client, "docs", embedder, ["colbert"]).added
        2
    """
    started = time.monotonic()
    make_thread_safe(client)
    with store_errors(name, "reading its settings"):
        info = client.get_collection(name)
    if not heads and copy_to is None and keywords is None:
        raise InputError("expected heads to add: sparse, colbert or both; or keywords")
    check_heads(name, info, embedder, heads)
    counter = None
    if keywords is not None:
        counter = open_keywords(keywords, embedder)
        check_addable(name, info, counter)
    stored = _choose_colbert(name, info, heads, colbert)
    addition = Addition(embedder, list(heads), stored, counter)
    params = addition.describe()
    reader = _open_reader(client, name, layout)
    target, alias_switched = name, ""
    lacking = [] if copy_to else find_lacking(name, info, params)
    if COLBERT_VECTOR in lacking:
        record_colbert(client, name, stored)
    if copy_to or not create_names(client, name, {key: params[key] for key in lacking}):
        target = copy_to or "-".join((name, *heads, *(["keywords"] if counter else [])))
        added, problems = copy_with_heads(
            client, name, target, info, addition, params, reader, watching
        )
        if alias:
            switch_to_copy(client, alias, name, target, reader)
            alias_switched = alias
    else:
        complete_params(client, name, params)
        if counter is not None:
            record_keywords(client, name, counter)
        filler = _Filler(client, name, addition, reader)
        added, problems = filler.fill(watching)
    with store_errors(target, "counting its points"):
        total = client.count(target, exact=True).count
    return AddedVectorsReport(
        collection=name,
        target=target,
        heads=tuple(heads),
        keywords=keywords or "",
        added=added,
        total=total,
        problems=problems,
        alias=alias_switched,
        seconds=round(time.monotonic() - started, 3),
    )


def _choose_colbert(
    name: str, info: qm.CollectionInfo, heads: Sequence[HeadName], wanted: StoredColbert | None
) -> StoredColbert:
    """Return how ColBERT vectors are stored: as wanted, or as the collection does.

    Raises:
        InputError: If a way is wanted, and the head is not added.
        StoreError: If the collection stores them in another way than is wanted.
    """
    if wanted is not None and "colbert" not in heads:
        raise InputError("colbert= says how ColBERT vectors are stored; add the head 'colbert'")
    stored = stored_colbert(info)
    if stored is None:
        return wanted or FULL
    if wanted is not None:
        check_stored_colbert(name, wanted, stored)
    return stored


def _open_reader(client: Client, name: str, layout: Layout) -> PayloadReader:
    with store_errors(name, "reading payloads"):
        point_ids = sample_ids(client, name, _SAMPLE)
        records = client.retrieve(name, point_ids, with_payload=True, with_vectors=False)
    return choose_reader(
        [record.payload or {} for record in records],
        layout=layout.name,
        text_key=layout.text_key,
        metadata_key=layout.metadata_key,
    )


class _Filler:
    """Gives each point of a collection the vectors that it lacks."""

    def __init__(
        self,
        client: Client,
        name: str,
        addition: Addition,
        reader: PayloadReader,
    ) -> None:
        self._client = client
        self._name = name
        self._addition = addition
        self._reader = reader
        self._lacking = qm.Filter(
            should=[
                qm.Filter(must_not=[qm.HasVectorCondition(has_vector=vector)])
                for vector in addition.vector_names
            ]
        )
        self._added: set[PointId] = set()
        self._problems: dict[PointId, str] = {}

    def fill(self, watching: Watching) -> tuple[int, dict[str, int]]:
        """Return how many points got vectors, and why others did not → how many."""
        with store_errors(self._name, "counting the points that lack the vectors"):
            total = self._client.count(self._name, count_filter=self._lacking, exact=True).count
        watching.on_total(total)
        for _ in range(_PASSES):
            before = len(self._added)
            self._pass_through(watching)
            if len(self._added) == before:
                break
        return len(self._added), dict(Counter(self._problems.values()))

    def _pass_through(self, watching: Watching) -> None:
        offset: Any = None
        while True:
            watching.check()
            with store_errors(self._name, "reading the points that lack the vectors"):
                records, offset = self._client.scroll(
                    self._name,
                    scroll_filter=self._lacking,
                    limit=_POINTS_PER_PAGE,
                    offset=offset,
                    with_payload=True,
                    with_vectors=False,
                )
            payloads = {plain_id(record.id): record.payload or {} for record in records}
            new_ids = [key for key in payloads if key not in self._problems]
            self._write_page({key: payloads[key] for key in new_ids})
            watching.on_points(len(new_ids))
            if offset is None:
                return

    def _write_page(self, payloads: Mapping[PointId, Payload]) -> None:
        """Write the vectors of points, again for those whose text changed before they arrived."""
        pending = payloads
        for _ in range(_ATTEMPTS):
            if not pending:
                return
            self._write(pending)
            with store_errors(self._name, "reading payloads again"):
                records = self._client.retrieve(
                    self._name, list(pending), with_payload=True, with_vectors=False
                )
            latest = {plain_id(record.id): record.payload or {} for record in records}
            pending = {
                key: payload for key, payload in latest.items() if payload != pending.get(key)
            }

    def _write(self, payloads: Mapping[PointId, Payload]) -> None:
        sources = []
        for point_id, payload in payloads.items():
            source = self._reader.read(point_id, payload)
            if isinstance(source, UnreadablePoint):
                self._problems[point_id] = source.problem
            else:
                sources.append(source)
        if not sources:
            return
        items = []
        for source, vectors in zip(sources, self._addition.encode(sources), strict=True):
            items.append(((source.point_id, vectors), vectors))
        for request in split_by_size(items):
            self._send(request)

    def _send(self, request: Sequence[tuple[PointId, Vectors]]) -> None:
        points = [
            # Not validated again: it takes longer than all else where there are ColBERT vectors.
            qm.PointVectors.model_construct(id=point_id, vector=vectors)
            for point_id, vectors in request
        ]
        try:
            with store_errors(self._name, "writing vectors"):
                self._client.update_vectors(self._name, points)
        except (StoreError, LookupError):
            # A point that was deleted meanwhile is an error, though the others were written.
            if not self._drops_deleted(request):
                raise
        self._added.update(point_id for point_id, _ in request)

    def _drops_deleted(self, request: Sequence[tuple[PointId, Vectors]]) -> bool:
        """Tell whether points of a request have gone, and write the others again."""
        with store_errors(self._name, "looking for points"):
            records = self._client.retrieve(
                self._name, [key for key, _ in request], with_payload=False, with_vectors=False
            )
        existing = {plain_id(record.id) for record in records}
        remaining = [(key, vectors) for key, vectors in request if key in existing]
        if len(remaining) == len(request):
            return False
        if remaining:
            self._send(remaining)
        return True
