"""The embedder: texts in, dense, sparse and ColBERT vectors out, in one forward pass.

What lives here: a text's way through validation, cache, tokenizer, batches and engine, and back
into the caller's order. What does not: the forward pass (`engines`), the arithmetic on its outputs
(`heads`), LlamaIndex (`llama`).
"""

from __future__ import annotations

import logging
import os
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Literal, TypeVar, cast

import numpy as np

from unified_embeddings import heads
from unified_embeddings.cache.embedding_cache import CacheStats, EmbeddingCache, Value, key_for
from unified_embeddings.embedders.tokenization import Tokenised, Tokenizer
from unified_embeddings.engines import base as engines
from unified_embeddings.engines.base import Engine, RawHeads, Runtime
from unified_embeddings.errors import InputError, UnifiedEmbeddingsError
from unified_embeddings.models.checkpoint import Checkpoint, require_consent, resolve
from unified_embeddings.models.spec import ModelSpec, spec_for
from unified_embeddings.system.progress import progress_bar
from unified_embeddings.types import (
    HEAD_NAMES,
    Embeddings,
    FloatArray,
    HeadName,
    Role,
    SparseVector,
)

_LOG = logging.getLogger(__name__)
_HEAD_START = 0.03
"""Seconds; see `_tokenizer_soon`."""
_Item = TypeVar("_Item")
_Done = TypeVar("_Done")
_WINDOW = 1024
"""Texts tokenised ahead of the model: enough to batch by length, little enough to hold."""


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


class BGE_M3_Embedder(TextEmbedder):
    """BGE-M3, or any checkpoint in its layout: every vector of a text from one forward pass.

    Making one is cheap: files are looked up when something about the model is asked, weights are
    loaded with the first text that is not in the cache, once however many threads ask. All methods
    are thread-safe.

    Args:
        model_name: A choice ("bge-m3", "arctic", ...; see `models.MODELS`), a hub id or a folder in
            BGE-M3's layout, a TOML file with a spec, or a ModelSpec.
        engine: "auto" takes what runs the model best; "torch", "onnx" (ONNX Runtime; exports the
            model into the user's cache folder the first time), "sentence" (sentence-transformers)
            or "flag" (FlagEmbedding, the reference).
        precision: "auto" reads the hardware; "fp32", "bf16", "fp16", or "int8" (engine "onnx").
        device: "auto" takes a GPU where there is one; else as torch writes it.
        max_length: Most tokens of a text, special tokens included; longer texts are cut and
            counted. The model's own limit holds where it is smaller.
        batch_tokens: Tokens in one forward pass at most; a longer text makes a pass of its own.
        cache: "auto" makes an EmbeddingCache of 256 MiB, None keeps nothing; one cache may serve
            several embedders.
        revision: Branch, tag or commit on the hub.
        local_files_only: Never ask the hub.
        trust_remote_code: Whether a model whose spec says so may run code from its repository,
            pinned to a commit.

    Raises:
        InputError: If an option is out of range, or the choice is two models, or one of images.
            What is wrong with the model or the hardware is raised by the first call that needs to
            know: ModelLoadError, MissingExtraError, InputError.
    """

    def __init__(
        self,
        model_name: str | os.PathLike[str] | ModelSpec = "BAAI/bge-m3",
        *,
        engine: str = "auto",
        precision: str = "auto",
        device: str = "auto",
        max_length: int = 8192,
        batch_tokens: int = 4096,
        cache: EmbeddingCache | Literal["auto"] | None = "auto",
        revision: str | None = None,
        local_files_only: bool = False,
        trust_remote_code: bool = False,
    ) -> None:
        check_limits(max_length, batch_tokens)
        if cache is not None and cache != "auto" and not isinstance(cache, EmbeddingCache):
            raise InputError(
                f'cache must be an EmbeddingCache, None or "auto", not {type(cache).__name__}'
            )
        self._spec = spec_for(model_name)
        if self._spec.images:
            raise InputError(
                f"{self._spec.choice!r} embeds images too; take a ClipEmbedder, or name it as "
                "UnifiedEmbeddingConfig's model_choice"
            )
        if self._spec.sparse_model:
            raise InputError(
                f"{self._spec.choice!r} is two models, {self._spec.model_id} and "
                f"{self._spec.sparse_model}; make_embedder() puts them together"
            )
        own = isinstance(model_name, ModelSpec)
        self.model_name = self._spec.choice if own else os.fspath(cast("str", model_name))
        self.heads = self._spec.heads
        self._options: dict[str, Any] = {
            "engine": engine,
            "precision": precision,
            "device": device,
            "max_length": max_length,
            "batch_tokens": batch_tokens,
            "cache": cache,
            "revision": revision,
            "local_files_only": local_files_only,
            "trust_remote_code": trust_remote_code,
        }
        if own:
            self._options["spec"] = self._spec.to_dict()
        self._batch_tokens = batch_tokens
        if cache is None:
            cache = EmbeddingCache(max_bytes=0)
        self.cache: EmbeddingCache = EmbeddingCache() if cache == "auto" else cache
        self._load_lock = threading.RLock()
        self._checkpoint: Checkpoint | None = None
        self._runtime: Runtime | None = None
        self._tokenizer: Tokenizer | None = None
        self._engine: Engine | None = None
        self._closed = False
        self._count_lock = threading.Lock()
        self._counts = dict.fromkeys(
            ("texts", "tokenised", "truncated", "tokens", "batches", "forwards"), 0
        )

    # --- what it is -----------------------------------------------------------------------------

    @property
    def checkpoint(self) -> Checkpoint:
        """The model's files; looked up at the first call."""
        with self._load_lock:
            if self._checkpoint is None:
                revision = self._options["revision"]
                require_consent(self._spec, revision, given=self._options["trust_remote_code"])
                self._checkpoint = resolve(
                    self._spec,
                    revision=revision,
                    local_files_only=self._options["local_files_only"],
                )
            return self._checkpoint

    @property
    def runtime(self) -> Runtime:
        """Engine, device and precision that texts are, or will be, run on."""
        with self._load_lock:
            if self._runtime is None:
                options, engine = self._options, self._options["engine"]
                if engine == "auto":
                    wanted = "onnx" if options["precision"] == "int8" else self._spec.engine
                    engine = wanted or engines.best_for(self.checkpoint)
                self._runtime = engines.plan(
                    engine, options["precision"], options["device"], lambda: self.checkpoint
                )
            return self._runtime

    @property
    def options(self) -> dict[str, Any]:
        """The options it was made with but `model_name` and `cache`: plain values, fit for JSON."""
        return {name: value for name, value in self._options.items() if name != "cache"}

    @property
    def dimension(self) -> int:
        """Width of the dense vectors."""
        return self.checkpoint.dimension

    @property
    def revision(self) -> str:
        """The commit of the model's files, or their digest."""
        return self.checkpoint.revision

    @property
    def max_length(self) -> int:
        """Most tokens of a text, special tokens included: the smaller of asked for and possible."""
        return min(int(self._options["max_length"]), self.checkpoint.max_length)

    @property
    def document_length(self) -> int:
        """Most tokens of a document's own: `max_length` less special tokens and prefix."""
        tokenizer = self._load_tokenizer()
        return (
            tokenizer.max_length
            - tokenizer.added
            - len(tokenizer.split(self._spec.document_prefix))
        )

    @property
    def fingerprint(self) -> str:
        """What two embedders must share for their vectors to compare, as 32 hex digits.

        A digest over the model's content, pooling and prefixes. Engine, precision and `max_length`
        are left out: they move a vector a little, not into another space.
        """
        spec = self._spec
        more = [] if spec.normalise else ["not normalised"]
        return key_for(
            "fingerprint 1", self.checkpoint.digest, spec.document_prefix, spec.query_prefix,
            *((spec.query_adapter, spec.document_adapter) if spec.adapters else ()), *more,
        ).hex()  # fmt: skip

    @property
    def parts(self) -> tuple[BGE_M3_Embedder, ...]:
        """Itself; see `TextEmbedder.parts`."""
        return (self,)

    @property
    def spec(self) -> ModelSpec:
        """What is known of the model."""
        return self._spec

    def weights(self) -> Iterator[tuple[int, int]]:
        """Address and bytes of each stretch of weights; none before the model is loaded."""
        engine = self._engine
        return iter(()) if engine is None else engine.weights()

    def stats(self) -> EmbedderStats:
        """Counters since the embedder was made."""
        with self._count_lock:
            counts = dict(self._counts)
        return EmbedderStats(**counts, cache=self.cache.stats())

    def tokenise(self, text: str) -> list[int]:
        """All token ids of a text, uncut and without special tokens; see `TextEmbedder`."""
        (valid,) = validated([text])
        return self._load_tokenizer().split(valid)

    def close(self) -> None:
        """Let go of the model's memory; the cache stays. Calls that need the model then fail."""
        with self._load_lock:
            self._closed = True
            self._engine = self._tokenizer = None

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled as its options: a copy loads the model anew with its first text."""
        return _rebuild, (type(self), self.model_name, self._options)

    # --- a text's way ---------------------------------------------------------------------------

    def _encode(
        self, items: list[str], role: Role, wanted: tuple[HeadName, ...], show_progress: bool
    ) -> Embeddings:
        self._count(texts=len(items))
        if not items:
            return _assemble([], wanted, self.dimension if "dense" in wanted else 0)
        runtime, checkpoint, spec = self.runtime, self.checkpoint, self._spec
        model = key_for(
            "vector 1", checkpoint.digest, runtime.engine, runtime.precision, role,
            spec.prefix(role), str(self.max_length), checkpoint.pooling,
            "l2" if spec.normalise else "raw", *filter(None, [spec.adapter(role)]),
        )  # fmt: skip
        keys = [key_for(model, head, text) for text in items for head in wanted]

        def compute(positions: list[int]) -> Iterator[tuple[int, Value]]:
            missing: dict[int, list[int]] = {}
            for position in positions:
                missing.setdefault(position // len(wanted), []).append(position)
            needed = frozenset(wanted[position % len(wanted)] for position in positions)
            with progress_bar("Embedding", len(missing), shown=show_progress) as advance:
                for row, values in self._run(items, list(missing), role, needed):
                    for position in missing[row]:
                        yield position, values[wanted[position % len(wanted)]]
                    advance(1)

        return _assemble(self.cache.get_or_compute(keys, compute), wanted, 0)

    def _run(
        self, texts: list[str], rows: list[int], role: Role, needed: frozenset[HeadName]
    ) -> Iterator[tuple[int, dict[HeadName, Value]]]:
        """Tokenise and run the texts in `rows`; yields each row's vectors as its batch is done."""
        tokenizer, engine = self._load()
        prefix, normalise = self._spec.prefix(role), self._spec.normalise

        def tokenise(window: list[int]) -> list[Tokenised]:
            return tokenizer([prefix + texts[row] for row in window])

        windows = [rows[start : start + _WINDOW] for start in range(0, len(rows), _WINDOW)]
        for window, tokenised in _one_ahead(tokenise, windows):
            self._count(tokenised=len(window), truncated=sum(text.truncated for text in tokenised))
            for batch in _batches(tokenised, self._batch_tokens, padded=engine.padded):
                self._count(batches=1)
                ids = [tokenised[i].ids for i in batch]
                raw = engine.run(ids, needed, role)
                self._count(forwards=1, tokens=sum(map(len, ids)))
                finished = _finish(raw, ids, tokenizer.special_ids, normalise=normalise)
                for i, values in zip(batch, finished, strict=True):
                    yield window[i], values

    def _load_tokenizer(self) -> Tokenizer:
        with self._load_lock:
            if self._closed:
                raise UnifiedEmbeddingsError("This embedder is closed; make a new one")
            if self._tokenizer is None:
                self._tokenizer = _tokenizer(self.checkpoint, self.max_length)
            return self._tokenizer

    def _load(self) -> tuple[Tokenizer, Engine]:
        with self._load_lock:
            if self._engine is None and not self._closed:
                checkpoint, length = self.checkpoint, self.max_length
                with ThreadPoolExecutor(1) as thread:
                    if self._tokenizer is None:
                        tokenizer = thread.submit(_tokenizer_soon, checkpoint, length)
                    engine = engines.load(checkpoint, self.runtime)
                self._tokenizer = self._tokenizer or tokenizer.result()
                self._engine = engine
                if "-NC-" in self._spec.licence:
                    _LOG.warning(
                        "%s is licensed under %s: no commercial use.",
                        self._spec.model_id,
                        self._spec.licence,
                    )
            return self._load_tokenizer(), cast("Engine", self._engine)

    def _count(self, **counts: int) -> None:
        with self._count_lock:
            for name, count in counts.items():
                self._counts[name] += count


def _tokenizer(checkpoint: Checkpoint, max_length: int) -> Tokenizer:
    tokenizer = Tokenizer(checkpoint, max_length)
    for prefix in (checkpoint.spec.query_prefix, checkpoint.spec.document_prefix):
        if len(tokenizer.split(prefix)) + tokenizer.added >= tokenizer.max_length:
            raise InputError(
                f"max_length {tokenizer.max_length} leaves no room for a text after the prefix "
                f"{prefix!r}"
            )
    return tokenizer


def _tokenizer_soon(checkpoint: Checkpoint, max_length: int) -> Tokenizer:
    """The tokenizer, for another thread than the one that loads the engine.

    It holds the interpreter while it parses its file, half a second for BGE-M3's, and an engine
    does not while it arranges its weights: so the engine is let go ahead.
    """
    time.sleep(_HEAD_START)
    return _tokenizer(checkpoint, max_length)


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


def _one_ahead(work: Callable[[_Item], _Done], items: list[_Item]) -> Iterator[tuple[_Item, _Done]]:
    """Each item with what became of it, while the next is being worked on in another thread."""
    if len(items) < 2:
        yield from ((item, work(item)) for item in items)
        return
    with ThreadPoolExecutor(1) as thread:
        ahead = thread.submit(work, items[0])
        for i, item in enumerate(items):
            done = ahead.result()
            if i + 1 < len(items):
                ahead = thread.submit(work, items[i + 1])
            yield item, done


def _batches(texts: Sequence[Tokenised], budget: int, *, padded: bool) -> Iterator[list[int]]:
    """Group positions into batches of at most `budget` tokens, longest texts first.

    A batch costs the sum of its lengths where texts are packed, the longest times their number
    where they are padded. A text over the budget stands alone.
    """
    batch: list[int] = []
    total = longest = 0
    for i in sorted(range(len(texts)), key=lambda i: -len(texts[i].ids)):
        length = len(texts[i].ids)
        cost = longest * (len(batch) + 1) if padded else total + length
        if batch and cost > budget:
            yield batch
            batch, total, longest = [], 0, 0
        batch.append(i)
        total += length
        longest = max(longest, length)
    if batch:
        yield batch


def _finish(
    raw: RawHeads,
    batch: Sequence[np.ndarray[Any, np.dtype[np.int32]]],
    special: frozenset[int],
    *,
    normalise: bool,
) -> Iterator[dict[HeadName, Value]]:
    """From raw outputs to each text's finished vectors."""
    dense = raw.pooled if raw.pooled is None or not normalise else heads.normalise(raw.pooled)
    for i, ids in enumerate(batch):
        values: dict[HeadName, Value] = {}
        if dense is not None:
            values["dense"] = dense[i]
        if raw.token_weights is not None:
            values["sparse"] = heads.to_sparse(ids, raw.token_weights[i], special_ids=special)
        if raw.sparse is not None:
            values["sparse"] = raw.sparse[i]
        if raw.token_vectors is not None:
            values["colbert"] = heads.normalise(raw.token_vectors[i])
        yield values


def _assemble(values: list[Value], wanted: tuple[HeadName, ...], dimension: int) -> Embeddings:
    """Values in (text, head) order to one Embeddings."""
    by_head = {head: values[i :: len(wanted)] for i, head in enumerate(wanted)}
    dense = None
    if "dense" in by_head:
        rows = cast("list[FloatArray]", by_head["dense"])
        dense = np.stack(rows) if rows else np.zeros((0, dimension), dtype=np.float32)
    return Embeddings(
        dense=dense,
        sparse=cast("list[SparseVector] | None", by_head.get("sparse")),
        colbert=cast("list[FloatArray] | None", by_head.get("colbert")),
    )


def _rebuild(
    kind: type[BGE_M3_Embedder], model_name: str, options: dict[str, Any]
) -> BGE_M3_Embedder:
    options = dict(options)
    spec = options.pop("spec", None)
    return kind(ModelSpec.from_dict(spec) if spec else model_name, **options)
