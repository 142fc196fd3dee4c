"""Whether the questions still fit the collection, by the vectors and scores of recent ones.

What lives here: two numbers over a bounded window, in NumPy. What does not: a verdict; what is
normal depends on the model and the collection, so both numbers come with those of the first
queries.
"""

from __future__ import annotations

import math
import threading
from collections import deque
from dataclasses import dataclass

import numpy as np

from unified_embeddings.errors import InputError
from unified_embeddings.types import FloatArray
from unified_embeddings.validation import require_vector, require_whole_number

WEAK_SHARE = 0.05
"""Share of the first queries whose best score counts as weak, where no threshold is given."""


@dataclass(frozen=True)
class DriftReport:
    """How recent queries lie to the collection.

    Attributes:
        queries: How many there are in the window.
        cosine: Mean cosine of their vectors to the collection's centre; None without queries.
        reference_cosine: The same of the first queries; None until there are enough.
        weak_share: Share of those with a score whose best score is below the threshold; None
            without a threshold or scores.
        threshold: The score below which a best score is weak; None until it is learned.
    """

    queries: int
    cosine: float | None
    reference_cosine: float | None
    weak_share: float | None
    threshold: float | None


class DriftMonitor:
    """Watches the vectors and best scores of queries; thread-safe.

    Args:
        centre: The direction of the collection's centre, (dimension,), of any length but 0; see
            `centre_of`.
        threshold: The cosine below which a query's best score is weak. None learns it from the
            first `reference` queries: the score that the weakest 5% of them stay below.
        window: How many recent queries count.
        reference: How many of the first queries are compared with.

    Raises:
        InputError: If an option is out of range, or the centre is no direction.

    Example:
        >>> import numpy as np
        >>> from unified_embeddings.monitoring.drift import DriftMonitor
        >>> monitor = DriftMonitor(np.array([1.0, 0.0]), threshold=0.5, window=2)
        >>> for vector, best_score in (([1, 0], 0.9), ([0, 1], 0.3), ([1, 0], 0.8)):
        ...     monitor.observe(np.array(vector, dtype=np.float32), best_score)
        >>> report = monitor.report()    # of the last two
        >>> report.cosine, report.weak_share
        (0.5, 0.5)
    """

    def __init__(
        self,
        centre: FloatArray,
        *,
        threshold: float | None = None,
        window: int = 1000,
        reference: int = 200,
    ) -> None:
        direction = np.asarray(centre, dtype=np.float64)
        length = float(np.linalg.norm(direction))
        if direction.ndim != 1 or not np.isfinite(length) or length == 0:
            raise InputError(
                f"the centre must be one vector of finite numbers and not 0, got an array of shape "
                f"{direction.shape} and length {length:.3g}; take centre_of() of the collection"
            )
        if threshold is not None and not -1 <= threshold <= 1:
            raise InputError(f"threshold must be a cosine from -1 to 1, got {threshold}")
        self._direction = direction / length
        self._lock = threading.Lock()
        self._cosines: deque[float] = deque(maxlen=require_whole_number("window", window))
        self._scores: deque[float] = deque(maxlen=window)
        self._first_cosines: list[float] = []
        self._first_scores: list[float] = []
        self._reference = require_whole_number("reference", reference)
        self._threshold = threshold

    def observe(self, vector: FloatArray, best_score: float | None) -> None:
        """Take in one query.

        Args:
            vector: Its dense vector, (dimension,); its length does not matter.
            best_score: The cosine of the nearest point; None where nothing was found.

        Raises:
            InputError: If the vector has another dimension than the centre, or a number is not
                finite.
        """
        if best_score is not None and not math.isfinite(best_score):
            raise InputError(
                f"best_score must be a finite cosine, got {best_score}; give None where nothing "
                "was found"
            )
        query = np.asarray(
            require_vector(vector, len(self._direction), subject="the query"), dtype=np.float64
        )
        length = float(np.linalg.norm(query))
        if length == 0:
            return  # It points nowhere.
        cosine = float(self._direction @ query) / length
        with self._lock:
            self._cosines.append(cosine)
            if len(self._first_cosines) < self._reference:
                self._first_cosines.append(cosine)
            if best_score is not None:
                self._note_score(float(best_score))

    def report(self) -> DriftReport:
        """Return how the queries in the window lie to the collection."""
        with self._lock:
            cosines = np.array(self._cosines)
            scores = np.array(self._scores)
            first = np.array(self._first_cosines)
            threshold = self._threshold
        weak_share = None
        if threshold is not None and len(scores):
            weak_share = float(np.mean(scores < threshold))
        return DriftReport(
            queries=len(cosines),
            cosine=float(cosines.mean()) if len(cosines) else None,
            reference_cosine=float(first.mean()) if len(first) == self._reference else None,
            weak_share=weak_share,
            threshold=threshold,
        )

    def _note_score(self, score: float) -> None:
        self._scores.append(score)
        if self._threshold is None:
            self._first_scores.append(score)
            if len(self._first_scores) == self._reference:
                self._threshold = float(np.quantile(self._first_scores, WEAK_SHARE))
                self._first_scores.clear()


def centre_of(vectors: FloatArray) -> FloatArray:
    """Return the direction of the centre of some vectors, float32 (dimension,), of length 1.

    Args:
        vectors: (n, dimension), each of any length but 0; n >= 1. A few hundred drawn at random
            from a collection are enough: the error of the mean falls with their square root.

    Raises:
        InputError: If there are none, one is not finite, or they point in all directions alike.
    """
    rows = np.asarray(vectors, dtype=np.float64)
    if rows.ndim != 2 or not len(rows):
        raise InputError(
            f"a centre needs at least one vector, got an array of shape {rows.shape}; index some "
            "texts first"
        )
    if not np.isfinite(rows).all():
        raise InputError("the vectors hold numbers that are not finite; embed their texts anew")
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    mean = (rows / np.where(lengths == 0, 1, lengths)).mean(axis=0)
    length = float(np.linalg.norm(mean))
    if length == 0:
        raise InputError("the vectors have no centre: they cancel each other out")
    centre: FloatArray = (mean / length).astype(np.float32)
    return centre
