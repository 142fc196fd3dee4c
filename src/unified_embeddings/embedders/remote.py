"""An embedder whose model runs elsewhere: in a service started with `unified-embeddings serve`.

What lives here: what is asked of the service, and when. What does not: connections and retries
(`remote_transport`), reading answers (`remote_answers`), the cache in front (`cached`).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Literal, TypeVar

from unified_embeddings.cache.embedding_cache import EmbeddingCache
from unified_embeddings.cache.keys import key_for
from unified_embeddings.embedders.cached import CachedTextEmbedder, Vectors
from unified_embeddings.embedders.lazy import LocalModel, make_cache
from unified_embeddings.embedders.remote_answers import (
    BadAnswerError,
    ServiceInfo,
    is_model,
    read_info,
    read_pieces,
    read_tokens,
    read_usage,
    read_vectors,
)
from unified_embeddings.embedders.remote_options import (
    Limits,
    require_key,
    require_seconds,
    require_url,
)
from unified_embeddings.embedders.remote_transport import Answer, Transport
from unified_embeddings.embedders.token_memory import TokenMemory
from unified_embeddings.embedders.values import Piece
from unified_embeddings.errors import (
    FingerprintMismatchError,
    ModelLoadError,
    ServiceError,
)
from unified_embeddings.models.calibration import Calibration
from unified_embeddings.models.fusion import Fusion
from unified_embeddings.types import HEAD_NAMES, HeadName, Options, Role, Text
from unified_embeddings.validation import require_texts, require_whole_number

Result = TypeVar("Result")

_COLBERT_SHARE = 16
"""ColBERT vectors take a thousand times their text: a request for them has a 16th of the bytes."""
_TOO_LARGE = 413


class RemoteEmbedder(CachedTextEmbedder):
    """The embedder of a service, over HTTP: the same vectors bit for bit, without a model here.

    Making one sends nothing. The first call that needs to know about the model asks the service;
    what it says then has to hold for every later answer, so that vectors of two models are never
    mixed. Vectors are fetched once and kept in the cache. All methods are thread-safe, and the
    coroutines may run in any number of event loops. In `stats()`, batches and forwards count
    requests.

    A pickle holds the key, so that a worker process can ask too; `options`, and with them `to_dict`
    of LlamaIndex's objects, do not.

    Args:
        url: The service's address, as in "http://127.0.0.1:8000".
        api_key: Sent as `Authorization: Bearer`. Over http:// it can be read on the way.
        model: The model that the service has to have, by choice or hub id; None takes any.
        expected_fingerprint: The fingerprint that it has to have; None takes that of the first
            answer.
        timeout: Seconds that one request may take.
        connect_timeout: Seconds of these for connecting.
        retries: How often a request is repeated after a failed connection or the status 429, 502,
            503 or 504. Nothing else is repeated.
        max_retry_wait: Most seconds to wait between the tries of a request. A service that asks to
            wait longer (Retry-After) is not waited for.
        max_connections: Most requests at a time.
        texts_per_request: Most texts of a request, or what the service takes if that is less.
        bytes_per_request: Most bytes of its texts, a 16th of that with ColBERT vectors; a longer
            text makes a request of its own.
        ca_file: A file with the certificates to trust in place of the public ones.
        cache: "auto" makes an EmbeddingCache of 256 MiB, None keeps nothing.

    Raises:
        InputError: If an option is out of range. What is wrong with the service is raised by the
            first call that needs it: ServiceError, OverloadedError, FingerprintMismatchError, or
            ModelLoadError if it serves another model than `model`.

    Example:
        The line marked SKIP needs a running service.

        >>> from unified_embeddings import RemoteEmbedder
        >>> embedder = RemoteEmbedder("http://127.0.0.1:8000", api_key="secret")
        >>> embedder
        RemoteEmbedder('http://127.0.0.1:8000')
        >>> embedder.encode_query("Which foxes jump?").dense.shape    # doctest: +SKIP
        (1, 384)
    """

    def __init__(
        self,
        url: str,
        *,
        api_key: str | None = None,
        model: str | None = None,
        expected_fingerprint: str | None = None,
        timeout: float = 60.0,
        connect_timeout: float = 5.0,
        retries: int = 3,
        max_retry_wait: float = 30.0,
        max_connections: int = 16,
        texts_per_request: int = 64,
        bytes_per_request: int = 256 * 1024,
        ca_file: str | None = None,
        cache: EmbeddingCache | Literal["auto"] | None = "auto",
    ) -> None:
        super().__init__()
        self._limits = Limits(
            timeout=require_seconds("timeout", timeout),
            connect_timeout=require_seconds("connect_timeout", connect_timeout),
            retries=require_whole_number("retries", retries, least=0),
            max_retry_wait=require_seconds("max_retry_wait", max_retry_wait),
            max_connections=require_whole_number("max_connections", max_connections),
            ca_file=ca_file,
        )
        self._url = require_url(url)
        self._api_key = require_key(api_key)
        self._model = model
        self._expected_fingerprint = expected_fingerprint
        self._texts_per_request = require_whole_number("texts_per_request", texts_per_request)
        self._bytes_per_request = require_whole_number("bytes_per_request", bytes_per_request)
        self._asked_cache = cache
        self.cache = make_cache(cache)
        self._transport = Transport(self._url, self._api_key, self._limits)
        self._info: ServiceInfo | None = None
        self._info_lock = threading.Lock()
        self._token_ids = TokenMemory()

    # --- what it is -----------------------------------------------------------------------------

    @property
    def url(self) -> str:
        """Return the service's address."""
        return self._url

    @property
    def info(self) -> ServiceInfo:
        """Return what the service says of its model, asked at the first call.

        Raises:
            ServiceError: If it cannot be reached, or is another kind of service.
            ModelLoadError: If it has another model than `model`.
            FingerprintMismatchError: If it has another fingerprint than `expected_fingerprint`.
        """
        with self._info_lock:
            if self._info is None:
                self._info = self._ask_info()
            return self._info

    @property
    def model_name(self) -> str:  # type: ignore[override]  # known once the service was asked
        """Return the choice that the service was started with."""
        return self.info.model

    @property
    def heads(self) -> tuple[HeadName, ...]:  # type: ignore[override]  # the same
        """Return what the service gives."""
        return self.info.heads

    @property
    def models(self) -> tuple[LocalModel, ...]:
        """Return nothing: there is no model in this process."""
        return ()

    @property
    def options(self) -> Options:
        """Return the options but `model`, `api_key` and `cache`, as plain values for JSON."""
        limits = self._limits
        return {
            "url": self._url,
            "expected_fingerprint": self._expected_fingerprint,
            "timeout": limits.timeout,
            "connect_timeout": limits.connect_timeout,
            "retries": limits.retries,
            "max_retry_wait": limits.max_retry_wait,
            "max_connections": limits.max_connections,
            "texts_per_request": self._texts_per_request,
            "bytes_per_request": self._bytes_per_request,
            "ca_file": limits.ca_file,
        }

    @property
    def dimension(self) -> int:
        """Return the width of the dense vectors."""
        return self.info.dimension

    @property
    def max_length(self) -> int:
        """Return the most tokens of a text, special tokens included; longer texts are cut."""
        return self.info.max_length

    @property
    def document_length(self) -> int:
        """Return the most tokens of a document's own: without special tokens and prefix."""
        return self.info.document_length

    @property
    def fingerprint(self) -> str:
        """Return the fingerprint of the service's model, equal to a local embedder's of it."""
        return self.info.fingerprint

    @property
    def former_fingerprints(self) -> tuple[str, ...]:
        """Return the fingerprints that earlier versions gave the model."""
        return self.info.former_fingerprints

    @property
    def revision(self) -> str:
        """Return the commit of the model's files, or their digest; empty where it has none."""
        return self.info.revision

    @property
    def fusion(self) -> Fusion:
        """Return how the service's model fuses its rankings by default."""
        return self.info.fusion

    @property
    def calibration(self) -> Calibration | None:
        """Return how likely a hit of the service's model is relevant; None: not known."""
        return self.info.calibration

    @property
    def sparse_idf(self) -> bool:
        """Tell whether a collection multiplies sparse scores by its tokens' IDF."""
        return self.info.sparse_idf

    async def in_thread(self, function: Callable[[], Result]) -> Result:
        """Await a function that embeds, in a thread that does nothing but wait for the service."""
        return await self._transport.in_thread(function)

    def close(self) -> None:
        """Close the connections. The cache stays. Calls that need the service then fail."""
        self._closed = True
        self._transport.close()

    def __reduce__(self) -> tuple[object, ...]:
        """Pickle the options and the key: a copy connects anew and asks the service again."""
        secret = {"api_key": self._api_key, "model": self._model, "cache": self._asked_cache}
        return _rebuild, (type(self), {**self.options, **secret})

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._url!r})"

    # --- token ids ------------------------------------------------------------------------------

    def tokenise(self, text: str) -> list[int]:
        """Return all token ids of a text, uncut and without special tokens, from the service."""
        return self._tokenise([text])[0]

    def split(self, text: str, *, special: bool = False) -> list[Piece]:
        """Return a text's tokens with what they stand for, from the service."""
        body = {"inputs": require_texts([text]), "add_special_tokens": special}
        answer = self._transport.post("/tokenize", body)
        self._check_fingerprint(answer, None)
        return self._read("POST /tokenize", partial(read_pieces, answer.data))

    def announce(self, texts: Sequence[str]) -> None:
        """Ask the service for the token ids of texts, to have them when `tokenise` is called."""
        self._tokenise(texts)

    def _tokenise(self, texts: Sequence[str]) -> list[list[int]]:
        valid_texts = require_texts(texts)
        known = {text: self._token_ids.get(text) for text in valid_texts}
        unknown = [text for text, ids in known.items() if ids is None]
        for group in self._split_up(unknown, self._bytes_per_request):
            body = {"inputs": group, "add_special_tokens": False}
            answer = self._transport.post("/tokenize", body)
            self._check_fingerprint(answer, None)
            read = partial(read_tokens, answer.data, len(group))
            ids_of_texts = self._read("POST /tokenize", read)
            for text, ids in zip(group, ids_of_texts, strict=True):
                known[text] = ids
                self._token_ids.put(text, ids)
        return [list(known[text] or ()) for text in valid_texts]

    # --- vectors --------------------------------------------------------------------------------

    def _vector_space(self, role: Role) -> bytes:
        info = self.info
        runs_on = (info.engine, info.precision, str(info.max_length))
        return key_for("remote 1", info.fingerprint, *runs_on, role)

    def _run(
        self, texts: Sequence[Text], role: Role, heads: frozenset[HeadName]
    ) -> Iterator[tuple[Text, Vectors]]:
        size = self._bytes_per_request
        if "colbert" in heads:
            size = max(1, size // _COLBERT_SHARE)
        for group in self._split_up(require_texts(texts), size):
            yield from self._embed(group, role, heads)

    def _embed(
        self, texts: list[str], role: Role, heads: frozenset[HeadName]
    ) -> Iterator[tuple[str, Vectors]]:
        """Yield the vectors of one request's texts; half of them each where that is too large."""
        body: dict[str, object] = {
            "texts": texts,
            "isPassage": role == "document",
            "heads": [head for head in HEAD_NAMES if head in heads],
            "encoding": "base64",
        }
        if "colbert" in heads:
            body["colbert_dtype"] = "float32"
        try:
            answer = self._transport.post("/v1/m3", body)
        except ServiceError as error:
            if error.status != _TOO_LARGE or len(texts) == 1:
                raise
            middle = len(texts) // 2
            yield from self._embed(texts[:middle], role, heads)
            yield from self._embed(texts[middle:], role, heads)
            return
        operation = "POST /v1/m3"
        data = answer.data
        found = data.get("fingerprint") if isinstance(data, dict) else None
        self._check_fingerprint(answer, found)
        if found is None:
            raise self._bad_answer(operation, "it does not say which model's vectors these are")
        read = partial(read_vectors, data, texts, heads, self.dimension)
        all_vectors = self._read(operation, read)
        tokens, truncated = self._read(operation, partial(read_usage, data))
        self._counters.add(batches=1, forwards=1, tokens=tokens)
        self._count_tokenised(len(texts), truncated)
        yield from zip(texts, all_vectors, strict=True)

    # --- answers --------------------------------------------------------------------------------

    def _ask_info(self) -> ServiceInfo:
        answer = self._transport.get("/info")
        info = self._read("GET /info", partial(read_info, answer.data))
        if self._model is not None and not is_model(self._model, info):
            raise ModelLoadError(
                self._model,
                f"the service {self._url} has {info.model!r} ({info.model_id}). Leave the model "
                "out to take that one, or start a service with yours",
            )
        expected = self._expected_fingerprint
        if expected is not None and expected not in (info.fingerprint, *info.former_fingerprints):
            raise FingerprintMismatchError.of_service(
                self._url, expected=expected, found=info.fingerprint
            )
        return info

    def _check_fingerprint(self, answer: Answer, in_body: object) -> None:
        """Refuse an answer of another model than the one first met.

        Raises:
            FingerprintMismatchError: If it is one.
        """
        expected = self.info.fingerprint
        for found in (answer.headers.get("x-model-fingerprint"), in_body):
            if found is not None and found != expected:
                raise FingerprintMismatchError.of_service(
                    self._url, expected=expected, found=f"{found!s:.80}"
                )

    def _read(self, operation: str, read: Callable[[], Result]) -> Result:
        """Return what was read of an answer.

        Raises:
            ServiceError: If it is not what was asked for.
        """
        try:
            return read()
        except BadAnswerError as error:
            raise self._bad_answer(operation, str(error)) from error

    def _bad_answer(self, operation: str, problem: str) -> ServiceError:
        return ServiceError(
            self._url, operation, f"its answer cannot be used: {problem}", status=200
        )

    def _split_up(self, texts: Sequence[str], size: int) -> Iterator[list[str]]:
        """Yield the texts in order, as many at a time as one request may hold."""
        most = min(self._texts_per_request, self.info.max_texts)
        group: list[str] = []
        room = size
        for text in texts:
            needed = len(text.encode())
            if group and (len(group) == most or needed > room):
                yield group
                group, room = [], size
            group.append(text)
            room -= needed
        if group:
            yield group


def _rebuild(kind: type[RemoteEmbedder], options: Options) -> RemoteEmbedder:
    return kind(**options)
