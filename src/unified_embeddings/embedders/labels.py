"""What the numbers in a text's vectors stand for: names of sparse indices and of ColBERT rows.

What lives here: finding each vector's token in the text, prefix and cut included, and where the
words of tokens stand. What does not: splitting texts (`tokenization`), and scores.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from unified_embeddings.embedders.base import TextEmbedder
from unified_embeddings.embedders.paired import PairedEmbedder
from unified_embeddings.embedders.values import Piece
from unified_embeddings.embedders.word_pieces import BEGINS, GOES_ON
from unified_embeddings.models.spec import ModelSpec
from unified_embeddings.types import HeadName, Role

_REACH = 200
"""Characters after a word in which the next one is looked for: words follow each other, and a term
that does not stand there must not be found in another paragraph."""


@dataclass(frozen=True)
class LocatedToken:
    """A token, and where the word stands that it is all or a part of.

    Attributes:
        token_id: The index in the sparse vectors.
        start: Where the word begins in the text.
        end: Where it ends.
    """

    token_id: int
    start: int
    end: int


def label_indices(
    embedder: TextEmbedder, text: str, role: Role, indices: Iterable[int]
) -> dict[int, Piece]:
    """Return the token of each index of a text's sparse vector, in the order of the text.

    Indices that are no token of the text, as SPLADE adds, come last. They are words of their own.

    Args:
        embedder: Made the vector.
        text: The text.
        role: What it was embedded as.
        indices: The vector's indices.
    """
    model = _model_of(embedder, "sparse")
    missing = dict.fromkeys(indices)
    labels: dict[int, Piece] = {}
    for piece in model.split(_prefix(model, role) + text):
        if piece.token_id in missing:
            del missing[piece.token_id]
            labels[piece.token_id] = _named(piece)
    for index in missing:
        labels[index] = _named(Piece(index, model.vocabulary_entry(index), is_special=False))
    return labels


def label_rows(embedder: TextEmbedder, text: str, role: Role, rows: int) -> list[Piece]:
    """Return the token of each row of a text's ColBERT vectors.

    Args:
        embedder: Made the vectors.
        text: The text.
        role: What it was embedded as.
        rows: How many there are. A text that is too long for the model has fewer than tokens.
    """
    model = _model_of(embedder, "colbert")
    pieces = model.split(_prefix(model, role) + text, special=True)
    if pieces and pieces[0].is_special:
        del pieces[0]  # The opening token has no row.
    if len(pieces) > rows:
        pieces = [*pieces[: rows - 1], pieces[-1]]  # The closing token stays when a text is cut.
    # An embedder that does not tell its special tokens leaves the closing one unnamed.
    pieces += [Piece(-1, "", is_special=True)] * (rows - len(pieces))
    return [_named(piece) for piece in pieces]


def locate_tokens(embedder: TextEmbedder, text: str, role: Role) -> Iterator[LocatedToken]:
    """Yield the tokens of a text's sparse vector with the places of their words.

    Tokens are found by their words, in the order of the text. One whose word does not stand in the
    text as it is, as a stem, or a part of an identifier that was split before, is left out.

    Args:
        embedder: Gives the vectors.
        text: The text.
        role: What it is embedded as.
    """
    model = _model_of(embedder, "sparse")
    prefix = _prefix(model, role)
    whole = prefix + text
    folded = whole.lower()
    # Lower case may have another length: places would be wrong then.
    searched = folded if len(folded) == len(whole) else whole
    cursor, start, end, covered = 0, 0, 0, 0
    last_word = ""
    for piece in model.split(whole):
        named = _named(piece)
        word = named.word if searched is whole else named.word.lower()
        if not word:
            continue
        # A word's further tokens share its place, until they have covered it.
        if word != last_word or covered >= len(word):
            start = searched.find(word, cursor, cursor + _REACH + len(word))
            covered, last_word = 0, word
            if start < 0:
                last_word = ""
                continue
            end = cursor = start + len(word)
        covered += len(named.text)
        if start >= len(prefix):
            yield LocatedToken(named.token_id, start - len(prefix), end - len(prefix))


def _named(piece: Piece) -> Piece:
    """Return a token whose text is fit to be shown, and which is a word of its own if of no other.

    Without a vocabulary, its text is its number.
    """
    text = piece.text
    if not piece.is_special:
        for mark in (GOES_ON, BEGINS):
            text = text.removeprefix(mark)
    text = text or piece.text or _number(piece)
    word = piece.word
    if not word and not piece.is_special:
        word = text
    return Piece(piece.token_id, text, piece.is_special, word)


def _number(piece: Piece) -> str:
    if piece.token_id < 0:
        return "(end)"
    return f"token {piece.token_id}"


def _model_of(embedder: TextEmbedder, head: HeadName) -> TextEmbedder:
    """Return the embedder that gives a kind of vectors: of a pair, one of the two."""
    if not isinstance(embedder, PairedEmbedder):
        return embedder
    if head == "sparse":
        return _model_of(embedder.sparse, head)
    return _model_of(embedder.dense, head)


def _prefix(embedder: TextEmbedder, role: Role) -> str:
    """Return what the model puts before texts of a role; a service does that on its side."""
    spec = getattr(embedder.models[0], "spec", None) if embedder.models else None
    return spec.prefix(role) if isinstance(spec, ModelSpec) else ""
