"""Word pieces put together again.

What lives here: which word of a text each of its tokens belongs to. What does not: splitting texts
into tokens (`tokenization`).
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

GOES_ON, BEGINS = "##", "▁"
"""What vocabularies put before an entry that goes on, or begins, a word."""
_UNSPACED = (
    (0x0E00, 0x0EFF),  # Thai, Lao
    (0x1000, 0x109F),  # Burmese
    (0x1780, 0x17FF),  # Khmer
    (0x3040, 0x30FF),  # Hiragana, Katakana
    (0x3400, 0x9FFF),  # Chinese characters
    (0xF900, 0xFAFF),
    (0x20000, 0x3FFFF),
)
"""Code points of scripts that put no spaces between words: there, a token stands for itself."""


def words_of(
    text: str, spans: Sequence[tuple[int, int]], word_ids: Sequence[int | None]
) -> list[str]:
    """Return, for each token of a text, the word that it is all or a part of.

    Tokens belong to one word if the tokenizer took them from the same stretch of text, they touch,
    and letters or digits meet there. So "ERR-4711" is three words, and so are two Chinese tokens
    two.

    Args:
        text: The text.
        spans: Start and end of each token in it; both 0 for a special token.
        word_ids: The number of each token's stretch of text; None for a special token.

    Returns:
        As many words as tokens, as the text has them; empty for special tokens.
    """
    words: list[str] = []
    pending, start, end = 0, 0, 0  # the tokens of the word in hand, and where it is
    previous_id: int | None = None
    for (token_start, token_end), word_id in zip(spans, word_ids, strict=True):
        # Some tokenizers count the space before a word as a part of it.
        token_text = text[token_start:token_end]
        first = token_start + len(token_text) - len(token_text.lstrip())
        continues = word_id is not None and word_id == previous_id and _touch(text, end, first)
        if not continues:
            words += [text[start:end]] * pending
            pending, start, end = 0, first, token_end
        pending += 1
        end = max(end, token_end)
        previous_id = word_id
    return words + [text[start:end]] * pending


def words_of_entries(entries: Sequence[str], are_special: Sequence[bool]) -> list[str]:
    """Return, for each token of a text, its word, where only the vocabulary's entries are known.

    It is spelled as the vocabulary does, perhaps in lower case.

    Args:
        entries: The tokens' entries, with the marks of WordPiece ("##" goes on) or SentencePiece
            ("▁" begins).
        are_special: Which tokens stand for no part of the text.
    """
    has_beginnings = any(entry.startswith(BEGINS) for entry in entries)
    words: list[str] = []
    pending, word = 0, ""  # the tokens of the word in hand, and the word
    for entry, is_special in zip(entries, are_special, strict=True):
        part = "" if is_special else entry.removeprefix(GOES_ON).removeprefix(BEGINS)
        goes_on = entry.startswith(GOES_ON)
        if has_beginnings:
            goes_on = not entry.startswith(BEGINS)
        both = word[-1:] + part[:1]
        if not (goes_on and len(both) == 2 and all(map(_is_within_word, both))):
            words += [word] * pending
            pending, word = 0, ""
        pending += 1
        word += part
    return words + [word] * pending


def _touch(text: str, end: int, start: int) -> bool:
    """Tell whether tokens that end and start at these characters are of one word."""
    if start < end:  # They are bytes of the same character.
        return True
    if start > end or not 0 < start < len(text):
        return False
    return _is_within_word(text[end - 1]) and _is_within_word(text[start])


def _is_within_word(character: str) -> bool:
    """Tell whether a word goes on beside a character: a letter, a digit, or an accent on one."""
    code = ord(character)
    if any(first <= code <= last for first, last in _UNSPACED):
        return False
    return character.isalnum() or unicodedata.category(character).startswith("M")
