"""Several systems on the same judged queries: how good each is, and what is more than luck.

What lives here: the figures of a comparison, as values that JSON can hold. What does not: how the
systems were run (`retrievers.runs`), and how the figures are shown (`cli.evaluation_report`,
`plots`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from unified_embeddings.errors import InputError
from unified_embeddings.evaluation.corpora import Corpus, Qrels
from unified_embeddings.evaluation.metrics import QueryScores, mean, score_run
from unified_embeddings.evaluation.rankings import Run, sort_by_score
from unified_embeddings.evaluation.significance import (
    PairedDifference,
    bootstrap_interval,
    compare_scores,
    half_width,
)
from unified_embeddings.validation import require_whole_number


@dataclass(frozen=True)
class SystemResult:
    """How good one system is.

    Attributes:
        name: The system.
        measures: Mean of each measure by its name, such as "nDCG@10", nDCG first.
        low: Lower end of the 95% bootstrap interval of the mean nDCG.
        high: Upper end of the interval.
        unanswered: Number of judged queries for which it found nothing.
        query_scores: nDCG of each query.
    """

    name: str
    measures: dict[str, float]
    low: float
    high: float
    unanswered: int
    query_scores: QueryScores

    @property
    def ndcg(self) -> float:
        """Return the mean nDCG."""
        return mean(self.query_scores)


@dataclass(frozen=True)
class Contrast:
    """A system's nDCG against the baseline's, query by query.

    Attributes:
        system: The system.
        baseline: The other one.
        difference: System - baseline.
        better: Number of queries that the system answers better.
        worse: Number of queries that it answers worse.
        equal: Number of queries that both answer equally well.
    """

    system: str
    baseline: str
    difference: PairedDifference
    better: int
    worse: int
    equal: int


@dataclass(frozen=True)
class WeakQuery:
    """A query that a system answers badly: worse than the baseline, or just badly.

    Attributes:
        query_id: The query.
        text: Its text; "" if the judgements alone name it.
        system: The system.
        score: Its nDCG.
        baseline_score: The baseline's nDCG; None if the system is the baseline.
        rank: Rank of the first relevant document, from 1; None if it was not found.
        baseline_rank: The same of the baseline.
    """

    query_id: str
    text: str
    system: str
    score: float
    baseline_score: float | None
    rank: int | None
    baseline_rank: int | None


@dataclass(frozen=True)
class Evaluation:
    """Several systems on one judged set.

    Attributes:
        data: The set's name.
        documents: Number of its documents.
        queries: Number of judged queries.
        k: How many documents of each ranking count; MAP counts `depth`.
        depth: How many documents each system was asked for.
        baseline: The system that the others are compared with.
        resolution: Half the width of the 95% interval of a difference: what is smaller cannot be
            seen with these queries. The largest of the contrasts' own; with a single system, an
            estimate from its scores. Where these do not deviate at all, an estimate from the
            number of queries. None for a single query.
        systems: Each system, the baseline first.
        contrasts: Each other system against the baseline.
        weak_queries: The largest losses of each other system; those that a single system answers
            worst.
    """

    data: str
    documents: int
    queries: int
    k: int
    depth: int
    baseline: str
    resolution: float | None
    systems: list[SystemResult]
    contrasts: list[Contrast]
    weak_queries: list[WeakQuery]


def evaluate_runs(
    corpus: Corpus,
    runs: Mapping[str, Run],
    *,
    baseline: str | None = None,
    k: int = 10,
    depth: int = 100,
    weak_queries: int = 5,
) -> Evaluation:
    """Compare what several systems found for the same judged queries.

    Args:
        corpus: The judged set.
        runs: System → what it found; at least one.
        baseline: The system that the others are compared with; None takes the first.
        k: How many documents of each ranking count.
        depth: How many documents of each ranking MAP counts.
        weak_queries: How many queries to name for each system.

    Raises:
        InputError: If there are no runs or judgements, the baseline is none of the systems, or a
            number is out of range.
    """
    require_whole_number("weak_queries", weak_queries, least=0)
    if not runs:
        raise InputError("expected at least one system, got none")
    first = next(iter(runs)) if baseline is None else baseline
    if first not in runs:
        raise InputError(f"the baseline {first!r} is none of the systems: {', '.join(runs)}")
    qrels = corpus.qrels or {}
    names = [first, *(name for name in runs if name != first)]
    systems = [_rate(name, runs[name], qrels, k, depth) for name in names]
    contrasts = [_contrast(system, systems[0]) for system in systems[1:]]
    weak: list[WeakQuery] = []
    for system in systems[1:] or systems:
        weak += _find_weak_queries(system, systems[0], runs, corpus)[:weak_queries]
    return Evaluation(
        data=corpus.name,
        documents=len(corpus.documents),
        queries=len(qrels),
        k=k,
        depth=depth,
        baseline=first,
        resolution=_find_resolution(systems[0], contrasts),
        systems=systems,
        contrasts=contrasts,
        weak_queries=weak,
    )


def _rate(name: str, run: Run, qrels: Qrels, k: int, depth: int) -> SystemResult:
    scores = score_run(run, qrels, k=k, depth=depth)
    low, high = bootstrap_interval(list(scores.ndcg.values()))
    return SystemResult(
        name=name,
        measures=scores.means(),
        low=low,
        high=high,
        unanswered=sum(not run.get(query_id) for query_id in qrels),
        query_scores=scores.ndcg,
    )


def _contrast(system: SystemResult, baseline: SystemResult) -> Contrast:
    gains = [
        score - baseline.query_scores[query_id] for query_id, score in system.query_scores.items()
    ]
    better = sum(gain > 0 for gain in gains)
    worse = sum(gain < 0 for gain in gains)
    return Contrast(
        system=system.name,
        baseline=baseline.name,
        difference=compare_scores(baseline.query_scores, system.query_scores),
        better=better,
        worse=worse,
        equal=len(gains) - better - worse,
    )


def _find_resolution(baseline: SystemResult, contrasts: list[Contrast]) -> float | None:
    if len(baseline.query_scores) < 2:
        return None
    if contrasts:
        widths = [contrast.difference.half_width or 0.0 for contrast in contrasts]
    else:
        widths = [half_width(list(baseline.query_scores.values()))]
    # Scores that are all alike tell nothing of how much another system's would deviate.
    return max(widths) or half_width(len(baseline.query_scores))


def _find_weak_queries(
    system: SystemResult, baseline: SystemResult, runs: Mapping[str, Run], corpus: Corpus
) -> list[WeakQuery]:
    """Return the queries on which a system loses to the baseline, the largest loss first.

    A system that is the baseline loses to a perfect one.
    """
    is_alone = system is baseline
    losses: dict[str, float] = {}
    for query_id, score in system.query_scores.items():
        reference = 1.0 if is_alone else baseline.query_scores[query_id]
        losses[query_id] = reference - score
    ordered = sorted(losses, key=lambda query_id: (-losses[query_id], query_id))
    qrels = corpus.qrels or {}
    weak = []
    for query_id in ordered:
        if losses[query_id] <= 0:
            break
        weak.append(
            WeakQuery(
                query_id=query_id,
                text=corpus.queries.get(query_id, ""),
                system=system.name,
                score=system.query_scores[query_id],
                baseline_score=None if is_alone else baseline.query_scores[query_id],
                rank=_first_relevant(runs[system.name], qrels, query_id),
                baseline_rank=_first_relevant(runs[baseline.name], qrels, query_id),
            )
        )
    return weak


def _first_relevant(run: Run, qrels: Qrels, query_id: str) -> int | None:
    for rank, document_id in enumerate(sort_by_score(run.get(query_id, {})), start=1):
        if qrels[query_id].get(document_id, 0) > 0:
            return rank
    return None
