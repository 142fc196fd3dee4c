"""BM25 as a choice among the models: its names, its languages, and how it is fused.

What lives here: the way from a name like "bm25:german" to a `ModelSpec`. What does not: counting
words (`embedders.bm25`); there are no files to find and no weights to load.
"""

from __future__ import annotations

from typing import NamedTuple

from unified_embeddings.errors import InputError
from unified_embeddings.models.fusion import Fusion
from unified_embeddings.models.spec import ModelSpec

BM25 = "bm25"
"""The choice, for English; "bm25:german" is the same for German."""

FASTEMBED_BM25 = "Qdrant/bm25"
"""FastEmbed's model of this name: for collections that it filled."""

NATIVE_BM25 = "Qdrant/bm25-native"
"""What Qdrant itself makes of a text for its model "qdrant/bm25": for collections filled so."""

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

KEYWORD_FUSION = Fusion(
    weights=(0.4, 0.2, 0.4),
    candidates=100,
    method="dbsf",
    source="measured with mini-m3 on MED, CACM, XQuAD-R and identifiers (docs/bm25.md)",
)
"""How a collection's keyword list is fused with a model's own two lists, unless one was chosen."""


class Bm25Name(NamedTuple):
    """What a name like "bm25:german" says.

    Attributes:
        rules: Whose rules for words it means: `BM25`, `FASTEMBED_BM25` or `NATIVE_BM25`.
        language: One of `LANGUAGES`, or `NO_STEMMING`.
    """

    rules: str
    language: str


def is_bm25(name: str) -> bool:
    """Tell whether a model's name means BM25, by whatever rules and in whatever language."""
    return _rules_of(name) is not None


def read_name(name: str) -> Bm25Name:
    """Return what a name of BM25's says.

    Raises:
        InputError: If there is no such language, or it is not a name of BM25's.
    """
    rules = _rules_of(name) or BM25
    _, colon, language = name.partition(":")
    if is_bm25(name) and not colon:
        return Bm25Name(rules, _DEFAULT_LANGUAGE)
    languages = languages_of(rules)
    if not is_bm25(name) or language not in (*languages, NO_STEMMING):
        raise InputError(
            f"{name!r:.80} is no BM25 that we have: write {rules} for English, or {rules}:LANGUAGE "
            f"with one of {', '.join(languages)}; {rules}:{NO_STEMMING} leaves words as they are, "
            "for any other language and for several in one collection"
        )
    return Bm25Name(rules, language)


def languages_of(rules: str) -> tuple[str, ...]:
    """Return the languages that rules for words have. Qdrant itself has no Tamil."""
    if rules == NATIVE_BM25:
        return tuple(language for language in LANGUAGES if language != "tamil")
    return LANGUAGES


def _rules_of(name: str) -> str | None:
    """Return whose rules a name means; None if it does not mean BM25.

    FastEmbed and Qdrant's client take their name in any case.
    """
    head, _, _ = name.partition(":")
    if head == BM25:
        return BM25
    for rules in (FASTEMBED_BM25, NATIVE_BM25):
        if head.lower() == rules.lower():
            return rules
    return None


def bm25_spec(name: str) -> ModelSpec:
    """Return the spec of BM25 by its name.

    Raises:
        InputError: Like `read_name`.
    """
    read_name(name)
    return ModelSpec(
        choice=name,
        model_id=name,
        licence="Apache-2.0",
        heads=("sparse",),
        pooling="bm25",
        fusion=BM25_FUSION,
        sparse_idf=True,
    )
