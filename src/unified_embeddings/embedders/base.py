"""What every embedder of texts does, whatever models it is made of."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any

from unified_embeddings.cache.embedding_cache import CacheStats, EmbeddingCache
from unified_embeddings.errors import InputError
from unified_embeddings.types import (
    HEAD_NAMES,
    Embeddings,
    HeadName,
    Role,
)

if TYPE_CHECKING:
    from unified_embeddings.embedders.bge_m3 import BGE_M3_Embedder


@dataclass(frozen=True)
class EmbedderStats:
    """What an embedder has done since it was made.

    Attributes:
        texts: Texts asked for.
        tokenised: Texts tokenised: those with a vector that was not in the cache.
        truncated: Of those, how many were longer than `max_length` and cut.
        tokens: Tokens run through the model, special tokens included.
        batches: Batches formed.
        forwards: Batches run; the engine onnx passes once over each length in one.
        cache: The cache's counters.
    """

    texts: int
    tokenised: int
    truncated: int
    tokens: int
    batches: int
    forwards: int
    cache: CacheStats


class TextEmbedder(ABC):
    """What every embedder of texts does: one model, two beside each other, or CLIP's text half.

    Attributes:
        model_name: The choice, hub id, folder or file it was made with.
        heads: What it can produce.
        cache: Where its vectors are kept.

    All methods are thread-safe.
    """

    model_name: str
    heads: tuple[HeadName, ...]
    cache: EmbeddingCache

    @property
    @abstractmethod
    def options(self) -> dict[str, Any]:
        """The options it was made with but `model_name` and `cache`: plain values, fit for JSON."""

    @property
    @abstractmethod
    def dimension(self) -> int:
        """Width of the dense vectors."""

    @property
    @abstractmethod
    def max_length(self) -> int:
        """Most tokens of a text, special tokens included: the smaller of asked for and possible."""

    @property
    @abstractmethod
    def document_length(self) -> int:
        """Most tokens of a document's own: `max_length` less special tokens and prefix."""

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """What two embedders must share for their vectors to compare, as 32 hex digits."""

    @property
    @abstractmethod
    def revision(self) -> str:
        """The commit of the model's files, or their digest."""

    @property
    @abstractmethod
    def parts(self) -> tuple[BGE_M3_Embedder, ...]:
        """The models it is made of, each on its own."""

    @abstractmethod
    def tokenise(self, text: str) -> list[int]:
        """All token ids of a text, uncut and without special tokens; loads no weights.

        For text splitters: `SentenceSplitter(tokenizer=embedder.tokenise)` measures chunks as the
        model will.

        Raises:
            InputError: If it is not a str or holds lone surrogates.
        """

    @abstractmethod
    def stats(self) -> EmbedderStats:
        """Counters since the embedder was made."""

    @abstractmethod
    def close(self) -> None:
        """Let go of the model's memory; the cache stays. Calls that need the model then fail."""

    @abstractmethod
    def _encode(
        self, texts: list[str], role: Role, wanted: tuple[HeadName, ...], show_progress: bool
    ) -> Embeddings: ...

    def encode_documents(
        self,
        texts: Iterable[str],
        *,
        dense: bool | None = None,
        sparse: bool | None = None,
        colbert: bool = False,
        show_progress: bool = False,
    ) -> Embeddings:
        """Embed texts to be searched.

        Args:
            texts: n texts; none gives an empty result, a blank text is a text.
            dense: Whether to give dense vectors; None gives them where the model has them.
            sparse: Whether to give sparse vectors; None gives them where the model has them.
            colbert: Whether to give ColBERT vectors; at least one of the three.
            show_progress: Draw a progress bar on standard error.

        Returns:
            Embeddings of length n in the order given: dense float32 (n, dimension); n sparse
            vectors; n ColBERT arrays float32 (t_i, d).

        Raises:
            InputError: If an item is not a str or holds lone surrogates (its index is named), no
                head is asked for, or one that the model does not give.
            ModelLoadError, MissingExtraError: If the model cannot be loaded.
        """
        return self._ask(texts, "document", (dense, sparse, colbert), show_progress)

    def encode_queries(
        self,
        texts: Iterable[str],
        *,
        dense: bool | None = None,
        sparse: bool | None = None,
        colbert: bool = False,
        show_progress: bool = False,
    ) -> Embeddings:
        """Embed texts to search with; as `encode_documents`, with the model's query prefix.

        BGE-M3 has no prefix: a text gives the same vectors in both roles.
        """
        return self._ask(texts, "query", (dense, sparse, colbert), show_progress)

    def encode_query(
        self,
        text: str,
        *,
        dense: bool | None = None,
        sparse: bool | None = None,
        colbert: bool = False,
    ) -> Embeddings:
        """Embed one text to search with: an Embeddings of length 1.

        Raises:
            As `encode_documents`.
        """
        if not isinstance(text, str):
            raise InputError(f"a query must be one str, got {type(text).__name__}")
        return self._ask([text], "query", (dense, sparse, colbert), show_progress=False)

    def __enter__(self) -> TextEmbedder:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.model_name!r})"

    def _ask(
        self,
        texts: Iterable[str],
        role: Role,
        asked: tuple[bool | None, bool | None, bool],
        show_progress: bool,
    ) -> Embeddings:
        wanted = tuple(
            head
            for head, on in zip(HEAD_NAMES, asked, strict=True)
            if on or (on is None and head in self.heads)
        )
        if not wanted:
            raise InputError("ask for at least one of dense, sparse and colbert")
        for head in wanted:
            if head not in self.heads:
                raise InputError(
                    f"{self.model_name!r} gives {' and '.join(self.heads)} vectors, no {head} ones;"
                    f" leave {head} out, or take a model that gives them"
                )
        return self._encode(validated(texts), role, wanted, show_progress)


def check_limits(max_length: Any, batch_tokens: Any) -> None:
    """Refuse limits that are no whole numbers above 0.

    Raises:
        InputError: If one is not; it is named.
    """
    for name, value in (("max_length", max_length), ("batch_tokens", batch_tokens)):
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise InputError(f"{name} must be a whole number above 0, got {value!r}")


def validated(texts: Iterable[str]) -> list[str]:
    """The texts as a list, each a str of valid Unicode.

    Raises:
        InputError: If they are not; the first bad item's index is named.
    """
    if isinstance(texts, str | bytes) or not isinstance(texts, Iterable):
        raise InputError(
            f"expected a list of texts, got {type(texts).__name__}; put a single text into a list"
        )
    items = list(texts)
    for index, item in enumerate(items):
        if not isinstance(item, str):
            raise InputError(f"expected a str, got {type(item).__name__}", index=index)
        try:
            item.encode()
        except UnicodeEncodeError as error:
            raise InputError(
                f"holds a lone surrogate at character {error.start}, which is no valid Unicode; "
                "read the text with the right encoding or errors='replace'",
                index=index,
            ) from None
    return items
