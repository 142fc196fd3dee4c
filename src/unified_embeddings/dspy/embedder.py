"""An embedder as DSPy's: for `dspy.Embeddings`, `dspy.KNN` and whatever else takes one.

What lives here: what DSPy asks of its Embedder. What does not: the vectors (`embedders`).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from unified_embeddings.embedders.base import TextEmbedder
from unified_embeddings.errors import InputError, MissingExtraError
from unified_embeddings.types import FloatArray, Role

try:
    import dspy
except ImportError as error:
    raise MissingExtraError("DSPy", extra="dspy") from error

_ROLES = ("document", "query")


class DspyEmbedder(dspy.Embedder):  # type: ignore[misc]  # untyped
    """Dense vectors of an embedder, wherever DSPy takes a `dspy.Embedder`.

    DSPy's own cache is left out. It tells functions apart by their source text alone, so that
    `dspy.Embedder(function)` can answer with vectors of another model, also in a later process. The
    embedder has a cache that knows the model.

    It is safe to call from several threads. A copy shares the embedder.

    Args:
        embedder: Gives dense vectors.
        role: What texts are unless a call says otherwise: "document" or "query". Some models put
            different words before the two.

    Raises:
        InputError: If the embedder gives no dense vectors, or the role is another.
        MissingExtraError: If DSPy is not installed; importing this module raises it.

    Example:
        >>> from unified_embeddings.dspy.embedder import DspyEmbedder
        >>> from unified_embeddings.embedders.fake import FakeEmbedder
        >>> embed = DspyEmbedder(FakeEmbedder(dimension=64))
        >>> embed(["Foxes jump.", "The sea is calm."]).shape
        (2, 64)
        >>> embed("Which foxes jump?", role="query").shape
        (64,)
    """

    def __init__(self, embedder: TextEmbedder, *, role: Role = "document") -> None:
        if "dense" not in embedder.heads:
            raise InputError(
                f"{embedder.model_name!r} gives {' and '.join(embedder.heads)} vectors, no dense "
                "ones, which DSPy compares; choose a model that does"
            )
        self._embedder = embedder
        self._role = _require_role(role)
        super().__init__(self._encode, caching=False)

    def __call__(
        self,
        inputs: str | list[str],
        batch_size: int | None = None,
        caching: bool | None = None,
        role: Role | None = None,
    ) -> FloatArray:
        """Return the dense vectors of texts, float32 (n, dimension), or (dimension,) of one text.

        Args:
            inputs: A list of n texts, or one text.
            batch_size: Ignored: the embedder forms its own batches, by tokens.
            caching: Ignored: the embedder has a cache of its own.
            role: "document" or "query"; None for the one given at the beginning.

        Raises:
            InputError: If an item is not a text.
        """
        del batch_size, caching
        return self._run(inputs, role)

    async def acall(
        self,
        inputs: str | list[str],
        batch_size: int | None = None,
        caching: bool | None = None,
        role: Role | None = None,
    ) -> FloatArray:
        """Like a call, but without blocking the event loop, as DSPy's own method does."""
        del batch_size, caching
        return await self._embedder.in_thread(partial(self._run, inputs, role))

    def __deepcopy__(self, memo: dict[int, object]) -> DspyEmbedder:
        """Return a copy with the same embedder, which can be shared but not copied."""
        return DspyEmbedder(self._embedder, role=self._role)

    def __reduce__(self) -> tuple[Callable[[], DspyEmbedder], tuple[()]]:
        """Pickle the embedder and the role."""
        return partial(DspyEmbedder, self._embedder, role=self._role), ()

    def _run(self, inputs: str | list[str], role: Role | None) -> FloatArray:
        if isinstance(inputs, str):
            row: FloatArray = self._encode([inputs], role)[0]
            return row
        return self._encode(inputs, role)

    def _encode(self, texts: list[str], role: Role | None = None) -> FloatArray:
        chosen = self._role if role is None else _require_role(role)
        encode = self._embedder.encode_documents
        if chosen == "query":
            encode = self._embedder.encode_queries
        vectors = encode(texts, dense=True, sparse=False).dense
        assert vectors is not None
        return vectors


def _require_role(role: object) -> Role:
    if role == "document":
        return "document"
    if role == "query":
        return "query"
    raise InputError(f"role must be one of {', '.join(_ROLES)}, got {role!r}")
