"""Vectors written by hand."""

from __future__ import annotations

from typing import Any

import numpy as np

from unified_embeddings import SparseVector


def floats(*rows: list[float]) -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.array(rows, dtype=np.float32)


def sparse(**weights: float) -> SparseVector:
    return SparseVector.from_dict({int(name[1:]): weight for name, weight in weights.items()})
