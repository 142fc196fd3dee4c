"""Everything about one passage and one question.

What lives here: an explanation (`retrievers.explain`) in the form in which the page shows it. What
does not: computing it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from qdrant_client import models as qm

from unified_embeddings.errors import InputError
from unified_embeddings.inspector.arithmetic import Sum, write_sum
from unified_embeddings.inspector.library import OpenedCollection
from unified_embeddings.inspector.parameters import Question
from unified_embeddings.inspector.retrieving import make_retriever
from unified_embeddings.inspector.stages import Stages
from unified_embeddings.inspector.visible import one_line, title_of, visible
from unified_embeddings.inspector.words import Segment, mark_words
from unified_embeddings.llama.collection_reader import CollectionReader
from unified_embeddings.llama.fields import to_point_id
from unified_embeddings.llama.payloads import own_metadata
from unified_embeddings.retrievers.explanation import ColbertPart, Explanation, SparsePart
from unified_embeddings.types import FloatArray

HEAT_LEVELS = 10
"""Shades of the heat map."""
_MOST_COLUMNS = 512
"""Tokens of a passage that the heat map shows."""
_TOKEN_WIDTH = 24


@dataclass(frozen=True)
class HeatRow:
    """A token of the question in the heat map.

    Attributes:
        token: The token.
        word: The word that it is a part of, where that is another text.
        met: The passage's token that is most similar to it.
        column: Which one that is, from 0; None if it is beyond those shown.
        score: How similar they are.
        levels: The shade of each of the passage's tokens, a digit each.
    """

    token: str
    word: str
    met: str
    column: int | None
    score: float
    levels: str


@dataclass(frozen=True)
class HeatMap:
    """How similar each token of a question is to each token of a passage.

    Attributes:
        rows: The question's tokens.
        columns: The passage's tokens.
        hidden: Tokens of the passage that are not shown.
        paths: The cells of each shade, as SVG's attribute `d` has them, the palest first.
        score: The mean of the rows' scores.
    """

    rows: tuple[HeatRow, ...]
    columns: tuple[str, ...]
    hidden: int
    paths: tuple[str, ...]
    score: float


@dataclass(frozen=True)
class PassageView:
    """What the page of a passage shows.

    Attributes:
        point_id: Its id.
        title: What to call it.
        segments: Its text, with the words marked that met the question.
        metadata: Its metadata as texts.
        explanation: Why it has its score; None without a question.
        total: Its fused score as a sum; None unless lists are fused.
        heat: Which tokens meet; None where the model has no ColBERT vectors.
        stages: Where the time went.
    """

    point_id: str
    title: str
    segments: tuple[Segment, ...]
    metadata: tuple[tuple[str, str], ...]
    explanation: Explanation | None
    total: Sum | None
    heat: HeatMap | None
    stages: Stages


def view_passage(opened: OpenedCollection, question: Question, point_id: str) -> PassageView:
    """Return all about a passage; with a question, why it has its score.

    Args:
        opened: Where it is.
        question: What was asked; its text may be empty.
        point_id: The passage.

    Raises:
        InputError: If there is no such passage.
        StoreError: If Qdrant fails.
    """
    stages = Stages()
    with stages.measure("read"):
        reader = CollectionReader(opened.store)
        point = reader.fetch(_require_id(point_id), [])
        if point is None:
            raise InputError(f"collection {opened.name!r} has no passage {point_id!r:.100}")
        (scored,) = reader.to_nodes([point], [0.0])
    explanation = None
    if question.text:
        with stages.measure("explain", is_model=True):
            explanation = make_retriever(opened, question.options).explain(
                question.text, str(point.id)
            )
    shares = _shares_of(None if explanation is None else explanation.sparse)
    metadata = own_metadata(scored.node)
    with stages.measure("words"):
        text = scored.node.get_content()
        segments = mark_words(opened.embedder, text, shares, whole=True)
    total = heat = None
    if explanation is not None and explanation.fused is not None:
        total = write_sum(explanation.fused)
    if explanation is not None and explanation.colbert is not None:
        heat = draw_heat(explanation.colbert)
    return PassageView(
        point_id=str(point.id),
        title=title_of(metadata, str(point.id)),
        segments=tuple(segments),
        metadata=tuple(
            (one_line(str(key), 60), one_line(str(value), 400)) for key, value in metadata.items()
        ),
        explanation=explanation,
        total=total,
        heat=heat,
        stages=stages,
    )


def draw_heat(part: ColbertPart) -> HeatMap:
    """Return a heat map of similarities, of the passage's first tokens.

    Args:
        part: The similarities, with the names of the tokens.
    """
    shown = part.similarities[:, :_MOST_COLUMNS]
    levels = shade(shown)
    rows = []
    for match, row in zip(part.matches, levels, strict=True):
        column = match.passage_position if match.passage_position < _MOST_COLUMNS else None
        rows.append(
            HeatRow(
                token=_name(match.query),
                word=_name(match.query_word) if match.query_word != match.query else "",
                met=_name(match.passage),
                column=column,
                score=match.score,
                levels="".join(map(str, row.tolist())),
            )
        )
    return HeatMap(
        rows=tuple(rows),
        columns=tuple(_name(token) for token in part.passage_tokens[:_MOST_COLUMNS]),
        hidden=max(0, len(part.passage_tokens) - _MOST_COLUMNS),
        paths=_draw_cells(levels),
        score=part.score,
    )


def shade(similarities: FloatArray) -> np.ndarray[tuple[int, ...], np.dtype[np.int64]]:
    """Return the shade of each similarity: 0 for none and below, 9 for 1.

    Tokens that have nothing to do with each other are still a little similar, so that shades rise
    slowly at first.

    Args:
        similarities: float32 (q, p), at most 1.
    """
    scaled = np.clip(similarities, 0.0, 1.0) ** 2 * (HEAT_LEVELS - 1)
    return np.rint(scaled).astype(np.int64)


def _draw_cells(levels: np.ndarray[tuple[int, ...], np.dtype[np.int64]]) -> tuple[str, ...]:
    """Return a path for each shade: the cells of a shade are one path, for a smaller page."""
    paths = []
    for level in range(HEAT_LEVELS):
        rows, columns = np.nonzero(levels == level)
        cells = zip(columns.tolist(), rows.tolist(), strict=True)
        paths.append("".join(f"M{x} {y}h1v1h-1z" for x, y in cells))
    return tuple(paths)


def _shares_of(part: SparsePart | None) -> dict[int, float]:
    if part is None:
        return {}
    return {
        piece.token_id: piece.contribution
        for token in part.tokens
        for piece in token.pieces
        if piece.contribution > 0
    }


def _name(token: str) -> str:
    return visible(token)[:_TOKEN_WIDTH]


def _require_id(point_id: str) -> qm.ExtendedPointId:
    try:
        return to_point_id(point_id.strip(), 0)
    except InputError:
        raise InputError(
            f"a passage's id is a UUID or a whole number, got {point_id!r:.80}"
        ) from None
