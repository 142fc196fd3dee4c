"""What a migration will cost, from a look at the old collection and a try of the new model.

What lives here: counting, sampling, trying. What does not: refusing what cannot work (`plan`).
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from unified_embeddings.embedders.base import TextEmbedder
from unified_embeddings.llama.layouts import PayloadReader, SourceText, UnreadablePoint
from unified_embeddings.migration.embedding import document_heads
from unified_embeddings.migration.record import PointId
from unified_embeddings.migration.sampling import Sample
from unified_embeddings.migration.sides import Collection

_SCANNED = 100_000
"""Points that are read at most; of a larger collection the numbers are projected from these."""
_PAGE = 500
_MEASURED = 512
"""Texts whose tokens are counted."""
_COMPUTED = 64
"""Texts that are computed, spread over those measured, for the time of a token."""
_EXAMPLES = 5
_FLOAT_BYTES = 4
_SPARSE_BYTES = 8
"""Of an entry: an id and a weight."""


@dataclass(frozen=True)
class Example:
    """A point that cannot be moved, and why."""

    point_id: PointId
    problem: str


@dataclass(frozen=True)
class Estimate:
    """What a migration will take.

    Attributes:
        points: Points of the source.
        scanned: How many of them were read.
        without_text: Points that have no text to embed, projected to all points.
        examples: Some of these.
        tokens: Tokens of all texts, after cutting; projected from a sample.
        truncated: Share of the texts that are cut, 0 to 1.
        seconds: Of embedding, with one process.
        vector_bytes: Of the new collection's vectors, without its indexes.
        payload_bytes: Of its payloads.
        free_bytes: Free on the disk of the store; None if the store is elsewhere.
    """

    points: int
    scanned: int
    without_text: int
    examples: tuple[Example, ...]
    tokens: int
    truncated: float
    seconds: float
    vector_bytes: int
    payload_bytes: int
    free_bytes: int | None

    @property
    def bytes(self) -> int:
        """Return what the new collection will hold, without its indexes."""
        return self.vector_bytes + self.payload_bytes


@dataclass
class _Scan:
    """What was seen of the source."""

    points: int = 0
    without_text: list[Example] = field(default_factory=list)
    failing: int = 0
    payload_bytes: int = 0
    sample: Sample[str] = field(default_factory=lambda: Sample(_MEASURED))


def estimate_migration(
    source: Collection, reader: PayloadReader, embedder: TextEmbedder, *, free_bytes: int | None
) -> Estimate:
    """Estimate what moving a collection to a model takes; nothing is written.

    Loads the model, and runs it on some of the texts.

    Raises:
        StoreError: If the source cannot be read.
        UnifiedEmbeddingsError: If the model cannot be loaded.
    """
    points = source.count()
    scan = _scan(source, reader)
    share = points / max(1, scan.points)
    texts = scan.sample.items
    lengths = embedder.measure(texts) if texts else []
    mean_tokens = sum(length.tokens for length in lengths) / max(1, len(lengths))
    truncated = sum(length.truncated for length in lengths) / max(1, len(lengths))
    tokens = mean_tokens * (scan.points - scan.failing) * share
    seconds_per_token, bytes_per_text = _try_model(embedder, texts)
    return Estimate(
        points=points,
        scanned=scan.points,
        without_text=round(scan.failing * share),
        examples=tuple(scan.without_text),
        tokens=round(tokens),
        truncated=truncated,
        seconds=round(tokens * seconds_per_token, 3),
        vector_bytes=round(bytes_per_text * (scan.points - scan.failing) * share),
        payload_bytes=round(scan.payload_bytes * share),
        free_bytes=free_bytes,
    )


def _scan(source: Collection, reader: PayloadReader) -> _Scan:
    """Read points, and keep a sample of their texts."""
    scan = _Scan()
    for page in source.pages(_PAGE):
        for point_id, payload in page.points.items():
            content = reader.read(point_id, payload)
            scan.points += 1
            if isinstance(content, UnreadablePoint):
                scan.failing += 1
                if len(scan.without_text) < _EXAMPLES:
                    scan.without_text.append(Example(point_id, content.problem))
                continue
            scan.payload_bytes += _size_of(content)
            scan.sample.offer(content.text)
        if scan.points >= _SCANNED:
            break
    return scan


def _size_of(content: SourceText) -> int:
    return len(json.dumps(content.payload, ensure_ascii=False, default=str).encode())


def _try_model(embedder: TextEmbedder, texts: Sequence[str]) -> tuple[float, float]:
    """Compute some texts; return the seconds of a token, and the bytes of a text's vectors."""
    if not texts:
        return 0.0, 0.0
    chosen = list(texts[:: max(1, len(texts) // _COMPUTED)])
    heads = document_heads(embedder)
    embedder.encode(chosen[:1], role="document", heads=heads)  # loads the model
    before = embedder.stats().tokens
    begun = time.perf_counter()
    embeddings = embedder.encode(chosen, role="document", heads=heads)
    seconds = time.perf_counter() - begun
    tokens = max(1, embedder.stats().tokens - before)
    entries = sum(len(sparse) for sparse in embeddings.sparse or ())
    vector_bytes = embedder.dimension * _FLOAT_BYTES + entries / len(chosen) * _SPARSE_BYTES
    return seconds / tokens, vector_bytes


def sample_payloads(source: Collection) -> list[Mapping[str, Any]]:
    """Return the payloads of a page of points, to see their layout."""
    return list(source.page(None, _PAGE).points.values())
