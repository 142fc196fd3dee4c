"""Finished parts into a Qdrant collection, as LlamaIndex's nodes.

What lives here: a part's rows as points with stable ids, which parts are in the collection, and
when it is indexed. What does not: computing parts (`pool`), and the collection itself
(`llama.vector_store`).

Points are written again after a crash, under the same ids, so none is there twice.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
import uuid
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import TypeAlias, cast

import numpy as np
from llama_index.core.schema import TextNode
from qdrant_client import models as qm

from unified_embeddings.bulk.job import Journal, PartLine
from unified_embeddings.bulk.options import BulkOptions, CollectionTarget
from unified_embeddings.bulk.parts import FAILED, Part, read_part
from unified_embeddings.bulk.upsert_layouts import ID_NAMESPACE
from unified_embeddings.embedders.base import TextEmbedder
from unified_embeddings.embedders.pooling import pool_rows
from unified_embeddings.errors import InputError, StoreError
from unified_embeddings.llama.fingerprinted_store import FingerprintedStore
from unified_embeddings.llama.payloads import build_payloads
from unified_embeddings.llama.vector_store import build_vector_store
from unified_embeddings.stores.errors import store_errors
from unified_embeddings.stores.keyword_list import KEYWORD_VECTOR, keyword_vectors
from unified_embeddings.stores.request_sizes import split_by_size
from unified_embeddings.stores.schema import DENSE_VECTOR, SPARSE_VECTOR
from unified_embeddings.stores.stored_colbert import COLBERT_VECTOR
from unified_embeddings.system.files import replace_file

_BATCHES = (32, 64, 128, 256, 512)
_GAIN = 1.05
"""A larger batch is kept if it is at least so much quicker."""
NamedVectors: TypeAlias = dict[str, list[float] | list[list[float]] | qm.SparseVector]
"""Name of a vector → the vector."""

_PARTS_HELD = 4
_USUAL_THRESHOLD = 10_000
"""Qdrant's own, in kB, for a collection that names none."""


class CollectionWriter:
    """Writes finished parts into a collection.

    Args:
        store: Over the collection.
        journal: Of the parts.
        part_rows: Rows of each part but the last.
        id_field: The field that tells rows apart; None takes a row's number in the input.

    Attributes:
        points: Points written in this run.
    """

    def __init__(
        self, store: FingerprintedStore, journal: Journal, part_rows: int, id_field: str | None
    ) -> None:
        self._store = store
        self._client = store.client
        self._name = store.collection_name
        self._journal = journal
        self._part_rows = part_rows
        self._id_field = id_field
        # One file for each collection: a part that is in one is not in another.
        safe = uuid.uuid5(ID_NAMESPACE, self._name).hex
        self._marks_file = journal.folder / f"upserted-{safe}.jsonl"
        self._marks = _read_marks(self._marks_file)
        self._held: OrderedDict[int, Part] = OrderedDict()
        self._batch = _BatchSize()
        self.points = 0

    def write(self, line: PartLine) -> None:
        """Write a part's rows as points, unless they are there.

        Raises:
            StoreError: If Qdrant refuses them or cannot be reached.
        """
        if self._marks.get(line.part) == line.sha256:
            return
        points = self._build_points(self._load(line.part))
        start = 0
        while start < len(points):
            batch = self._next_batch(points[start : start + self._batch.size])
            begun = time.perf_counter()
            with store_errors(self._name, "adding points"):
                self._client.upsert(self._name, batch, wait=True)
            self._batch.note(len(batch), time.perf_counter() - begun)
            start += len(batch)
        self.points += len(points)
        self._mark(line)

    def _next_batch(self, points: list[qm.PointStruct]) -> list[qm.PointStruct]:
        """Return the first of some points, as many as fit into a request."""
        return next(split_by_size((point, cast("NamedVectors", point.vector)) for point in points))

    def _build_points(self, part: Part) -> list[qm.PointStruct]:
        """Return the points of the rows that have vectors."""
        nodes: list[TextNode] = []
        vectors: list[NamedVectors] = []
        for place, (record, source) in enumerate(
            zip(part.records, part.sources.tolist(), strict=True)
        ):
            if source == FAILED:
                continue
            named = self._find_vectors(source)
            if named is None:
                continue  # It repeats a row that failed.
            row = part.first_row + place
            node_id = self._id_of(row, record.fields)
            nodes.append(
                TextNode(id_=node_id, text=record.text or "", metadata=dict(record.fields))
            )
            vectors.append(named)
        if self._store.keywords is not None:
            texts = [node.text for node in nodes]
            counted = keyword_vectors(self._store.keywords, texts)
            for named, vector in zip(vectors, counted, strict=True):
                named[KEYWORD_VECTOR] = vector
        payloads = build_payloads(nodes)
        return [
            qm.PointStruct.model_construct(id=node.node_id, payload=payload, vector=named)
            for node, payload, named in zip(nodes, payloads, vectors, strict=True)
        ]

    def _id_of(self, row: int, fields: object) -> str:
        """Return a row's id: the same for the same row, in whatever run."""
        if self._id_field is None:
            return str(uuid.uuid5(ID_NAMESPACE, f"row {row}"))
        assert isinstance(fields, dict)
        value = fields.get(self._id_field)
        return str(uuid.uuid5(ID_NAMESPACE, f"id {json.dumps(value, ensure_ascii=True)}"))

    def _find_vectors(self, source: int) -> NamedVectors | None:
        """Return the vectors of the row that a row shares them with."""
        part = self._load(source // self._part_rows)
        places = part.own_rows.searchsorted(source)
        if places >= len(part.own_rows) or part.own_rows[places] != source:
            return None
        place = int(places)
        named: NamedVectors = {}
        if part.dense is not None:
            named[DENSE_VECTOR] = part.dense[place].tolist()
        if part.sparse_offsets is not None:
            assert part.sparse_indices is not None
            assert part.sparse_values is not None
            start, stop = part.sparse_offsets[place : place + 2].tolist()
            named[SPARSE_VECTOR] = qm.SparseVector(
                indices=part.sparse_indices[start:stop].tolist(),
                values=part.sparse_values[start:stop].tolist(),
            )
        colbert = self._store.stored_colbert
        if colbert is not None and part.colbert_offsets is not None:
            assert part.colbert_rows is not None
            start, stop = part.colbert_offsets[place : place + 2].tolist()
            rows = part.colbert_rows[start:stop].astype(np.float32, copy=False)
            named[COLBERT_VECTOR] = pool_rows(rows, colbert.pool).tolist()
        return named

    def _load(self, number: int) -> Part:
        """Return a part, held for a while since repeated rows ask for earlier ones."""
        if number not in self._held:
            self._held[number] = read_part(self._journal.part_path(number))
            if len(self._held) > _PARTS_HELD:
                self._held.popitem(last=False)
        self._held.move_to_end(number)
        return self._held[number]

    def _mark(self, line: PartLine) -> None:
        content = json.dumps({"part": line.part, "sha256": line.sha256}) + "\n"
        with self._marks_file.open("a", encoding="utf-8") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        self._marks[line.part] = line.sha256

    # --- indexing -------------------------------------------------------------------------------

    def defer_indexing(self) -> None:
        """Ask a server to index nothing until `finish`, which saves building it again and again.

        The embedded core indexes only when it is asked to.
        """
        if not self._is_server:
            return
        state = self._state_file
        if not state.exists():
            with store_errors(self._name, "reading its settings"):
                info = self._client.get_collection(self._name)
            threshold = info.config.optimizer_config.indexing_threshold
            replace_file(state, json.dumps({"indexing_threshold": threshold}).encode())
        self._set_threshold(0)

    def finish(self) -> None:
        """Switch indexing on again, as it was, and let the embedded core index."""
        self.restore_indexing()
        optimise = getattr(self._client, "optimize", None)
        if not self._is_server and optimise is not None:
            with store_errors(self._name, "indexing"):
                optimise(self._name)

    def restore_indexing(self) -> None:
        """Let a server index as it did before `defer_indexing`, also that of a killed run."""
        if self._state_file.exists():
            state = json.loads(self._state_file.read_text("utf-8"))
            threshold = state["indexing_threshold"]
            self._set_threshold(_USUAL_THRESHOLD if threshold is None else threshold)
            self._state_file.unlink()

    @property
    def _is_server(self) -> bool:
        inner = getattr(self._client, "_client", None)
        return type(inner).__name__ == "QdrantRemote"

    @property
    def _state_file(self) -> Path:
        return self._marks_file.with_suffix(".indexing.json")

    def _set_threshold(self, threshold: int) -> None:
        with store_errors(self._name, "changing when it is indexed"):
            self._client.update_collection(
                self._name,
                optimizers_config=qm.OptimizersConfigDiff(indexing_threshold=threshold),
            )


@contextlib.contextmanager
def open_collection(
    target: CollectionTarget, embedder: TextEmbedder, journal: Journal, options: BulkOptions
) -> Iterator[CollectionWriter]:
    """Open the collection that a job's rows go into, and write what is missing in it.

    It is indexed again at the end, however the job ends.

    Raises:
        InputError: If the collection holds ColBERT vectors and the job computes none.
        StoreError: If Qdrant refuses points or cannot be reached.
    """
    store = build_vector_store(
        embedder,
        target.name,
        path=target.path,
        url=target.url,
        client=target.client,
        api_key=target.api_key,
    )
    if store.stored_colbert is not None and "colbert" not in (options.heads or ()):
        raise InputError(
            f"collection {target.name!r} holds ColBERT vectors ({store.stored_colbert}), which "
            "this job does not compute; add colbert to its heads: --heads dense,sparse,colbert"
        )
    writer = CollectionWriter(
        store, journal, part_rows=options.checkpoint_interval, id_field=options.input.id_field
    )
    writer.defer_indexing()
    try:
        for line in journal.lines:
            writer.write(line)
        yield writer
    except BaseException:
        with contextlib.suppress(StoreError):  # The first error is the one to tell.
            writer.restore_indexing()
        raise
    writer.finish()


class _BatchSize:
    """The number of points of an upsert, found by trying larger ones while they are quicker."""

    def __init__(self) -> None:
        self._choice = 0
        self._best_rate = 0.0
        self._is_settled = False

    @property
    def size(self) -> int:
        return _BATCHES[self._choice]

    def note(self, points: int, seconds: float) -> None:
        """Learn from an upsert how quick a batch of this size is."""
        if self._is_settled or points < self.size:
            return
        rate = points / max(seconds, 1e-9)
        if rate < self._best_rate * _GAIN and self._choice:
            self._choice -= 1
            self._is_settled = True
            return
        self._best_rate = max(rate, self._best_rate)
        if self._choice + 1 < len(_BATCHES):
            self._choice += 1
        else:
            self._is_settled = True


def _read_marks(file: Path) -> dict[int, str]:
    """Return the parts that are in the collection; half a line of a crash is none."""
    marks: dict[int, str] = {}
    if not file.exists():
        return marks
    for line in file.read_text("utf-8", errors="replace").splitlines():
        with contextlib.suppress(ValueError, KeyError, TypeError):
            mark = json.loads(line)
            marks[mark["part"]] = mark["sha256"]
    return marks
