"""One of the searches that a query consists of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from qdrant_client import models as qm


@dataclass(frozen=True)
class Branch:
    """One of the searches that a query consists of: with what, in which vectors, at what weight.

    Unnamed vectors have the name None.
    """

    vector: list[float] | qm.SparseVector
    vector_name: str | None
    weight: float

    @property
    def list_name(self) -> Literal["dense", "sparse"]:
        """Return what its ranking is called."""
        return "dense" if isinstance(self.vector, list) else "sparse"
