"""Judged queries made from passages themselves, where nobody has judged any.

What lives here: titles, first sentences, phrases of rare words, and sentences taken out of a
passage (inverse cloze), each judged relevant to the passage that it comes from. What does not:
reading the passages (`llama.passages`), and writing the queries down (`generated_folder`).

Such queries repeat words of the passage that answers them, which people's questions do not. So they
favour lexical matches. The sentence of an inverse-cloze query would have to be missing from the
passage; here the collection holds it. They tell a broken index from a working one, and are a start
where there are no judgements. ADR 26 has how well they rank systems.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

from unified_embeddings.errors import InputError
from unified_embeddings.evaluation.near_duplicates import (
    WORD,
    group_near_duplicates,
    split_words,
)
from unified_embeddings.validation import require_whole_number

QueryKind: TypeAlias = Literal["title", "first-sentence", "rare-phrase", "inverse-cloze"]

QUERY_KINDS: tuple[QueryKind, ...] = get_args(QueryKind)

_SENTENCE_END = re.compile(r"(?<=[.!?\u061f\u06d4])\s+|(?<=[\u3002\uff01\uff1f])|\n+")
"""Where a sentence ends: after a mark and a space, after a Chinese mark, at a line break."""
_HEADING = re.compile(r"^#{1,6}\s+(.+?)\s*#*$")
_FEWEST_WORDS, _MOST_WORDS = 3, 32
"""Of a query. Characters count as words where a script puts no space between them."""
_PHRASE_WORDS = 4
_LONGEST_TITLE = 16
"""Words of a first line that is taken for a title, unless it ends like a sentence."""
_SENTENCE_MARKS = ".!?:;,\u3002\uff01\uff1f\u061f"


@dataclass(frozen=True)
class Passage:
    """A text of a collection.

    Attributes:
        passage_id: Its name, unlike any other's.
        text: What is searched.
        document: What judgements call the document that it belongs to.
        titles: What its metadata calls its document or section, none if it does not.
    """

    passage_id: str
    text: str
    document: str
    titles: tuple[str, ...] = ()


@dataclass(frozen=True)
class GeneratedQuery:
    """A query made from a passage.

    Attributes:
        text: The query.
        kind: How it was made.
        documents: The relevant documents: the passage's own, and those with nearly the same text.
    """

    text: str
    kind: QueryKind
    documents: tuple[str, ...]


def generate_queries(
    passages: Sequence[Passage], count: int, *, seed: int = 0
) -> list[GeneratedQuery]:
    """Return up to `count` queries, as many of each kind as the passages allow.

    The same passages, in any order, give the same queries for the same seed. Of passages that are
    nearly the same only one gives queries, for which the documents of all are relevant. A title
    that several documents have gives none. Queries that are nearly the same as another are left
    out.

    Args:
        passages: The collection's texts.
        count: The most queries to return, at least one.
        seed: Another one draws other passages.

    Raises:
        InputError: If no passage gives a query.

    Example:
        >>> from unified_embeddings.evaluation.generated_queries import Passage, generate_queries
        >>> text = "Red foxes jump over dogs. The dogs sleep on. Nobody else was there."
        >>> for query in generate_queries([Passage("1", text, "d1")], 9):
        ...     print(query.kind, "|", query.text)
        first-sentence | Red foxes jump over dogs.
        inverse-cloze | The dogs sleep on.
    """
    require_whole_number("the number of queries", count)
    ordered = sorted(passages, key=lambda passage: passage.passage_id)
    groups = group_near_duplicates([passage.text for passage in ordered])
    documents: dict[int, dict[str, None]] = {}
    for passage, group in zip(ordered, groups, strict=True):
        documents.setdefault(group, {}).setdefault(passage.document)
    sources = sorted(documents, key=lambda position: _draw(seed, ordered[position].passage_id))
    make = _makers(ordered, documents)
    queries: list[GeneratedQuery] = []
    # Each round takes one query of each passage at most, and starts each passage with the next
    # kind, so that kinds and passages are spread evenly.
    for first_kind in range(len(QUERY_KINDS)):
        for place, position in enumerate(sources):
            kind = QUERY_KINDS[(first_kind + place) % len(QUERY_KINDS)]
            text = make[kind](ordered[position])
            if text is not None:
                relevant = tuple(sorted(documents[position]))
                queries.append(GeneratedQuery(text=text, kind=kind, documents=relevant))
        queries = _drop_near_duplicates(queries)
        if len(queries) >= count:
            break
    if not queries:
        raise InputError(
            f"none of {len(passages)} passages gives a query: it would take a title, or a sentence "
            f"of {_FEWEST_WORDS} to {_MOST_WORDS} words and less than half of its passage"
        )
    return queries[:count]


def _makers(
    passages: Sequence[Passage], documents: Mapping[int, Mapping[str, None]]
) -> dict[QueryKind, Callable[[Passage], str | None]]:
    """Return for each kind what makes a query of a passage, or None where it has none."""
    frequencies: Counter[str] = Counter()
    for position in documents:
        words = WORD.findall(passages[position].text)
        frequencies.update({word.casefold() for word in words})
    title_documents: dict[str, set[str]] = {}
    for passage in passages:
        for title in _titles(passage):
            title_documents.setdefault(title.casefold(), set()).add(passage.document)

    def unique_title(passage: Passage) -> str | None:
        for title in _titles(passage):
            if len(title_documents[title.casefold()]) == 1 and _is_query(title, fewest=2):
                return title
        return None

    def rarest_phrase(passage: Passage) -> str | None:
        return _rarest_phrase(passage, frequencies)

    return {
        "title": unique_title,
        "first-sentence": _first_sentence,
        "rare-phrase": rarest_phrase,
        "inverse-cloze": _later_sentence,
    }


def _titles(passage: Passage) -> Iterator[str]:
    """Yield a passage's titles: its metadata's, its headings, a first line that looks like one."""
    yield from (title.strip() for title in passage.titles if title.strip())
    lines = passage.text.strip().split("\n")
    for line in lines:
        heading = _HEADING.match(line.strip())
        if heading:
            yield heading[1]
    first = lines[0].strip()
    is_short = len(split_words(first)) <= _LONGEST_TITLE
    if len(lines) > 1 and is_short and first[-1:] not in _SENTENCE_MARKS and first[:1] != "#":
        yield first


def _sentences(passage: Passage) -> list[str]:
    """Return a passage's sentences that can be queries, without its titles.

    Half of the passage's words or more would find it whatever the system.
    """
    titles = set(_titles(passage))
    most_words = len(split_words(passage.text)) / 2
    pieces = [piece.strip() for piece in _SENTENCE_END.split(passage.text)]
    return [
        piece
        for piece in pieces
        if _is_query(piece)
        and len(split_words(piece)) < most_words
        and piece not in titles
        and not _HEADING.match(piece)
    ]


def _is_query(text: str, *, fewest: int = _FEWEST_WORDS) -> bool:
    return fewest <= len(split_words(text)) <= _MOST_WORDS


def _first_sentence(passage: Passage) -> str | None:
    sentences = _sentences(passage)
    return sentences[0] if sentences else None


def _later_sentence(passage: Passage) -> str | None:
    """Return a sentence other than the first, drawn by the passage's name."""
    later = _sentences(passage)[1:]
    if not later:
        return None
    return later[_draw(0, passage.passage_id) % len(later)]


def _rarest_phrase(passage: Passage, frequencies: Mapping[str, int]) -> str | None:
    """Return the run of four words, within a sentence, whose words the fewest passages have."""
    best, best_rarity = None, -math.inf
    for sentence in _SENTENCE_END.split(passage.text):
        matches = list(WORD.finditer(sentence))
        for start in range(len(matches) - _PHRASE_WORDS + 1):
            run = matches[start : start + _PHRASE_WORDS]
            words = {match[0].casefold() for match in run}
            # The sum of their IDF, but for a constant.
            rarity = -math.fsum(math.log(frequencies[word]) for word in sorted(words))
            if len(words) == _PHRASE_WORDS and rarity > best_rarity:
                best, best_rarity = sentence[run[0].start() : run[-1].end()], rarity
    return best


def _drop_near_duplicates(queries: Sequence[GeneratedQuery]) -> list[GeneratedQuery]:
    groups = group_near_duplicates([query.text for query in queries], run_length=1)
    return [query for place, query in enumerate(queries) if groups[place] == place]


def _draw(seed: int, name: str) -> int:
    """Return a number that looks drawn, and is the same at every call."""
    digest = hashlib.sha256(f"{seed} {name}".encode()).digest()
    return int.from_bytes(digest[:8], "big")
