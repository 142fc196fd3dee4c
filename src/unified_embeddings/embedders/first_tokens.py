"""The first tokens of a very long text, from as few of its characters as decide them.

What lives here: which tokens of a text's beginning hold whatever follows. What does not: texts of
ordinary length (`tokenization`).

A text of 50 million characters without a space takes a minute and gigabytes to tokenise, for the
few hundred tokens that a model takes of it. Cutting it anywhere would be wrong: what follows may
change the last tokens before the cut, or be all that counts (`[UNK] and then the text`). So a
beginning is tokenised, and only those of its tokens are taken that no continuation can change:

- *words that are complete*. The tokenizers in use split a text into words before anything else.
- *of a word that is cut, with Unigram*: the best split up to a position depends only on what is
  before it. The best split of the whole word passes through one of the last positions, since no
  piece is longer than the longest in the vocabulary. What the best splits up to all of them share
  is therefore part of the best split of the whole.
- *of a word that is cut, with byte pairs*: one of the last positions is a boundary between tokens
  of the whole word, for the same reason. Nothing was merged across that boundary, so the merges
  before it are those of what is before it on its own. Again, what all of them share holds.

Where these are too few, runs of one repeated character that make no difference are shortened, and
the beginning grows.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterator
from functools import cached_property

from tokenizers import Tokenizer as RustTokenizer
from tokenizers.models import BPE, Model, Unigram, WordPiece

from unified_embeddings.embedders.long_runs import RunShortener, words_of

CHARACTERS_PER_TOKEN = 64
"""More than a token has in text of any language."""
_GROWTH = 8
_NEIGHBOURHOOD = 64
"""Characters around a cut that are looked at to see that normalisation does not join its sides."""
_CUT_ATTEMPTS = 256
_UNSURE_WORDS = 8
"""Words before a cut that other text may change where words are found by patterns, as in BPE."""
_CLIP_WORDS = re.compile(
    r"(?:<\\\|\w+\\\|>\|)*"
    + re.escape(r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+")
)
"""CLIP's pattern of words, with special tokens before it or without."""
_CHARACTERS_PER_WORD_TOKEN = 8
_MARGIN_TOKENS = 64
_SECTION_PROBES = ("a", " a", "a a", "\n", "")


class FirstTokens:
    """Finds the first tokens of very long texts.

    Args:
        tokenizer: A tokenizer of any kind. Texts are shortened before tokenising as far as its
            kind allows.
        characters_per_token: How many characters are looked at first for each token wanted; at
            least as many as a token has in text of any language.
        shortest_run: Repetitions of a character from which on it is tested whether more make a
            difference.
    """

    def __init__(
        self,
        tokenizer: RustTokenizer,
        *,
        characters_per_token: int = CHARACTERS_PER_TOKEN,
        shortest_run: int = 1000,
    ) -> None:
        self._rust = tokenizer
        self._characters_per_token = characters_per_token
        self._shortened = RunShortener(tokenizer, shortest_run)

    def of(self, text: str, wanted: int) -> list[int]:
        """Return the first token ids of a text, without special tokens.

        They are at least `wanted`, or all that the text has.
        """
        for beginning, ids in self._beginnings(text, wanted):
            if ids is None:
                return self._encode(beginning)
            if len(ids) >= wanted:
                return ids
        raise AssertionError("the last beginning is the whole text")

    def beginning_of(self, text: str, wanted: int) -> str:
        """Return a text with the same first tokens, from few of the text's characters.

        They agree in the first `wanted` tokens, or in all if the text has fewer.
        """
        for beginning, ids in self._beginnings(text, wanted):
            if ids is None:
                return beginning
            # The cut may have changed the last tokens of the beginning.
            if len(ids) >= wanted and self._encode(beginning)[:wanted] == ids[:wanted]:
                return beginning
        raise AssertionError("the last beginning is the whole text")

    def _beginnings(self, text: str, wanted: int) -> Iterator[tuple[str, list[int] | None]]:
        """Yield ever longer beginnings of a text, each with those of its ids that hold.

        The last one has None for its ids. All its tokens are those of the text.
        """
        size = self._characters_per_token * wanted
        if size < len(text):
            yield text[:size], self._certain_ids(text, size, wanted)
            text = self._shortened.shorten(text)
        while size < len(text):
            yield text[:size], self._certain_ids(text, size, wanted)
            size *= _GROWTH
        yield text, None

    def _certain_ids(self, text: str, size: int, wanted: int) -> list[int]:
        """Return the ids of the first `size` characters that hold whatever follows."""
        end = self._last_special(text, size)
        end = max([end, *(text.rfind(space, 0, size) for space in self._shortened.word_ends)])
        ids = self._encode(text[:end]) if end > 0 else []
        if len(ids) >= wanted:
            return ids
        return self._ids_before_cut(text, size, wanted)

    def _ids_before_cut(self, text: str, size: int, wanted: int) -> list[int]:
        """Return the ids of all words of a beginning but the last, and what is certain of that."""
        section = self._end_of_special(text, size + _NEIGHBOURHOOD)
        ids = self._encode(text[:section])
        if section and (section > size or not self._begins_a_section(ids)):
            return []
        cut = self._harmless_cut(text, size)
        if cut is None:
            return []
        words = words_of(self._rust, text[section:cut])
        sure = self._count_sure(words)
        for word in words[:sure]:
            if len(ids) >= wanted:
                return ids
            ids.extend(token.id for token in self._rust.model.tokenize(word))
        if words and len(ids) < wanted:
            ids.extend(self._certain_ids_of_word(words[sure], wanted - len(ids)))
        return ids

    def _count_sure(self, words: list[str]) -> int:
        """Return how many of the words of a beginning hold whatever follows."""
        if isinstance(self._rust.model, (Unigram, WordPiece)):
            return max(0, len(words) - 1)
        if not self._has_local_patterns:
            return max(0, len(words) - _UNSURE_WORDS)
        sure, unsure_symbols = len(words), 0
        while sure and unsure_symbols < _NEIGHBOURHOOD:
            sure -= 1
            unsure_symbols += len(words[sure])
        return sure

    def _certain_ids_of_word(self, word: str, wanted: int) -> list[int]:
        """Return the ids of a cut word's beginning that hold whatever follows."""
        model = self._model_inside_words
        if model is None:
            return []
        if isinstance(model, BPE):
            # Patterns that find words look ahead a little, so this word may end earlier.
            word = word[:-_NEIGHBOURHOOD]
            if not self._has_symbols(word):
                return []
        length = _CHARACTERS_PER_WORD_TOKEN * wanted
        while True:
            start = word[:length]
            tokens = model.tokenize(start)
            if len(tokens) >= wanted + _MARGIN_TOKENS or length >= len(word):
                break
            length *= _GROWTH
        if len(tokens) < wanted:
            return []
        ids = [token.id for token in tokens]
        if len(tokens) >= wanted + _MARGIN_TOKENS:
            last = tokens[wanted + _MARGIN_TOKENS - 1]
            start = start.encode()[: last.offsets[1]].decode()  # its offsets count bytes
        shared = len(ids)
        # Down to 0 for a short beginning: one piece may cover all of it.
        for end in range(len(start), max(-1, len(start) - self._longest_piece), -1):
            others = [token.id for token in model.tokenize(start[:end])]
            shared = min(shared, _shared_length(ids, others))
        return ids[:shared]

    def _harmless_cut(self, text: str, size: int) -> int | None:
        """Return the last position up to `size` whose two sides normalise on their own."""
        normalizer = self._rust.normalizer
        if normalizer is None:
            return size
        for cut in range(size, max(0, size - _CUT_ATTEMPTS), -1):
            before = text[max(0, cut - _NEIGHBOURHOOD) : cut]
            after = text[cut : cut + _NEIGHBOURHOOD]
            apart = normalizer.normalize_str(before) + normalizer.normalize_str(after)
            if normalizer.normalize_str(before + after) == apart:
                return cut
        return None

    def _encode(self, text: str) -> list[int]:
        ids: list[int] = self._rust.encode(text, add_special_tokens=False).ids
        return ids

    def _last_special(self, text: str, end: int) -> int:
        """Return where the last special token before `end` begins; -1 if there is none."""
        return max((text.rfind(special, 0, end) for special in self._specials), default=-1)

    def _end_of_special(self, text: str, end: int) -> int:
        """Return where the last special token up to `end` is over; 0 if there is none."""
        ends = [0]
        for special in self._specials:
            start = text.rfind(special, 0, end)
            if start >= 0:
                ends.append(start + len(special))
        return max(ends)

    def _begins_a_section(self, ids: list[int]) -> bool:
        """Tell whether what follows these ids is tokenised as if it were a text of its own."""
        return bool(ids) and ids[-1] in self._special_ids and self._sections_are_alike

    @cached_property
    def _special_ids(self) -> frozenset[int]:
        return frozenset(self._rust.get_added_tokens_decoder())

    @cached_property
    def _sections_are_alike(self) -> bool:
        """Tell whether texts get the same tokens after a special token as on their own."""
        if any(token.single_word for token in self._rust.get_added_tokens_decoder().values()):
            return False
        return all(
            self._encode(special + probe) == self._encode(special) + self._encode(probe)
            for special in self._specials
            for probe in _SECTION_PROBES
        )

    @cached_property
    def _specials(self) -> list[str]:
        tokens = self._rust.get_added_tokens_decoder().values()
        return [token.content for token in tokens if token.content]

    @cached_property
    def _model_inside_words(self) -> Model | None:
        """Return what splits a word's beginning; None if what follows may change all of it."""
        model = self._rust.model
        if not isinstance(model, BPE):
            return model if isinstance(model, Unigram) else None
        if model.dropout or model.continuing_subword_prefix:
            return None
        if not model.end_of_word_suffix and not model.ignore_merges:
            return model
        inside = copy.deepcopy(model)
        inside.end_of_word_suffix = None
        inside.ignore_merges = False
        return inside

    @cached_property
    def _has_local_patterns(self) -> bool:
        """Tell whether where a word ends depends on few characters after it, as in CLIP."""
        if self._rust.pre_tokenizer is None:
            return False
        steps = json.loads(self._rust.pre_tokenizer.__getstate__())
        match steps.get("pretokenizers"):
            case [{"type": "Split", "pattern": {"Regex": str(pattern)}}, {"type": "ByteLevel"}]:
                return _CLIP_WORDS.fullmatch(pattern) is not None
        return False

    def _has_symbols(self, word: str) -> bool:
        """Tell whether the vocabulary has each of a word's characters, as with bytes."""
        return all(self._rust.token_to_id(character) is not None for character in {*word})

    @cached_property
    def _longest_piece(self) -> int:
        return max(map(len, self._rust.get_vocab()))


def _shared_length(first: list[int], second: list[int]) -> int:
    """Return how many ids two lists have in common at their start."""
    for position, (one, other) in enumerate(zip(first, second, strict=False)):
        if one != other:
            return position
    return min(len(first), len(second))
