"""Every error this package raises on purpose.

    UnifiedEmbeddingsError
    ├── MissingExtraError (ImportError)   an optional library is not installed
    ├── ModelLoadError                    a checkpoint is missing, broken or of the wrong kind
    ├── InputError (ValueError)           the caller's data or options cannot be used
    ├── FingerprintMismatchError          a collection was made with another model
    ├── StoreError                        the vector store refused or failed
    └── OverloadedError                   more work is waiting than was agreed to hold

A message says what was expected, what came and what to do next.
"""

from __future__ import annotations

from typing import Any


class UnifiedEmbeddingsError(Exception):
    """Base of every error below; catch this one to catch them all."""

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled by its message and attributes, so that it comes whole out of another process."""
        return _restored, (type(self), self.args, self.__dict__)


class MissingExtraError(UnifiedEmbeddingsError, ImportError):
    """An optional library is needed and not installed.

    Attributes:
        extra: The extra of this package that brings it.
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
    """

    def __init__(self, model: str, problem: str, *, revision: str | None = None) -> None:
        self.model = model
        self.revision = revision
        self.problem = problem
        at = f" (revision {revision})" if revision else ""
        super().__init__(f"Cannot load model {model!r}{at}: {problem}")


class InputError(UnifiedEmbeddingsError, ValueError):
    """The caller's data or options cannot be used.

    Attributes:
        index: Position of the bad item in the list it came in, None where there is no list.
        problem: What is wrong, without the position.
    """

    def __init__(self, problem: str, *, index: int | None = None) -> None:
        self.index = index
        self.problem = problem
        super().__init__(problem if index is None else f"item {index}: {problem}")


class FingerprintMismatchError(UnifiedEmbeddingsError):
    """A collection holds vectors of another model than the embedder's.

    Attributes:
        collection: The collection's name.
        expected: The embedder's fingerprint.
        found: The fingerprint the collection carries.
    """

    def __init__(
        self, collection: str, *, expected: str, found: str, model: str, found_model: str
    ) -> None:
        self.collection = collection
        self.expected = expected
        self.found = found
        same = "; of one name, but with other files, prefixes or pooling"
        same = same if model == found_model else ""
        super().__init__(
            f"Collection {collection!r} was made with {found_model!r} ({found}), but the embedder "
            f"is {model!r} ({expected}{same}). Vectors of different models do not compare. Use the "
            "model the collection was made with, or migrate: index the documents again into a "
            "collection of another name."
        )


class StoreError(UnifiedEmbeddingsError):
    """The vector store refused or failed.

    Attributes:
        collection: The collection's name.
        operation: What was being done.
    """

    def __init__(self, collection: str, operation: str, problem: str) -> None:
        self.collection = collection
        self.operation = operation
        super().__init__(f"Collection {collection!r}: {operation} failed: {problem}")


def _restored(
    kind: type[UnifiedEmbeddingsError], args: tuple[Any, ...], attributes: dict[str, Any]
) -> UnifiedEmbeddingsError:
    error = kind.__new__(kind)
    error.args = args
    error.__dict__.update(attributes)
    return error


class OverloadedError(UnifiedEmbeddingsError):
    """More work is waiting than was agreed to hold; try again later."""
