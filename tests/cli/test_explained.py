"""An explanation as lines: what is said of each kind of passage."""

from __future__ import annotations

import dataclasses

import numpy as np

from unified_embeddings.cli.explained import explanation_lines
from unified_embeddings.models.fusion import Fusion
from unified_embeddings.retrievers.explanation import (
    ColbertPart,
    DensePart,
    Explanation,
    FusedPart,
    ListShare,
    PieceShare,
    Ranks,
    SparsePart,
    TokenMatch,
    TokenShare,
)


def piece(text: str, query: float, passage: float, idf: float | None) -> PieceShare:
    return PieceShare(
        text=text,
        token_id=1,
        query_weight=query,
        passage_weight=passage,
        idf=idf,
        contribution=query * passage * (idf or 0.0),
    )


def in_list(name: str, rank: int | None, value: float) -> ListShare:
    return ListShare(name=name, rank=rank, weight=0.5, value=value, contribution=0.5 * value)


FOUND = Explanation(
    query="foxes jump",
    node_id="1",
    text="A fox.",
    sparse=SparsePart(
        2.5,
        (
            TokenShare("foxes", (piece("fox", 2.0, 1.0, 1.0), piece("es", 1.0, 0.5, 1.0))),
            TokenShare("jump", (piece("jump", 1.0, 0.0, None),)),
        ),
    ),
    dense=DensePart(0.75),
    colbert=ColbertPart(
        score=0.5,
        matches=(
            TokenMatch(
                query="es",
                passage="fox",
                query_word="foxes",
                passage_word="Fox",
                passage_position=1,
                score=0.5,
            ),
        ),
        query_tokens=("es",),
        passage_tokens=("a", "fox"),
        similarities=np.array([[0.25, 0.5]], dtype=np.float32),
    ),
    ranks=Ranks(dense=None, sparse=2, fused=4),
    fused=FusedPart(
        0.5 / 62, Fusion((0.5, 0.5)), (in_list("dense", None, 0.0), in_list("sparse", 2, 1 / 62))
    ),
    candidates=20,
    matches_filters=True,
    reranked=False,
)


def test_all_parts_are_shown() -> None:
    assert [line.removeprefix("   ") for line in explanation_lines(FOUND)] == [
        "fused 0.0081: RRF, k 60, weights 0.5 : 0.5, 20 candidates",
        "  dense   0.0000  not in this list",
        "  sparse  0.0081 = 0.5 · 1 / (60 + 2)",
        "dense 0.7500, not among the first 20",
        "sparse 2.5000, rank 2",
        "  foxes             2.5000 = 2.000 · 1.000 (fox) + 1.000 · 0.500 (es)",
        "  not in the passage: jump",
        "colbert 0.5000, the mean of",
        "  0.5000  es (foxes) → fox",
    ]


def test_dbsf_shows_the_normalised_scores() -> None:
    fused = FusedPart(0.2, Fusion((0.5, 0.5), method="dbsf"), (in_list("sparse", 2, 0.4),))
    lines = explanation_lines(dataclasses.replace(FOUND, fused=fused))
    assert "     sparse  0.2000 = 0.5 · 0.4000 (normalised)" in lines


def test_idf_is_shown_where_there_is_one() -> None:
    sparse = SparsePart(1.0, (TokenShare("fox", (piece("fox", 2.0, 1.0, 0.5),)),))
    lines = explanation_lines(dataclasses.replace(FOUND, sparse=sparse))
    assert "     fox               1.0000 = 2.000 · 1.000 · idf 0.500" in lines


def test_why_a_passage_is_not_found_comes_first() -> None:
    neither = dataclasses.replace(FOUND, ranks=Ranks(dense=None, sparse=None, fused=None))
    first, *_ = explanation_lines(neither)
    assert first == "   not found: it is not among the first 20 of any list"
    first, *_ = explanation_lines(dataclasses.replace(neither, matches_filters=False))
    assert first == "   not found: the filters exclude it"
    first, *_ = explanation_lines(dataclasses.replace(FOUND, reranked=True))
    assert first == "   the candidates are reranked by the ColBERT score"


def test_parts_that_there_are_not_are_left_out() -> None:
    lines = explanation_lines(
        dataclasses.replace(
            FOUND, sparse=None, colbert=None, fused=None, ranks=Ranks(3, None, None)
        )
    )
    assert lines == ["   dense 0.7500, rank 3"]


def test_control_characters_of_a_text_do_not_reach_the_terminal() -> None:
    sparse = SparsePart(2.0, (TokenShare("fo\x1b[31mx", (piece("fo\x1bx", 2.0, 1.0, 1.0),)),))
    match = dataclasses.replace(FOUND.colbert.matches[0], query="\x1b[2J")  # type: ignore[union-attr]
    colbert = dataclasses.replace(FOUND.colbert, matches=(match,))  # type: ignore[type-var]
    explanation = dataclasses.replace(FOUND, sparse=sparse, colbert=colbert)
    assert "\x1b" not in "".join(explanation_lines(explanation))
