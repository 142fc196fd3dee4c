"""Compare a model with other precisions, engines and models: what each costs, and what it loses.

What lives here: the rows that a comparison is made of, and filling them. What does not: running a
model (`measurement`), the arithmetic (`agreement`, `rankings`), the texts (`corpora`), exporting
(`export`), and showing the rows (`cli`).
"""

from __future__ import annotations

import importlib.metadata
import itertools
import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from unified_embeddings._version import __version__
from unified_embeddings.embedders.bge_m3 import BGE_M3_Embedder
from unified_embeddings.engines.base import Runtime
from unified_embeddings.errors import UnifiedEmbeddingsError
from unified_embeddings.evaluation.agreement import (
    Agreement,
    Drift,
    colbert_agreement,
    dense_agreement,
    sparse_agreement,
)
from unified_embeddings.evaluation.corpora import Corpus
from unified_embeddings.evaluation.cost import Cost
from unified_embeddings.evaluation.measurement import Candidate, Measurement, measure_candidate
from unified_embeddings.evaluation.rankings import (
    Retrieval,
    Run,
    compare_retrieval,
    rank_documents,
)
from unified_embeddings.system.hardware import cpu

_QUERY_TOKENS = 16
"""Length in tokens that the timed queries should have: a short question."""
_SPECIAL_TOKENS = 2
"""Special tokens per query: one at the start, one at the end."""
_TIMED_QUERIES = 30
"""Number of queries that are timed. They are all different if the corpus has as many."""


@dataclass(frozen=True)
class Row:
    """One candidate compared with the reference, or the reference with itself.

    Attributes:
        name: Display name.
        problem: Why the candidate could not be measured; then all other fields are empty.
        runtime: Engine, device and precision that it ran on.
        cost: Memory and time that it takes.
        drift: How far its vectors depend on batch-mates.
        agreement: How far its vectors are from the reference's; None if it is a different model,
            whose vectors are not comparable.
        retrieval: How well it retrieves, by kind of ranking: "dense", "sparse" and "fused", or
            those of them that both the model and the reference support.
    """

    name: str
    problem: str | None = None
    runtime: Runtime | None = None
    cost: Cost | None = None
    drift: Drift | None = None
    agreement: Agreement | None = None
    retrieval: dict[str, Retrieval] = field(default_factory=dict)


@dataclass(frozen=True)
class CorpusSummary:
    """What a comparison reports of its texts.

    Attributes:
        name: Display name.
        documents: Number of documents.
        queries: Number of queries.
        judged: Whether there are relevance judgements.
    """

    name: str
    documents: int
    queries: int
    judged: bool


@dataclass(frozen=True)
class Comparison:
    """Candidates compared with a reference.

    Attributes:
        model: The reference model's name.
        machine: The hardware and the installed versions; fit for JSON.
        corpus: The texts.
        rows: The reference, then the candidates.
    """

    model: str
    machine: dict[str, object]
    corpus: CorpusSummary
    rows: tuple[Row, ...]


def compare(
    reference: Candidate,
    candidates: Sequence[Candidate],
    corpus: Corpus,
    *,
    show_progress: bool = False,
    on_step: Callable[[str], None] = lambda _: None,
) -> Comparison:
    """Measure each candidate in a process of its own and compare it with the reference.

    The candidates run one after the other, and their rounds do not alternate: if the machine is
    busy with something else for a while, only one of them is slowed down.

    Args:
        reference: The model in fp32.
        candidates: What to compare. One that cannot be measured becomes a row that says why.
        corpus: The texts. Each candidate embeds all of them.
        show_progress: Whether to draw a progress bar on standard error.
        on_step: Called at the start of each step with a description of it.

    Raises:
        UnifiedEmbeddingsError: If the reference cannot be measured.
    """
    timed_queries = _choose_timed_queries(reference.model, corpus)

    def measure(candidate: Candidate, told_length: int | None = None) -> Measurement:
        if candidate.problem is not None:
            raise UnifiedEmbeddingsError(candidate.problem)
        on_step(f"measuring {candidate.name}")
        return measure_candidate(
            candidate,
            corpus,
            timed_queries,
            show_progress=show_progress,
            told_length=told_length,
        )

    try:
        comparer = _Comparer(measure(reference), corpus)
    except UnifiedEmbeddingsError as error:
        raise UnifiedEmbeddingsError(
            f"the reference, {reference.name}, cannot be measured: {error}"
        ) from error
    # The reference's own row shows what full agreement looks like.
    rows = [comparer.make_row(reference.name, comparer.reference)]
    for candidate in candidates:
        try:
            row = comparer.make_row(
                candidate.name, measure(candidate, comparer.reference.max_length)
            )
        except UnifiedEmbeddingsError as error:
            row = Row(candidate.name, problem=str(error))
        rows.append(row)
    corpus_summary = CorpusSummary(
        name=corpus.name,
        documents=len(corpus.documents),
        queries=len(corpus.queries),
        judged=corpus.qrels is not None,
    )
    return Comparison(
        model=reference.model, machine=_describe_machine(), corpus=corpus_summary, rows=tuple(rows)
    )


class _Comparer:
    """Compares measurements with a reference's, whose rankings are computed once."""

    def __init__(self, reference: Measurement, corpus: Corpus) -> None:
        self.reference = reference
        self._corpus = corpus
        self._reference_runs = self._rank(reference)

    def make_row(self, name: str, candidate: Measurement) -> Row:
        agreement = None
        # The fingerprint identifies a model, whatever its engine and precision. Vectors of models
        # with different fingerprints are not comparable.
        if candidate.fingerprint == self.reference.fingerprint:
            agreement = _compare_vectors(self.reference, candidate)
        candidate_runs = self._rank(candidate)
        retrieval = {}
        for kind, reference_run in self._reference_runs.items():
            if kind in candidate_runs:
                retrieval[kind] = compare_retrieval(
                    reference_run, candidate_runs[kind], self._corpus.qrels
                )
        return Row(
            name=name,
            runtime=candidate.runtime,
            cost=candidate.cost,
            drift=candidate.drift,
            agreement=agreement,
            retrieval=retrieval,
        )

    def _rank(self, measurement: Measurement) -> dict[str, Run]:
        return rank_documents(
            measurement.queries,
            measurement.documents,
            query_ids=list(self._corpus.queries),
            document_ids=list(self._corpus.documents),
        )


def _compare_vectors(reference: Measurement, candidate: Measurement) -> Agreement:
    """Compare the documents' vectors and the ColBERT scores, head by head."""
    dense = sparse = colbert = None
    if reference.documents.dense is not None and candidate.documents.dense is not None:
        dense = dense_agreement(reference.documents.dense, candidate.documents.dense)
    if reference.documents.sparse is not None and candidate.documents.sparse is not None:
        sparse = sparse_agreement(reference.documents.sparse, candidate.documents.sparse)
    if reference.colbert_scores is not None and candidate.colbert_scores is not None:
        colbert = colbert_agreement(reference.colbert_scores, candidate.colbert_scores)
    return Agreement(dense=dense, sparse=sparse, colbert=colbert)


def _choose_timed_queries(model: str, corpus: Corpus) -> list[str]:
    """Return the queries whose length is nearest to 16 tokens, repeated if there are too few."""
    embedder = BGE_M3_Embedder(model, cache=None)
    token_counts: dict[str, int] = {}
    for query in corpus.queries.values():
        token_counts[query] = len(embedder.tokenise(query)) + _SPECIAL_TOKENS
    embedder.close()
    # Queries of about the same length make the times comparable between corpora.
    by_distance = sorted(token_counts, key=lambda query: abs(token_counts[query] - _QUERY_TOKENS))
    repeated_queries = itertools.cycle(by_distance[:_TIMED_QUERIES])
    return list(itertools.islice(repeated_queries, _TIMED_QUERIES))


def _describe_machine() -> dict[str, object]:
    """Return the hardware and the versions that a measurement depends on."""
    packages = importlib.metadata.distributions()
    versions = {package.name: package.version for package in packages}
    processor = cpu()
    return {
        "processor": processor.name,
        "cores": processor.cores,
        "instruction sets": list(processor.flags),
        "system": platform.platform(),
        "Python": platform.python_version(),
        "unified-embeddings": __version__,
        "torch": versions.get("torch"),
        "onnxruntime": versions.get("onnxruntime"),
    }
