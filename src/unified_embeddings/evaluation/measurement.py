"""Measure a model in a process of its own.

What lives here: starting the process, what it does, and returning its results. What does not: the
timing (`cost`), the comparison of vectors (`agreement`), the texts (`corpora`), and comparing
several models (`comparison`).

In a process of its own, each model's memory, resident and peak, contains nothing of the model
before it. The price is that the rounds of two models cannot alternate: if the machine is busy with
something else for a while, only one of them is slowed down. Hence medians are reported with their
spread, and figures worth quoting need an idle machine.
"""

from __future__ import annotations

import json
import logging
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from unified_embeddings.embedders import lazy
from unified_embeddings.embedders.bge_m3 import BGE_M3_Embedder
from unified_embeddings.engines.base import Runtime
from unified_embeddings.errors import UnifiedEmbeddingsError
from unified_embeddings.evaluation.agreement import Drift, batch_drift, colbert_scores
from unified_embeddings.evaluation.corpora import Corpus, spread_positions
from unified_embeddings.evaluation.cost import Cost, measure_cost
from unified_embeddings.evaluation.packing import pack_embeddings, unpack_embeddings
from unified_embeddings.system.processes import ChildFailedError, run_in_child
from unified_embeddings.types import Embeddings, FloatArray

_COLBERT_QUERIES, _COLBERT_DOCUMENTS = 32, 64
"""Size of the sample whose ColBERT scores are computed: the vectors of all would be too large."""
_DRIFT_DOCUMENTS = 32
"""Number of documents that are embedded both alone and together."""

_JOB_FILE, _VECTORS_FILE = "job.json", "vectors.npz"
"""Names of the files through which the two processes pass texts and vectors.

As arguments and results, which are pickled, they would be in memory several times, and the
process's memory is measured.
"""


@dataclass(frozen=True)
class Candidate:
    """A model to measure, and how to run it.

    Attributes:
        name: Display name.
        model: Passed to `BGE_M3_Embedder` as its model name.
        engine: Passed to `BGE_M3_Embedder`.
        precision: Passed to `BGE_M3_Embedder`.
        problem: Why the model cannot be measured, if that is known already.
    """

    name: str
    model: str
    engine: str = "auto"
    precision: str = "auto"
    problem: str | None = None


@dataclass(frozen=True)
class Measurement:
    """The results of measuring one model.

    Attributes:
        runtime: Engine, device and precision that it ran on.
        fingerprint: Identity of its vectors; see `BGE_M3_Embedder.fingerprint`.
        max_length: How many tokens of a text it takes.
        cost: Memory and time that it takes.
        drift: How far its vectors depend on batch-mates.
        documents: Dense and sparse vectors of all documents.
        queries: Dense and sparse vectors of all queries.
        colbert_scores: ColBERT scores of a sample of queries and documents, float32 (queries,
            documents); None if the model has no ColBERT head.
    """

    runtime: Runtime
    fingerprint: str
    max_length: int
    cost: Cost
    drift: Drift
    documents: Embeddings
    queries: Embeddings
    colbert_scores: FloatArray | None


@dataclass(frozen=True)
class _Job:
    """What the process is to do. Every value is fit for JSON."""

    model: str
    engine: str
    precision: str
    documents: list[str]
    queries: list[str]
    timed_queries: list[str]
    show_progress: bool
    told_length: int | None


@dataclass(frozen=True)
class _JobResult:
    """What the process returns besides the vectors; see `Measurement`."""

    runtime: Runtime
    fingerprint: str
    max_length: int
    cost: Cost
    drift: Drift


def measure_candidate(
    candidate: Candidate,
    corpus: Corpus,
    timed_queries: Sequence[str],
    *,
    show_progress: bool = False,
    told_length: int | None = None,
) -> Measurement:
    """Measure one model in a process of its own.

    When this function returns or raises, the process has ended and its files are deleted.

    Args:
        candidate: The model, whose files must be on this machine, and how to run it.
        corpus: The texts. Their relevance judgements are not used.
        timed_queries: Queries to time one by one, at least one.
        show_progress: Whether to draw a progress bar on standard error.
        told_length: A length in tokens at which, as the user was told, these texts are cut. A model
            with the same length does not warn of it again.

    Raises:
        UnifiedEmbeddingsError: If the model cannot be loaded or run, or its process was killed.
    """
    job = _Job(
        model=candidate.model,
        engine=candidate.engine,
        precision=candidate.precision,
        documents=list(corpus.documents.values()),
        queries=list(corpus.queries.values()),
        timed_queries=list(timed_queries),
        show_progress=show_progress,
        told_length=told_length,
    )
    with tempfile.TemporaryDirectory(prefix="unified-embeddings-") as scratch:
        folder = Path(scratch)
        (folder / _JOB_FILE).write_text(json.dumps(asdict(job)), "utf-8")
        try:
            result = run_in_child(_measure_job, [folder])
        except ChildFailedError as error:
            raise UnifiedEmbeddingsError(str(error)) from error
        with np.load(folder / _VECTORS_FILE) as arrays:
            return Measurement(
                runtime=result.runtime,
                fingerprint=result.fingerprint,
                max_length=result.max_length,
                cost=result.cost,
                drift=result.drift,
                documents=unpack_embeddings("documents", arrays),
                queries=unpack_embeddings("queries", arrays),
                colbert_scores=arrays.get("colbert"),
            )


# --- what the process does ----------------------------------------------------------------------


def _measure_job(folder: Path) -> _JobResult:
    """Measure the model of the job in a folder, and write its vectors into the folder.

    Raises:
        UnifiedEmbeddingsError: If the model cannot be loaded or run.
    """
    job = _Job(**json.loads((folder / _JOB_FILE).read_text("utf-8")))
    embedder = BGE_M3_Embedder(
        job.model,
        engine=job.engine,
        precision=job.precision,
        cache=None,  # A cached vector would cost no time and show no drift.
        local_files_only=True,
    )
    if embedder.max_length == job.told_length:
        logging.getLogger(lazy.__name__).setLevel(logging.ERROR)  # It warns of texts that are cut.
    cost, documents = measure_cost(
        embedder, job.documents, job.timed_queries, show_progress=job.show_progress
    )
    queries = embedder.encode_queries(job.queries, show_progress=job.show_progress)
    arrays = pack_embeddings("documents", documents) | pack_embeddings("queries", queries)
    if "colbert" in embedder.heads:
        arrays["colbert"] = _score_colbert_sample(embedder, job.queries, job.documents)
    np.savez(folder / _VECTORS_FILE, **arrays)  # type: ignore[arg-type]  # mypy takes them for its options
    return _JobResult(
        runtime=embedder.runtime,
        fingerprint=embedder.fingerprint,
        max_length=embedder.max_length,
        cost=cost,
        drift=_measure_drift(embedder, _sample(job.documents, _DRIFT_DOCUMENTS)),
    )


def _sample(texts: list[str], count: int) -> list[str]:
    """Return at most `count` texts, spread evenly."""
    return [texts[position] for position in spread_positions(len(texts), count)]


def _measure_drift(embedder: BGE_M3_Embedder, texts: list[str]) -> Drift:
    """Embed texts one by one and together, and compare."""
    colbert = "colbert" in embedder.heads
    # One call per text, so that each is a batch of its own.
    alone = [embedder.encode_documents([text], colbert=colbert) for text in texts]
    together = embedder.encode_documents(texts, colbert=colbert)
    return batch_drift(Embeddings.join(alone), together)


def _score_colbert_sample(
    embedder: BGE_M3_Embedder, queries: list[str], documents: list[str]
) -> FloatArray:
    """Return the ColBERT scores of a sample of texts, float32 (queries, documents)."""
    query_vectors = embedder.encode_queries(
        _sample(queries, _COLBERT_QUERIES), dense=False, sparse=False, colbert=True
    )
    document_vectors = embedder.encode_documents(
        _sample(documents, _COLBERT_DOCUMENTS), dense=False, sparse=False, colbert=True
    )
    return colbert_scores(query_vectors.colbert or [], document_vectors.colbert or [])
