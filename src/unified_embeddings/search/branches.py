"""One of the searches that a query consists of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

from qdrant_client import models as qm

ListName: TypeAlias = Literal["dense", "sparse", "bm25"]
"""What a ranking is called; they are `models.fusion.LIST_NAMES`."""


@dataclass(frozen=True)
class Branch:
    """One of the searches that a query consists of.

    Attributes:
        list_name: What its ranking is called.
        vector: What is searched with.
        vector_name: Which of the points' vectors it is compared with; None for unnamed ones.
        weight: Of its ranking among those that are fused.
        depth: How many points of its ranking are wanted.
    """

    list_name: ListName
    vector: list[float] | qm.SparseVector
    vector_name: str | None
    weight: float
    depth: int
