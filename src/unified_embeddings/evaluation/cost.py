"""What a model costs: its files, its memory, and the time of queries and documents.

What lives here: timing an embedder in the current process. What does not: the process of its own
in which memory is meaningful (`measurement`).
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from unified_embeddings.embedders.bge_m3 import BGE_M3_Embedder
from unified_embeddings.models.checkpoint import Checkpoint
from unified_embeddings.models.files import COLBERT_HEAD, SPARSE_HEAD
from unified_embeddings.system.memory import peak_bytes, process_bytes
from unified_embeddings.types import Embeddings

_ROUNDS = 3
"""How often all documents are embedded and timed."""
_LONGEST_REPEATED_S = 20.0
"""If the first round takes more seconds than this, it is the only one."""


@dataclass(frozen=True)
class Cost:
    """What a model costs on one machine.

    Attributes:
        size: Size of the weights' files in bytes.
        resident: Resident memory in bytes of a process of its own, after loading and one query.
        peak: Peak resident memory in bytes, after embedding all documents; None if unavailable.
        load_s: Seconds from a process without a model library to the first query's vectors.
        query_ms_p50: Milliseconds for one query, median over different queries.
        query_ms_p99: Milliseconds for one query, 99th percentile.
        queries: Number of timed queries.
        query_tokens: Their median length in tokens, special tokens included.
        tokens_per_s: Tokens per second over all documents, median over the rounds.
        tokens_per_s_min: Tokens per second of the slowest round.
        tokens_per_s_max: Tokens per second of the fastest round.
        rounds: Number of rounds; 1 if a round takes long.
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
class _Timing:
    """One timed call: how long it took and how many tokens it embedded."""

    seconds: float
    tokens: int


def measure_cost(
    embedder: BGE_M3_Embedder,
    documents: Sequence[str],
    timed_queries: Sequence[str],
    *,
    show_progress: bool = False,
) -> tuple[Cost, Embeddings]:
    """Load a model, time queries one by one, then time all documents together.

    Args:
        embedder: A model that is not loaded yet, without a cache.
        documents: The texts to embed together, at least one.
        timed_queries: The queries to time, at least one.
        show_progress: Whether to draw a progress bar on standard error.

    Returns:
        The cost, and the documents' vectors.
    """
    # The last query loads the model, so that the first timed ones have not just been run.
    loading = _time_query(embedder, timed_queries[-1])
    resident = process_bytes()
    query_timings = [_time_query(embedder, query) for query in timed_queries]
    rounds: list[_Timing] = []
    for _ in range(_ROUNDS):
        timing, vectors = _time_documents(embedder, documents, show_progress=show_progress)
        rounds.append(timing)
        if rounds[0].seconds > _LONGEST_REPEATED_S:
            break
    query_milliseconds = [timing.seconds * 1000 for timing in query_timings]
    rates = [timing.tokens / timing.seconds for timing in rounds]
    cost = Cost(
        size=_weights_size(embedder.checkpoint),
        resident=resident,
        peak=peak_bytes(),
        load_s=loading.seconds,
        query_ms_p50=float(np.percentile(query_milliseconds, 50)),
        query_ms_p99=float(np.percentile(query_milliseconds, 99)),
        queries=len(query_timings),
        query_tokens=float(np.median([timing.tokens for timing in query_timings])),
        tokens_per_s=float(np.median(rates)),
        tokens_per_s_min=min(rates),
        tokens_per_s_max=max(rates),
        rounds=len(rounds),
    )
    return cost, vectors


def _time_query(embedder: BGE_M3_Embedder, query: str) -> _Timing:
    # The counter is read outside the timed part.
    tokens_before = embedder.stats().tokens
    started = time.perf_counter()
    embedder.encode_query(query)
    seconds = time.perf_counter() - started
    return _Timing(seconds, embedder.stats().tokens - tokens_before)


def _time_documents(
    embedder: BGE_M3_Embedder, documents: Sequence[str], *, show_progress: bool
) -> tuple[_Timing, Embeddings]:
    tokens_before = embedder.stats().tokens
    started = time.perf_counter()
    vectors = embedder.encode_documents(documents, show_progress=show_progress)
    seconds = time.perf_counter() - started
    return _Timing(seconds, embedder.stats().tokens - tokens_before), vectors


def _weights_size(checkpoint: Checkpoint) -> int:
    """Return the size in bytes of the files that hold the weights."""
    if checkpoint.is_exported:
        # The exporter writes the weights into a second file next to the graph.
        notes = checkpoint.export_notes
        paths = [checkpoint.folder / notes.graph_file, checkpoint.folder / notes.weights_file]
    else:
        paths = list(checkpoint.weight_files)
        for head_name in (SPARSE_HEAD, COLBERT_HEAD):
            head_path = checkpoint.folder / head_name
            if head_path.is_file():
                paths.append(head_path)
    return sum(path.stat().st_size for path in paths)
