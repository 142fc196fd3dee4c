"""Queries embedded by a serverless endpoint of RunPod, documents by a model of one's own.

What lives here: RunPod's envelope around a query, and the embedder that sends queries there. What
does not: connections and retries (`remote_transport`), reading vectors (`remote_answers`).
"""

from __future__ import annotations

import dataclasses
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import TypeVar

from unified_embeddings.cache.keys import key_for
from unified_embeddings.embedders.base import TextEmbedder
from unified_embeddings.embedders.cached import CachedTextEmbedder, Vectors
from unified_embeddings.embedders.lazy import LocalModel
from unified_embeddings.embedders.remote_answers import BadAnswerError, read_dense, read_sparse
from unified_embeddings.embedders.remote_options import (
    RUNPOD_URL,
    Limits,
    require_key,
    require_seconds,
    require_url,
)
from unified_embeddings.embedders.remote_transport import Transport
from unified_embeddings.embedders.values import EmbedderStats, Piece, TextLength
from unified_embeddings.errors import FingerprintMismatchError, InputError, ServiceError
from unified_embeddings.heads import dense_score
from unified_embeddings.models.calibration import Calibration
from unified_embeddings.models.fusion import Fusion
from unified_embeddings.types import Embeddings, HeadName, Options, Role, Text
from unified_embeddings.validation import require_texts, require_whole_number

Result = TypeVar("Result")

_RUNNING = ("IN_QUEUE", "IN_PROGRESS")
_FIRST_POLL, _LONGEST_POLL = 0.1, 1.0
"""Seconds before a job that is not done is looked at again: half more each time, up to the most."""
_ADVICE = "Check the endpoint's id, and that it exists and has workers"


class RunPodEndpoint:
    """One endpoint that answers `{"input": {"query": …}}`, behind RunPod's API. Thread-safe.

    Args:
        endpoint_id: The endpoint's id.
        api_key: RunPod's key.
        url: The API's address.
        timeout: Seconds in which a query is answered, waiting in RunPod's queue included.
        retries: How often a request is repeated; see RemoteEmbedder.

    Raises:
        InputError: If an argument is not usable.
    """

    def __init__(
        self,
        endpoint_id: str,
        *,
        api_key: str,
        url: str = RUNPOD_URL,
        timeout: float = 60.0,
        retries: int = 3,
    ) -> None:
        if not isinstance(endpoint_id, str) or not re.fullmatch(r"[A-Za-z0-9_-]+", endpoint_id):
            raise InputError(
                f"the id of a RunPod endpoint has letters, digits and hyphens, got "
                f"{endpoint_id!r:.80}"
            )
        self.endpoint_id = endpoint_id
        self.timeout = require_seconds("timeout", timeout)
        self.url = f"{require_url(url, name='runpod_url')}/{endpoint_id}"
        limits = Limits(timeout=timeout, retries=require_whole_number("retries", retries, least=0))
        key = require_key(api_key, name="runpod_api_key")
        self.transport = Transport(self.url, key, limits, advice=_ADVICE)
        self._options: Options = {
            "api_key": key,
            "url": url,
            "timeout": self.timeout,
            "retries": limits.retries,
        }

    def __reduce__(self) -> tuple[object, ...]:
        """Pickle the options and the key: a copy connects anew."""
        return partial(type(self), self.endpoint_id, **self._options), ()

    def embed(
        self, queries: Sequence[str], heads: frozenset[HeadName], dimension: int
    ) -> tuple[list[Vectors], str | None]:
        """Return the vectors of queries, and the fingerprint of the endpoint's model if it says so.

        Args:
            queries: n texts.
            heads: Dense, sparse or both.
            dimension: Width of the dense vectors.

        Raises:
            ServiceError: If the endpoint cannot be reached, fails, is too late, or does not give
                these vectors.
            OverloadedError: If RunPod has too much to do.
        """
        job: dict[str, object] = {"action": "embed_query", "queries": list(queries)}
        if "sparse" in heads:  # the actions' first contract has no heads
            job["heads"] = ["dense", "sparse"]
        output = self._run(job)
        return self._read(lambda: _read_output(output, len(queries), heads, dimension))

    def _run(self, job: Mapping[str, object]) -> Mapping[str, object]:
        """Return the output of a job, once it is done."""
        end = time.monotonic() + self.timeout
        wait = _FIRST_POLL
        data = self._envelope(self.transport.post("/runsync", {"input": job}).data)
        while data.get("status") in _RUNNING:
            if time.monotonic() + wait > end:
                raise self._error(
                    f"the job is still {data['status']} after {self.timeout:g} s. Keep a worker "
                    "warm (min workers 1), or raise the timeout"
                )
            time.sleep(wait)
            wait = min(_LONGEST_POLL, wait * 1.5)
            data = self._envelope(self.transport.get(f"/status/{self._job_id(data)}").data)
        output = data.get("output")
        problem = data.get("error")
        if isinstance(output, dict) and "error" in output:
            problem = output["error"]
        if data.get("status") != "COMPLETED" or problem:
            raise self._error(f"the job ended as {data.get('status')!r:.40}: {problem!r:.300}")
        if not isinstance(output, dict):
            raise self._error(f"expected output as a JSON object, got {output!r:.80}")
        return output

    def _envelope(self, data: object) -> Mapping[str, object]:
        if not isinstance(data, dict) or not isinstance(data.get("status"), str):
            raise self._error(f"expected RunPod's id, status and output, got {data!r:.80}")
        return data

    def _job_id(self, data: Mapping[str, object]) -> str:
        job_id = data.get("id")
        if not isinstance(job_id, str) or not re.fullmatch(r"[A-Za-z0-9_-]+", job_id):
            raise self._error(f"expected the id of a job, got {job_id!r:.80}")
        return job_id

    def _read(self, read: Callable[[], Result]) -> Result:
        try:
            return read()
        except BadAnswerError as error:
            raise self._error(f"its answer cannot be used: {error}") from error

    def _error(self, problem: str) -> ServiceError:
        return ServiceError(self.url, "POST /runsync", problem, status=200)


class RunPodQueryEmbedder(CachedTextEmbedder):
    """Queries embedded by an endpoint of RunPod, documents by another embedder.

    Both have to run one model: the endpoint need not say which it runs, so only the
    width of its vectors is checked, and its fingerprint where it gives one. `compare()` tells.
    It gives no ColBERT vectors, since the endpoint has none.

    Args:
        documents: Embeds documents, and says what the model is.
        endpoint: The endpoint.
        texts_per_request: Most queries of a request.

    Raises:
        InputError: If an argument is not usable.

    Example:
        >>> from unified_embeddings.embedders.fake import FakeEmbedder
        >>> from unified_embeddings.embedders.runpod_queries import (
        ...     RunPodEndpoint, RunPodQueryEmbedder)
        >>> endpoint = RunPodEndpoint("abc123", api_key="secret")
        >>> embedder = RunPodQueryEmbedder(FakeEmbedder(), endpoint)
        >>> embedder, embedder.heads
        (RunPodQueryEmbedder('fake', endpoint='abc123'), ('dense', 'sparse'))
    """

    def __init__(
        self, documents: TextEmbedder, endpoint: RunPodEndpoint, *, texts_per_request: int = 64
    ) -> None:
        super().__init__()
        self.documents = documents
        self.endpoint = endpoint
        self.cache = documents.cache
        self._texts_per_request = require_whole_number("texts_per_request", texts_per_request)

    def compare(self, text: str = "What is machine learning?") -> float:
        """Return the cosine similarity of a query's two vectors: the endpoint's and the model's.

        It is 1 for the same model, a little less where one of them is quantised, and far less for
        another model. This loads the model for documents.
        """
        remote = self.encode_query(text, dense=True, sparse=False).dense
        own = self.documents.encode_query(text, dense=True, sparse=False).dense
        assert remote is not None
        assert own is not None
        return dense_score(remote[0], own[0])

    # --- what it is: what its documents are -----------------------------------------------------

    @property
    def model_name(self) -> str:  # type: ignore[override]  # a service is asked for it
        """Return the name of the documents' model."""
        return self.documents.model_name

    @property
    def heads(self) -> tuple[HeadName, ...]:  # type: ignore[override]  # the same
        """Return what both sides give."""
        return tuple(head for head in self.documents.heads if head != "colbert")

    @property
    def models(self) -> tuple[LocalModel, ...]:
        """Return the models of documents."""
        return self.documents.models

    @property
    def model_names(self) -> tuple[str, ...]:
        """Return the names of the documents' models."""
        return self.documents.model_names

    @property
    def options(self) -> Options:
        """Return the documents' options and the endpoint's id; `make_embedder` refuses them."""
        return {**self.documents.options, "runpod_query_endpoint_id": self.endpoint.endpoint_id}

    @property
    def dimension(self) -> int:
        """Return the width of the dense vectors."""
        return self.documents.dimension

    @property
    def max_length(self) -> int:
        """Return the most tokens of a document."""
        return self.documents.max_length

    @property
    def document_length(self) -> int:
        """Return the most tokens of a document's own."""
        return self.documents.document_length

    @property
    def fingerprint(self) -> str:
        """Return the fingerprint of the documents' model."""
        return self.documents.fingerprint

    @property
    def former_fingerprints(self) -> tuple[str, ...]:
        """Return the former fingerprints of the documents' model."""
        return self.documents.former_fingerprints

    @property
    def revision(self) -> str:
        """Return the revision of the documents' model."""
        return self.documents.revision

    @property
    def fusion(self) -> Fusion:
        """Return how the documents' model fuses its rankings."""
        return self.documents.fusion

    @property
    def calibration(self) -> Calibration | None:
        """Return how likely a hit of the documents' model is relevant; None: not known."""
        return self.documents.calibration

    @property
    def sparse_idf(self) -> bool:
        """Tell what holds for the documents' model."""
        return self.documents.sparse_idf

    def tokenise(self, text: str) -> list[int]:
        """Return the token ids of the documents' model."""
        return self.documents.tokenise(text)

    def announce(self, texts: Sequence[str]) -> None:
        """Hand the announcement on."""
        self.documents.announce(texts)

    def measure(self, texts: Iterable[str], *, role: Role = "document") -> list[TextLength]:
        """Return how many tokens of each text the documents' model reads."""
        return self.documents.measure(texts, role=role)

    def split(self, text: str, *, special: bool = False) -> list[Piece]:
        """Return a text's tokens by the documents' model."""
        return self.documents.split(text, special=special)

    def vocabulary_entry(self, token_id: int) -> str:
        """Return what a token id stands for, by the documents' model."""
        return self.documents.vocabulary_entry(token_id)

    def stats(self) -> EmbedderStats:
        """Return the counters of both; an endpoint's request is a batch and a forward."""
        queries, documents = self._counters.snapshot(), self.documents.stats()
        sums = {name: count + getattr(documents, name) for name, count in queries.items()}
        return dataclasses.replace(documents, **sums)

    async def in_thread(self, function: Callable[[], Result]) -> Result:
        """Await a function that embeds, in a thread that may wait for the endpoint."""
        return await self.endpoint.transport.in_thread(function)

    def close(self) -> None:
        """Close the connections, and the documents' embedder."""
        self._closed = True
        self.endpoint.transport.close()
        self.documents.close()

    def __reduce__(self) -> tuple[object, ...]:
        """Pickle the embedder of documents and the endpoint."""
        again = partial(type(self), texts_per_request=self._texts_per_request)
        return again, (self.documents, self.endpoint)

    def __repr__(self) -> str:
        name = getattr(self.documents, "url", None) or self.documents.model_name
        return f"{type(self).__name__}({name!r}, endpoint={self.endpoint.endpoint_id!r})"

    # --- vectors --------------------------------------------------------------------------------

    def _encode(
        self, texts: Sequence[Text], role: Role, heads: tuple[HeadName, ...], show_progress: bool
    ) -> Embeddings:
        if role == "document":
            return self.documents._encode(texts, role, heads, show_progress)
        return super()._encode(require_texts(texts), role, heads, show_progress)

    def _vector_space(self, role: Role) -> bytes:
        return key_for("runpod 1", self.endpoint.url, self.fingerprint, role)

    def _run(
        self,
        texts: Sequence[Text],
        role: Role,  # noqa: ARG002 — documents do not come here
        heads: frozenset[HeadName],
    ) -> Iterator[tuple[Text, Vectors]]:
        queries = require_texts(texts)
        for start in range(0, len(queries), self._texts_per_request):
            group = queries[start : start + self._texts_per_request]
            all_vectors, fingerprint = self.endpoint.embed(group, heads, self.dimension)
            known = (self.fingerprint, *self.former_fingerprints)
            if fingerprint is not None and fingerprint not in known:
                raise FingerprintMismatchError.of_service(
                    self.endpoint.url, expected=self.fingerprint, found=fingerprint
                )
            self._counters.add(batches=1, forwards=1, tokenised=len(group))
            yield from zip(group, all_vectors, strict=True)


def _read_output(
    output: Mapping[str, object], count: int, heads: frozenset[HeadName], dimension: int
) -> tuple[list[Vectors], str | None]:
    """Read the vectors of several queries.

    Raises:
        BadAnswerError: If they are not there, or break a rule.
    """
    rows = output.get("embeddings")
    if not isinstance(rows, list) or len(rows) != count:
        raise BadAnswerError(f"expected embeddings of {count} queries, got {rows!r:.80}")
    dense = [read_dense(row, dimension) for row in rows]
    all_vectors: list[Vectors] = [{} for _ in rows]
    if "dense" in heads:
        for vectors, row in zip(all_vectors, dense, strict=True):
            vectors["dense"] = row
    if "sparse" in heads:
        sparse = output.get("sparse")
        if not isinstance(sparse, list) or len(sparse) != count:
            raise BadAnswerError(
                'it gives no sparse vectors; its worker does not know "heads". Search by '
                "dense vectors alone (mode='dense'), or deploy `unified_embeddings.serving.runpod`"
            )
        for vectors, value in zip(all_vectors, sparse, strict=True):
            vectors["sparse"] = read_sparse(value)
    fingerprint = output.get("fingerprint")
    return all_vectors, None if fingerprint is None else str(fingerprint)
