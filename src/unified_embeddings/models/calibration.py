"""How likely a hit is relevant, from its scores in the dense and the sparse list.

What lives here: the numbers that belong to a model or a collection, and where they come from. What
does not: the evidence (`relevance`, on the ground), fitting the numbers (`evaluation.calibrating`),
which model has which (`catalogue`), and where a collection records its own
(`stores.calibration_record`).
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import TypeVar

from unified_embeddings.errors import InputError
from unified_embeddings.relevance import Evidence, weigh_evidence
from unified_embeddings.validation import require_whole_number

Item = TypeVar("Item", bound=Hashable)

WEAK_HITS = 10
"""Hits of an answer among which a relevant one is looked for, in order to call it weak."""

_COEFFICIENTS = Evidence._fields
_PROBABILITIES = ("weak_below", "ece", "weak_auc")
"""Fields that are None or from 0 to 1."""


@dataclass(frozen=True)
class Calibration:
    """Relevance from 0 to 1 by a logistic regression on a hit's evidence.

    A relevance of 0.5 says: of hits like this one, as many are relevant as are not. It counts what
    the judges of its data counted. No coefficient is negative, so a hit whose score in a list is
    higher is not less relevant.

    Attributes:
        intercept: Log-odds of a hit without any evidence.
        dense_gap: Coefficient of the evidence of that name, >= 0; so are the next three.
        sparse_share: As above.
        sparse_lead: As above.
        agreement: As above.
        weak_below: A question whose best hit is less relevant than this has, more likely than not,
            no relevant hit among its first ten. None: not known.
        depth: Items of each list that are read.
        background: The dense score that stands in for the last of a list that is shorter than that.
        source: Where the numbers come from.
        ece: Expected calibration error on hits that were not used to fit; None: not measured.
        weak_auc: How well the best hit's relevance tells questions without a relevant hit among the
            ten from others that were not used to fit either: 0.5 is a coin, 1 perfect.

    Raises:
        InputError: If a value is out of range.

    Example:
        >>> from unified_embeddings.models.calibration import Calibration
        >>> calibration = Calibration(
        ...     intercept=-6,
        ...     dense_gap=10,
        ...     sparse_share=1,
        ...     sparse_lead=0,
        ...     agreement=4,
        ...     background=0.2,
        ... )
        >>> dense, sparse = [("a", 0.7), ("b", 0.3)], [("a", 5.0)]
        >>> relevances = calibration.judge(dense, sparse, query_weight=5.0)
        >>> {item: round(relevance, 2) for item, relevance in relevances.items()}
        {'a': 0.98, 'b': 0.04}
    """

    intercept: float
    dense_gap: float
    sparse_share: float
    sparse_lead: float
    agreement: float
    background: float
    weak_below: float | None = None
    depth: int = 50
    source: str = ""
    ece: float | None = None
    weak_auc: float | None = None

    def __post_init__(self) -> None:
        for name in ("intercept", "background"):
            object.__setattr__(self, name, _require_number(name, getattr(self, name)))
        for name in _COEFFICIENTS:
            value = _require_number(name, getattr(self, name), least=0)
            object.__setattr__(self, name, value)
        for name in _PROBABILITIES:
            value = getattr(self, name)
            if value is not None:
                value = _require_number(name, value, least=0, most=1)
                object.__setattr__(self, name, value)
        object.__setattr__(self, "depth", require_whole_number("depth", self.depth, least=2))
        if not isinstance(self.source, str):
            raise InputError(f"source must be a text, got {self.source!r}")

    @property
    def coefficients(self) -> tuple[float, ...]:
        """Return the coefficients in the order of `Evidence`'s fields."""
        return tuple(getattr(self, name) for name in _COEFFICIENTS)

    def judge(
        self,
        dense: Sequence[tuple[Item, float]],
        sparse: Sequence[tuple[Item, float]],
        *,
        query_weight: float,
    ) -> dict[Item, float]:
        """Return the relevance of each item of two rankings, 0 to 1.

        Args:
            dense: (item, cosine), best first, each item once.
            sparse: (item, score), best first, each item once; empty if the question has no lexical
                weights.
            query_weight: Sum of the question's sparse weights.
        """
        evidence = weigh_evidence(
            dense,
            sparse,
            query_weight=query_weight,
            depth=self.depth,
            background=self.background,
        )
        return {item: self.relevance(of_item) for item, of_item in evidence.items()}

    def relevance(self, evidence: Evidence) -> float:
        """Return how likely a hit with this evidence is relevant, 0 to 1."""
        products = [
            coefficient * value
            for coefficient, value in zip(self.coefficients, evidence, strict=True)
        ]
        return logistic(self.intercept + math.fsum(products))

    def is_weak(self, best: float) -> bool | None:
        """Tell whether a question's best hits are no better than chance; None: not known.

        Args:
            best: The highest relevance of its hits; 0 if there are none.
        """
        if self.weak_below is None:
            return None
        return best < self.weak_below

    def adjust(self, slope: float, offset: float) -> Calibration:
        """Return it with log-odds of slope · log-odds + offset (Platt 1999).

        The questions that are weak stay the same. With a slope of 0 all hits are alike, and which
        are weak is not known.

        Args:
            slope: >= 0.
            offset: Any number.
        """
        scaled = {name: slope * getattr(self, name) for name in _COEFFICIENTS}
        weak_below = self.weak_below
        if slope == 0:
            weak_below = None
        if weak_below is not None and 0 < weak_below < 1:
            weak_below = logistic(slope * log_odds(weak_below) + offset)
        return replace(
            self, intercept=slope * self.intercept + offset, weak_below=weak_below, **scaled
        )

    def to_dict(self) -> dict[str, object]:
        """Return the fields as plain values, fit for JSON; `from_dict` reads them."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, object]) -> Calibration:
        """Build from values by field name.

        Raises:
            InputError: If a name is unknown or missing, or a value is out of range.
        """
        known_names = [field.name for field in fields(cls)]
        needed_names = {"intercept", "background", *_COEFFICIENTS}
        unknown_names = sorted(values.keys() - set(known_names), key=str)
        if unknown_names or needed_names - values.keys():
            raise InputError(
                f"it takes {', '.join(known_names)} and needs {', '.join(sorted(needed_names))}, "
                f"got {list(values)}"
            )
        return cls(**values)  # type: ignore[arg-type]  # __post_init__ checks the types


def logistic(log_odds: float) -> float:
    """Return the probability of log-odds, without overflow."""
    if log_odds >= 0:
        return 1 / (1 + math.exp(-log_odds))
    odds = math.exp(log_odds)
    return odds / (1 + odds)


def log_odds(probability: float) -> float:
    """Return the log-odds of a probability above 0 and below 1."""
    return math.log(probability / (1 - probability))


def _require_number(
    name: str, value: object, *, least: float = -math.inf, most: float = math.inf
) -> float:
    if isinstance(value, int | float) and not isinstance(value, bool):
        number = float(value)
        if math.isfinite(number) and least <= number <= most:
            return number
    limits = "a finite number"
    if math.isfinite(least):
        limits += f" >= {least:g}"
    if math.isfinite(most):
        limits += f" and <= {most:g}"
    raise InputError(f"{name} must be {limits}, got {value!r:.80}")
