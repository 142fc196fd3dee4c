"""Splitting a text while other threads run."""

from __future__ import annotations

import threading

from unified_embeddings import UnifiedEmbeddingConfig
from unified_embeddings.embedders.base import TextEmbedder


def count_turns(embedder: TextEmbedder, text: str) -> int:
    """Return how often another thread had its turn while a text was split."""
    turns = 0
    has_begun = threading.Event()
    is_over = threading.Event()

    def take_turns() -> None:
        nonlocal turns
        has_begun.set()
        while not is_over.wait(0.001):
            turns += 1

    thread = threading.Thread(target=take_turns)
    thread.start()
    has_begun.wait()
    embedder.tokenise(text)
    is_over.set()
    thread.join()
    return turns


def test_other_threads_run_while_a_long_text_is_split() -> None:
    embedder = UnifiedEmbeddingConfig("mini-m3", device="cpu").embedder
    embedder.tokenise("Foxes jump.")
    # Half a million tokens take most of a second; a call that keeps all others out allows them
    # hardly a turn.
    assert count_turns(embedder, "a " * 500_000) > 20


def test_pieces_are_the_tokens_of_the_text() -> None:
    embedder = UnifiedEmbeddingConfig("mini-m3", device="cpu").embedder
    text = "Füchse jump over lazy dogs, 3 times."
    pieces = embedder.split(text)
    assert [piece.token_id for piece in pieces] == embedder.tokenise(text)
    assert (
        "".join(piece.text.removeprefix("##") for piece in pieces)
        == "fuchsejumpoverlazydogs,3times."
    )
    whole = embedder.split(text, special=True)
    assert [piece.is_special for piece in whole] == [True, *[False] * len(pieces), True]
    assert whole[1:-1] == pieces
