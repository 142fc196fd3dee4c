"""The rows that a comparison of models is made of."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from unified_embeddings.engines.base import Runtime
from unified_embeddings.evaluation.agreement import Agreement, Drift
from unified_embeddings.evaluation.rankings import Retrieval


@dataclass(frozen=True)
class Cost:
    """What a model takes of one machine.

    Attributes:
        size: Bytes of the weights' files.
        resident: Resident bytes of a process of its own after loading and a first query.
        peak: The most resident bytes of it, all documents embedded; None where the system does not
            tell.
        load_s: Seconds from a process without a model library to the first query's vectors.
        query_ms_p50: Milliseconds for one query, median over different queries.
        query_ms_p99: The 99th percentile of them.
        queries: How many were timed.
        query_tokens: Their median length in tokens, special tokens included.
        tokens_per_s: Tokens embedded a second over all documents, median over the rounds.
        tokens_per_s_min: The slowest round.
        tokens_per_s_max: The fastest round.
        rounds: How many there were; one where it takes long.
    """

    size: int
    resident: int
    peak: int | None
    load_s: float
    query_ms_p50: float
    query_ms_p99: float
    queries: int
    query_tokens: float
    tokens_per_s: float
    tokens_per_s_min: float
    tokens_per_s_max: float
    rounds: int


@dataclass(frozen=True)
class Row:
    """One candidate.

    Attributes:
        name: For people.
        problem: Why it could not be measured; then there is nothing else.
        runtime: Engine, device and precision it ran on.
        cost: What it takes.
        drift: How far its vectors depend on batch-mates.
        agreement: None for another model than the reference's: their vectors do not compare.
        retrieval: "dense", "sparse" and "fused", those of them the model can do.
    """

    name: str
    problem: str | None = None
    runtime: Runtime | None = None
    cost: Cost | None = None
    drift: Drift | None = None
    agreement: Agreement | None = None
    retrieval: dict[str, Retrieval] = field(default_factory=dict)


@dataclass(frozen=True)
class Comparison:
    """Candidates beside their reference.

    Attributes:
        model: The model's name.
        machine: What it was measured on.
        corpus: Name and numbers of the texts.
        rows: The reference, then the candidates.
    """

    model: str
    machine: dict[str, Any]
    corpus: dict[str, Any]
    rows: tuple[Row, ...]
