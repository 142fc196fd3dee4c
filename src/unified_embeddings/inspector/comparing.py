"""Two ways to search, on one question or on many.

What lives here: the answers side by side, and how good each is where judgements tell. What does
not: the measures themselves (`evaluation`).
"""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from unified_embeddings.errors import InputError
from unified_embeddings.evaluation.corpora import Qrels, read_questions
from unified_embeddings.evaluation.documents import POINT_ID
from unified_embeddings.evaluation.metrics import mean
from unified_embeddings.evaluation.ranked_lists import list_overlap
from unified_embeddings.evaluation.rankings import ndcg_by_query, sort_by_score
from unified_embeddings.evaluation.significance import compare_scores
from unified_embeddings.evaluation.trec import read_qrels
from unified_embeddings.inspector.library import OpenedCollection
from unified_embeddings.inspector.parameters import Question, SearchOptions
from unified_embeddings.inspector.retrieving import make_retriever
from unified_embeddings.inspector.searching import Found, Passage, run_search
from unified_embeddings.inspector.stages import Stages
from unified_embeddings.retrievers.hybrid import UnifiedHybridRetriever
from unified_embeddings.retrievers.runs import collect_run, find_document_field

DEPTH = 10
"""Results of each question that are rated."""
MOST_QUESTIONS = 1_000
"""Questions of a set that a page asks at most."""
DEFAULT_QUESTIONS = 50


@dataclass(frozen=True)
class QuestionSet:
    """Questions from a file.

    Attributes:
        name: What to call it.
        questions: Id → question.
        qrels: What is relevant to them; None where nothing tells.
    """

    name: str
    questions: dict[str, str]
    qrels: Qrels | None


@dataclass(frozen=True)
class Side:
    """One of the two searches.

    Attributes:
        opened: What is searched.
        options: How.
    """

    opened: OpenedCollection
    options: SearchOptions


@dataclass(frozen=True)
class SideHit:
    """A passage in one side's answer.

    Attributes:
        key: The same for the same passage on both sides.
        rank: Its place, from 1.
        score: Its score.
        other_rank: Its place on the other side; None if it is not shown there.
        passage: The passage.
    """

    key: str
    rank: int
    score: float
    other_rank: int | None
    passage: Passage


@dataclass(frozen=True)
class PairAnswer:
    """The answers of both sides to one question.

    Attributes:
        sides: The hits of each side.
        found: What each search found.
        overlap: Share of the shown passages that both have.
    """

    sides: tuple[tuple[SideHit, ...], tuple[SideHit, ...]]
    found: tuple[Found, Found]
    overlap: float


@dataclass(frozen=True)
class SetRow:
    """One question of a set.

    Attributes:
        question_id: Its id.
        text: The question.
        overlap: Share of the first ten results that both sides have.
        ndcg: nDCG@10 of each side; None without judgements.
    """

    question_id: str
    text: str
    overlap: float
    ndcg: tuple[float, float] | None

    @property
    def gain(self) -> float:
        """Return how much better the second side is; 0 without judgements."""
        return 0.0 if self.ndcg is None else self.ndcg[1] - self.ndcg[0]


@dataclass(frozen=True)
class SetAnswer:
    """The answers of both sides to many questions.

    Attributes:
        rows: The questions: those first on which the sides differ most.
        asked: How many were asked.
        overlap: The mean overlap.
        ndcg: Mean nDCG@10 of each side; None without judgements.
        p_value: How often luck alone gives such a difference; None without judgements, or for fewer
            than two questions.
        wins: On how many questions each side is better.
        stages: Where the time went.
    """

    rows: tuple[SetRow, ...]
    asked: int
    overlap: float
    ndcg: tuple[float, float] | None
    p_value: float | None
    wins: tuple[int, int]
    stages: Stages


def load_questions(path: Path, qrels: Path | None = None) -> QuestionSet:
    """Read questions, and what is relevant to them.

    Args:
        path: A folder in BEIR's layout (queries.jsonl, and qrels/test.tsv if there are judgements),
            or a file of JSON lines with "_id" and "text".
        qrels: Judgements in TREC's format, in place of the folder's.

    Raises:
        InputError: If a file is missing or malformed.
    """
    judgements = None if qrels is None else read_qrels(qrels)
    questions, judged = read_questions(path, qrels=judgements)
    return QuestionSet(path.name or str(path), questions, judged)


def compare_answers(first: Side, second: Side, text: str) -> PairAnswer:
    """Ask both sides one question.

    Args:
        first: One side.
        second: The other.
        text: The question, not blank.

    Raises:
        InputError, FingerprintMismatchError, StoreError: Like `run_search`.
    """
    found = tuple(
        run_search(side.opened, Question(text=text, options=side.options))
        for side in (first, second)
    )
    is_same_place = first.opened.name == second.opened.name
    hits = [_read_hits(one, is_same_place=is_same_place) for one in found]
    keys = [[key for key, *_ in of_side] for of_side in hits]
    sides = (_to_side(hits[0], keys[1]), _to_side(hits[1], keys[0]))
    deepest = max(len(keys[0]), len(keys[1]))
    overlap = list_overlap(keys[0], keys[1], deepest) if deepest else 1.0
    return PairAnswer(sides, (found[0], found[1]), overlap)


def compare_on_set(
    first: Side, second: Side, questions: QuestionSet, *, limit: int = DEFAULT_QUESTIONS
) -> SetAnswer:
    """Ask both sides many questions, and rate the answers where judgements tell.

    Args:
        first: One side.
        second: The other.
        questions: What to ask; those that are judged where there are judgements.
        limit: How many to ask, the first ones.

    Raises:
        InputError: If no field of a collection names the judged documents.
        UnifiedEmbeddingsError: If a search fails.
    """
    stages = Stages()
    asked = dict(itertools.islice(questions.questions.items(), limit))
    qrels = None
    if questions.qrels is not None:
        qrels = {key: questions.qrels[key] for key in asked}
    field = POINT_ID
    if qrels is not None:
        with stages.measure("find documents", is_model=True):
            field = _find_field((first, second), asked, qrels)
    runs = []
    for name, side in (("ask A", first), ("ask B", second)):
        with stages.measure(name, is_model=True):
            retriever = _make_deep_retriever(side)
            runs.append(collect_run(retriever, asked, document_field=field))
    overlaps = {key: _overlap(runs[0][key], runs[1][key]) for key in asked}
    scores = None
    if qrels is not None:
        scores = [ndcg_by_query(run, qrels, DEPTH) for run in runs]
    rows = []
    for key, text in asked.items():
        pair = None if scores is None else (scores[0][key], scores[1][key])
        rows.append(SetRow(key, text, overlaps[key], pair))
    rows.sort(key=lambda row: (-abs(row.gain), row.overlap, row.question_id))
    return SetAnswer(
        rows=tuple(rows),
        asked=len(asked),
        overlap=math.fsum(overlaps.values()) / len(overlaps),
        ndcg=None if scores is None else (mean(scores[0]), mean(scores[1])),
        p_value=_test(scores),
        wins=(sum(row.gain < 0 for row in rows), sum(row.gain > 0 for row in rows)),
        stages=stages,
    )


def _make_deep_retriever(side: Side) -> UnifiedHybridRetriever:
    return make_retriever(side.opened, side.options, top_k=max(DEPTH, side.options.top_k))


def _find_field(sides: Sequence[Side], questions: Mapping[str, str], qrels: Qrels) -> str:
    """Return the field that names the judged documents, for both sides the same.

    Raises:
        InputError: If neither side finds a judged document.
    """
    judged = {name for grades in qrels.values() for name in grades}
    problem: InputError | None = None
    for side in sides:
        side.opened.embedder.encode_queries(list(questions.values()))  # in batches; cached then
        try:
            return find_document_field(_make_deep_retriever(side), questions, judged)
        except InputError as error:
            problem = error
    assert problem is not None
    raise problem


def _overlap(first: Mapping[str, float], second: Mapping[str, float]) -> float:
    if not first and not second:
        return 1.0
    return list_overlap(sort_by_score(first), sort_by_score(second), DEPTH)


def _test(scores: Sequence[dict[str, float]] | None) -> float | None:
    if scores is None or len(scores[0]) < 2:
        return None
    comparison = compare_scores(scores[0], scores[1])
    return comparison.p_value


def _read_hits(found: Found, *, is_same_place: bool) -> list[tuple[str, int, float, Passage]]:
    hits = []
    for hit in found.answer.hits if found.answer else ():
        passage = found.passages[hit.point_id]
        key = hit.point_id
        if not is_same_place:  # the same text has other ids in another collection
            key = hashlib.sha256(passage.text.encode(errors="replace")).hexdigest()[:32]
        hits.append((key, hit.rank, hit.score, passage))
    return hits


def _to_side(
    hits: Sequence[tuple[str, int, float, Passage]], other_keys: Sequence[str]
) -> tuple[SideHit, ...]:
    places = {key: rank for rank, key in reversed(list(enumerate(other_keys, 1)))}
    return tuple(
        SideHit(key, rank, score, places.get(key), passage) for key, rank, score, passage in hits
    )


def require_set(questions: QuestionSet | None) -> QuestionSet:
    """Return the set of questions that the inspector was started with.

    Raises:
        InputError: If there is none.
    """
    if questions is None:
        raise InputError(
            "the inspector was started without questions; name a folder or a file of them with "
            "--queries"
        )
    return questions
