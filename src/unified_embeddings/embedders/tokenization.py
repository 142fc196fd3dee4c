"""Texts to token ids, once each.

What lives here: the checkpoint's own tokenizer (Rust, `tokenizers`) without padding, truncating at
`max_length`. What does not: forming batches (`batching`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from tokenizers import Encoding
from tokenizers.normalizers import Lowercase
from tokenizers.normalizers import Sequence as NormalizerSequence

from unified_embeddings.embedders.first_tokens import CHARACTERS_PER_TOKEN, FirstTokens
from unified_embeddings.embedders.tokenizer_file import read_tokenizer
from unified_embeddings.embedders.values import Piece
from unified_embeddings.embedders.word_pieces import words_of
from unified_embeddings.errors import InputError
from unified_embeddings.models.checkpoint import Checkpoint
from unified_embeddings.system.memory import trim_heap
from unified_embeddings.types import IntArray, Text
from unified_embeddings.validation import require_whole_number

_NEVER_INDEXED = frozenset(("<s>", "</s>", "<pad>", "<unk>", "[CLS]", "[SEP]", "[PAD]", "[UNK]"))
"""cls, eos, pad and unk in the two vocabularies in use. <mask> is indexed, as by BGE-M3."""
_PROBES = ("a", "1", ".", "a b")
"""Texts of which every vocabulary knows one; see `Tokenizer._count_opening_tokens`."""


class Tokenised(NamedTuple):
    """Token ids of one text, int32 (t,), special tokens included, and whether it was cut."""

    ids: IntArray
    truncated: bool


class Tokenizer:
    """A checkpoint's tokenizer, cut at `max_length` tokens. Thread-safe: nothing changes later.

    Args:
        checkpoint: Whose `tokenizer.json` is read.
        max_length: The most tokens of a text, special tokens included. The closing special token
            stays the last one. The model's own limit holds where it is smaller.

    Attributes:
        max_length: As given, or what the model can take where that is less.
        added: Number of special tokens that every text gets.
        special_ids: Ids that are never indexed: cls, eos, pad, unk.

    Raises:
        ModelLoadError: If the file is unreadable, or has more tokens than the model.
        InputError: If `max_length` leaves no room for a token beside the special ones.
    """

    def __init__(self, checkpoint: Checkpoint, max_length: int) -> None:
        self._checkpoint = checkpoint
        self._rows = checkpoint.integer("vocab_size")
        self._rust = read_tokenizer(checkpoint)
        self.added = self._rust.num_special_tokens_to_add(is_pair=False)
        if max_length <= self.added:
            raise InputError(
                f"max_length must be above the {self.added} special tokens of every text, "
                f"got {max_length}"
            )
        self.max_length = min(max_length, checkpoint.max_length)
        if checkpoint.lower_case:
            normalizers = [Lowercase()]
            if self._rust.normalizer is not None:
                normalizers.append(self._rust.normalizer)
            self._rust.normalizer = NormalizerSequence(normalizers)
        # Texts are cut here and not by the Rust side: a tokenizer without a limit is needed too,
        # and a second copy of 250,000 pieces takes 100 MB.
        self._rust.no_padding()
        self._rust.no_truncation()
        # Parsing the file leaves freed memory in the heap, 14 MB for BGE-M3's.
        trim_heap()
        self._closing = self.added - self._count_opening_tokens()
        self._first_tokens = FirstTokens(self._rust)
        special_ids = set()
        for token_id, token in self._rust.get_added_tokens_decoder().items():
            if token.special and token.content in _NEVER_INDEXED:
                special_ids.add(token_id)
        self.special_ids = frozenset(special_ids)

    def split(self, text: str) -> list[int]:
        """Return all token ids of a text, uncut and without special tokens."""
        with self._checkpoint.explain("tokenizer.json fails with a text"):
            token_ids: list[int] = self._encode_one(text, special=False).ids
        return token_ids

    def normal_form(self, text: str) -> str:
        """Return a text as the tokenizer's normaliser leaves it."""
        normalizer = self._rust.normalizer
        if normalizer is None:
            return text
        with self._checkpoint.explain("tokenizer.json fails with a text"):
            normal: str = normalizer.normalize_str(text)
        return normal

    def pieces(self, text: str, *, special: bool) -> list[Piece]:
        """Return the tokens of a text with the vocabulary's entries, uncut."""
        with self._checkpoint.explain("tokenizer.json fails with a text"):
            encoding = self._encode_one(text, special=special)
        words = words_of(text, encoding.offsets, encoding.word_ids)
        rows = zip(encoding.ids, encoding.tokens, encoding.special_tokens_mask, words, strict=True)
        return [Piece(token_id, token, bool(mark), word) for token_id, token, mark, word in rows]

    def entry(self, token_id: int) -> str:
        """Return the vocabulary's entry of a token; empty if there is none of this number."""
        entry: str | None = self._rust.id_to_token(token_id)
        return entry or ""

    def _encode_one(self, text: str, *, special: bool) -> Encoding:
        """Return a text's encoding, while other threads run.

        The library's `encode` stops them all: a service would not answer for as long. Its
        `encode_batch_fast` gives no tokens' texts.
        """
        (encoding,) = self._rust.encode_batch([text], add_special_tokens=special)
        return encoding

    def __call__(self, texts: Sequence[str]) -> list[Tokenised]:
        """Tokenise valid Unicode texts (without lone surrogates), each cut at `max_length`."""
        limit = CHARACTERS_PER_TOKEN * self.max_length
        starts = ["" if len(text) > limit else text for text in texts]
        tokenised = []
        with self._checkpoint.explain("tokenizer.json fails with a text"):
            encodings = self._rust.encode_batch_fast(starts)
            for text, encoding in zip(texts, encodings, strict=True):
                ids = self._check_ids(encoding.ids)
                if len(text) > limit:
                    ids = self._first_ids(text, special_ids=ids)
                tokenised.append(self._cut(ids))
        return tokenised

    def tokenise_mixed(self, texts: Sequence[Text], prefix: str) -> list[Tokenised]:
        """Tokenise texts after a prefix; what is token ids already is only completed and cut.

        Ids get the special tokens around them and, as they stand for a whole text, no prefix.
        """
        plain_texts = [prefix + text for text in texts if isinstance(text, str)]
        tokenised_texts = iter(self(plain_texts))
        tokenised = []
        for text in texts:
            if isinstance(text, str):
                tokenised.append(next(tokenised_texts))
            else:
                ids = self._check_ids(list(text))
                tokenised.append(self._cut(self._surround(ids)))
        return tokenised

    def require_own_ids(self, token_ids: Sequence[int]) -> tuple[int, ...]:
        """Return token ids as a tuple.

        Raises:
            InputError: If one is not a whole number, or none of this vocabulary's.
        """
        ids = tuple(require_whole_number("a token id", number, least=0) for number in token_ids)
        largest = max(ids, default=0)
        if largest >= self._rows:
            raise InputError(
                f"a token id must be below {self._rows}, the size of this model's vocabulary, got "
                f"{largest}; the ids of another model's tokenizer mean other words: send the text"
            )
        return ids

    def _surround(self, ids: IntArray) -> IntArray:
        """Return a text's ids between the special tokens that every text gets."""
        special_ids = self._check_ids(self._rust.encode("").ids)
        opening = len(special_ids) - self._closing
        return np.concatenate([special_ids[:opening], ids, special_ids[opening:]])

    def _first_ids(self, text: str, special_ids: IntArray) -> IntArray:
        """Return the ids of a very long text, with special tokens, as many as are needed."""
        opening = len(special_ids) - self._closing
        # One more than there is room for tells that the text has to be cut.
        own_ids = self._first_tokens.of(text, self.max_length - len(special_ids) + 1)
        own = self._check_ids(own_ids)
        return np.concatenate([special_ids[:opening], own, special_ids[opening:]])

    def _check_ids(self, token_ids: list[int]) -> IntArray:
        """Return the ids as an array, after holding them against the model's table of tokens.

        A vocabulary may give its few tokens any ids.
        """
        ids = np.array(token_ids, dtype=np.int64)
        if ids.max(initial=0) >= self._rows:
            raise self._checkpoint.problem(
                f"tokenizer.json gives a token the id {ids.max()}, but the model has "
                f"{self._rows} tokens; they belong to different models"
            )
        return ids.astype(np.int32)

    def _cut(self, ids: IntArray) -> Tokenised:
        """Shorten a text's token ids to `max_length`; the closing special tokens stay."""
        if len(ids) <= self.max_length:
            return Tokenised(ids, truncated=False)
        start = ids[: self.max_length - self._closing]
        closing = ids[len(ids) - self._closing :]
        return Tokenised(np.concatenate([start, closing]), truncated=True)

    def _count_opening_tokens(self) -> int:
        """Return how many special tokens stand before a text's own."""
        for text in _PROBES:
            sequence_ids = self._rust.encode(text).sequence_ids
            if 0 in sequence_ids:
                return int(sequence_ids.index(0))
        return self.added


def cut_characters(text: str, max_length: int) -> str:
    """Return as much of a very long text as fills `max_length` tokens, cut where a word ends.

    Both tokenizer families split at white space before anything else, so the tokens of the start
    are the first tokens of the whole. Where they turn out too few, the caller tokenises the whole.
    That saves a gigabyte and ten seconds on a text of ten million characters.
    """
    limit = CHARACTERS_PER_TOKEN * max_length
    if len(text) <= limit:
        return text
    end = max(text.rfind(space, 0, limit) for space in " \n\t")
    return text[:end] if end > 0 else text
