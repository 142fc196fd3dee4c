"""What a collection holds: figures, fields, a map of a sample, and passages that nearly repeat.

What lives here: reading a sample, and what is counted and drawn of it. What does not: the page.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias, cast

import numpy as np
from llama_index.core.schema import BaseNode
from numpy.typing import NDArray

from unified_embeddings.evaluation.near_duplicates import group_near_duplicates
from unified_embeddings.inspector.library import OpenedCollection
from unified_embeddings.inspector.stages import Stages
from unified_embeddings.inspector.visible import one_line, title_of
from unified_embeddings.llama.collection_reader import CollectionReader
from unified_embeddings.llama.payloads import own_metadata
from unified_embeddings.stores.errors import store_errors
from unified_embeddings.stores.measuring import CollectionSize, measure_collection
from unified_embeddings.stores.sampling import sample_ids
from unified_embeddings.stores.schema import dense_vectors
from unified_embeddings.types import FloatArray

SAMPLE = 500
"""Passages that are looked at."""
COLOURS = 8
"""Values of a field that get a colour of their own; the others share one."""
_SHOWN_VALUES = 6
_SHOWN_FIELDS = 30
_SHOWN_GROUPS = 6
_SHOWN_MEMBERS = 5
_VALUE_WIDTH = 60
_MAP_SIZE = 1000
_MAP_MARGIN = 20
_ROUNDS = 12
"""Of the power iteration, after which the two axes stand still to the eye."""

Doubles: TypeAlias = NDArray[np.float64]
"""Positions on the map."""


@dataclass(frozen=True)
class FieldValue:
    """A value of a field.

    Attributes:
        value: As text.
        count: Passages of the sample that have it.
    """

    value: str
    count: int


@dataclass(frozen=True)
class Field:
    """A field of the passages' metadata.

    Attributes:
        name: The field.
        count: Passages of the sample that have it.
        distinct: Its different values.
        values: The most frequent ones.
    """

    name: str
    count: int
    distinct: int
    values: tuple[FieldValue, ...]


@dataclass(frozen=True)
class Dot:
    """A passage on the map.

    Attributes:
        point_id: The passage.
        x: From 0 to 1000.
        y: From 0 to 1000, downwards.
        colour: Which colour it has: the place of its value in the legend.
        label: Its title and its first words.
    """

    point_id: str
    x: float
    y: float
    colour: int
    label: str


@dataclass(frozen=True)
class Map:
    """A sample of passages in two dimensions.

    Attributes:
        dots: The passages.
        field: By which field they are coloured; empty for none.
        legend: The values of the colours.
        explained: Share of the vectors' variance that the two axes show.
    """

    dots: tuple[Dot, ...]
    field: str
    legend: tuple[FieldValue, ...]
    explained: float


@dataclass(frozen=True)
class Repeated:
    """A passage of the sample.

    Attributes:
        point_id: The passage.
        title: What to call it.
        text: Its first words.
    """

    point_id: str
    title: str
    text: str


@dataclass(frozen=True)
class CollectionView:
    """What the page of a collection shows.

    Attributes:
        size: Its figures.
        sample: Passages that were looked at.
        fields: The fields of their metadata, the most frequent first.
        map: The passages in two dimensions; None where the collection has no dense vectors.
        groups: Passages that nearly repeat each other.
        repeated: How many groups of those there are.
        stages: Where the time went.
    """

    size: CollectionSize
    sample: int
    fields: tuple[Field, ...]
    map: Map | None
    groups: tuple[tuple[Repeated, ...], ...]
    repeated: int
    stages: Stages


@dataclass(frozen=True)
class _Sampled:
    """A passage of the sample with its vector."""

    point_id: str
    node: BaseNode
    metadata: Mapping[str, object]
    vector: Sequence[float] | None


def view_collection(opened: OpenedCollection, *, colour: str = "") -> CollectionView:
    """Return what a collection holds.

    Args:
        opened: The collection.
        colour: The field that colours the map; empty takes one whose values repeat.

    Raises:
        StoreError: If Qdrant fails, or a point holds no text.
    """
    stages = Stages()
    with stages.measure("measure"):
        size = measure_collection(opened.client, opened.name)
    with stages.measure("sample"):
        sampled = _draw_sample(opened, size.points)
    with stages.measure("count fields"):
        fields = count_fields([one.metadata for one in sampled])
    with stages.measure("draw map"):
        drawn = _draw_map(sampled, colour or _choose_colour(fields))
    with stages.measure("find repeats"):
        groups = _find_repeats(sampled)
    return CollectionView(
        size=size,
        sample=len(sampled),
        fields=tuple(fields[:_SHOWN_FIELDS]),
        map=drawn,
        groups=tuple(groups[:_SHOWN_GROUPS]),
        repeated=len(groups),
        stages=stages,
    )


def count_fields(all_metadata: Sequence[Mapping[str, object]]) -> list[Field]:
    """Return the fields of passages with their most frequent values.

    Args:
        all_metadata: The metadata of each passage.

    Returns:
        The fields that the most passages have come first.

    Example:
        >>> from unified_embeddings.inspector.collection import count_fields
        >>> (field,) = count_fields([{"year": 2024}, {"year": 2024}, {}])
        >>> field.count, field.distinct, field.values[0]
        (2, 1, FieldValue(value='2024', count=2))
    """
    counters: dict[str, Counter[str]] = {}
    totals: Counter[str] = Counter()
    for metadata in all_metadata:
        for name, value in metadata.items():
            counter = counters.setdefault(name, Counter())
            totals[name] += 1
            counter.update(set(_values_of(value)))
    fields = []
    for name, counter in counters.items():
        best = sorted(counter.items(), key=lambda item: (-item[1], item[0]))[:_SHOWN_VALUES]
        values = tuple(FieldValue(value, count) for value, count in best)
        fields.append(Field(name, totals[name], len(counter), values))
    return sorted(fields, key=lambda field: (-field.count, field.name))


def project(vectors: FloatArray) -> tuple[Doubles, float]:
    """Return vectors in the two dimensions in which they differ most (principal components).

    The axes are found by power iteration, which costs as much as a few matrix products however wide
    the vectors are.

    Args:
        vectors: float32 (n, d).

    Returns:
        float64 (n, 2), and the share of the variance that it shows.
    """
    centred = np.asarray(vectors, dtype=np.float64)
    centred = centred - centred.mean(axis=0)
    total = float(np.square(centred).sum())
    if len(centred) < 2 or total <= 1e-12:
        return np.zeros((len(centred), 2)), 0.0
    axes: Doubles = np.random.default_rng(0).standard_normal(
        (centred.shape[1], min(8, centred.shape[1]))
    )
    for _ in range(_ROUNDS):
        axes, _ = np.linalg.qr(centred.T @ (centred @ axes))
    # Within what the iteration found, the axes are exact.
    _, _, rotation = np.linalg.svd(centred @ axes, full_matrices=False)
    placed = centred @ (axes @ rotation[:2].T)
    if placed.shape[1] < 2:
        placed = np.column_stack([placed, np.zeros(len(placed))])
    return placed, float(np.square(placed).sum()) / total


def _draw_sample(opened: OpenedCollection, count: int) -> list[_Sampled]:
    client, name = opened.client, opened.name
    if count not in opened.samples:
        opened.samples.clear()
        opened.samples[count] = list(sample_ids(client, name, SAMPLE))
    ids = opened.samples[count]
    with store_errors(name, "reading a sample"):
        all_params = dense_vectors(client.get_collection(name))
        wanted = opened.store.dense_vector_name
        vector_name = "" if wanted not in all_params and "" in all_params else wanted
        with_vectors: bool | list[str] = [vector_name] if vector_name else True
        points = client.retrieve(name, ids, with_payload=True, with_vectors=with_vectors)
    scored = CollectionReader(opened.store).to_nodes(points, [0.0] * len(points))
    sampled = []
    for point, one in zip(points, scored, strict=True):
        vectors = point.vector
        stored = vectors.get(vector_name) if isinstance(vectors, dict) else vectors
        vector = None
        if isinstance(stored, list):  # the vector is dense, a list of numbers
            vector = cast("list[float]", stored)
        sampled.append(
            _Sampled(
                point_id=str(point.id),
                node=one.node,
                metadata=own_metadata(one.node),
                vector=vector,
            )
        )
    return sampled


def _choose_colour(fields: Sequence[Field]) -> str:
    """Return the field whose values repeat, but not all; empty if there is none."""
    for field in fields:
        if 1 < field.distinct <= max(COLOURS, field.count // 3):
            return field.name
    return ""


def _draw_map(sampled: Sequence[_Sampled], colour: str) -> Map | None:
    placed = [one for one in sampled if one.vector is not None]
    if not placed:
        return None
    positions, explained = project(np.asarray([one.vector for one in placed], dtype=np.float32))
    values = [_colour_value(one.metadata, colour) for one in placed]
    counts = Counter(value for value in values if value is not None)
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    legend = [FieldValue(value, count) for value, count in ordered[:COLOURS]]
    rest = len(values) - sum(entry.count for entry in legend)
    place_of = {entry.value: place for place, entry in enumerate(legend)}
    if colour and rest:
        legend.append(FieldValue("others", rest))
    scaled = _scale(positions)
    dots = []
    for one, value, (x, y) in zip(placed, values, scaled.tolist(), strict=True):
        title = title_of(one.metadata, one.point_id)
        dots.append(
            Dot(
                point_id=one.point_id,
                x=round(x, 1),
                y=round(y, 1),
                colour=COLOURS if value is None else place_of.get(value, COLOURS),
                label=f"{title}: {one_line(one.node.get_content(), 100)}",
            )
        )
    return Map(tuple(dots), colour, tuple(legend), explained)


def _scale(positions: Doubles) -> Doubles:
    """Return positions within the drawing, both axes alike, so that distances stay true."""
    low, high = positions.min(axis=0), positions.max(axis=0)
    span = float((high - low).max()) or 1.0
    room = _MAP_SIZE - 2 * _MAP_MARGIN
    middle = (low + high) / 2
    scaled: Doubles = _MAP_SIZE / 2 + (positions - middle) / span * room
    return scaled


def _find_repeats(sampled: Sequence[_Sampled]) -> list[tuple[Repeated, ...]]:
    """Return groups of passages that are nearly the same, the largest first."""
    texts = [one.node.get_content() for one in sampled]
    members: dict[int, list[int]] = {}
    for place, first in enumerate(group_near_duplicates(texts)):
        members.setdefault(first, []).append(place)
    groups = []
    for places in sorted(members.values(), key=lambda places: (-len(places), places)):
        if len(places) > 1:
            groups.append(tuple(_to_repeated(sampled[place]) for place in places[:_SHOWN_MEMBERS]))
    return groups


def _to_repeated(one: _Sampled) -> Repeated:
    title = title_of(one.metadata, one.point_id)
    return Repeated(one.point_id, title, one_line(one.node.get_content(), 200))


def _colour_value(metadata: Mapping[str, object], field: str) -> str | None:
    values = _values_of(metadata[field]) if field in metadata else []
    return values[0] if values else None


def _values_of(value: object) -> list[str]:
    """Return a field's values as texts; of a list, each element."""
    if isinstance(value, list):
        return [one_line(str(item), _VALUE_WIDTH) for item in value]
    return [one_line(str(value), _VALUE_WIDTH)]
