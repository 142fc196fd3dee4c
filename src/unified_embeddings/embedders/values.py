"""The values that embedders give besides vectors.

What lives here: counters, lengths and tokens of texts. What does not: the interface (`base`).
"""

from __future__ import annotations

from dataclasses import dataclass

from unified_embeddings.cache.embedding_cache import CacheStats
from unified_embeddings.embedders.pass_times import PassTimes

SPECIAL_TOKENS = 2
"""Special tokens of every text in the architectures in use: one at the start, one at the end."""


@dataclass(frozen=True)
class EmbedderStats:
    """What an embedder has done since it was made.

    Attributes:
        texts: Texts asked for.
        tokenised: Texts tokenised: those with a vector that was not in the cache.
        truncated: Of those, how many were longer than `max_length` and cut.
        tokens: Tokens run through the model, special tokens included.
        batches: Batches formed.
        forwards: Batches run. The engine onnx runs once for each length in a batch.
        cache: The cache's counters.
        capacity: Tokens that the batches run had room for; `tokens` of them were used. 0 where
            batches have no bound of ours, as with a service.
        passes: How long the batches run took, by model and length; empty where no model runs here.

    Example:
        >>> from unified_embeddings.embedders.fake import FakeEmbedder
        >>> embedder = FakeEmbedder()
        >>> _ = embedder.encode_documents(["Foxes jump.", "Dogs sleep."])
        >>> embedder.stats().texts
        2
    """

    texts: int
    tokenised: int
    truncated: int
    tokens: int
    batches: int
    forwards: int
    cache: CacheStats
    capacity: int = 0
    passes: tuple[PassTimes, ...] = ()


@dataclass(frozen=True)
class TextLength:
    """How much of a text a model reads.

    Attributes:
        tokens: Tokens that run through the model, prefix and special tokens included.
        truncated: Whether the text was longer than that and is cut.

    Example:
        >>> from unified_embeddings.embedders.fake import FakeEmbedder
        >>> FakeEmbedder().measure(["Foxes jump."])
        [TextLength(tokens=4, truncated=False)]
    """

    tokens: int
    truncated: bool


@dataclass(frozen=True)
class Piece:
    """One token of a text.

    Attributes:
        token_id: Its number in the vocabulary.
        text: The vocabulary's entry; empty where the embedder has no vocabulary.
        is_special: Whether it marks the start or the end, and stands for no part of the text.
        word: The word that it is all or a part of, as the text has it; empty for special tokens,
            and where the embedder has no vocabulary.
    """

    token_id: int
    text: str
    is_special: bool
    word: str = ""
