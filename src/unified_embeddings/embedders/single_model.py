"""One model of texts: every vector of a text from one forward pass.

What lives here: loading the model, and the way of texts through tokenizer, batches and engine. What
does not: the cache (`cached`), the forward pass (`engines`), the arithmetic on its outputs
(`heads`), LlamaIndex (`llama`).
"""

from __future__ import annotations

import dataclasses
import logging
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Literal

from unified_embeddings.cache.embedding_cache import EmbeddingCache
from unified_embeddings.cache.keys import key_for
from unified_embeddings.embedders.batching import (
    group_into_batches,
    split_into_windows,
    work_one_ahead,
)
from unified_embeddings.embedders.cached import CachedTextEmbedder, Vectors
from unified_embeddings.embedders.finishing import finish_vectors, require_finite
from unified_embeddings.embedders.lazy import LazyModel, LocalModel
from unified_embeddings.embedders.passes import Batch, run_passes
from unified_embeddings.embedders.tokenization import Tokenised, Tokenizer
from unified_embeddings.embedders.values import EmbedderStats, Piece, TextLength
from unified_embeddings.engines import registry
from unified_embeddings.engines.base import Engine, Runtime
from unified_embeddings.engines.choice import choose_engine
from unified_embeddings.errors import InputError
from unified_embeddings.models.calibration import Calibration
from unified_embeddings.models.catalogue import spec_for
from unified_embeddings.models.checkpoint import Checkpoint
from unified_embeddings.models.fusion import DEFAULT_FUSION, Fusion
from unified_embeddings.models.spec import ModelSpec
from unified_embeddings.types import HeadName, Role, Text
from unified_embeddings.validation import require_texts, require_whole_number

_LOG = logging.getLogger(__name__)
_HEAD_START = 0.03
"""Seconds that an engine starts to load before the tokenizer does; see `_load_tokenizer_after`."""


class ModelEmbedder(LazyModel, CachedTextEmbedder):
    """Any one model of texts; BGE-M3 unless another is named.

    Making one is cheap: files are looked up when something about the model is asked, weights are
    loaded with the first text that is not in the cache, once however many threads ask. All methods
    are thread-safe.

    Args:
        model_name: A choice ("bge-m3", "arctic", ...; see `models.catalogue.MODELS`), a hub id or a
            folder in BGE-M3's layout, a TOML file with a spec, or a ModelSpec.
        engine: "auto" takes what runs the model best; "torch", "onnx" (ONNX Runtime; exports the
            model into the user's cache folder the first time), "sentence" (sentence-transformers)
            or "flag" (FlagEmbedding, the reference).
        precision: "auto" reads the hardware; "fp32", "bf16", "fp16", or "int8" (engine "onnx").
        device: "auto" takes a GPU where there is one; otherwise a device in torch's notation.
        max_length: The most tokens of a text, special tokens included. Longer texts are cut and
            counted. The model's own limit holds where it is smaller.
        batch_tokens: The most tokens in one forward pass. A longer text makes a pass of its own.
        cache: "auto" makes an EmbeddingCache of 256 MiB, None keeps nothing. One cache may serve
            several embedders.
        revision: Branch, tag or commit on the hub.
        local_files_only: Never ask the hub.
        trust_remote_code: Whether a model whose spec says so may run code from its repository,
            pinned to a commit.

    Raises:
        InputError: If an option is out of range, or the choice is two models, or one of images.
            What is wrong with the model or the hardware is raised by the first call that needs to
            know: ModelLoadError, MissingExtraError, InputError.

    Example:
        >>> from unified_embeddings import ModelEmbedder
        >>> embedder = ModelEmbedder("arctic", max_length=512)    # loads nothing
        >>> embedder.heads, embedder.spec.query_prefix
        (('dense',), 'query: ')
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
        spec = spec_for(model_name)
        _require_one_text_model(spec)
        self._asked_length = require_whole_number("max_length", max_length)
        self._batch_tokens = require_whole_number("batch_tokens", batch_tokens)
        options = {
            "engine": engine,
            "precision": precision,
            "device": device,
            "max_length": self._asked_length,
            "batch_tokens": self._batch_tokens,
            "cache": cache,
            "revision": revision,
            "local_files_only": local_files_only,
            "trust_remote_code": trust_remote_code,
        }
        LazyModel.__init__(self, model_name, spec, options)
        CachedTextEmbedder.__init__(self)
        self.heads = spec.heads
        self._tokenizer: Tokenizer | None = None
        self._engine: Engine | None = None
        self._vector_spaces: dict[Role, bytes] = {}

    # --- what it is -----------------------------------------------------------------------------

    @property
    def models(self) -> tuple[LocalModel, ...]:
        """Return itself: it is one model."""
        return (self,)

    @property
    def dimension(self) -> int:
        """Return the width of the dense vectors."""
        return self.checkpoint.dimension

    @property
    def max_length(self) -> int:
        """Return the most tokens of a text: the smaller of asked for and possible."""
        return min(self._asked_length, self.checkpoint.max_length)

    @property
    def fusion(self) -> Fusion:
        """Return how its rankings are fused by default: as its spec says."""
        return self.spec.fusion or DEFAULT_FUSION

    @property
    def calibration(self) -> Calibration | None:
        """Return what its spec says."""
        return self.spec.calibration

    @property
    def sparse_idf(self) -> bool:
        """Tell whether a collection multiplies sparse scores by its tokens' IDF, by its spec."""
        return self.spec.sparse_idf

    @property
    def document_length(self) -> int:
        """Return the most tokens of a document's own: without special tokens and prefix."""
        tokenizer = self._load_tokenizer()
        prefix_length = len(tokenizer.split(self.spec.document_prefix))
        return tokenizer.max_length - tokenizer.added - prefix_length

    @property
    def fingerprint(self) -> str:
        """Return what two embedders must share for their vectors to compare, as 32 hex digits.

        A digest of the model's content, pooling and prefixes. Engine, precision and `max_length`
        are left out: they move a vector a little, not into another space. So is the rule for a
        query's repeated tokens: a collection's vectors do not depend on it.
        """
        return self._fingerprint("fingerprint 2", self.checkpoint.digest)

    @property
    def former_fingerprints(self) -> tuple[str, ...]:
        """Return the fingerprint that versions gave it whose digests were samples of the files."""
        return (self._fingerprint("fingerprint 1", self.checkpoint.sampled_digest),)

    def _fingerprint(self, kind: str, digest: str) -> str:
        spec = self.spec
        fields = [digest, spec.document_prefix, spec.query_prefix]
        # Only for models that have these, so that other models' fingerprints stay what they are.
        if spec.adapters:
            fields += [spec.query_adapter, spec.document_adapter]
        if not spec.normalise:
            fields.append("not normalised")
        return key_for(kind, *fields).hex()

    def weights(self) -> Iterator[tuple[int, int]]:
        """Yield address and bytes of each region of weights; none before the model is loaded."""
        engine = self._engine
        return iter(()) if engine is None else engine.weights()

    @property
    def hidden_bytes(self) -> int:
        """Return the bytes of weights whose place in memory the engine does not tell."""
        return getattr(self._engine, "hidden_bytes", 0)

    def stats(self) -> EmbedderStats:
        """Return the counters since the embedder was made."""
        engine = self._engine
        stats = super().stats()
        if engine is None:
            return stats
        times = self._counters.pass_times(self.model_name, engine.runtime.engine)
        return dataclasses.replace(stats, passes=times)

    def tokenise(self, text: str) -> list[int]:
        """Return all token ids of a text, uncut and without special tokens; see `TextEmbedder`."""
        (valid_text,) = require_texts([text])
        return self._load_tokenizer().split(valid_text)

    def measure(self, texts: Iterable[str], *, role: Role = "document") -> list[TextLength]:
        """Return how many tokens of each text the model reads; see `TextEmbedder`."""
        prefix = self.spec.prefix(role)
        prefixed = [prefix + text for text in require_texts(texts)]
        tokenised = self._load_tokenizer()(prefixed)
        return [TextLength(len(text.ids), text.truncated) for text in tokenised]

    def split(self, text: str, *, special: bool = False) -> list[Piece]:
        """Return a text's tokens with what they stand for; see `TextEmbedder`."""
        (valid_text,) = require_texts([text])
        return self._load_tokenizer().pieces(valid_text, special=special)

    def vocabulary_entry(self, token_id: int) -> str:
        """Return what a token id stands for; see `TextEmbedder`."""
        return self._load_tokenizer().entry(token_id)

    def normal_form(self, text: str) -> str:
        """Return what the tokenizer makes of a text before it splits it; see `TextEmbedder`."""
        return self._load_tokenizer().normal_form(text)

    def require_token_ids(self, token_ids: Sequence[int]) -> tuple[int, ...]:
        """Return a text's token ids, checked against the model's vocabulary; see `TextEmbedder`."""
        return self._load_tokenizer().require_own_ids(token_ids)

    # --- a text's way ---------------------------------------------------------------------------

    def _vector_space(self, role: Role) -> bytes:
        # Nothing that it depends on changes once the files are found and the engine is chosen.
        space = self._vector_spaces.get(role)
        if space is None:
            space = self._vector_spaces[role] = self._digest_vector_space(role)
        return space

    def _digest_vector_space(self, role: Role) -> bytes:
        runtime, checkpoint, spec = self.runtime, self.checkpoint, self.spec
        fields = [
            checkpoint.digest,
            runtime.engine,
            runtime.precision,
            role,
            spec.prefix(role),
            str(self.max_length),
            checkpoint.pooling,
            "l2" if spec.normalise else "raw",
        ]
        # Only for models that have these, so that other models' keys stay what they are.
        if runtime.scheme:
            fields.append(runtime.scheme)
        if spec.adapter(role):
            fields.append(spec.adapter(role))
        if _sums_repeats(spec, role):
            fields.append("sum of repeats")
        return key_for("vector 1", *fields)

    def _run(
        self, texts: Sequence[Text], role: Role, heads: frozenset[HeadName]
    ) -> Iterator[tuple[Text, Vectors]]:
        tokenizer, engine = self._load()
        batches = self._make_batches(texts, role, tokenizer, engine)
        for batch, raw, seconds in run_passes(engine, batches, heads, role):
            require_finite(self.checkpoint, raw, self.runtime)
            lengths = [len(ids) for ids in batch.token_ids]
            self._counters.add_pass(lengths, seconds, self._batch_tokens)
            vectors = finish_vectors(
                raw,
                batch.token_ids,
                tokenizer.special_ids,
                normalise=self.spec.normalise,
                sum_repeats=_sums_repeats(self.spec, role),
            )
            yield from zip(batch.texts, vectors, strict=True)

    def _make_batches(
        self, texts: Sequence[Text], role: Role, tokenizer: Tokenizer, engine: Engine
    ) -> Iterator[Batch]:
        """Tokenise texts and yield them in batches for one forward pass each."""
        prefix = self.spec.prefix(role)

        def tokenise(window: Sequence[Text]) -> list[Tokenised]:
            return tokenizer.tokenise_mixed(window, prefix)

        # Padded batches want many texts to choose from.
        growing = engine.runtime.device != "cpu" and not engine.padded
        windows = split_into_windows(texts, growing=growing)
        for window, tokenised in work_one_ahead(tokenise, windows):
            truncated = sum(text.truncated for text in tokenised)
            self._count_tokenised(len(window), truncated)
            for places in group_into_batches(tokenised, self._batch_tokens, padded=engine.padded):
                self._counters.add(batches=1)
                yield Batch(
                    texts=[window[place] for place in places],
                    token_ids=[tokenised[place].ids for place in places],
                )

    # --- loading --------------------------------------------------------------------------------

    def _plan(self) -> Runtime:
        engine, precision = self._options["engine"], self._options["precision"]
        device, reason = self._options["device"], ""
        if engine == "auto" and precision == "int8":
            engine = "onnx"
        if engine == "auto":
            engine = self.spec.engine or registry.best_for(self.checkpoint)
            if engine == "torch":
                engine, reason = choose_engine(
                    self.spec, precision, device, lambda: self.checkpoint
                )
            if engine == "onnx" and reason:
                # Known without the model's files, which may not be here yet.
                return Runtime(engine=engine, device="cpu", precision="fp32", reason=reason)
        runtime = registry.plan(engine, precision, device, lambda: self.checkpoint)
        if reason:
            runtime = dataclasses.replace(runtime, reason=f"{runtime.reason}; {engine}: {reason}")
        return runtime

    def _load_tokenizer(self) -> Tokenizer:
        with self._load_lock:
            self._require_open()
            if self._tokenizer is None:
                self._tokenizer = load_tokenizer(self.checkpoint, self.max_length)
            return self._tokenizer

    def _load(self) -> tuple[Tokenizer, Engine]:
        with self._load_lock:
            self._require_open()
            if self._engine is None:
                self._engine = self._load_engine()
                self._warn_of_licence()
            return self._load_tokenizer(), self._engine

    def _load_engine(self) -> Engine:
        """Load the engine, and the tokenizer beside it in another thread."""
        checkpoint, length = self.checkpoint, self.max_length
        if self._tokenizer is not None:
            return registry.load(checkpoint, self.runtime)
        with ThreadPoolExecutor(1) as thread:
            tokenizer = thread.submit(_load_tokenizer_after, _HEAD_START, checkpoint, length)
            engine = registry.load(checkpoint, self.runtime)
        self._tokenizer = tokenizer.result()
        return engine

    def _unload(self) -> None:
        self._engine = self._tokenizer = None

    def _warn_of_licence(self) -> None:
        spec = self.spec
        if "-NC-" in spec.licence:
            _LOG.warning("%s is licensed under %s: no commercial use.", spec.model_id, spec.licence)


def _require_one_text_model(spec: ModelSpec) -> None:
    if spec.images:
        raise InputError(
            f"{spec.choice!r} embeds images too; take a ClipEmbedder, or name it as "
            "UnifiedEmbeddingConfig's model_choice"
        )
    if spec.pooling == "bm25":
        raise InputError(
            f"{spec.choice!r} counts words, without a model: give it as sparse_model beside a "
            "model of dense vectors, or to make_embedder() alone"
        )
    if spec.sparse_model:
        raise InputError(
            f"{spec.choice!r} is two models, {spec.model_id} and {spec.sparse_model}; "
            "make_embedder() puts them together"
        )


def _sums_repeats(spec: ModelSpec, role: Role) -> bool:
    """Tell whether a repeated token has the sum of its weights in texts of this role."""
    return spec.sum_query_repeats and role == "query"


def load_tokenizer(checkpoint: Checkpoint, max_length: int) -> Tokenizer:
    """Load a model's tokenizer.

    Raises:
        InputError: If `max_length` leaves no room for a text after the model's prefixes.
        ModelLoadError: If its file cannot be read.
    """
    tokenizer = Tokenizer(checkpoint, max_length)
    for prefix in (checkpoint.spec.query_prefix, checkpoint.spec.document_prefix):
        if len(tokenizer.split(prefix)) + tokenizer.added >= tokenizer.max_length:
            raise InputError(
                f"max_length {tokenizer.max_length} leaves no room for a text after the prefix "
                f"{prefix!r}"
            )
    return tokenizer


def _load_tokenizer_after(seconds: float, checkpoint: Checkpoint, max_length: int) -> Tokenizer:
    """Load the tokenizer while another thread loads the engine.

    The tokenizer holds the interpreter while it parses its file, half a second for BGE-M3's. An
    engine does not while it arranges its weights, so it gets a head start.
    """
    time.sleep(seconds)
    return load_tokenizer(checkpoint, max_length)
