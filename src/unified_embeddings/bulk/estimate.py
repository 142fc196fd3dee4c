"""What a bulk job would cost, from a sample of its rows; nothing is written into its folder."""

from __future__ import annotations

import dataclasses
import itertools
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from unified_embeddings.bulk.completion import ModelPlan, plan_outputs
from unified_embeddings.bulk.job import part_name
from unified_embeddings.bulk.output import write_outputs
from unified_embeddings.bulk.parts import build_part, part_to_bytes
from unified_embeddings.bulk.planning import plan_parts
from unified_embeddings.bulk.reader import CheckedInput, RowReader, read_rows
from unified_embeddings.bulk.rows import Row
from unified_embeddings.system.files import free_space
from unified_embeddings.types import Embeddings

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
        bytes: Of the parts and the outputs; None likewise.
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


def estimate_model(checked: CheckedInput, output: Path, plan: ModelPlan) -> Estimate:
    """Estimate what embedding an input with a model costs.

    Loads the model, and runs it on some of the first rows.

    Args:
        checked: The input.
        output: Where the job's files would be.
        plan: What would be computed.
    """
    reader = read_rows(checked)
    rows = list(itertools.islice(reader, _SAMPLE))
    all_rows = _count_rows(reader, len(rows), checked.description.total_bytes)
    reader.close()
    sample = [row for row in rows if row.text is not None]
    texts = [row.text for row in sample if row.text is not None]
    lengths = plan.embedder.measure(texts, role=plan.options.role)
    sampled_tokens = sum(length.tokens for length in lengths)
    chosen = sample[:: max(1, len(sample) // _COMPUTED)]
    seconds_per_token, bytes_per_row = _try(plan, chosen, checked.options.id_field)
    truncated = sum(length.truncated for length in lengths) / max(len(lengths), 1)
    estimated = Estimate(
        model=plan.model,
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
        bytes=round(all_rows * bytes_per_row),
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


def _try(plan: ModelPlan, rows: Sequence[Row], id_field: str | None) -> tuple[float, float]:
    """Compute some rows; return the seconds of a token and the bytes of a row in all files."""
    if not rows:
        return 0.0, 0.0
    role, embedder = plan.options.role, plan.embedder
    texts = [row.text for row in rows if row.text is not None]
    embedder.encode(texts[:1], role=role, heads=plan.heads)  # loads the model
    before = embedder.stats().tokens
    begun = time.perf_counter()
    embeddings = embedder.encode(texts, role=role, heads=plan.heads)
    seconds = time.perf_counter() - begun
    tokens = max(1, embedder.stats().tokens - before)
    return seconds / tokens, _measure_files(plan, rows, embeddings, id_field) / len(rows)


def _measure_files(
    plan: ModelPlan, rows: Sequence[Row], embeddings: Embeddings, id_field: str | None
) -> int:
    """Return the bytes of some rows' part and outputs, by writing them to a temporary folder."""
    renumbered = [Row(place, row.text, None, row.fields) for place, row in enumerate(rows)]
    (task,) = plan_parts(renumbered, len(renumbered), None)
    part = build_part(0, task.records, task.sources, embeddings, plan.options.dtype)
    with tempfile.TemporaryDirectory(prefix="unified-embeddings-") as folder:
        part_file = Path(folder) / part_name(0)
        part_file.write_bytes(part_to_bytes(part))
        outputs = write_outputs(
            [part_file], Path(folder) / "outputs", plan_outputs(plan, [part_file], id_field)
        )
        return sum(file.stat().st_size for file in [part_file, *outputs])
