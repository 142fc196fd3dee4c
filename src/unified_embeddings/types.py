"""The values that all rooms exchange: frozen, with NumPy arrays inside.

What lives here: `SparseVector`, `Embeddings` and `ImageEmbeddings`. What does not: how they are
computed (`heads`) and where they are kept (`cache`). Nothing here imports a model library.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, overload

import numpy as np
from numpy.typing import NDArray

from unified_embeddings.errors import InputError

FloatArray: TypeAlias = NDArray[np.float32]
IntArray: TypeAlias = NDArray[np.int32]
HeadName: TypeAlias = Literal["dense", "sparse", "colbert"]
Role: TypeAlias = Literal["document", "query"]

Options: TypeAlias = dict[str, Any]
"""Keyword arguments by name: what an object was made with, fit for JSON."""

Text: TypeAlias = "str | tuple[int, ...]"
"""A text, or the token ids of one, without the special tokens and prefix that models add."""

_LARGEST_INDEX = 2**31 - 1
"""Of an int32."""

HEAD_NAMES: tuple[HeadName, ...] = ("dense", "sparse", "colbert")


@dataclass(frozen=True, eq=False, repr=False)
class SparseVector(Mapping[int, float]):
    """Lexical weights of one text: vocabulary id → weight, every weight above zero.

    It reads as a dict (`weights[42]`, `.items()`, `dict(weights)`, `==` with a dict) and stores two
    arrays, read-only copies of what it was given. `values` is the array, as Qdrant names it, not
    the mapping's method. A text without indexable tokens gives an empty vector.

    Attributes:
        indices: Vocabulary ids, int32 (nnz,), ascending and unique, >= 0.
        values: Their weights, float32 (nnz,), finite and > 0.

    Raises:
        ValueError: If the arrays differ in shape, or break one of the rules above.

    Example:
        >>> from unified_embeddings import SparseVector
        >>> weights = SparseVector.from_dict({42: 0.5, 7: 0.25})
        >>> weights[42], 8 in weights, weights == {7: 0.25, 42: 0.5}
        (0.5, False, True)
        >>> weights.to_qdrant()
        {'indices': [7, 42], 'values': [0.25, 0.5]}
    """

    indices: IntArray
    values: FloatArray  # type: ignore[assignment]  # Qdrant's name; it hides Mapping.values()

    def __post_init__(self) -> None:
        given_indices = np.asarray(self.indices)
        if given_indices.size:
            if given_indices.dtype.kind not in "iu":
                raise ValueError(f"indices must be integers, got dtype {given_indices.dtype}")
            if (largest := np.maximum.reduce(given_indices, axis=None)) > _LARGEST_INDEX:
                raise ValueError(f"indices must fit int32, got {largest}")
            if (least := np.minimum.reduce(given_indices, axis=None)) < 0:
                raise ValueError(f"indices must be >= 0, got {least}")
        indices = np.array(given_indices, dtype=np.int32)
        values = np.array(self.values, dtype=np.float32)
        if indices.ndim != 1 or indices.shape != values.shape:
            raise ValueError(
                "indices and values must be one-dimensional and of the same length, "
                f"got shapes {indices.shape} and {values.shape}"
            )
        if indices.size:
            if not (indices[1:] > indices[:-1]).all():
                raise ValueError("indices must be ascending and unique")
            # NaN is not above 0, and infinity is not below itself.
            if not ((values > 0) & (values < np.inf)).all():
                raise ValueError("values must be finite and > 0; leave zero weights out")
        indices.setflags(write=False)
        values.setflags(write=False)
        object.__setattr__(self, "indices", indices)
        object.__setattr__(self, "values", values)

    @classmethod
    def from_dict(cls, weights: Mapping[int, float]) -> SparseVector:
        """Build from id → weight in any order; weights <= 0 are dropped."""
        pairs = []
        for token_id, weight in weights.items():
            # Not `> 0`: NaN is neither, and has to reach the constructor, which refuses it, as it
            # does ids that are equal only once they are integers ("7" and 7).
            if not np.float32(weight) <= 0:
                pairs.append((int(token_id), float(weight)))
        pairs.sort()
        return cls(
            np.array([token_id for token_id, _ in pairs], dtype=np.int64),
            np.array([weight for _, weight in pairs], dtype=np.float32),
        )

    def to_qdrant(self) -> dict[str, list[int] | list[float]]:
        """Return `{"indices": [...], "values": [...]}`, the form of Qdrant's sparse vectors."""
        return {"indices": self.indices.tolist(), "values": self.values.tolist()}

    @property
    def nbytes(self) -> int:
        """Return the bytes held by the two arrays."""
        return self.indices.nbytes + self.values.nbytes

    def __reduce__(self) -> tuple[type[SparseVector], tuple[IntArray, FloatArray]]:
        """Copy and pickle through the constructor, so that a copy is read-only too."""
        return SparseVector, (self.indices, self.values)

    def __getitem__(self, index: int) -> float:
        position = int(np.searchsorted(self.indices, index))
        if position < len(self.indices) and self.indices[position] == index:
            return float(self.values[position])
        raise KeyError(index)

    def __iter__(self) -> Iterator[int]:
        return iter(self.indices.tolist())

    def __len__(self) -> int:
        return len(self.indices)

    def __repr__(self) -> str:
        first_pairs = zip(self.indices[:4].tolist(), self.values[:4].tolist(), strict=True)
        shown = [f"{token_id}: {weight:.4g}" for token_id, weight in first_pairs]
        if len(self) > len(shown):
            shown.append("...")
        return f"SparseVector(nnz={len(self)}, {{{', '.join(shown)}}})"


@dataclass(frozen=True, eq=False, repr=False)
class ImageEmbeddings:
    """The vectors of n images, or of those among them that could be read, in the order given.

    Attributes:
        dense: float32 (m, d), rows of unit length, m <= n.
        indices: Which image each row belongs to, m positions, ascending.
        errors: What was wrong with each of the others, n - m errors, each with its `index`.

    Example:
        >>> import numpy as np
        >>> from unified_embeddings import ImageEmbeddings, InputError
        >>> error = InputError("not an image", index=1)
        >>> ImageEmbeddings(np.ones((1, 4), np.float32), indices=(0,), errors=(error,))
        ImageEmbeddings(dense=float32(1, 4), errors=1)
    """

    dense: FloatArray
    indices: tuple[int, ...]
    errors: tuple[InputError, ...] = ()

    def __len__(self) -> int:
        return len(self.dense)

    def __repr__(self) -> str:
        return f"ImageEmbeddings(dense=float32{self.dense.shape}, errors={len(self.errors)})"


@dataclass(frozen=True, eq=False, repr=False)
class Embeddings:
    """The vectors of n texts, in the order the texts were given; heads not asked for are None.

    `emb.dense` and `emb["dense"]` are the same thing. `emb[2:5]` is the Embeddings of those texts.

    Attributes:
        dense: float32 (n, d), rows of unit length.
        sparse: n sparse vectors.
        colbert: n arrays, float32 (t_i, d), rows of unit length; t_i counts the text's tokens
            without the leading special token.

    Raises:
        ValueError: If no head is given, or the heads disagree about n.

    Example:
        >>> from unified_embeddings.embedders.fake import FakeEmbedder
        >>> embeddings = FakeEmbedder(dimension=8).encode_documents(["a", "b", "c"])
        >>> embeddings
        Embeddings(n=3, dense=float32(3, 8), sparse=3 vectors, colbert=None)
        >>> embeddings["dense"] is embeddings.dense, len(embeddings[1:])
        (True, 2)
    """

    dense: FloatArray | None = None
    sparse: list[SparseVector] | None = None
    colbert: list[FloatArray] | None = None

    def __post_init__(self) -> None:
        lengths = {name: len(head) for name, head in self._heads() if head is not None}
        if not lengths:
            raise ValueError("Embeddings need at least one of dense, sparse and colbert")
        if len(set(lengths.values())) > 1:
            raise ValueError(f"the heads must cover the same texts, got lengths {lengths}")

    def _heads(
        self,
    ) -> tuple[tuple[HeadName, FloatArray | list[SparseVector] | list[FloatArray] | None], ...]:
        return (("dense", self.dense), ("sparse", self.sparse), ("colbert", self.colbert))

    @classmethod
    def join(cls, parts: Sequence[Embeddings]) -> Embeddings:
        """Return the vectors of several calls as those of one.

        Args:
            parts: At least one; all with the same heads.

        Raises:
            ValueError: If there are none, or their heads differ.

        Example:
            >>> from unified_embeddings.embedders.fake import FakeEmbedder
            >>> embeddings = FakeEmbedder(dimension=8).encode_documents(["a", "b", "c"])
            >>> Embeddings.join([embeddings[:1], embeddings[1:]])
            Embeddings(n=3, dense=float32(3, 8), sparse=3 vectors, colbert=None)
        """
        heads = [set(part) for part in parts]
        if not heads or any(other != heads[0] for other in heads):
            raise ValueError(f"expected parts with the same heads, got {heads}")
        dense: list[FloatArray] = []
        sparse: list[SparseVector] = []
        colbert: list[FloatArray] = []
        for part in parts:
            if part.dense is not None:
                dense.append(part.dense)
            sparse += part.sparse or ()
            colbert += part.colbert or ()
        return cls(
            dense=np.concatenate(dense) if "dense" in heads[0] else None,
            sparse=sparse if "sparse" in heads[0] else None,
            colbert=colbert if "colbert" in heads[0] else None,
        )

    def __len__(self) -> int:
        return next(len(head) for _, head in self._heads() if head is not None)

    @overload
    def __getitem__(self, key: Literal["dense"]) -> FloatArray | None: ...
    @overload
    def __getitem__(self, key: Literal["sparse"]) -> list[SparseVector] | None: ...
    @overload
    def __getitem__(self, key: Literal["colbert"]) -> list[FloatArray] | None: ...
    @overload
    def __getitem__(self, key: slice) -> Embeddings: ...
    def __getitem__(
        self, key: HeadName | slice
    ) -> FloatArray | list[SparseVector] | list[FloatArray] | Embeddings | None:
        if isinstance(key, slice):
            return Embeddings(
                dense=None if self.dense is None else self.dense[key],
                sparse=None if self.sparse is None else self.sparse[key],
                colbert=None if self.colbert is None else self.colbert[key],
            )
        if isinstance(key, str):
            heads = dict(self._heads())
            if key not in heads:
                raise KeyError(f"no head {key!r}; the heads are {', '.join(heads)}")
            return heads[key]
        raise TypeError(f"index with a head's name or a slice, not {type(key).__name__}")

    def __iter__(self) -> Iterator[HeadName]:
        """Yield the names of the heads present, like iterating a dict."""
        for name, head in self._heads():
            if head is not None:
                yield name

    def __repr__(self) -> str:
        dense = "None" if self.dense is None else f"float32{self.dense.shape}"
        sparse = "None" if self.sparse is None else f"{len(self.sparse)} vectors"
        colbert = "None" if self.colbert is None else f"{len(self.colbert)} arrays"
        return f"Embeddings(n={len(self)}, dense={dense}, sparse={sparse}, colbert={colbert})"
