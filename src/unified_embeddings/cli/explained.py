"""An explanation as lines of text, for `unified-embeddings search --explain`.

What lives here: the layout. What does not: the explanation itself (`retrievers.explain`), and
searching (`search`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from unified_embeddings.cli.shared import one_line

if TYPE_CHECKING:
    from unified_embeddings.retrievers.explanation import (
        ColbertPart,
        Explanation,
        FusedPart,
        ListShare,
        SparsePart,
        TokenShare,
    )

_INDENT = "   "
_WORD_WIDTH = 16
_MATCH_WIDTH = 40


def explanation_lines(explanation: Explanation) -> list[str]:
    """Return an explanation as indented lines.

    Args:
        explanation: Of one passage.
    """
    lines = _outcome_lines(explanation)
    if explanation.fused is not None:
        lines += _fusion_lines(explanation.fused)
    if explanation.dense is not None:
        place = _place(explanation.ranks.dense, explanation.candidates)
        lines.append(f"dense {explanation.dense.score:.4f}, {place}")
    if explanation.sparse is not None:
        place = _place(explanation.ranks.sparse, explanation.candidates)
        lines.append(f"sparse {explanation.sparse.score:.4f}, {place}")
        lines += _sparse_lines(explanation.sparse)
    if explanation.bm25 is not None:
        place = _place(explanation.ranks.bm25, explanation.candidates)
        lines.append(f"bm25 {explanation.bm25.score:.4f}, {place}")
        lines += _sparse_lines(explanation.bm25)
    if explanation.colbert is not None:
        lines += _colbert_lines(explanation.colbert)
    return [_INDENT + line for line in lines]


def _outcome_lines(explanation: Explanation) -> list[str]:
    """Say what is out of the ordinary: the passage cannot be found, or is reranked."""
    if not explanation.matches_filters:
        return ["not found: the filters exclude it"]
    if not explanation.is_candidate:
        return [f"not found: it is not among the first {explanation.candidates} of any list"]
    if explanation.reranked:
        return ["the candidates are reranked by the ColBERT score"]
    return []


def _place(rank: int | None, candidates: int) -> str:
    if rank is None:
        return f"not among the first {candidates}"
    return f"rank {rank}"


def _fusion_lines(fused: FusedPart) -> list[str]:
    """Return the fused score as a sum over the lists."""
    lines = [f"fused {fused.score:.4f}: {fused.fusion}"]
    return lines + [f"  {_list_line(of_list, fused)}" for of_list in fused.lists]


def _list_line(of_list: ListShare, fused: FusedPart) -> str:
    if of_list.rank is None:
        return f"{of_list.name:6}  {0:.4f}  not in this list"
    if fused.fusion.method == "rrf":
        value = f"1 / ({fused.fusion.k} + {of_list.rank})"
    else:
        value = f"{of_list.value:.4f} (normalised)"
    return f"{of_list.name:6}  {of_list.contribution:.4f} = {of_list.weight:g} · {value}"


def _sparse_lines(sparse: SparsePart) -> list[str]:
    """Return the words that add to the sparse score, and then those that the passage lacks."""
    lines = [f"  {_token_line(token)}" for token in sparse.tokens if token.contribution]
    missing = [token.text for token in sparse.tokens if not token.contribution]
    if missing:
        lines.append(f"  not in the passage: {one_line(', '.join(missing), 200)}")
    return lines


def _token_line(token: TokenShare) -> str:
    """Return a word with its weights; of several pieces, with those of each that is shared."""
    shared = [piece for piece in token.pieces if piece.contribution]
    products = []
    for piece in shared:
        product = f"{piece.query_weight:.3f} · {piece.passage_weight:.3f}"
        if piece.idf is not None and piece.idf != 1:
            product += f" · idf {piece.idf:.3f}"
        if len(token.pieces) > 1:
            product += f" ({one_line(piece.text, _WORD_WIDTH)})"
        products.append(product)
    word = one_line(token.text, _WORD_WIDTH)
    return f"{word:{_WORD_WIDTH}}  {token.contribution:.4f} = {' + '.join(products)}"


def _colbert_lines(colbert: ColbertPart) -> list[str]:
    """Return the ColBERT score, and the token that each of the question's tokens met."""
    lines = [f"colbert {colbert.score:.4f}, the mean of"]
    for match in colbert.matches:
        tokens = f"{_in_word(match.query, match.query_word)} → "
        tokens += _in_word(match.passage, match.passage_word)
        lines.append(f"  {match.score:.4f}  {one_line(tokens, 2 * _MATCH_WIDTH)}")
    return lines


def _in_word(token: str, word: str) -> str:
    """Return a token, with the word that it is a part of."""
    if not word or token.casefold() == word.casefold():
        return token
    return f"{token} ({one_line(word, _WORD_WIDTH)})"
