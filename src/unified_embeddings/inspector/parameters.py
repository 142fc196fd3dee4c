"""What a page's address asks for.

What lives here: reading the parameters of a URL, with a message for each that cannot be used, and
writing them again. What does not: what is done with them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import get_args
from urllib.parse import urlencode

from starlette.datastructures import QueryParams

from unified_embeddings.errors import InputError
from unified_embeddings.search.options import Mode
from unified_embeddings.validation import require_list_weights

LONGEST_QUESTION = 10_000
"""Characters of a question."""
_LONGEST_VALUE = 1_000
_MOST_SHOWN = 50
_MOST_CANDIDATES = 1_000
_MOST_CONDITIONS = 20
DEFAULT_SHOWN = 10


@dataclass(frozen=True, kw_only=True)
class SearchOptions:
    """How to search.

    Attributes:
        collection: What to search.
        mode: Which lists; None takes all that the model gives.
        top_k: How many passages of each list are shown, and returned.
        candidates: Depth of the lists that are fused; None for the collection's or model's own.
        weights: Weights of the dense and the sparse list, and of a keyword list; None likewise.
        rerank: Whether ColBERT orders the candidates anew.
        conditions: On metadata, as written.
    """

    collection: str
    mode: Mode | None = None
    top_k: int = DEFAULT_SHOWN
    candidates: int | None = None
    weights: tuple[float, ...] | None = None
    rerank: bool = False
    conditions: tuple[str, ...] = ()

    def to_pairs(self, prefix: str = "") -> list[tuple[str, str]]:
        """Return the parameters of a URL that mean this; what is as usual is left out.

        Args:
            prefix: Comes before each name.
        """
        pairs = [("collection", self.collection)]
        if self.mode is not None:
            pairs.append(("mode", self.mode))
        if self.top_k != DEFAULT_SHOWN:
            pairs.append(("k", str(self.top_k)))
        if self.candidates is not None:
            pairs.append(("candidates", str(self.candidates)))
        if self.weights is not None:
            pairs.append(("weights", self.written_weights))
        if self.rerank:
            pairs.append(("rerank", "1"))
        pairs += [("filter", condition) for condition in self.conditions]
        return [(prefix + name, value) for name, value in pairs]

    @property
    def has_more(self) -> bool:
        """Whether more is set than the mode and the reranking."""
        is_usual = self.top_k == DEFAULT_SHOWN and self.candidates is None and self.weights is None
        return not is_usual or bool(self.conditions)

    @property
    def written_weights(self) -> str:
        """Return the weights as they are written in a URL; empty for none."""
        if self.weights is None:
            return ""
        return ",".join(f"{weight:g}" for weight in self.weights)


@dataclass(frozen=True, kw_only=True)
class Question:
    """A question and how to search for its answer.

    Attributes:
        text: The question; empty before anything was asked.
        options: How to search.
    """

    text: str
    options: SearchOptions

    def url(self, path: str, **more: str) -> str:
        """Return the address of a page about this.

        Args:
            path: The page.
            **more: Further parameters.
        """
        pairs = [*self.options.to_pairs(), *more.items()]
        if self.text:
            pairs.insert(0, ("q", self.text))
        return f"{path}?{urlencode(pairs)}"


def read_question(values: QueryParams, *, collection: str) -> Question:
    """Read a question and how to search from a URL.

    Args:
        values: The URL's parameters.
        collection: What to search unless the URL says so.

    Raises:
        InputError: If a parameter cannot be used.
    """
    return Question(text=read_text(values, "q"), options=read_options(values, collection))


def read_text(values: QueryParams, name: str) -> str:
    """Return a text that was typed, without what surrounds it.

    Raises:
        InputError: If it is too long.
    """
    text = values.get(name, "").strip()
    if len(text) > LONGEST_QUESTION:
        raise InputError(
            f"the question has {len(text):,} characters, and {LONGEST_QUESTION:,} are the most; "
            "ask a shorter one"
        )
    return text


def read_options(values: QueryParams, collection: str, *, prefix: str = "") -> SearchOptions:
    """Read how to search from a URL.

    Args:
        values: The URL's parameters.
        collection: What to search unless the URL says so.
        prefix: Comes before each name, as "a." where two searches are compared.

    Raises:
        InputError: If a parameter cannot be used; it is named.
    """

    def get(name: str) -> str:
        value = values.get(prefix + name, "").strip()
        if len(value) > _LONGEST_VALUE:
            raise InputError(f"{prefix}{name} is too long; expected {_LONGEST_VALUE} characters")
        return value

    conditions = [text.strip() for text in values.getlist(f"{prefix}filter")]
    given = tuple(text for text in conditions if text)
    if len(given) > _MOST_CONDITIONS:
        raise InputError(f"expected at most {_MOST_CONDITIONS} filters, got {len(given)}")
    return SearchOptions(
        collection=get("collection") or collection,
        mode=_read_mode(get("mode"), prefix),
        top_k=read_number(get("k"), f"{prefix}k", most=_MOST_SHOWN) or DEFAULT_SHOWN,
        candidates=read_number(get("candidates"), f"{prefix}candidates", most=_MOST_CANDIDATES),
        weights=_read_weights(get("weights"), prefix),
        rerank=get("rerank") in ("1", "on"),
        conditions=given,
    )


def read_number(text: str, name: str, *, most: int) -> int | None:
    """Return a whole number from 1 to `most`; None for no text.

    Raises:
        InputError: If it is none, or out of range.
    """
    if not text:
        return None
    if not (text.isascii() and text.isdigit()) or not 1 <= int(text[:10]) <= most:
        raise InputError(f"{name} must be a whole number from 1 to {most}, got {text!r:.80}")
    return int(text)


def _read_mode(text: str, prefix: str) -> Mode | None:
    modes: dict[str, Mode | None] = {"": None, "auto": None}
    modes.update((mode, mode) for mode in get_args(Mode))
    if text not in modes:
        known = ", ".join(get_args(Mode))
        raise InputError(f"{prefix}mode must be one of {known}, got {text!r:.80}")
    return modes[text]


def _read_weights(text: str, prefix: str) -> tuple[float, ...] | None:
    if not text or text == "auto":
        return None
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        raise InputError(
            f"{prefix}weights {text!r:.80} should be DENSE,SPARSE: two numbers, as in 1,0.3, or "
            "three with the keyword list's"
        ) from None
    return require_list_weights(numbers)
