"""How the rankings of a search are fused, unless a caller says otherwise.

What lives here: the numbers that belong to a model or a collection, and where they come from. What
does not: the arithmetic (`fusion`, on the ground), which model has which numbers (`catalogue`), and
where a collection records its own (`stores.fusion_choice`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import get_args

from unified_embeddings.errors import InputError
from unified_embeddings.fusion import Method
from unified_embeddings.validation import require_list_weights, require_whole_number

_NAMES: dict[Method, str] = {"rrf": "RRF", "dbsf": "DBSF", "min_max": "min-max", "z": "z-scores"}

LIST_NAMES = ("dense", "sparse", "bm25")
"""What the lists are called that weights are for, in their order."""

RRF_K = 60
"""RRF's damping in the paper that introduced it, by Cormack, Clarke and Büttcher (2009)."""

PLAIN_CANDIDATES = 20
"""Depth of each ranking in plain RRF, and number of nodes that are reranked, unless given."""


@dataclass(frozen=True)
class Fusion:
    """How the rankings of a search become one: by rank or by score, weighted.

    How good a model's sparse ranking is compared with its dense one differs between models. Equal
    weights make the result worse than the dense ranking alone if the sparse one is much weaker. A
    weight of 0 leaves a ranking out: it is not even searched for.

    Attributes:
        weights: Weights of the dense and the sparse ranking, >= 0, and of the keyword list where a
            collection has one; not all 0. Two weights leave the keyword list out.
        k: RRF's damping, >= 0; without effect on the other methods.
        candidates: Depth of each ranking that is fused, >= 1.
        source: Where the numbers come from: a measurement or a publication.
        method: "rrf", by reciprocal rank; or by scores normalised in each ranking: "dbsf",
            "min_max" or "z" (`fusion.dbsf`, `fusion.convex`).

    Raises:
        InputError: If a value is out of range.

    Example:
        >>> from unified_embeddings.models.fusion import Fusion
        >>> Fusion(weights=[1, 0.3], source="our own judgements").weights
        (1.0, 0.3)
    """

    weights: tuple[float, ...]
    k: int = RRF_K
    candidates: int = PLAIN_CANDIDATES
    source: str = ""
    method: Method = "rrf"

    def __post_init__(self) -> None:
        weights = require_list_weights(self.weights)
        # TOML and JSON give a list.
        object.__setattr__(self, "weights", weights)
        object.__setattr__(self, "k", require_whole_number("k", self.k, least=0))
        candidates = require_whole_number("candidates", self.candidates)
        object.__setattr__(self, "candidates", candidates)
        if not isinstance(self.source, str):
            raise InputError(f"source must be a text, got {self.source!r}")
        if self.method not in get_args(Method):
            raise InputError(
                f"method must be one of {', '.join(get_args(Method))}, not {self.method!r}"
            )

    def __str__(self) -> str:
        """Return the numbers in words, without their source."""
        used_names = [
            name for name, weight in zip(LIST_NAMES, self.weights, strict=False) if weight > 0
        ]
        if len(used_names) == 1:
            return f"{used_names[0]} alone"
        weighted = "weights " + " : ".join(f"{weight:g}" for weight in self.weights)
        name = _NAMES[self.method]
        if self.method == "rrf":
            name += f", k {self.k}"
        return f"{name}, {weighted}, {self.candidates} candidates"

    @property
    def keyword_weight(self) -> float:
        """Return the weight of the keyword list; 0 where none is given."""
        return self.weights[2] if len(self.weights) == 3 else 0.0

    def to_dict(self) -> dict[str, object]:
        """Return the fields as plain values, fit for JSON; `from_dict` reads them."""
        return {**asdict(self), "weights": list(self.weights)}

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


PLAIN_RRF = Fusion(weights=(1.0, 1.0), source="plain RRF")
"""Both rankings alike, as in the paper."""

DEFAULT_FUSION = Fusion(
    weights=(1.0, 0.5),
    candidates=50,
    source="not measured for this model; good for mini-m3 with four sparse rankings (ADR 20)",
)
"""For a model that nobody has measured: half the weight helps with weak and strong rankings."""
