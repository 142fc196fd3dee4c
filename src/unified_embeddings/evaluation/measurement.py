"""Measuring a model in a process of its own, and comparing several.

What lives here: starting the process, what it does, and its vectors' way back. What does not: the
arithmetic (`comparison`), which texts (`corpora`), exporting (`export`).

A process of its own gives each model its own memory, resident and peak, and nothing of the one
before it. The price: rounds of two models cannot alternate, so that what else the machine does
falls on one of them alone. Hence medians with their spread, and hence a quiet machine is needed for
numbers to be quoted.
"""

from __future__ import annotations

import importlib.metadata
import json
import platform
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unified_embeddings._version import __version__
from unified_embeddings.embedders.bge_m3 import BGE_M3_Embedder
from unified_embeddings.engines.base import Runtime
from unified_embeddings.errors import UnifiedEmbeddingsError
from unified_embeddings.evaluation.agreement import (
    Agreement,
    Drift,
    colbert_agreement,
    colbert_scores,
    dense_agreement,
    drift,
    sparse_agreement,
)
from unified_embeddings.evaluation.comparison import Comparison, Cost, Row
from unified_embeddings.evaluation.corpora import Corpus, spread
from unified_embeddings.evaluation.rankings import rankings, retrieval
from unified_embeddings.models.checkpoint import COLBERT_HEAD, SPARSE_HEAD, Checkpoint
from unified_embeddings.system.hardware import cpu
from unified_embeddings.system.memory import peak_bytes, process_bytes
from unified_embeddings.system.processes import ChildFailedError, run_in_child
from unified_embeddings.types import Embeddings, FloatArray, SparseVector

_QUERY_TOKENS = 16
_SPECIAL = 2
"""Tokens of these that are no words: one at the start, one at the end."""
_TIMED = 30
"""Queries timed: different ones where the corpus has so many."""
_ROUNDS = 3
_SHORT_S = 20.0
"""Seconds a round over the documents may take for it to be repeated."""
_COLBERT_QUERIES, _COLBERT_DOCUMENTS = 32, 64
_DRIFTING = 32
"""Documents embedded both alone and together."""

_JOB, _VECTORS = "job.json", "vectors.npz"


@dataclass(frozen=True)
class Candidate:
    """A model to measure, and how to run it.

    Attributes:
        name: For people.
        model: As `BGE_M3_Embedder` takes it.
        engine: As `BGE_M3_Embedder` takes it.
        precision: As `BGE_M3_Embedder` takes it.
        problem: Why it cannot be measured, where that is known already.
    """

    name: str
    model: str
    engine: str = "auto"
    precision: str = "auto"
    problem: str | None = None


@dataclass(frozen=True)
class Measured:
    """What came out of measuring one model.

    Attributes:
        runtime: Engine, device and precision.
        fingerprint: Of its vectors; see `BGE_M3_Embedder.fingerprint`.
        cost: What it takes.
        drift: How far its vectors depend on batch-mates.
        vectors: Embeddings of "documents" and "queries", dense and sparse.
        colbert: ColBERT scores of a sample of queries and documents, float32 (queries, documents);
            None if the model has no ColBERT head.
    """

    runtime: Runtime
    fingerprint: str
    cost: Cost
    drift: Drift
    vectors: dict[str, Embeddings]
    colbert: FloatArray | None


def compare(
    reference: Candidate,
    candidates: Sequence[Candidate],
    corpus: Corpus,
    *,
    show_progress: bool = False,
    on_step: Callable[[str], None] = lambda _: None,
) -> Comparison:
    """Measure each in a process of its own, one after the other, and compare with the reference.

    Rounds of two models do not alternate: whatever else the machine does falls on one of them.

    Args:
        reference: The model in fp32.
        candidates: What to compare. One that cannot be measured becomes a row that says why.
        corpus: The texts; all are embedded by each.
        show_progress: Draw a progress bar on standard error.
        on_step: Called with what is being done, as it begins.

    Raises:
        UnifiedEmbeddingsError: If the reference cannot be measured.
    """
    embedder = BGE_M3_Embedder(reference.model, cache=None)
    timed = _timed(list(corpus.queries.values()), embedder)
    embedder.close()

    def measured(candidate: Candidate) -> Measured:
        if candidate.problem is not None:
            raise UnifiedEmbeddingsError(candidate.problem)
        on_step(f"measuring {candidate.name}")
        return measure(candidate, corpus, timed, show_progress=show_progress)

    try:
        full = measured(reference)
    except UnifiedEmbeddingsError as error:
        raise UnifiedEmbeddingsError(
            f"{reference.name}, which the others are compared with, cannot be measured: {error}"
        ) from error
    judge = _Judge(full, corpus)
    rows = [judge.row(reference.name, full)]
    for candidate in candidates:
        try:
            rows.append(judge.row(candidate.name, measured(candidate)))
        except UnifiedEmbeddingsError as error:
            rows.append(Row(candidate.name, problem=str(error)))
    numbers = {
        "name": corpus.name,
        "documents": len(corpus.documents),
        "queries": len(corpus.queries),
        "judged": corpus.qrels is not None,
    }
    return Comparison(reference.model, _machine(), numbers, tuple(rows))


def measure(
    candidate: Candidate, corpus: Corpus, timed: Sequence[str], *, show_progress: bool = False
) -> Measured:
    """Measure one model in a process of its own.

    However this function is left, the process has ended and its files are gone.

    Args:
        candidate: Which, and how to run it; its files must be on this machine.
        corpus: The texts; their relevance is not looked at.
        timed: Queries to take the time of, one by one, at least one.
        show_progress: Draw a progress bar on standard error.

    Raises:
        UnifiedEmbeddingsError: If the model cannot be loaded or run, or its process was killed.
    """
    with tempfile.TemporaryDirectory(prefix="unified-embeddings-") as scratch:
        job = {
            "embedder": {
                "model_name": candidate.model,
                "engine": candidate.engine,
                "precision": candidate.precision,
            },
            "documents": list(corpus.documents.values()),
            "queries": list(corpus.queries.values()),
            "timed": list(timed),
            "show_progress": show_progress,
        }
        (Path(scratch) / _JOB).write_text(json.dumps(job), "utf-8")
        outcome = _run_child(scratch)
        with np.load(Path(scratch) / _VECTORS) as arrays:
            return Measured(
                Runtime(**outcome["runtime"]),
                outcome["fingerprint"],
                Cost(**outcome["cost"]),
                Drift(**outcome["drift"]),
                {role: _unpacked(arrays, role) for role in ("documents", "queries")},
                arrays.get("colbert"),
            )


class _Judge:
    """The reference's side of every comparison, worked out once."""

    def __init__(self, reference: Measured, corpus: Corpus) -> None:
        self._reference = reference
        self._corpus = corpus
        self._runs = self._ranked(reference)

    def row(self, name: str, candidate: Measured) -> Row:
        """A candidate beside the reference."""
        same = candidate.fingerprint == self._reference.fingerprint
        runs = self._ranked(candidate)
        return Row(
            name,
            runtime=candidate.runtime,
            cost=candidate.cost,
            drift=candidate.drift,
            agreement=self._agreement(candidate) if same else None,
            retrieval={
                kind: retrieval(full, runs[kind], self._corpus.qrels)
                for kind, full in self._runs.items()
                if kind in runs
            },
        )

    def _agreement(self, candidate: Measured) -> Agreement:
        one, other = self._reference.vectors["documents"], candidate.vectors["documents"]
        scores = self._reference.colbert, candidate.colbert
        return Agreement(
            None
            if one.dense is None or other.dense is None
            else dense_agreement(one.dense, other.dense),
            None
            if one.sparse is None or other.sparse is None
            else sparse_agreement(one.sparse, other.sparse),
            None
            if scores[0] is None or scores[1] is None
            else colbert_agreement(scores[0], scores[1]),
        )

    def _ranked(self, measured: Measured) -> dict[str, dict[str, dict[str, float]]]:
        return rankings(
            measured.vectors["queries"],
            measured.vectors["documents"],
            list(self._corpus.queries),
            list(self._corpus.documents),
        )


def _timed(queries: list[str], embedder: BGE_M3_Embedder) -> list[str]:
    """The queries nearest to sixteen tokens, and these again where the corpus has too few."""
    lengths = {text: len(embedder.tokenise(text)) + _SPECIAL for text in queries}
    nearest = sorted(lengths, key=lambda text: abs(lengths[text] - _QUERY_TOKENS))[:_TIMED]
    return (nearest * _TIMED)[:_TIMED]


def _machine() -> dict[str, Any]:
    installed = {one.name: one.version for one in importlib.metadata.distributions()}
    processor = cpu()
    return {
        "processor": processor.name,
        "cores": processor.cores,
        "instruction sets": list(processor.flags),
        "system": platform.platform(),
        "Python": platform.python_version(),
        "unified-embeddings": __version__,
        **{name: installed.get(name) for name in ("torch", "onnxruntime")},
    }


# --- starting the process -----------------------------------------------------------------------


def _run_child(scratch: str) -> dict[str, Any]:
    """Run `measure_job` on a folder in a new process, and end it if the wait for it is given up.

    Raises:
        UnifiedEmbeddingsError: If the model cannot be loaded or run, or the process was killed.
    """
    try:
        return run_in_child(measure_job, [scratch])
    except ChildFailedError as error:
        raise UnifiedEmbeddingsError(str(error)) from error


# --- what the process does ----------------------------------------------------------------------


def measure_job(scratch: str) -> dict[str, Any]:
    """Measure the model that a folder describes, and write its vectors there.

    Returns:
        Everything else that was measured, as dictionaries.

    Raises:
        UnifiedEmbeddingsError: If the model cannot be loaded or run.
    """
    folder = Path(scratch)
    job = json.loads((folder / _JOB).read_text("utf-8"))
    return _measured(job, folder / _VECTORS)


def _measured(job: dict[str, Any], vectors: Path) -> dict[str, Any]:
    embedder = BGE_M3_Embedder(**job["embedder"], cache=None, local_files_only=True)
    documents, queries = job["documents"], job["queries"]
    cost, embedded = _cost(embedder, documents, job["timed"], show_progress=job["show_progress"])
    arrays = {
        **_packed("documents", embedded),
        **_packed("queries", embedder.encode_queries(queries, show_progress=job["show_progress"])),
    }
    if "colbert" in embedder.heads:
        arrays["colbert"] = _colbert_sample(embedder, queries, documents)
    np.savez(vectors, **arrays)  # type: ignore[arg-type]  # of its options' types
    sample = [documents[at] for at in spread(len(documents), _DRIFTING)]
    return {
        "runtime": asdict(embedder.runtime),
        "fingerprint": embedder.fingerprint,
        "cost": asdict(cost),
        "drift": asdict(_drift(embedder, sample)),
    }


def _cost(
    embedder: BGE_M3_Embedder, documents: list[str], timed: list[str], *, show_progress: bool
) -> tuple[Cost, Embeddings]:
    """Load the model, take the time of queries one by one, then of all documents together."""
    clock = _Stopwatch(embedder)
    clock.time(lambda: embedder.encode_query(timed[-1]))
    load_s, resident = clock.seconds.pop(), process_bytes()
    clock.tokens.clear()
    for text in timed:
        clock.time(lambda text=text: embedder.encode_query(text))  # type: ignore[misc]
    milliseconds, query_tokens = np.multiply(clock.seconds, 1000), clock.tokens
    clock = _Stopwatch(embedder)
    for number in range(_ROUNDS):
        if number and clock.seconds[0] > _SHORT_S:
            break
        embedded = clock.time(
            lambda: embedder.encode_documents(documents, show_progress=show_progress)
        )
    rates = np.divide(clock.tokens, clock.seconds)
    return (
        Cost(
            size=_size(embedder.checkpoint),
            resident=resident,
            peak=peak_bytes(),
            load_s=load_s,
            query_ms_p50=float(np.percentile(milliseconds, 50)),
            query_ms_p99=float(np.percentile(milliseconds, 99)),
            queries=len(timed),
            query_tokens=float(np.median(query_tokens)),
            tokens_per_s=float(np.median(rates)),
            tokens_per_s_min=float(rates.min()),
            tokens_per_s_max=float(rates.max()),
            rounds=len(rates),
        ),
        embedded,
    )


class _Stopwatch:
    """Seconds and tokens of each call timed."""

    def __init__(self, embedder: BGE_M3_Embedder) -> None:
        self._embedder = embedder
        self.seconds: list[float] = []
        self.tokens: list[int] = []

    def time(self, encode: Callable[[], Embeddings]) -> Embeddings:
        tokens, started = self._embedder.stats().tokens, time.perf_counter()
        embedded = encode()
        self.seconds.append(time.perf_counter() - started)
        self.tokens.append(self._embedder.stats().tokens - tokens)
        return embedded


def _size(checkpoint: Checkpoint) -> int:
    """Bytes of the files that the weights lie in."""
    if checkpoint.is_exported:
        name = str(checkpoint.exported["file"])
        files = [checkpoint.folder / name, checkpoint.folder / f"{name}.data"]
    else:
        heads = (checkpoint.folder / name for name in (SPARSE_HEAD, COLBERT_HEAD))
        files = [*checkpoint.weight_files, *(path for path in heads if path.is_file())]
    return sum(path.stat().st_size for path in files)


def _drift(embedder: BGE_M3_Embedder, texts: list[str]) -> Drift:
    colbert = "colbert" in embedder.heads
    alone = [embedder.encode_documents([text], colbert=colbert) for text in texts]
    return drift(_joined(alone), embedder.encode_documents(texts, colbert=colbert))


def _joined(parts: list[Embeddings]) -> Embeddings:
    dense = [one.dense for one in parts if one.dense is not None]
    sparse = [vector for one in parts for vector in one.sparse or ()]
    colbert = [vectors for one in parts for vectors in one.colbert or ()]
    return Embeddings(np.concatenate(dense) if dense else None, sparse or None, colbert or None)


def _colbert_sample(
    embedder: BGE_M3_Embedder, queries: list[str], documents: list[str]
) -> FloatArray:
    """ColBERT scores of evenly spread queries and documents, float32 (queries, documents)."""
    asked = [queries[at] for at in spread(len(queries), _COLBERT_QUERIES)]
    found = [documents[at] for at in spread(len(documents), _COLBERT_DOCUMENTS)]
    only: dict[str, Any] = {"dense": False, "sparse": False, "colbert": True}
    return colbert_scores(
        embedder.encode_queries(asked, **only).colbert or [],
        embedder.encode_documents(found, **only).colbert or [],
    )


# --- the vectors' way back ----------------------------------------------------------------------


def _packed(role: str, embedded: Embeddings) -> dict[str, NDArray[Any]]:
    """Dense and sparse vectors as plain arrays: the sparse ones joined, with their lengths."""
    arrays: dict[str, NDArray[Any]] = {}
    if embedded.dense is not None:
        arrays[f"{role}_dense"] = embedded.dense
    if embedded.sparse is not None:
        arrays[f"{role}_lengths"] = np.array([len(one) for one in embedded.sparse], dtype=np.int64)
        arrays[f"{role}_indices"] = np.concatenate([one.indices for one in embedded.sparse])
        arrays[f"{role}_values"] = np.concatenate([one.values for one in embedded.sparse])
    return arrays


def _unpacked(arrays: Mapping[str, NDArray[Any]], role: str) -> Embeddings:
    sparse = None
    if f"{role}_lengths" in arrays:
        ends = np.cumsum(arrays[f"{role}_lengths"])[:-1]
        parts = (np.split(arrays[f"{role}_{part}"], ends) for part in ("indices", "values"))
        sparse = [SparseVector(*both) for both in zip(*parts, strict=True)]
    return Embeddings(dense=arrays.get(f"{role}_dense"), sparse=sparse)
