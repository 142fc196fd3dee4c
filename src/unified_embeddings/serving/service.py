"""The model behind the routes: texts in, vectors out.

What lives here: counting tokens, the limits of one request, reranking, what is served. What does
not: HTTP (`routes`, `app`), the queue (`batcher`), whether the model is there (`loading`).
"""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from unified_embeddings._version import __version__
from unified_embeddings.embedders.values import Piece, TextLength
from unified_embeddings.errors import InputError
from unified_embeddings.heads import colbert_score
from unified_embeddings.serving.batcher import DeadlineError
from unified_embeddings.serving.loading import LoadedModel
from unified_embeddings.types import Embeddings, HeadName, Role, Text

T = TypeVar("T")

_QUICK_CHARACTERS = 8192
"""Texts of so many characters together are tokenised in under a millisecond, at once."""
_MOST_CHARACTERS = 4_000_000
"""Characters of one request to `/tokenize`, whose cost has no other bound."""
_MOST_NUMBERS = 2**25
"""Numbers of the ColBERT vectors of one answer: 128 MiB, and three times that as JSON."""
_MOST_SCORED = 2**27
"""Numbers of the ColBERT vectors of one request to rerank, held until they are scored: 512 MiB."""
_DTYPES = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16", "int8": "int8"}
"""Our names of precisions → TEI's."""
_CHARACTERS_PER_TOKEN = 4
"""Of English; only for a guess."""


class TooLongError(InputError):
    """A text, or a request, holds more than the service takes."""


class EmptyError(InputError):
    """A request holds no text where its contract asks for one."""


class UnknownModelError(InputError):
    """A request names a model that is not served."""


@dataclass(frozen=True)
class Answer:
    """The vectors of one request, what they cost, and where the time went.

    Attributes:
        embeddings: In the order of the request's texts.
        lengths: Tokens of each text, and whether it was cut.
        tokenise_seconds: Counting the tokens.
        queue_seconds: Until the first text entered a forward pass.
        compute_seconds: Of the passes that its texts were in.
    """

    embeddings: Embeddings
    lengths: tuple[TextLength, ...]
    tokenise_seconds: float = 0.0
    queue_seconds: float = 0.0
    compute_seconds: float = 0.0

    @property
    def tokens(self) -> int:
        """Return the tokens of all texts."""
        return sum(length.tokens for length in self.lengths)

    @property
    def truncated(self) -> int:
        """Return how many texts were cut."""
        return sum(length.truncated for length in self.lengths)


class EmbeddingService(LoadedModel):
    """One embedder for many requests at once.

    Args:
        config: Of the model.
        settings: The limits.
        prepare: Called in another thread once the model is loaded, before the service is ready.

    Example:
        >>> import asyncio
        >>> from unified_embeddings import UnifiedEmbeddingConfig
        >>> from unified_embeddings.serving.service import EmbeddingService
        >>> from unified_embeddings.serving.settings import ServiceSettings
        >>> async def ask():
        ...     async with EmbeddingService(
        ...         UnifiedEmbeddingConfig("mini-m3"), ServiceSettings()) as service:
        ...         await service.loaded()
        ...         answer = await service.embed(["Foxes jump."], role="query", heads=("dense",))
        ...         return answer.embeddings, answer.tokens
        >>> asyncio.run(ask())
        (Embeddings(n=1, dense=float32(1, 384), sparse=None, colbert=None), 5)
    """

    @property
    def names(self) -> tuple[str, ...]:
        """Return the names that a request may give the model; its own is the first."""
        return tuple(dict.fromkeys([*self._own_names, *self.settings.served_names]))

    @property
    def _own_names(self) -> list[str]:
        """Return the model's names, from the one that was chosen to its id on the hub."""
        own = [self.config.model_choice]
        # Of a pair, only the first: whoever names the sparse model expects no dense vectors.
        for model in self.embedder.models[:1]:
            own.append(model.model_name)
            spec = getattr(model, "spec", None)
            if spec is not None:
                own += [spec.choice, spec.model_id]
        return own

    def require_model(self, name: str | None) -> None:
        """Refuse a request for a model that is not served: vectors of two models never mix.

        Args:
            name: As the request has it; None takes what is served. Ollama's tags are ignored.

        Raises:
            UnknownModelError: If it names another model.
        """
        if name is None:
            return
        bare_name = name.partition(":")[0]
        if name not in self.names and bare_name not in self.names:
            raise UnknownModelError(
                f"model {name!r:.100} is not served here; {self.names[0]!r} is. If clients cannot "
                "be changed, start the service with --served-name"
            )

    def require_heads(self, heads: Sequence[HeadName], *, purpose: str) -> tuple[HeadName, ...]:
        """Return the heads that a route needs.

        Raises:
            InputError: If the model lacks one.
        """
        for head in heads:
            if head not in self.embedder.heads:
                given = " and ".join(self.embedder.heads)
                raise InputError(
                    f"{purpose} needs {head} vectors, and {self.names[0]!r} gives {given} only; "
                    f"leave {head} out, or serve a model that gives them"
                )
        return tuple(heads)

    async def embed(
        self,
        texts: Sequence[Text],
        *,
        role: Role,
        heads: tuple[HeadName, ...],
        truncate: bool | None = None,
        timeout: float | None = None,
        is_written_out: bool = False,
    ) -> Answer:
        """Embed the texts of one request.

        Args:
            texts: n texts, or token ids; none gives an empty answer.
            role: Of all of them.
            heads: What to give, some that the model has.
            truncate: Whether a text over the model's length is cut, or refused; None takes what
                the service was started with.
            timeout: Seconds to wait, at most those of the settings.
            is_written_out: Whether the answer will hold all vectors; ColBERT's are then fewer.

        Raises:
            InputError: If a text is not usable; its index is named.
            TooLongError: If there are too many texts or tokens.
            NotReadyError: If the model is not loaded.
            OverloadedError: If the queue is full.
            DeadlineError: If the time is over.
            EngineStalledError: If the engine hangs.
        """
        self.require_ready()
        limits = self.settings
        seconds = min(timeout or limits.request_timeout, limits.request_timeout)
        self._require_few(texts)
        begun = time.perf_counter()
        with self.batcher.expect(self._guess_tokens(texts)):
            lengths = await self._measure(texts, role)
        tokenise_seconds = time.perf_counter() - begun
        self._check_lengths(lengths, truncate=truncate)
        if "colbert" in heads:
            most_numbers = _MOST_NUMBERS if is_written_out else _MOST_SCORED
            self._require_bounded(lengths, most_numbers)
        if not texts:
            return Answer(self.embedder.encode([], role=role, heads=heads), ())
        batched = await self.batcher.submit(
            texts,
            [length.tokens for length in lengths],
            role=role,
            heads=heads,
            timeout=seconds,
            spent=tokenise_seconds,
        )
        return Answer(
            embeddings=batched.embeddings,
            lengths=tuple(lengths),
            tokenise_seconds=tokenise_seconds,
            queue_seconds=batched.queue_seconds,
            compute_seconds=batched.compute_seconds,
        )

    async def rerank(
        self, query: str, documents: Sequence[str], *, truncate: bool | None = None
    ) -> tuple[list[float], Answer]:
        """Score documents against a query by ColBERT's late interaction.

        Args:
            query: The question.
            documents: n texts.
            truncate: As in `embed`.

        Returns:
            n scores in -1 to 1, in the order of the documents: each query token's best cosine
            similarity, averaged over the query's tokens. And the cost of both.

        Raises:
            InputError: As in `embed`, or if the model gives no ColBERT vectors.
        """
        heads = self.require_heads(("colbert",), purpose="reranking")
        asking = asyncio.ensure_future(
            self.embed([query], role="query", heads=heads, truncate=truncate)
        )
        answering = asyncio.ensure_future(
            self.embed(documents, role="document", heads=heads, truncate=truncate)
        )
        try:
            asked, answered = await asyncio.gather(asking, answering)
        finally:
            asking.cancel()  # If one fails, the other is not computed for nobody.
            answering.cancel()
        assert asked.embeddings.colbert is not None
        query_vectors = asked.embeddings.colbert[0]
        document_vectors = answered.embeddings.colbert or []

        def score() -> list[float]:
            return [colbert_score(query_vectors, vectors) for vectors in document_vectors]

        scores = await asyncio.to_thread(score)
        total = Answer(
            embeddings=answered.embeddings,
            lengths=asked.lengths + answered.lengths,
            tokenise_seconds=asked.tokenise_seconds + answered.tokenise_seconds,
            queue_seconds=max(asked.queue_seconds, answered.queue_seconds),
            compute_seconds=asked.compute_seconds + answered.compute_seconds,
        )
        return scores, total

    async def tokenise(self, texts: Sequence[str], *, special: bool) -> list[list[Piece]]:
        """Split texts into the model's tokens, uncut.

        Args:
            texts: n texts.
            special: Whether the special tokens are given too.

        Raises:
            InputError: If a text is not usable.
            TooLongError: If there are too many texts or characters.
            DeadlineError: If the time is over.
        """
        self.require_ready()
        characters = sum(map(len, texts))
        if len(texts) > self.settings.max_texts or characters > _MOST_CHARACTERS:
            raise TooLongError(
                f"{len(texts)} texts of {characters} characters are more than the "
                f"{self.settings.max_texts} texts and {_MOST_CHARACTERS} characters of one request"
            )

        async def split_all() -> list[list[Piece]]:
            async with self._tokeniser_turn:
                return await asyncio.to_thread(
                    lambda: [self.embedder.split(text, special=special) for text in texts]
                )

        return await self.in_time(split_all())

    async def in_time(self, work: Coroutine[Any, Any, T]) -> T:
        """Return the result of work that takes no turn in the queue.

        Raises:
            DeadlineError: If it takes longer than a request may.
        """
        seconds = self.settings.request_timeout
        task = asyncio.ensure_future(work)
        try:
            # Not wait_for: a library's own TimeoutError is no deadline of ours.
            done, _ = await asyncio.wait({task}, timeout=seconds)
            if not done:
                raise DeadlineError(f"not answered within {seconds:.3g} s; try again later")
            return task.result()
        finally:
            task.cancel()

    def describe(self) -> dict[str, object]:
        """Return what is served, how and within which limits: TEI's fields, and ours."""
        embedder, limits = self.embedder, self.settings
        first = embedder.models[0] if embedder.models else None
        runtime = first.runtime if first is not None else None
        fusion, calibration = embedder.fusion, embedder.calibration
        checkpoint = getattr(embedder, "checkpoint", None)
        return {
            "model_id": self._own_names[-1],
            "model_sha": embedder.revision or None,
            "model_dtype": _DTYPES[runtime.precision if runtime else "fp32"],
            "model_type": {"embedding": {"pooling": getattr(checkpoint, "pooling", "none")}},
            "max_concurrent_requests": limits.max_waiting_tokens,
            "max_input_length": embedder.max_length,
            "max_batch_tokens": self.batcher.batch_tokens,
            "max_batch_requests": None,
            "max_client_batch_size": limits.max_texts,
            "auto_truncate": limits.auto_truncate,
            "tokenization_workers": 1,
            "version": __version__,
            "unified_embeddings": {
                "model": self.names[0],
                "names": list(self.names),
                "fingerprint": self.fingerprint,
                "former_fingerprints": list(embedder.former_fingerprints),
                "revision": embedder.revision,
                "dimension": embedder.dimension,
                "max_length": embedder.max_length,
                "document_length": embedder.document_length,
                "heads": list(embedder.heads),
                "engine": runtime.engine if runtime else "none",
                "precision": runtime.precision if runtime else "fp32",
                "device": runtime.device if runtime else "cpu",
                "fusion": dataclasses.asdict(fusion),
                "calibration": calibration.to_dict() if calibration is not None else None,
                "sparse_idf": embedder.sparse_idf,
            },
        }

    def _guess_tokens(self, texts: Sequence[Text]) -> int:
        """Return about how many tokens texts are that are not tokenised yet."""
        longest = self.embedder.max_length
        return sum(min(len(text) // _CHARACTERS_PER_TOKEN + 2, longest) for text in texts)

    async def _measure(self, texts: Sequence[Text], role: Role) -> list[TextLength]:
        """Count each text's tokens: at once if they are short, else in another thread."""
        characters = sum(len(text) for text in texts)
        if characters <= _QUICK_CHARACTERS:
            return self._measure_now(texts, role)
        async with self._tokeniser_turn:  # One at a time: the tokenizer uses all cores itself.
            return await asyncio.to_thread(self._measure_now, texts, role)

    def _measure_now(self, texts: Sequence[Text], role: Role) -> list[TextLength]:
        plain = iter(
            self.embedder.measure([text for text in texts if isinstance(text, str)], role=role)
        )
        longest = self.embedder.max_length
        lengths = []
        for text in texts:
            if isinstance(text, str):
                lengths.append(next(plain))
            else:
                tokens = len(text) + self.embedder.max_length - self.embedder.document_length
                lengths.append(TextLength(min(tokens, longest), truncated=tokens > longest))
        return lengths

    def _require_few(self, texts: Sequence[Text]) -> None:
        most = self.settings.max_texts
        if len(texts) > most:
            raise TooLongError(
                f"{len(texts)} texts are more than the {most} that one request may hold; send "
                "several requests"
            )

    def _check_lengths(self, lengths: Sequence[TextLength], *, truncate: bool | None) -> None:
        may_cut = self.settings.auto_truncate if truncate is None else truncate
        if not may_cut:
            for index, length in enumerate(lengths):
                if length.truncated:
                    raise TooLongError(
                        f"is longer than the {self.embedder.max_length} tokens that the model "
                        "takes; shorten it, or allow it to be cut",
                        index=index,
                    )
        tokens = sum(length.tokens for length in lengths)
        if tokens > self.settings.max_request_tokens:
            raise TooLongError(
                f"{tokens} tokens are more than the {self.settings.max_request_tokens} that one "
                "request may hold; send several requests"
            )

    def _require_bounded(self, lengths: Sequence[TextLength], most_numbers: int) -> None:
        tokens = sum(length.tokens for length in lengths)
        most = most_numbers // self.embedder.dimension
        if tokens > most:
            raise TooLongError(
                f"{tokens} tokens are more than the {most} whose ColBERT vectors one request may "
                "hold; send several requests"
            )
