"""Texts to token ids, once each.

What lives here: the checkpoint's own tokenizer (Rust, `tokenizers`) without padding, truncating at
`max_length`. What does not: batching (`embedder`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from tokenizers import Tokenizer as RustTokenizer
from tokenizers.normalizers import Lowercase
from tokenizers.normalizers import Sequence as Chain

from unified_embeddings.errors import InputError
from unified_embeddings.models.checkpoint import Checkpoint
from unified_embeddings.system.memory import trim_heap
from unified_embeddings.types import IntArray

_NEVER_INDEXED = frozenset(("<s>", "</s>", "<pad>", "<unk>", "[CLS]", "[SEP]", "[PAD]", "[UNK]"))
"""cls, eos, pad and unk in the two vocabularies in use; <mask> is indexed, as BGE-M3 does."""

_CHARACTERS_PER_TOKEN = 64
"""More than tokens have in text of any language; see `start_of`."""


class Tokenised(NamedTuple):
    """Token ids of one text, int32 (t,), special tokens included, and whether it was cut."""

    ids: IntArray
    truncated: bool


class Tokenizer:
    """A checkpoint's tokenizer, cut at `max_length` tokens. Thread-safe: nothing changes after.

    Args:
        checkpoint: Where `tokenizer.json` lies.
        max_length: Most tokens of a text, special tokens included; the last one stays the closing
            special token. Cut down to what the model can take.

    Attributes:
        max_length: As given, or what the model can take where that is less.
        added: Special tokens that every text gets.
        special_ids: Ids that are never indexed: cls, eos, pad, unk.

    Raises:
        ModelLoadError: If the file is unreadable, or has more tokens than the model.
        InputError: If `max_length` leaves no room for a token beside the special ones.
    """

    def __init__(self, checkpoint: Checkpoint, max_length: int) -> None:
        path = checkpoint.tokenizer_file
        try:
            self._rust = RustTokenizer.from_file(str(path))
        except Exception as error:  # the Rust side raises bare Exception
            raise checkpoint.problem(f"{path.name} is no tokenizer file ({error})") from error
        size, rows = self._rust.get_vocab_size(), checkpoint.integer("vocab_size")
        if size > rows:
            raise checkpoint.problem(
                f"tokenizer.json has {size} tokens, but the model only {rows}; they belong to "
                "different models"
            )
        added = self._rust.num_special_tokens_to_add(is_pair=False)
        if not added:
            raise checkpoint.problem(
                "its tokenizer adds no special tokens, so that a blank text would have none at all"
            )
        if max_length <= added:
            raise InputError(
                f"max_length must be above the {added} special tokens of every text, "
                f"got {max_length}"
            )
        self.max_length = min(max_length, checkpoint.max_length)
        if checkpoint.lower_case:
            first = [Lowercase(), *filter(None, [self._rust.normalizer])]
            self._rust.normalizer = Chain(first)
        self._rust.no_padding()
        self._rust.no_truncation()
        trim_heap()  # what parsing the file has left, 14 MB of BGE-M3's
        # Cut here and not by the Rust side: one without a limit is needed too, and a second copy of
        # 250,000 pieces takes 100 MB.
        self.added = added
        self._closing = added - self._opening()
        self.special_ids = frozenset(
            token_id
            for token_id, token in self._rust.get_added_tokens_decoder().items()
            if token.special and token.content in _NEVER_INDEXED
        )

    def split(self, text: str) -> list[int]:
        """All token ids of a text, uncut and without special tokens."""
        ids: list[int] = self._rust.encode(text, add_special_tokens=False).ids
        return ids

    def __call__(self, texts: Sequence[str]) -> list[Tokenised]:
        """Tokenise valid Unicode texts (no lone surrogates)."""
        tokenised = self._encode([start_of(text, self.max_length) for text in texts])
        for i, text in enumerate(texts):
            if len(text) > _CHARACTERS_PER_TOKEN * self.max_length and not tokenised[i].truncated:
                tokenised[i] = self._encode([text])[0]
        return tokenised

    def _encode(self, texts: list[str]) -> list[Tokenised]:
        return [
            self._cut(np.array(encoding.ids, dtype=np.int32))
            for encoding in self._rust.encode_batch_fast(texts)
        ]

    def _cut(self, ids: IntArray) -> Tokenised:
        if len(ids) <= self.max_length:
            return Tokenised(ids, truncated=False)
        kept = self.max_length - self._closing
        return Tokenised(np.concatenate([ids[:kept], ids[len(ids) - self._closing :]]), True)

    def _opening(self) -> int:
        """How many special tokens stand before a text's own."""
        for text in ("a", "1", ".", "a b"):
            sources = self._rust.encode(text).sequence_ids
            if 0 in sources:
                return int(sources.index(0))
        return int(self._rust.num_special_tokens_to_add(is_pair=False))


def start_of(text: str, max_length: int) -> str:
    """As much of a very long text as will fill `max_length` tokens, cut where a word ends.

    Both tokenizer families split at white space before anything else, so the tokens of the start
    are the first tokens of the whole; where they turn out too few, the whole is tokenised after
    all. It saves a gigabyte and ten seconds on a text of ten million characters.
    """
    limit = _CHARACTERS_PER_TOKEN * max_length
    if len(text) <= limit:
        return text
    at = max(text.rfind(space, 0, limit) for space in " \n\t")
    return text[:at] if at > 0 else text
