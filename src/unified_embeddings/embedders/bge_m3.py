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
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal, cast

import numpy as np

from unified_embeddings import heads
from unified_embeddings.cache.embedding_cache import EmbeddingCache
from unified_embeddings.cache.keys import Value, key_for
from unified_embeddings.embedders.base import EmbedderStats, TextEmbedder, check_limits, validated
from unified_embeddings.embedders.batching import WINDOW, group_into_batches, work_one_ahead
from unified_embeddings.embedders.tokenization import Tokenised, Tokenizer
from unified_embeddings.engines import registry
from unified_embeddings.engines.base import Engine, RawHeads, Runtime
from unified_embeddings.errors import InputError, UnifiedEmbeddingsError
from unified_embeddings.models.catalogue import spec_for
from unified_embeddings.models.checkpoint import Checkpoint
from unified_embeddings.models.resolve import require_consent, resolve
from unified_embeddings.models.spec import ModelSpec
from unified_embeddings.system.progress import progress_bar
from unified_embeddings.types import (
    Embeddings,
    FloatArray,
    HeadName,
    Role,
    SparseVector,
)

_LOG = logging.getLogger(__name__)
_HEAD_START = 0.03
"""Seconds; see `_tokenizer_soon`."""


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
                    engine = wanted or registry.best_for(self.checkpoint)
                self._runtime = registry.plan(
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

        windows = [rows[start : start + WINDOW] for start in range(0, len(rows), WINDOW)]
        for window, tokenised in work_one_ahead(tokenise, windows):
            self._count(tokenised=len(window), truncated=sum(text.truncated for text in tokenised))
            for batch in group_into_batches(tokenised, self._batch_tokens, padded=engine.padded):
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
                    engine = registry.load(checkpoint, self.runtime)
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
