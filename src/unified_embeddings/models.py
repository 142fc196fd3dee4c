"""The model choices by their short names.

What lives here: data about models. What does not: finding their files (`checkpoints`) and running
them (`engines`).
"""

from __future__ import annotations

from dataclasses import dataclass

from unified_embeddings.errors import ModelLoadError
from unified_embeddings.types import HEAD_NAMES, HeadName, Role


@dataclass(frozen=True)
class ModelSpec:
    """What is known of a model before its files are opened.

    Attributes:
        choice: The short name.
        model_id: Its hub id, or `choice` itself for the model that comes from installed packages.
        dimension: Width of the dense vector.
        max_length: Most tokens of a text, special tokens included.
        heads: What it can produce.
        licence: SPDX identifier.
        query_prefix: Put before every query.
        document_prefix: Put before every document.
    """

    choice: str
    model_id: str
    dimension: int
    max_length: int
    licence: str
    heads: tuple[HeadName, ...] = HEAD_NAMES
    query_prefix: str = ""
    document_prefix: str = ""

    def prefix(self, role: Role) -> str:
        """What is put before a text of this role."""
        return self.query_prefix if role == "query" else self.document_prefix


MINI_M3 = "mini-m3"

MODELS: dict[str, ModelSpec] = {
    spec.choice: spec
    for spec in (
        # Dimension, length and licence as on the model card of BAAI/bge-m3.
        ModelSpec("bge-m3", "BAAI/bge-m3", dimension=1024, max_length=8192, licence="MIT"),
        # all-MiniLM-L6-v2 (Apache-2.0) with a fitted sparse head; see mini_m3.py.
        ModelSpec(MINI_M3, MINI_M3, dimension=384, max_length=256, licence="Apache-2.0"),
    )
}

PLANNED = (
    "nomic", "arctic", "jina-v3", "jina-clip", "bge-large-splade"
)  # fmt: skip
"""Names the documents promise that this version does not serve yet."""


def choose(choice: str) -> ModelSpec | None:
    """The spec of a short name or of a known hub id; None for any other model.

    Raises:
        ModelLoadError: If the name is one that a later version will serve.
    """
    if choice in PLANNED:
        raise ModelLoadError(
            choice,
            f"this version serves {', '.join(MODELS)} and any checkpoint in BGE-M3's layout; "
            f"{', '.join(PLANNED)} come later",
        )
    by_id = {spec.model_id: spec for spec in MODELS.values()}
    return MODELS.get(choice) or by_id.get(choice)
