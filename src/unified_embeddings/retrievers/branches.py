"""One of the searches that a query consists of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

from qdrant_client import models as qm

ListName: TypeAlias = Literal["dense", "sparse"]
"""What a ranking is called."""


@dataclass(frozen=True)
class Branch:
    """One of the searches that a query consists of: with what, in which vectors, at what weight.

    Unnamed vectors have the name None.
    """

    vector: list[float] | qm.SparseVector
    vector_name: str | None
    weight: float

    @property
    def list_name(self) -> ListName:
        """Return what its ranking is called."""
        return "dense" if isinstance(self.vector, list) else "sparse"
