"""Plain text files: which encoding they are in, and what to do about a bad byte.

What lives here: bytes into text. What does not: formats that are more than text.
"""

from __future__ import annotations

import codecs
import re

from unified_embeddings.errors import InputError
from unified_embeddings.llama.readers.content import FileContent, Section, lost_note

_BYTE_ORDER_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),  # before UTF-16's, which is its beginning
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_BAD_CHARACTERS_IN = 100
"""One bad character in so many is a flaw of the text; more are another encoding."""
_FEW_BAD_CHARACTERS = 3
_FEW_BAD_CHARACTERS_IN = 10
"""A short text may have a few bad ones, up to one in ten."""
_SAMPLE_BYTES = 4096
_SUCCESSORS = {
    "iso8859-1": "cp1252", "iso8859-9": "cp1254", "tis-620": "cp874",
    "gb2312": "gb18030", "gbk": "gb18030", "big5": "big5hkscs", "shift_jis": "cp932",
    "euc_kr": "cp949",
}  # fmt: skip
_HALF = rb"\xed[\xa0-\xaf][\x80-\xbf]"
_OTHER_HALF = rb"\xed[\xb0-\xbf][\x80-\xbf]"
_HALVES = re.compile(_HALF + _OTHER_HALF + b"|" + _HALF + b"|" + _OTHER_HALF)
"""Halves of characters (surrogates), each written as if it were a character of UTF-8. Some
databases export pairs of them (CESU-8)."""


def read_plain_text(data: bytes) -> FileContent:
    """Read a file of plain text, without changing its line ends.

    Raises:
        InputError: If it is not UTF-8, UTF-16 or UTF-32 text.
    """
    text, notes = decode_text(data)
    return FileContent([Section(text)], notes)


def decode_text(data: bytes, declared: str | None = None) -> tuple[str, list[str]]:
    """Decode a file's bytes, and note the characters that had to be replaced.

    UTF-16 and UTF-32 are recognised by their byte order mark, UTF-16 without one by its zero
    bytes; everything else is UTF-8. A bad byte here and there is replaced by U+FFFD, so that the
    rest can be found. Where more than one character in a hundred is bad, the text is in another
    encoding, and would lose whole words.

    Args:
        data: The bytes.
        declared: The encoding that the file names itself, taken if the bytes are not UTF-8.

    Raises:
        InputError: If the bytes are not text in one of these encodings.
    """
    for mark, encoding in _BYTE_ORDER_MARKS:
        if data.startswith(mark):
            return _decode(data, encoding)
    unmarked = _unmarked_utf16(data[:_SAMPLE_BYTES])
    if unmarked is not None:
        return _decode(data, unmarked)
    try:
        return data.decode(), []
    except UnicodeDecodeError:
        pass
    codec = codec_of(declared)
    if codec not in (None, "utf-8"):
        return _decode(data, codec)
    return _decode(_HALVES.sub(_join_halves, data), "utf-8")


def _join_halves(match: re.Match[bytes]) -> bytes:
    """Return two halves of a character as the character, and a lone one as one bad byte."""
    halves = match[0].decode("utf-8", "surrogatepass")
    if len(halves) == 1:
        return b"\xff"
    return halves.encode("utf-16-le", "surrogatepass").decode("utf-16-le").encode()


def _decode(data: bytes, encoding: str) -> tuple[str, list[str]]:
    text = data.decode(encoding, "replace")
    try:
        original = data.decode(encoding, "ignore")
    except (UnicodeError, LookupError) as error:
        raise InputError(f"is not {encoding.upper()} text: {error}") from error
    bad = text.count("\ufffd") - original.count("\ufffd")
    if not bad:
        return text, []
    are_few = (
        bad == 1
        or bad * _BAD_CHARACTERS_IN <= len(text)
        or (bad <= _FEW_BAD_CHARACTERS and bad * _FEW_BAD_CHARACTERS_IN <= len(text))
    )
    if not are_few or not original.strip():
        raise InputError(
            f"is not {encoding.upper()} text: {bad:,} of {len(text):,} characters are invalid. "
            "Convert it to UTF-8"
        )
    return text, [lost_note(bad)]


def _unmarked_utf16(start: bytes) -> str | None:
    """Return the form of UTF-16 that a text is in, if every second byte is mostly zero."""
    pairs = len(start) // 2
    if start.count(0) < pairs // 2 or pairs < 2:
        return None
    zeros_first = start[0 : 2 * pairs : 2].count(0)
    zeros_second = start[1 : 2 * pairs : 2].count(0)
    if zeros_second > pairs * 0.7 and zeros_first == 0:
        return "utf-16-le"
    if zeros_first > pairs * 0.7 and zeros_second == 0:
        return "utf-16-be"
    return None


def codec_of(declared: str | None) -> str | None:
    """Return the name by which Python decodes a declared encoding; None if it has none.

    What is declared as one of the older standards is written in its larger successor as a rule, so
    that browsers and mail programs take that (https://encoding.spec.whatwg.org/#names-and-labels).
    """
    if declared is None:
        return None
    try:
        "".encode(declared)  # some codecs are none of text
        name = codecs.lookup(declared).name
    except (LookupError, UnicodeError, ValueError):
        return None
    return _SUCCESSORS.get(name, name)
