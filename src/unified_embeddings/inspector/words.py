"""The words of passages that a question's sparse vector met, and what each added to the score.

What lives here: asking Qdrant for the share of each of the question's tokens in many passages, in
one round trip, and finding the words in the text. What does not: all parts of one passage's score
(`retrievers.explain`).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from qdrant_client import models as qm

from unified_embeddings.embedders.base import TextEmbedder
from unified_embeddings.embedders.labels import locate_tokens
from unified_embeddings.inspector.visible import visible
from unified_embeddings.llama.hybrid_search import HybridSearch
from unified_embeddings.types import SparseVector

LEVELS = 5
"""Strengths in which a word is marked."""
_MOST_TOKENS = 48
"""Tokens of a question that are asked about: those with the largest weights."""
_EXCERPT = 240
_LEAD = 20
_SEEN = 70
"""Characters of an excerpt; those before its first marked word; those after it that surely show."""
MOST_READ = 20_000
"""Characters of a passage in which words are looked for in a list."""

Shares = Mapping[int, float]
"""Token id → what the token adds to a passage's sparse score."""


@dataclass(frozen=True)
class Segment:
    """A stretch of a text that is shown alike.

    Attributes:
        text: The characters, made visible.
        level: How strongly it is marked, from 1 to 5; 0 for a word that did not match.
        share: What the word adds to the score; 0 likewise.
    """

    text: str
    level: int = 0
    share: float = 0.0


@dataclass(frozen=True)
class _Mark:
    start: int
    end: int
    share: float


def score_tokens(
    search: HybridSearch, query: SparseVector | None, point_ids: Sequence[qm.ExtendedPointId]
) -> dict[str, dict[int, float]]:
    """Return what each token of a question adds to the sparse scores of points.

    Qdrant itself is asked, with one question for each token, so that the shares hold whatever the
    collection does to its scores.

    Args:
        search: Of the collection.
        query: The question's sparse vector.
        point_ids: Which points.

    Returns:
        Point id → token id → share. Points without a share are left out.

    Raises:
        StoreError: If Qdrant fails.
    """
    if not query or not point_ids:
        return {}
    heaviest = sorted(query, key=lambda token: (-query[token], token))[:_MOST_TOKENS]
    only_these = qm.Filter(must=[qm.HasIdCondition(has_id=list(point_ids))])
    requests = [
        qm.QueryRequest(
            query=qm.SparseVector(indices=[token], values=[query[token]]),
            using=search.collection.sparse_name,
            filter=only_these,
            limit=len(point_ids),
            with_payload=False,
        )
        for token in heaviest
    ]
    shares: dict[str, dict[int, float]] = {}
    for token, points in zip(heaviest, search.reader.search(requests), strict=True):
        for point in points:
            shares.setdefault(str(point.id), {})[token] = point.score
    return shares


def mark_words(
    embedder: TextEmbedder, text: str, shares: Shares, *, whole: bool = False
) -> list[Segment]:
    """Return a passage's text with the words marked that met the question.

    Args:
        embedder: Made its vectors.
        text: The passage.
        shares: What each token adds.
        whole: Whether all of the text is returned, or an excerpt around the best words.
    """
    read = text if whole else text[:MOST_READ]
    marks = _find_marks(embedder, read, shares) if shares else []
    if whole:
        return _cut(read, marks, 0, len(read))
    start, end = _choose_excerpt(read, marks)
    segments = _cut(read, marks, start, end)
    if start > 0:
        segments.insert(0, Segment("… "))
    if end < len(text):
        segments.append(Segment(" …"))
    return segments


def _find_marks(embedder: TextEmbedder, text: str, shares: Shares) -> list[_Mark]:
    """Return the words that met the question, in the order of the text."""
    marks: dict[tuple[int, int], float] = {}
    for token in locate_tokens(embedder, text, "document"):
        if token.token_id in shares:
            span = (token.start, token.end)
            marks[span] = marks.get(span, 0.0) + shares[token.token_id]
    return [_Mark(start, end, share) for (start, end), share in sorted(marks.items())]


def _choose_excerpt(text: str, marks: Sequence[_Mark]) -> tuple[int, int]:
    """Return where to begin and end, so that what met the question most is seen."""
    best_start, best_share = 0, 0.0
    for first, mark in enumerate(marks):
        within = [other for other in marks[first:] if other.end <= mark.start + _SEEN]
        # A word counts once, however often it stands there.
        share = sum(
            {text[other.start : other.end].lower(): other.share for other in within}.values()
        )
        if share > best_share + 1e-9:
            best_start, best_share = mark.start, share
    start = max(0, best_start - _LEAD)
    if start > 0:
        space = text.find(" ", start, best_start)
        start = best_start if space < 0 else space + 1
    return start, min(len(text), start + _EXCERPT)


def _cut(text: str, marks: Collection[_Mark], start: int, end: int) -> list[Segment]:
    strongest = max((mark.share for mark in marks), default=0.0)
    segments: list[Segment] = []
    place = start
    for mark in marks:
        if mark.start < place or mark.end > end:
            continue
        if mark.start > place:
            segments.append(Segment(visible(text[place : mark.start])))
        level = max(1, round(LEVELS * mark.share / strongest)) if strongest > 0 else 1
        segments.append(Segment(visible(text[mark.start : mark.end]), level, mark.share))
        place = mark.end
    if place < end:
        segments.append(Segment(visible(text[place:end])))
    return segments
