"""What every embedder of texts does, whatever models it is made of.

What lives here: the interface, and checking what a caller asks for. What does not: computing
vectors. `cached` puts a cache in front of one model, `paired` joins two.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import TypeVar

from unified_embeddings.cache.embedding_cache import EmbeddingCache
from unified_embeddings.embedders.calls import WatchedCalls, choose_heads
from unified_embeddings.embedders.lazy import Closeable, LocalModel
from unified_embeddings.embedders.pooling import PooledRows, pool_rows
from unified_embeddings.embedders.values import SPECIAL_TOKENS, EmbedderStats, Piece, TextLength
from unified_embeddings.errors import InputError
from unified_embeddings.models.calibration import Calibration
from unified_embeddings.models.fusion import DEFAULT_FUSION, Fusion
from unified_embeddings.types import (
    Embeddings,
    FloatArray,
    HeadName,
    Options,
    Role,
    Text,
)
from unified_embeddings.validation import require_texts, require_whole_number

Result = TypeVar("Result")


class TextEmbedder(WatchedCalls, Closeable):
    """What every embedder of texts does: one model, a pair of models, or CLIP's text half.

    Attributes:
        model_name: The choice, hub id, folder or file it was made with.
        heads: What it can produce.
        cache: Where its vectors are kept.

    All methods are thread-safe.

    Example:
        >>> from unified_embeddings import TextEmbedder
        >>> from unified_embeddings.embedders.fake import FakeEmbedder
        >>> embedder: TextEmbedder = FakeEmbedder(dimension=8)
        >>> embeddings = embedder.encode_documents(["Foxes jump.", "Dogs sleep."], colbert=True)
        >>> embeddings.dense.shape, len(embeddings.sparse), embeddings.colbert[0].shape
        ((2, 8), 2, (3, 8))
    """

    model_name: str
    heads: tuple[HeadName, ...]
    cache: EmbeddingCache

    # --- what a subclass says -------------------------------------------------------------------

    @property
    @abstractmethod
    def models(self) -> tuple[LocalModel, ...]:
        """Return the models it is made of, each on its own."""

    @property
    @abstractmethod
    def options(self) -> Options:
        """Return the options but `model_name` and `cache`, as plain values that fit into JSON."""

    @property
    @abstractmethod
    def dimension(self) -> int:
        """Return the width of the dense vectors."""

    @property
    @abstractmethod
    def max_length(self) -> int:
        """Return the most tokens of a text, special tokens included; longer texts are cut."""

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """Return what two embedders must share for their vectors to compare, as 32 hex digits."""

    @abstractmethod
    def tokenise(self, text: str) -> list[int]:
        """Return all token ids of a text, uncut and without special tokens; loads no weights.

        For counting tokens as the model will, as `UnifiedSentenceSplitter` does.

        Raises:
            InputError: If it is not a str or holds lone surrogates.
        """

    @abstractmethod
    def stats(self) -> EmbedderStats:
        """Return the counters since the embedder was made."""

    @abstractmethod
    def _encode(
        self, texts: Sequence[Text], role: Role, heads: tuple[HeadName, ...], show_progress: bool
    ) -> Embeddings:
        """Embed texts that were checked; `heads` are some that the model has, at least one."""

    # --- what follows from it -------------------------------------------------------------------

    @property
    def former_fingerprints(self) -> tuple[str, ...]:
        """Return the fingerprints that earlier versions gave it, to recognise their collections."""
        return ()

    @property
    def model_names(self) -> tuple[str, ...]:
        """Return the names of the models it is made of; its own name where there is none."""
        return tuple(model.model_name for model in self.models) or (self.model_name,)

    @property
    def revision(self) -> str:
        """Return the commit of the models' files, or their digest, joined by "+"."""
        return "+".join(model.revision for model in self.models)

    @property
    def fusion(self) -> Fusion:
        """Return how its dense and sparse rankings are fused, unless a caller says otherwise."""
        return DEFAULT_FUSION

    @property
    def calibration(self) -> Calibration | None:
        """Return how likely a hit is relevant, from its scores in both rankings; None: not known.

        It holds for this embedder's dense and sparse vectors together.
        """
        return None

    @property
    def sparse_idf(self) -> bool:
        """Tell whether a collection multiplies sparse scores by its tokens' IDF."""
        return False

    @property
    def document_length(self) -> int:
        """Return the most tokens of a document's own: without special tokens and prefix."""
        return self.max_length - SPECIAL_TOKENS

    def announce(self, texts: Sequence[str]) -> None:
        """Say which texts `tokenise` is asked for next, so that a service is asked once for all."""

    def measure(self, texts: Iterable[str], *, role: Role = "document") -> list[TextLength]:
        """Return how many tokens of each text the model reads; loads no weights.

        Args:
            texts: n texts.
            role: What they will be embedded as, since prefixes differ.

        Raises:
            InputError: If an item is not a str or holds lone surrogates.
        """
        del role  # This embedder has no prefixes.
        lengths = []
        for text in require_texts(texts):
            tokens = len(self.tokenise(text)) + SPECIAL_TOKENS
            is_cut = tokens > self.max_length
            lengths.append(TextLength(min(tokens, self.max_length), truncated=is_cut))
        return lengths

    def split(self, text: str, *, special: bool = False) -> list[Piece]:
        """Return a text's tokens with what they stand for; loads no weights.

        Args:
            text: Any text; it is not cut.
            special: Whether the special tokens around it are given too.

        Raises:
            InputError: If it is not a str or holds lone surrogates.
        """
        del special  # This embedder has none.
        return [Piece(token_id, "", is_special=False) for token_id in self.tokenise(text)]

    def vocabulary_entry(self, token_id: int) -> str:
        """Return what a token id stands for; empty where the embedder has no vocabulary."""
        del token_id
        return ""

    def normal_form(self, text: str) -> str:
        """Return what the model makes of a text before it splits it; loads no weights.

        Texts of the same normal form get the same vectors.
        """
        return text

    def require_token_ids(self, token_ids: Sequence[int]) -> tuple[int, ...]:
        """Return the token ids of a text in the form that `encode` takes, checked.

        Raises:
            InputError: If they are not this model's, or it takes texts only.
        """
        del token_ids
        raise InputError(f"{self.model_name!r} takes texts, not token ids; send the text itself")

    def encode(self, texts: Sequence[Text], *, role: Role, heads: Sequence[HeadName]) -> Embeddings:
        """Embed texts in a role, giving the heads named; what the other methods are short for.

        Args:
            texts: n texts, or token ids that `require_token_ids` has checked, also mixed.
            role: "document" or "query".
            heads: What to give, at least one.

        Returns:
            Embeddings of length n in the order given.

        Raises:
            InputError: As in `encode_documents`.
        """
        chosen = self._choose_heads(
            dense="dense" in heads, sparse="sparse" in heads, colbert="colbert" in heads
        )
        require_texts([text for text in texts if not isinstance(text, tuple)])
        with self._watched(texts, role, chosen) as call:
            call.embeddings = embeddings = self._encode(texts, role, chosen, show_progress=False)
        return embeddings

    def close(self) -> None:
        """Release the models' memory. The cache stays. Calls that need the model then fail."""
        for model in self.models:
            model.close()

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
            ModelLoadError: If the model cannot be loaded.
            MissingExtraError: If a library that the model needs is not installed.
        """
        heads = self._choose_heads(dense=dense, sparse=sparse, colbert=colbert)
        checked = require_texts(texts)
        with self._watched(checked, "document", heads) as call:
            call.embeddings = embeddings = self._encode(
                checked, "document", heads, show_progress=show_progress
            )
        return embeddings

    def encode_queries(
        self,
        texts: Iterable[str],
        *,
        dense: bool | None = None,
        sparse: bool | None = None,
        colbert: bool = False,
        show_progress: bool = False,
    ) -> Embeddings:
        """Embed texts to search with; like `encode_documents`, but with the model's query prefix.

        BGE-M3 has no prefix: a text gives the same vectors in both roles. With mini-m3, a token
        that a query repeats has the sum of its weights in the sparse vector.
        """
        heads = self._choose_heads(dense=dense, sparse=sparse, colbert=colbert)
        checked = require_texts(texts)
        with self._watched(checked, "query", heads) as call:
            call.embeddings = embeddings = self._encode(
                checked, "query", heads, show_progress=show_progress
            )
        return embeddings

    def encode_query(
        self,
        text: str,
        *,
        dense: bool | None = None,
        sparse: bool | None = None,
        colbert: bool = False,
    ) -> Embeddings:
        """Embed one text to search with.

        Returns:
            Embeddings of length 1.

        Raises:
            InputError: If `text` is not one str; otherwise like `encode_documents`.
        """
        if not isinstance(text, str):
            raise InputError(f"a query must be one str, got {type(text).__name__}")
        heads = self._choose_heads(dense=dense, sparse=sparse, colbert=colbert)
        checked = require_texts([text])
        with self._watched(checked, "query", heads) as call:
            call.embeddings = embeddings = self._encode(
                checked, "query", heads, show_progress=False
            )
        return embeddings

    # --- pooled rows ----------------------------------------------------------------------------

    def encode_pooled(self, texts: Iterable[str], factor: int) -> list[FloatArray]:
        """Return the ColBERT vectors of texts to be searched, pooled (see `embedders.pooling`).

        Args:
            texts: n texts; their n arrays float32 (k_i, d) come in the same order.
            factor: About how many rows become one; 1 pools nothing.

        Raises:
            InputError: As in `encode_documents`, or if `factor` is not a whole number >= 1.
        """
        require_whole_number("factor", factor)
        heads = self._choose_heads(dense=False, sparse=False, colbert=True)
        checked = require_texts(texts)
        with self._watched(checked, "document", heads) as call:
            rows = self._encode_pooled(checked, factor)
            call.embeddings = Embeddings(dense=None, sparse=None, colbert=rows)
        return rows

    def want_pooled(self, factor: int) -> PooledRows | None:
        """Have pooled rows computed and cached in the pass that gives documents' dense vectors.

        A store that holds them asks for this: LlamaIndex embeds nodes first and adds them then.
        Hold what is returned as long as that is wanted; it is None where there is no such pass.
        """
        del factor
        return None

    def _encode_pooled(self, texts: Sequence[str], factor: int) -> list[FloatArray]:
        embeddings = self._encode(texts, "document", ("colbert",), show_progress=False)
        return [pool_rows(rows, factor) for rows in embeddings.colbert or ()]

    # --- the same for coroutines ----------------------------------------------------------------

    async def in_thread(self, function: Callable[[], Result]) -> Result:
        """Await a function that embeds, in a thread that may wait for this embedder.

        A model computes, so its calls run in the event loop's own threads, which are few. An
        embedder that only waits for a service has threads of its own, so that the loop's stay free.
        """
        import asyncio  # of no use where nothing is awaited, and slow to import

        return await asyncio.to_thread(function)

    async def aencode_documents(
        self,
        texts: Iterable[str],
        *,
        dense: bool | None = None,
        sparse: bool | None = None,
        colbert: bool = False,
    ) -> Embeddings:
        """Like `encode_documents`, but without blocking the event loop."""
        return await self.in_thread(
            partial(self.encode_documents, texts, dense=dense, sparse=sparse, colbert=colbert)
        )

    async def aencode_queries(
        self,
        texts: Iterable[str],
        *,
        dense: bool | None = None,
        sparse: bool | None = None,
        colbert: bool = False,
    ) -> Embeddings:
        """Like `encode_queries`, but without blocking the event loop."""
        return await self.in_thread(
            partial(self.encode_queries, texts, dense=dense, sparse=sparse, colbert=colbert)
        )

    async def aencode_query(
        self,
        text: str,
        *,
        dense: bool | None = None,
        sparse: bool | None = None,
        colbert: bool = False,
    ) -> Embeddings:
        """Like `encode_query`, but without blocking the event loop."""
        return await self.in_thread(
            partial(self.encode_query, text, dense=dense, sparse=sparse, colbert=colbert)
        )

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.model_name!r})"

    def _choose_heads(
        self, *, dense: bool | None, sparse: bool | None, colbert: bool
    ) -> tuple[HeadName, ...]:
        """Return the heads asked for; None asks for a head where the model has it.

        Raises:
            InputError: If that is none, or one that the model does not give.
        """
        return choose_heads(
            self.model_name, self.heads, dense=dense, sparse=sparse, colbert=colbert
        )
