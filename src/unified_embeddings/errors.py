"""Every error this package raises on purpose.

    UnifiedEmbeddingsError
    ├── MissingExtraError (ImportError)   an optional library is not installed
    ├── ModelLoadError                    a checkpoint is missing, broken or of the wrong kind
    ├── InputError (ValueError)           the caller's data or options cannot be used
    ├── FingerprintMismatchError          a collection was made with another model
    ├── StoreError                        the vector store refused or failed
    ├── ServiceError                      an embedding service cannot be reached, refused or failed
    └── OverloadedError                   more work is waiting than was agreed to hold

A message says what was expected, what came and what to do next. It shows no password of a URL.
"""

from __future__ import annotations

import re
import shlex
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing_extensions import Self


_USER_OF_URL = re.compile(
    r"""(?<=://)(?:
        [^/?#\s]*@                                    # user and password, or a key alone
      | [^/?#\s@:]+ : (?!\d+(?:[/?#\s]|$)) [^\s@]* @  # a password with a slash in it, no port
    )""",
    re.VERBOSE,
)


def hide_passwords(text: str) -> str:
    """Return a text whose URLs show neither user name nor password.

    Example:
        >>> from unified_embeddings.errors import hide_passwords
        >>> hide_passwords("connecting to https://me:secret@example.org:6333 failed")
        'connecting to https://***@example.org:6333 failed'
    """
    return _USER_OF_URL.sub("***@", text)


class UnifiedEmbeddingsError(Exception):
    """Base of every error below; catch this one to catch them all.

    Example:
        >>> from unified_embeddings import InputError, UnifiedEmbeddingsError
        >>> issubclass(InputError, UnifiedEmbeddingsError)
        True
    """

    def __str__(self) -> str:
        return hide_passwords(super().__str__())

    def __repr__(self) -> str:
        return hide_passwords(super().__repr__())

    def __reduce__(self) -> tuple[object, ...]:
        """Pickle the message and the attributes, so that it comes whole out of another process."""
        return _restore, (type(self), self.args, self.__dict__)


class MissingExtraError(UnifiedEmbeddingsError, ImportError):
    """An optional library is needed and not installed.

    Attributes:
        extra: The extra of this package that installs it.

    Example:
        >>> from unified_embeddings import MissingExtraError
        >>> print(MissingExtraError("ONNX Runtime", extra="onnx"))
        ONNX Runtime is not installed. Install it with: pip install 'unified-embeddings[onnx]'
    """

    def __init__(self, what: str, *, extra: str) -> None:
        self.extra = extra
        super().__init__(
            f"{what} is not installed. Install it with: pip install 'unified-embeddings[{extra}]'"
        )


class ModelLoadError(UnifiedEmbeddingsError):
    """A model cannot be loaded as asked.

    Attributes:
        model: The name or folder asked for.
        revision: The revision asked for or found, None where there is none.
        problem: What is wrong, without the model's name.

    Example:
        >>> from unified_embeddings import BGE_M3_Embedder, ModelLoadError
        >>> try:
        ...     BGE_M3_Embedder("no/such/folder").dimension
        ... except ModelLoadError as error:
        ...     print(error)
        Cannot load model 'no/such/folder': there is no such folder
    """

    def __init__(self, model: str, problem: str, *, revision: str | None = None) -> None:
        self.model = model
        self.revision = revision
        self.problem = problem
        revision_note = f" (revision {revision})" if revision else ""
        super().__init__(f"Cannot load model {model!r}{revision_note}: {problem}")


class InputError(UnifiedEmbeddingsError, ValueError):
    """The caller's data or options cannot be used.

    Attributes:
        index: Position of the bad item in the list it came in, None where there is no list.
        problem: What is wrong, without the position.

    Example:
        >>> from unified_embeddings import InputError
        >>> from unified_embeddings.embedders.fake import FakeEmbedder
        >>> try:
        ...     FakeEmbedder().encode_documents(["fine", None])
        ... except InputError as error:
        ...     print(error.index, error)
        1 item 1: expected a str, got NoneType
    """

    def __init__(self, problem: str, *, index: int | None = None) -> None:
        self.index = index
        self.problem = problem
        super().__init__(problem if index is None else f"item {index}: {problem}")


class FingerprintMismatchError(UnifiedEmbeddingsError):
    """Vectors of two models would be mixed: a collection's and the embedder's, or a service's.

    Attributes:
        collection: The collection's name; the service's address where it is the service that
            changed its model (see `of_service`).
        expected: The embedder's fingerprint.
        found: The fingerprint that the collection, or the service's answer, carries.

    Example:
        >>> from qdrant_client import QdrantClient
        >>> from unified_embeddings import FingerprintMismatchError
        >>> from unified_embeddings.embedders.fake import FakeEmbedder
        >>> from unified_embeddings.llama.vector_store import build_vector_store
        >>> client = QdrantClient(":memory:")
        >>> _ = build_vector_store(FakeEmbedder(), "notes", client=client)
        >>> try:
        ...     build_vector_store(FakeEmbedder(model_name="other"), "notes", client=client)
        ... except FingerprintMismatchError as error:
        ...     print(error)
        Collection 'notes' was made with 'fake' (...), but the embedder is 'other' (...). ...
    """

    def __init__(
        self, collection: str, *, expected: str, found: str, model: str, found_model: str
    ) -> None:
        self.collection = collection
        self.expected = expected
        self.found = found
        name_note = ""
        if model == found_model:
            name_note = "; the same name, but other files, prefixes or pooling"
        advice = _describe_sparse_model(found_model, model) or (
            "Vectors of different models do not compare. Use the model that the collection was "
            "made with, or migrate: index the documents again into a collection of another name."
        )
        super().__init__(
            f"Collection {collection!r} was made with {found_model!r} ({found}), but the embedder "
            f"is {model!r} ({expected}{name_note}). {advice}"
        )

    @classmethod
    def of_service(cls, url: str, *, expected: str, found: str) -> FingerprintMismatchError:
        """Return the error of a service whose answer carries another fingerprint than expected."""
        problem = (
            f"The embedding service {url} answers with vectors of the model {found}, expected "
            f"{expected}. Vectors of different models do not compare, so none of these were kept. "
            "Start the service with the former model again, or make a new embedder for this one "
            "(and index the documents again)."
        )
        error = cls.__new__(cls, problem)
        error.collection, error.expected, error.found = url, expected, found
        return error


class StoreError(UnifiedEmbeddingsError):
    """The vector store refused or failed.

    Attributes:
        collection: The collection's name, or the place where none is concerned (see `of_place`).
        operation: What was being done.

    Example:
        >>> from unified_embeddings import StoreError
        >>> print(StoreError("notes", "adding nodes", "connection refused"))
        Collection 'notes': adding nodes failed: connection refused
    """

    def __init__(self, collection: str, operation: str, problem: str) -> None:
        self.collection = collection
        self.operation = operation
        super().__init__(f"Collection {collection!r}: {operation} failed: {problem}")

    @classmethod
    def of_place(cls, place: str, operation: str, problem: str) -> Self:
        """Return the error of a folder or a server, where no one collection is concerned.

        Args:
            place: The folder or address; `collection` holds it.
            operation: What was being done.
            problem: What is wrong.
        """
        error = cls.__new__(cls, f"Store {place}: {operation} failed: {problem}")
        error.collection, error.operation = place, operation
        return error


class ServiceError(UnifiedEmbeddingsError):
    """An embedding service cannot be reached, refused a request, or answered something unusable.

    Attributes:
        url: The service's address.
        operation: What was asked of it.
        status: The HTTP status of its answer, None where there was no answer.
        problem: What is wrong, without address and operation.

    Example:
        >>> from unified_embeddings import ServiceError
        >>> print(ServiceError("http://127.0.0.1:8000", "GET /info", "connection refused"))
        Embedding service http://127.0.0.1:8000: GET /info failed: connection refused
    """

    def __init__(
        self, url: str, operation: str, problem: str, *, status: int | None = None
    ) -> None:
        self.url = url
        self.operation = operation
        self.status = status
        self.problem = problem
        super().__init__(f"Embedding service {url}: {operation} failed: {problem}")


class OverloadedError(UnifiedEmbeddingsError):
    """More work is waiting than was agreed to hold; try again later.

    Example:
        >>> from unified_embeddings import OverloadedError
        >>> print(OverloadedError("1,024 texts are waiting; try again later"))
        1,024 texts are waiting; try again later
    """


def _describe_sparse_model(found_model: str, model: str) -> str:
    """Return what to do where two names differ in the model of the sparse vectors alone.

    Args:
        found_model: Of the collection: "dense + sparse" where there are two models.
        model: Of the embedder.

    Returns:
        "" if they differ in the other model, or are equal.
    """
    found_dense, _, found_sparse = found_model.partition(" + ")
    dense, _, sparse = model.partition(" + ")
    if found_dense != dense or found_sparse == sparse:
        return ""
    if not found_sparse:
        return f"Its sparse vectors are that model's own: leave sparse_model={sparse!r} out."
    problem = f"Its sparse vectors are those of {found_sparse!r}"
    option = shlex.quote(found_sparse)
    return f"{problem}: give sparse_model={found_sparse!r} (--sparse-model {option}) too."


def _restore(
    kind: type[UnifiedEmbeddingsError], args: tuple[object, ...], attributes: dict[str, object]
) -> UnifiedEmbeddingsError:
    """Build a pickled error without its constructor, whose arguments are not kept."""
    error = kind.__new__(kind)
    error.args = args
    error.__dict__.update(attributes)
    return error
