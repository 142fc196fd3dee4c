"""What a bulk job would cost, from a sample of its rows; nothing is written."""

from __future__ import annotations

import dataclasses
import itertools
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from unified_embeddings.bulk.options import BulkOptions
from unified_embeddings.bulk.parts import build_part, part_to_bytes
from unified_embeddings.bulk.planning import plan_parts
from unified_embeddings.bulk.reader import CheckedInput, RowReader, read_rows
from unified_embeddings.bulk.rows import Row
from unified_embeddings.embedders.base import TextEmbedder
from unified_embeddings.system.files import free_space
from unified_embeddings.types import HeadName

_SAMPLE = 512
"""Rows whose tokens are counted."""
_COUNTED = 100_000
"""Rows that are read to count them, at a few seconds; what is longer is estimated by its bytes."""
_COMPUTED = 64
"""Rows of the sample that are computed, spread over it, for the time of a token."""


@dataclass(frozen=True)
class Estimate:
    """What one model would cost.

    Attributes:
        model: Its name.
        sampled: Rows that were looked at.
        rows: Rows of the whole input; None where its size is not known.
        tokens: Tokens of the whole input, after cutting; None likewise.
        seconds: Of computing, with one worker; None likewise.
        bytes: Of the parts and as much again of the outputs; None likewise.
        free_bytes: Free on the disk of the outputs.
        truncated: Share of the texts that would be cut, 0 to 1.
    """

    model: str
    sampled: int
    rows: int | None
    tokens: int | None
    seconds: float | None
    bytes: int | None
    free_bytes: int
    truncated: float


def estimate_model(
    checked: CheckedInput,
    output: Path,
    embedder: TextEmbedder,
    *,
    model: str,
    heads: tuple[HeadName, ...],
    options: BulkOptions,
) -> Estimate:
    """Estimate what embedding an input with a model costs.

    Loads the model, and runs it on some of the first rows.
    """
    reader = read_rows(checked)
    rows = list(itertools.islice(reader, _SAMPLE))
    all_rows = _count_rows(reader, len(rows), checked.description.total_bytes)
    reader.close()
    sample = [row for row in rows if row.text is not None]
    texts = [row.text for row in sample if row.text is not None]
    lengths = embedder.measure(texts, role=options.role)
    sampled_tokens = sum(length.tokens for length in lengths)
    chosen = sample[:: max(1, len(sample) // _COMPUTED)]
    seconds_per_token, bytes_per_row = _try(embedder, chosen, heads, options)
    truncated = sum(length.truncated for length in lengths) / max(len(lengths), 1)
    estimated = Estimate(
        model=model,
        sampled=len(rows),
        rows=None,
        tokens=None,
        seconds=None,
        bytes=None,
        free_bytes=free_space(output),
        truncated=truncated,
    )
    if all_rows is None:
        return estimated
    tokens = sampled_tokens * all_rows / max(len(rows), 1)
    return dataclasses.replace(
        estimated,
        rows=all_rows,
        tokens=round(tokens),
        seconds=tokens * seconds_per_token,
        bytes=round(2 * all_rows * bytes_per_row),
    )


def _count_rows(reader: RowReader, rows: int, total_bytes: int | None) -> int | None:
    """Return how many rows an input has: counted if it is small, otherwise by its bytes.

    Args:
        reader: After some rows were taken.
        rows: How many.
        total_bytes: Of the whole input; None where that is not known.

    Returns:
        None if it is neither small nor of a known size.
    """
    for _ in reader:
        rows += 1
        if rows >= _COUNTED:
            if total_bytes is None or not reader.bytes_read:
                return None
            return max(rows, round(rows * total_bytes / reader.bytes_read))
    return rows


def _try(
    embedder: TextEmbedder,
    rows: Sequence[Row],
    heads: tuple[HeadName, ...],
    options: BulkOptions,
) -> tuple[float, float]:
    """Compute some rows; return the seconds of a token and the bytes of a row in its part."""
    if not rows:
        return 0.0, 0.0
    texts = [row.text for row in rows if row.text is not None]
    embedder.encode(texts[:1], role=options.role, heads=heads)  # loads the model
    before = embedder.stats().tokens
    begun = time.perf_counter()
    embeddings = embedder.encode(texts, role=options.role, heads=heads)
    seconds = time.perf_counter() - begun
    tokens = max(1, embedder.stats().tokens - before)
    renumbered = [Row(place, row.text, None, row.fields) for place, row in enumerate(rows)]
    (task,) = plan_parts(renumbered, len(renumbered), None)
    part = build_part(0, task.records, task.sources, embeddings, options.dtype)
    return seconds / tokens, len(part_to_bytes(part)) / len(rows)
