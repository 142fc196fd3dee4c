"""Runs of characters in very long texts that make no difference to the tokens.

What lives here: which runs these are, and texts without them. What does not: which tokens of a
text's beginning hold whatever follows (`first_tokens`).
"""

from __future__ import annotations

import re
import unicodedata
from functools import cached_property, lru_cache

from tokenizers import Tokenizer as RustTokenizer
from tokenizers.models import Unigram, WordPiece

_WHITE_SPACE = " \n\t"
_MIXED_SPACES = " \n\t\r\n  "
_ENDS = 64
"""Characters that are left at either end of a run of unknown characters."""
_IDEOGRAPHS = ((0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF))
"""Characters of which BERT makes a word each."""
_PICTOGRAPHS = range(0x1F000, 0x1FB00)
"""Characters that are no letters, and of which BERT makes words all the same."""
_MOST_RUNS = 100
"""Characters whose runs are shortened in one text."""


class RunShortener:
    """Shortens runs of characters in very long texts, for one tokenizer.

    Args:
        tokenizer: A tokenizer of any kind; what is shortened depends on it.
        shortest_run: Characters from which on a run is tested.
    """

    def __init__(self, tokenizer: RustTokenizer, shortest_run: int) -> None:
        self._rust = tokenizer
        self._shortest_run = shortest_run

    def shorten(self, text: str) -> str:
        """Return a text with the same tokens, without runs that make no difference."""
        if words_of(self._rust, f"a{_MIXED_SPACES}a") == words_of(self._rust, "a a"):
            text = re.sub(rf"[ \t\r\n]{{{self._shortest_run},}}", " ", text)
        for character in self._repeated_characters(text):
            run = character * self._shortest_run
            # Compared as words: among tokens, unknown characters count in the scores of others.
            if words_of(self._rust, f"a{run}a") == words_of(self._rust, f"a{run}{run}a"):
                longer = f"{re.escape(character)}{{{self._shortest_run},}}"
                text = re.sub(longer, run.replace("\\", r"\\"), text)
        if isinstance(self._rust.model, WordPiece):
            text = self._shorten_long_words(text)
        if isinstance(self._rust.model, Unigram):
            text = self._shorten_unknown_words(text)
        return text

    def _repeated_characters(self, text: str) -> list[str]:
        """Return the characters of runs of at least `shortest_run`."""
        block = self._shortest_run // 2  # every such run contains one of these blocks
        found: dict[str, None] = {}
        for start in range(0, len(text) - block, block):
            if text[start] not in found and text[start : start + block] == text[start] * block:
                found[text[start]] = None
        return [*found][:_MOST_RUNS]

    def _shorten_long_words(self, text: str) -> str:
        """Shorten words that are beyond the limit of WordPiece, which makes one token of them."""
        limit = int(self._rust.model.max_input_chars_per_word)
        length = max(2 * limit, self._shortest_run)
        long_word = re.compile(rf"{_letters()}{{{length},}}")

        def shorten(match: re.Match[str]) -> str:
            start = match[0][:length]
            words = words_of(self._rust, start)
            # Normalisation may drop letters, or make other characters of them.
            if len(words) == 1 and len(words[0]) > limit:
                return start
            return match[0]

        return long_word.sub(shorten, text)

    def _shorten_unknown_words(self, text: str) -> str:
        """Shorten what ends a word with characters that are in no piece (Unigram only).

        All of them are one unknown token, however many they are. Where more of the word follows,
        they stay: the rounding of a long sum of scores may decide between two ways to split that
        rest that are otherwise as good.
        """
        half = min(_ENDS, self._shortest_run // 2)

        def shorten(match: re.Match[str]) -> str:
            run, start, end = match[0], match.start(), match.end()
            ends = run[:half] + run[-half:]
            is_end_of_word = end == len(text) or text[end] in self.word_ends
            around = (text[max(0, start - _ENDS) : start], text[end : end + _ENDS])
            if is_end_of_word and self._is_one_unknown(run, ends, around):
                return ends
            return run

        return re.sub(f"{self._unknown_characters}{{{self._shortest_run},}}", shorten, text)

    def _is_one_unknown(self, run: str, ends: str, around: tuple[str, str]) -> bool:
        """Tell whether a run, and its two ends alone, are one unknown token each."""
        before, after = around
        if normalise(self._rust, run) != run:
            return False
        apart = normalise(self._rust, before) + ends + normalise(self._rust, after)
        if normalise(self._rust, before + ends + after) != apart:
            return False
        letters = "".join(dict.fromkeys(run))
        words, unknown = words_of(self._rust, f"a{letters}"), self._rust.model.tokenize(letters)
        return words == [f"{word}{letters}" for word in words_of(self._rust, "a")] and [
            token.value for token in unknown
        ] == [letters]

    @cached_property
    def word_ends(self) -> list[str]:
        """Return the kinds of white space that end a word."""
        return [space for space in _WHITE_SPACE if len(words_of(self._rust, f"a{space}a")) > 1]

    @cached_property
    def _unknown_characters(self) -> str:
        """Return a regular expression for a character that is in no token."""
        known = sorted(set().union(*self._rust.get_vocab()))
        return rf"[^\s{re.escape(''.join(known))}]"


def words_of(tokenizer: RustTokenizer, text: str) -> list[str]:
    """Return the words of a text, normalised, as the tokenizer's model gets them."""
    text = normalise(tokenizer, text)
    if tokenizer.pre_tokenizer is None:
        return [text]
    return [word for word, _ in tokenizer.pre_tokenizer.pre_tokenize_str(text)]


def normalise(tokenizer: RustTokenizer, text: str) -> str:
    """Return a text as the tokenizer normalises it."""
    if tokenizer.normalizer is None:
        return text
    return str(tokenizer.normalizer.normalize_str(text))


@lru_cache(maxsize=1)
def _letters() -> str:
    """Return a regular expression for letters, digits, their marks and pictographs.

    Without ideographs. Of the other characters beyond the first plane none: Unicode's versions
    differ on what is a mark.
    """
    ranges: list[tuple[int, int]] = []
    for code in (*range(0x10000), *_PICTOGRAPHS):
        if not _is_letter(code) or _is_ideograph(code):
            continue
        if ranges and ranges[-1][1] == code - 1:
            ranges[-1] = (ranges[-1][0], code)
        else:
            ranges.append((code, code))
    return "[" + "".join(f"\\U{first:08x}-\\U{last:08x}" for first, last in ranges) + "]"


def _is_letter(code: int) -> bool:
    return code in _PICTOGRAPHS or unicodedata.category(chr(code))[0] in "LNM"


def _is_ideograph(code: int) -> bool:
    return any(first <= code <= last for first, last in _IDEOGRAPHS)
