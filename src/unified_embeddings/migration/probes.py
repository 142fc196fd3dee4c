"""A few points of a collection with their texts and vectors, to be embedded again and compared.

What lives here: which points are taken, and reading their vectors. What does not: what their
payloads mean (`llama.layouts`), and the comparison (`evidence`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from qdrant_client import models as qm

from unified_embeddings.errors import InputError, StoreError
from unified_embeddings.llama.layouts import (
    LayoutName,
    Payload,
    SourceText,
    UnreadablePoint,
    choose_reader,
)
from unified_embeddings.stores.copy_points import PointId, plain_id
from unified_embeddings.stores.errors import store_errors
from unified_embeddings.stores.opening import Client
from unified_embeddings.stores.sampling import sample_ids

T = TypeVar("T")

PROBES = 20
"""Texts that are embedded again."""
_POINTS_READ = 200
"""Points whose payloads are read to choose the texts."""
_SHORT_BYTES = 1_000
"""A text of fewer bytes is some 250 tokens at most, which hardly any model cuts."""


@dataclass(frozen=True)
class Layout:
    """How a user says that payloads are laid out; None of all three is to be seen from a sample.

    Attributes:
        name: The layout's name.
        text_key: Key of the text, for a plain one.
        metadata_key: Key of the metadata, for a plain one.
    """

    name: LayoutName | None = None
    text_key: str | None = None
    metadata_key: str | None = None


DETECTED = Layout()
"""A layout that is to be seen from a sample."""


@dataclass(frozen=True)
class Probe:
    """A point with the vectors that the collection holds for it.

    Attributes:
        source: Its text.
        dense: Its dense vector, float64 (d,); None if it was not asked for.
        sparse: Its sparse vector, vocabulary id → weight; None if it has none.
    """

    source: SourceText
    dense: NDArray[np.float64] | None
    sparse: Mapping[int, float] | None


@dataclass(frozen=True)
class Probes:
    """The points to compare.

    Attributes:
        usable: Up to `PROBES` points with distinct texts, spread over the collection.
        layout: How their payloads are laid out.
        points: How many points were looked at.
        problems: Why others are of no use → how many.
    """

    usable: list[Probe]
    layout: LayoutName
    points: int
    problems: dict[str, int]


def collect_probes(
    client: Client, name: str, layout: Layout, *, dense: str | None, sparse: str | None
) -> Probes:
    """Return points of a collection to compare.

    Short texts are preferred: they are embedded quickly, and no model cuts them.

    Args:
        client: Client of the collection's place.
        name: The collection's name.
        layout: How its payloads are laid out.
        dense: Name of the dense vectors, "" for unnamed ones; None if they are not compared.
        sparse: Name of the sparse vectors; None if they are not compared.

    Raises:
        InputError: If the layout cannot be seen.
        StoreError: If the collection is empty or cannot be read.
    """
    payloads = _read_payloads(client, name, sample_ids(client, name, _POINTS_READ))
    if not payloads:
        raise StoreError(name, "reading its points", "it holds none, so there is nothing to prove")
    try:
        reader = choose_reader(
            payloads.values(),
            layout=layout.name,
            text_key=layout.text_key,
            metadata_key=layout.metadata_key,
        )
    except InputError as error:
        raise InputError(f"collection {name!r}: {error.problem}") from None
    problems: Counter[str] = Counter()
    sources: dict[str, SourceText] = {}
    for point_id, payload in payloads.items():
        source = reader.read(point_id, payload)
        if isinstance(source, UnreadablePoint):
            problems[source.problem] += 1
        elif source.bare_text.strip() in sources:
            problems["its text is another point's too"] += 1
        else:
            sources[source.bare_text.strip()] = source
    candidates = _prefer_short(list(sources.values()), 2 * PROBES)
    probes = _read_vectors(client, name, candidates, dense, sparse, problems)
    return Probes(
        usable=_spread(probes, PROBES),
        layout=reader.layout,
        points=len(payloads),
        problems=dict(problems),
    )


def _read_payloads(
    client: Client, name: str, point_ids: Sequence[PointId]
) -> dict[PointId, Payload]:
    if not point_ids:
        return {}
    with store_errors(name, "reading payloads"):
        records = client.retrieve(name, point_ids, with_payload=True, with_vectors=False)
    payloads = {plain_id(record.id): record.payload or {} for record in records}
    return {point_id: payloads[point_id] for point_id in point_ids if point_id in payloads}


def _prefer_short(sources: list[SourceText], count: int) -> list[SourceText]:
    """Return up to `count` sources, spread evenly; longer ones only if there are too few short."""
    short = [source for source in sources if len(source.text.encode()) <= _SHORT_BYTES]
    if len(short) >= PROBES:
        return _spread(short, count)
    return sorted(sources, key=lambda source: len(source.text))[:count]


def _spread(items: list[T], count: int) -> list[T]:
    if len(items) <= count:
        return items
    spacing = len(items) / count
    return [items[int((place + 0.5) * spacing)] for place in range(count)]


def _read_vectors(
    client: Client,
    name: str,
    sources: Sequence[SourceText],
    dense: str | None,
    sparse: str | None,
    problems: Counter[str],
) -> list[Probe]:
    """Return the points that have the vectors to compare, and note what is wrong with others."""
    if not sources:
        return []
    names = [vector for vector in (dense, sparse) if vector is not None]
    with store_errors(name, "reading vectors"):
        records = client.retrieve(
            name,
            [source.point_id for source in sources],
            with_payload=False,
            # The unnamed vector cannot be asked for by name.
            with_vectors=True if "" in names else names,
        )
    vectors = {plain_id(record.id): named_vectors(record) for record in records}
    probes = []
    for source in sources:
        own = vectors.get(source.point_id, {})
        dense_vector = None
        if dense is not None:
            dense_vector = _to_array(own.get(dense))
            if dense_vector is None:
                problems[f"it has no finite dense vector {dense!r}"] += 1
                continue
        sparse_vector = None if sparse is None else _to_weights(own.get(sparse))
        if dense is None and sparse_vector is None:
            problems[f"it has no sparse vector {sparse!r}"] += 1
            continue
        probes.append(Probe(source, dense_vector, sparse_vector))
    return probes


def named_vectors(record: qm.Record) -> Mapping[str, object]:
    """Return a point's vectors by name, the unnamed one under ""."""
    if isinstance(record.vector, dict):
        return record.vector
    if record.vector is None:
        return {}
    return {"": record.vector}


def _to_array(vector: object) -> NDArray[np.float64] | None:
    if not isinstance(vector, list) or not vector or not isinstance(vector[0], int | float):
        return None
    array = np.asarray(vector, dtype=np.float64)
    if not np.isfinite(array).all() or not array.any():
        return None
    return array


def _to_weights(vector: object) -> Mapping[int, float] | None:
    if not isinstance(vector, qm.SparseVector) or not vector.indices:
        return None
    return dict(zip(vector.indices, vector.values, strict=True))
