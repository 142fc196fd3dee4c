"""How a model's dense and sparse rankings are fused, unless a caller says otherwise.

What lives here: the numbers that belong to a model, and where they come from. What does not: the
arithmetic (`fusion`, on the ground), and which model has which numbers (`catalogue`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields

from unified_embeddings.errors import InputError
from unified_embeddings.validation import require_weights, require_whole_number

RRF_K = 60
"""RRF's damping in the paper that introduced it, by Cormack, Clarke and Büttcher (2009)."""

PLAIN_CANDIDATES = 20
"""Depth of each ranking in plain RRF, and number of nodes that are reranked, unless given."""


@dataclass(frozen=True)
class Fusion:
    """How a dense and a sparse ranking become one: by reciprocal rank, weighted.

    How good a model's sparse ranking is compared with its dense one differs between models. Equal
    weights make the result worse than the dense ranking alone if the sparse one is much weaker.

    Attributes:
        weights: Weights of the dense and the sparse ranking, >= 0, not both 0.
        k: RRF's damping, >= 0.
        candidates: Depth of each ranking that is fused, >= 1.
        source: Where the numbers come from: a measurement or a publication.

    Raises:
        InputError: If a value is out of range.

    Example:
        >>> from unified_embeddings.models.fusion import Fusion
        >>> Fusion(weights=[1, 0.3], source="our own judgements").weights
        (1.0, 0.3)
    """

    weights: tuple[float, float]
    k: int = RRF_K
    candidates: int = PLAIN_CANDIDATES
    source: str = ""

    def __post_init__(self) -> None:
        weights = require_weights(self.weights, of="dense and sparse")
        # TOML and JSON give a list.
        object.__setattr__(self, "weights", weights)
        object.__setattr__(self, "k", require_whole_number("k", self.k, least=0))
        candidates = require_whole_number("candidates", self.candidates)
        object.__setattr__(self, "candidates", candidates)
        if not isinstance(self.source, str):
            raise InputError(f"source must be a text, got {self.source!r}")

    @classmethod
    def from_dict(cls, values: Mapping[str, object]) -> Fusion:
        """Build from values by field name; only `weights` is required.

        Raises:
            InputError: If a name is unknown, `weights` is missing, or a value is out of range.
        """
        known_names = [field.name for field in fields(cls)]
        unknown_names = sorted(values.keys() - set(known_names), key=str)
        if unknown_names or "weights" not in values:
            raise InputError(
                f"it takes {', '.join(known_names)} and needs weights, got {list(values)}"
            )
        return cls(**values)  # type: ignore[arg-type]  # __post_init__ checks the types


DEFAULT_FUSION = Fusion(
    weights=(1.0, 0.5),
    candidates=50,
    source="not measured for this model; good for mini-m3 with four sparse rankings (ADR 20)",
)
"""For a model that nobody has measured: half the weight helps with weak and strong rankings."""
