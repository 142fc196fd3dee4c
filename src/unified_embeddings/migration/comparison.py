"""What the gate decides on: both sides asked judged queries, or questions from traffic.

What lives here: asking both sides. What does not: the rule (`gate`), asking during operation
(`retrievers.transition`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from llama_index.core.base.base_retriever import BaseRetriever

from unified_embeddings.errors import InputError
from unified_embeddings.evaluation.corpora import Corpus
from unified_embeddings.evaluation.metrics import QueryScores, mean
from unified_embeddings.evaluation.rankings import ndcg_by_query
from unified_embeddings.evaluation.significance import compare_scores
from unified_embeddings.migration.gate import Quality
from unified_embeddings.retrievers.runs import collect_run, find_document_field
from unified_embeddings.retrievers.transition import TransitionRetriever
from unified_embeddings.retrievers.transition_report import TransitionReport

DEPTH = 20
"""Nodes that a side should return: ten documents, even if some are found by two chunks."""


def measure_quality(
    old: BaseRetriever,
    new: BaseRetriever,
    corpus: Corpus,
    *,
    on_query: Callable[[int], None] | None = None,
) -> Quality:
    """Rate both sides against judgements.

    Args:
        old: The old side, returning `DEPTH` nodes.
        new: The new side, likewise.
        corpus: Queries and judgements; the documents are those in the index.
        on_query: Called with 1 for each query of each side.

    Raises:
        InputError: If the corpus has no judgements, or no field of a side's payload names the
            judged documents.
        UnifiedEmbeddingsError: If a side fails.
    """
    qrels = corpus.qrels
    if qrels is None:
        raise InputError(f"{corpus.name} has no judgements, so no side can be rated")
    judged_ids = {document_id for grades in qrels.values() for document_id in grades}
    scores: list[QueryScores] = []
    for side in (old, new):
        field = find_document_field(side, corpus.queries, judged_ids)
        run = collect_run(side, corpus.queries, document_field=field, on_query=on_query)
        scores.append(ndcg_by_query(run, qrels))
    old_scores, new_scores = scores
    return Quality(
        data=corpus.name,
        old_ndcg=mean(old_scores),
        new_ndcg=mean(new_scores),
        difference=compare_scores(old_scores, new_scores),
    )


def compare_traffic(
    old: BaseRetriever,
    new: BaseRetriever,
    questions: Sequence[str],
    *,
    on_query: Callable[[int], None] | None = None,
) -> TransitionReport:
    """Ask both sides the same questions and compare their answers.

    One question is asked at a time, and the sides take turns, so that the latencies are those of a
    machine that does nothing else.

    Args:
        old: The old side.
        new: The new side.
        questions: At least one.
        on_query: Called with 1 for each question.

    Raises:
        InputError: If there are no questions.
        UnifiedEmbeddingsError: If the old side fails; failures of the new one are counted.
    """
    if not questions:
        raise InputError("expected at least one question to ask both sides, got none")
    retriever = TransitionRetriever(old, new, share=0, shadow=True, threads=1, waiting=1)
    # The first question loads the models, whose time is not an answer's.
    for side in (old, new):
        _warm_up(side, questions[0])
    for question in questions:
        retriever.retrieve(question)
        retriever.flush()
        if on_query is not None:
            on_query(1)
    return retriever.report()


def _warm_up(side: BaseRetriever, question: str) -> None:
    try:
        side.retrieve(question)
    except Exception:  # it is counted, or raised, when it happens again
        return
