"""Text and tables into chunks that fit a model, at a cost that is linear in the text.

What lives here: where a chunk ends, and tables whose columns are named in each chunk. What does
not: LlamaIndex's interface (`splitter`).

A text is cut into pieces first: sentences, and parts of sentences that are too long. Chunks are
runs of pieces. Each piece is tokenised a bounded number of times, and nothing recurses, whatever
the text: a million question marks, or one word of a megabyte.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, TypeAlias

CountTokens: TypeAlias = Callable[[str], int]
"""Returns how many tokens a text has."""

Announce: TypeAlias = Callable[[Sequence[str]], None]
"""Is told of texts that will be counted next, for a tokenizer that answers many at once faster."""

_ANNOUNCED = 256
"""Texts that are announced together."""
_SHORT = 40
"""Characters: shorter sentences and lines are joined with the next, to tokenise them in one go."""
_CHARACTERS_PER_TOKEN = 64
"""More than a token has in ordinary text. Bounds a chunk whose characters give no tokens."""
_FIRST_GUESS = 4
"""Characters of a token in ordinary text."""
_MARK = re.compile(
    r"\n+"
    r"|[.!?\u2026]+[\"'\u2019\u201d\u00bb)\]]*"  # . ! ? and what closes behind them
    r"|[\u3002\uff01\uff1f\uff61]+[\u300d\u300f\u201d\u2019\uff09]*"  # their CJK forms
)
"""What may end a sentence. It always matches a whole run, and never fails after a long one."""
_CJK_MARKS = "\u3002\uff01\uff1f\uff61"
_SPACES = re.compile(r"\s*")
_NUMBER = re.compile(r"[+-]?[0-9][0-9.,:/' -]*(e[+-]?[0-9]+)?%?", re.IGNORECASE)
_YEAR = re.compile(r"(19|20)[0-9]{2}")
_CLAUSE_ENDS = ("; ", ": ", ", ", "\uff1b", "\uff0c", "\u3001")


class Span(NamedTuple):
    """A stretch of a text, from `start` to before `end`."""

    start: int
    end: int


class _Piece(NamedTuple):
    start: int
    end: int
    tokens: int


def split_text(
    text: str,
    count_tokens: CountTokens,
    *,
    size: int,
    overlap: int,
    announce: Announce | None = None,
) -> list[Span]:
    """Split a text into chunks of whole sentences, in order.

    A sentence longer than a chunk is split, where possible at a line end, after a comma or between
    words. White space around a chunk is left out, and so are blank chunks.

    Args:
        text: The text.
        count_tokens: Returns how many tokens a text has.
        size: Most tokens of a chunk. A single character may have more.
        overlap: Most tokens that a chunk repeats from the end of the one before, in whole pieces.
        announce: Called with the sentences that are counted next, many at a time.
    """
    longest = size * _CHARACTERS_PER_TOKEN
    part = min(size, max(overlap, size // 8))
    pieces: list[_Piece] = []
    sentences = _sentences(text)
    if announce is not None:
        sentences = _announced(text, sentences, longest, announce)
    for start, end in sentences:
        if end - start <= longest:
            tokens = count_tokens(text[start:end])
            if tokens <= size:
                pieces.append(_Piece(start, end, tokens))
                continue
        pieces.extend(_break_up(text, Span(start, end), count_tokens, part))
    spans: list[Span] = []
    for start, end in _pack(text, pieces, count_tokens, size, overlap):
        chunk = text[start:end]
        start += len(chunk) - len(chunk.lstrip())
        end -= len(chunk) - len(chunk.rstrip())
        # What is left may be blank, or nothing but the overlap.
        if start < end and (not spans or end > spans[-1].end):
            spans.append(Span(start, end))
    return spans


def split_table(
    rows: Sequence[Sequence[str]],
    separator: str,
    title: str,
    count_tokens: CountTokens,
    size: int,
    announce: Announce | None = None,
) -> list[str]:
    """Split a table into chunks of whole rows, each with the title and the names of the columns.

    Where the names would take more than a quarter of a chunk, each cell goes with its name
    instead. A row that does not fit is split between cells.

    Args:
        rows: Rows of cells, the first with the names of the columns if it looks like that.
        separator: What goes between two cells.
        title: The table's name; "" for none.
        count_tokens: Returns how many tokens a text has.
        size: Most tokens of a chunk.
        announce: Called with the rows that are counted next, many at a time.
    """
    rows = [row for row in rows if any(row)]
    if not rows:
        return []
    head = f"{title}\n" if title and count_tokens(title) <= size // 4 else ""
    if not is_header(rows):
        return _pack_rows(rows, separator, head, count_tokens, size, announce)
    header_tokens = count_tokens(separator.join(rows[0]))
    if header_tokens <= size // 4 and len(rows) > 1:
        head += separator.join(rows[0]) + "\n"
        return _pack_rows(rows[1:], separator, head, count_tokens, size, announce)
    if header_tokens <= size * 4:
        named = [_name_cells(rows[0], row) for row in rows[1:]]
        return _pack_rows([rows[0], *named], separator, head, count_tokens, size, announce)
    return _pack_rows(rows, separator, head, count_tokens, size, announce)


def is_header(rows: Sequence[Sequence[str]]) -> bool:
    """Tell whether a table's first row names its columns.

    It does not if a cell but the first is empty, if one reads as a number, if two are equal, or if
    one is repeated below in its column.
    """
    names = [name.strip() for name in rows[0]]
    if len(rows) < 2 or len(set(names)) < len(names):
        return False
    if not all(names[1:]) or any(_is_number(name) for name in names):
        return False
    for row in rows[1:]:
        if any(cell.strip() == name for name, cell in zip(names, row, strict=False)):
            return False
    return True


# --- sentences ----------------------------------------------------------------------------------


def _sentences(text: str) -> Iterator[Span]:
    """Yield the sentences and lines of a text, which together are the whole of it."""
    start = 0
    for end in _sentence_ends(text):
        if end - start >= _SHORT:
            yield Span(start, end)
            start = end
    if start < len(text):
        yield Span(start, len(text))


def _announced(
    text: str, spans: Iterator[Span], longest: int, announce: Announce
) -> Iterator[Span]:
    """Yield spans, and announce those that are short enough to be counted, many at a time."""
    while window := list(itertools.islice(spans, _ANNOUNCED)):
        announce([text[start:end] for start, end in window if end - start <= longest])
        yield from window


def _sentence_ends(text: str) -> Iterator[int]:
    """Yield where sentences and lines end, with the white space behind them."""
    position = 0
    while (match := _MARK.search(text, position)) is not None:
        end = _end_of(_SPACES, text, match.end())
        position = end
        mark = match[0]
        following = text[end : end + 1]
        is_end = end > match.end() or mark[0] in _CJK_MARKS or mark[0] == "\n"
        # Text goes on in lower case after an abbreviation, or where a line was only wrapped.
        if following.islower() and mark in (".", "\n"):
            is_end = text.count("\n", match.start(), end) > 1
        if is_end:
            yield end


def _end_of(pattern: re.Pattern[str], text: str, position: int) -> int:
    match = pattern.match(text, position)
    return match.end() if match else position


def _break_up(text: str, span: Span, count_tokens: CountTokens, part: int) -> Iterator[_Piece]:
    """Split a long sentence into parts of about `part` tokens."""
    start = span.start
    guess = part * _FIRST_GUESS
    while start < span.end:
        end, tokens = _fitting_end(text, Span(start, span.end), count_tokens, part, guess)
        guess = max(1, end - start)
        if end < span.end:
            cut = _best_cut(text, start + guess // 2, end)
            if cut is not None:
                end = cut
                tokens = count_tokens(text[start:end])
        yield _Piece(start, end, tokens)
        start = end


def _fitting_end(
    text: str, span: Span, count_tokens: CountTokens, limit: int, guess: int
) -> tuple[int, int]:
    """Return where a stretch from the start of `span` has about `limit` tokens, and how many.

    The stretch is doubled until it has too many, and then halved towards the limit. Its length is
    about that of the part before (`guess`), so the cost stays in proportion to what is returned.
    """
    last = min(span.end, span.start + limit * _CHARACTERS_PER_TOKEN)
    fits, tokens = span.start, 0
    too_long = last + 1
    end = min(last, span.start + guess)
    while True:
        count = count_tokens(text[span.start : end])
        if count <= limit:
            fits, tokens = end, count
        else:
            too_long = end
        if fits == last or too_long - fits <= max(1, (fits - span.start) // 8):
            break
        end = (fits + too_long) // 2 if too_long <= last else min(last, 2 * end - span.start)
    if fits == span.start:  # a single character of more tokens than that
        fits = span.start + 1
        tokens = count_tokens(text[span.start : fits])
    return fits, tokens


def _best_cut(text: str, start: int, end: int) -> int | None:
    """Return the best place to cut a sentence: behind a line, a clause or a word, in this order."""
    line = text.rfind("\n", start, end)
    if line >= 0:
        return line + 1
    clauses = [(text.rfind(mark, start, end), len(mark)) for mark in _CLAUSE_ENDS]
    position, length = max(clauses)
    if position >= 0:
        return position + length
    word = max(text.rfind(" ", start, end), text.rfind("\t", start, end))
    return word + 1 if word >= 0 else None


# --- packing ------------------------------------------------------------------------------------


def _pack(
    text: str, pieces: Sequence[_Piece], count_tokens: CountTokens, size: int, overlap: int
) -> Iterator[Span]:
    """Yield runs of pieces that have at most `size` tokens together."""
    longest = size * _CHARACTERS_PER_TOKEN
    first = done = 0  # the next run's first piece, and the first piece that is in no run yet
    while done < len(pieces):
        stop, total = first, 0
        while stop < len(pieces):
            piece = pieces[stop]
            if stop > first and (
                total + piece.tokens > size or piece.end - pieces[first].start > longest
            ):
                break
            total += piece.tokens
            stop += 1
        # Together they may have a token more than one by one.
        while stop > first + 1 and (
            count_tokens(text[pieces[first].start : pieces[stop - 1].end]) > size
        ):
            stop -= 1
        if stop <= done and first < done:
            first = done  # there was no room besides the overlap
            continue
        yield Span(pieces[first].start, pieces[stop - 1].end)
        if stop == len(pieces):
            return
        previous, done, first = first, stop, stop
        # The next run must have room for the piece behind the overlap.
        room = min(overlap, size - pieces[stop].tokens)
        while first > previous + 1 and pieces[first - 1].tokens <= room:
            first -= 1
            room -= pieces[first].tokens


def _pack_rows(
    rows: Sequence[Sequence[str]],
    separator: str,
    head: str,
    count_tokens: CountTokens,
    size: int,
    announce: Announce | None,
) -> list[str]:
    """Return chunks of rows, each behind `head`, that have at most `size` tokens."""
    room = size - (count_tokens(head) if head else 0)
    lines: list[tuple[str, int]] = []
    for number, row in enumerate(rows):
        if announce is not None and number % _ANNOUNCED == 0:
            following = rows[number : number + _ANNOUNCED]
            announce([separator.join(cells) for cells in following])
        line = separator.join(row)
        tokens = room + 1
        if len(line) <= room * _CHARACTERS_PER_TOKEN:
            tokens = count_tokens(line)
        if tokens <= room:
            lines.append((line, tokens))
            continue
        parts = _split_row(row, separator, count_tokens, room)
        lines.extend((part, count_tokens(part)) for part in parts)
    chunks = []
    first = 0
    while first < len(lines):
        stop, total = first, 0
        while stop < len(lines) and (stop == first or total + lines[stop][1] <= room):
            total += lines[stop][1]
            stop += 1
        chunk = head + "\n".join(line for line, _ in lines[first:stop])
        while stop > first + 1 and count_tokens(chunk) > size:
            stop -= 1
            chunk = head + "\n".join(line for line, _ in lines[first:stop])
        chunks.append(chunk)
        first = stop
    return chunks


def _split_row(
    row: Sequence[str], separator: str, count_tokens: CountTokens, room: int
) -> Iterator[str]:
    """Split a long row between its cells, and only a long cell within itself."""
    cells: list[str] = []
    total = 0
    for cell in row:
        tokens = room + 1
        if len(cell) <= room * _CHARACTERS_PER_TOKEN:
            tokens = count_tokens(cell + separator)
        if cells and total + tokens > room:
            yield separator.join(cells)
            cells, total = [], 0
        if tokens > room:
            spans = split_text(cell, count_tokens, size=room, overlap=0)
            yield from (cell[start:end] for start, end in spans)
        else:
            cells.append(cell)
            total += tokens
    if cells:
        yield separator.join(cells)


def _name_cells(names: Sequence[str], row: Sequence[str]) -> list[str]:
    """Return the cells of a row that are not empty, each with the name of its column."""
    named = [f"{name}: {cell}" for name, cell in zip(names, row, strict=False) if cell]
    return [*named, *row[len(names) :]]


def _is_number(text: str) -> bool:
    """Tell whether a text reads as a number or a date; a year may be the name of a column."""
    return _NUMBER.fullmatch(text) is not None and _YEAR.fullmatch(text) is None
