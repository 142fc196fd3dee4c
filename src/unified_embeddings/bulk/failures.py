"""The rows without vectors, over all models of a job.

What lives here: collecting them from the parts, in the order of the rows. What does not: their
file (`output`).
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from unified_embeddings.bulk.parts import FAILED, Record, read_part


@dataclass(frozen=True)
class Failure:
    """A row, what is wrong with it, and for which models.

    Attributes:
        row: Its number in the whole input.
        problem: Why it has no vectors.
        models: The models that have none for it, for this reason.
        fields: What is kept of the row.
    """

    row: int
    problem: str
    models: list[str]
    fields: Mapping[str, object]


def collect_failures(parts_of_models: Mapping[str, Sequence[Path]]) -> Iterator[Failure]:
    """Yield the failed rows in order; a row as often as it has different problems.

    Args:
        parts_of_models: The parts' files of each model, in order.

    Raises:
        PartFileError: If a part is damaged.
    """
    streams = [_read_failures(model, parts) for model, parts in parts_of_models.items()]
    merged = heapq.merge(*streams, key=_row_of)  # It keeps the order of the models.
    for row, group in itertools.groupby(merged, key=_row_of):
        models_of_problems: dict[str, list[str]] = {}
        fields: Mapping[str, object] = {}
        for _, model, record in group:
            problem = record.problem or "no reason was recorded"
            models_of_problems.setdefault(problem, []).append(model)
            fields = record.fields
        for problem, models in models_of_problems.items():
            yield Failure(row=row, problem=problem, models=models, fields=fields)


def _read_failures(model: str, parts: Sequence[Path]) -> Iterator[tuple[int, str, Record]]:
    for path in parts:
        part = read_part(path)
        for position in (part.sources == FAILED).nonzero()[0].tolist():
            yield part.first_row + position, model, part.records[position]


def _row_of(failure: tuple[int, str, Record]) -> int:
    return failure[0]
