"""How a fused score comes about, in the words of a sum."""

from __future__ import annotations

from dataclasses import dataclass

from unified_embeddings.models.fusion import Fusion
from unified_embeddings.retrievers.explanation import FusedPart, ListShare


@dataclass(frozen=True)
class Term:
    """What one list adds to a fused score.

    Attributes:
        name: "dense" or "sparse".
        formula: How it is computed, as in "0.6 · 1 / (20 + 3)".
        value: The result.
        rank: The passage's rank in the list; None if it is not among the candidates.
    """

    name: str
    formula: str
    value: float
    rank: int | None


@dataclass(frozen=True)
class Sum:
    """A fused score and its terms.

    Attributes:
        terms: One for each list.
        score: Their sum.
        method: How the lists are fused, in words.
    """

    terms: tuple[Term, ...]
    score: float
    method: str


def write_sum(part: FusedPart) -> Sum:
    """Return a fused score as a sum.

    Args:
        part: What each list adds.
    """
    terms = [
        Term(share.name, _write_term(share, part.fusion), share.contribution, share.rank)
        for share in part.lists
    ]
    return Sum(tuple(terms), part.score, part.fusion.method.upper())


def _write_term(share: ListShare, fusion: Fusion) -> str:
    if share.rank is None:
        return f"not among its first {fusion.candidates}"
    if fusion.method == "dbsf":
        return f"{share.weight:g} · {share.value:.4f}"
    return f"{share.weight:g} · 1 / ({fusion.k} + {share.rank})"
