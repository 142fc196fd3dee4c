"""BM25 as a choice among the models: its names, its languages, and how it is fused.

What lives here: the way from a name like "bm25:german" to a `ModelSpec`. What does not: counting
words (`embedders.bm25`); there are no files to find and no weights to load.
"""

from __future__ import annotations

from unified_embeddings.errors import InputError
from unified_embeddings.models.fusion import Fusion
from unified_embeddings.models.spec import ModelSpec

BM25 = "bm25"
"""The choice, for English; "bm25:german" is the same for German."""

NO_STEMMING = "none"
"""In a language's place: words stay as they are."""

LANGUAGES = (
    "arabic", "danish", "dutch", "english", "finnish", "french", "german", "greek", "hungarian",
    "italian", "norwegian", "portuguese", "romanian", "russian", "spanish", "swedish", "tamil",
    "turkish",
)  # fmt: skip
"""Languages whose words are stemmed: those of the stemming library."""

_DEFAULT_LANGUAGE = "english"

BM25_FUSION = Fusion(
    weights=(0.6, 0.4),
    candidates=100,
    method="dbsf",
    source="measured with mini-m3's dense vectors on MED, CACM and XQuAD-R English (docs/bm25.md)",
)
"""How BM25's ranking is fused with a dense model's, unless that model says otherwise."""


def is_bm25(name: str) -> bool:
    """Tell whether a model's name means BM25, in whatever language."""
    return name == BM25 or name.startswith(f"{BM25}:")


def read_language(name: str) -> str:
    """Return the language of a name like "bm25:german": one of `LANGUAGES`, or `NO_STEMMING`.

    Raises:
        InputError: If it is another one, or not a name of BM25's.
    """
    head, colon, language = name.partition(":")
    if head == BM25 and not colon:
        return _DEFAULT_LANGUAGE
    if head != BM25 or language not in (*LANGUAGES, NO_STEMMING):
        raise InputError(
            f"{name!r:.80} is no BM25 that we have: write {BM25} for English, or {BM25}:LANGUAGE "
            f"with one of {', '.join(LANGUAGES)}; {BM25}:{NO_STEMMING} leaves words as they are, "
            "for any other language and for several in one collection"
        )
    return language


def bm25_spec(name: str) -> ModelSpec:
    """Return the spec of BM25 by its name.

    Raises:
        InputError: Like `read_language`.
    """
    read_language(name)
    return ModelSpec(
        choice=name,
        model_id=name,
        licence="Apache-2.0",
        heads=("sparse",),
        pooling="bm25",
        fusion=BM25_FUSION,
        sparse_idf=True,
    )
