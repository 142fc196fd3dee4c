"""RTF files into text.

What lives here: the control words that carry text, and characters in the code pages of fonts. What
does not: layout.

Source: Rich Text Format Specification 1.9.1.
"""

from __future__ import annotations

import codecs
import re
from dataclasses import dataclass

from unified_embeddings.errors import InputError
from unified_embeddings.llama.readers.content import FileContent, Section

_TOKEN = re.compile(
    rb"\\([a-zA-Z]{1,32})(-?\d{1,10})? ?|\\'([0-9a-fA-F]{2})|\\([^a-zA-Z])|([{}])|([^\\{}\r\n]+)"
)
_CHARACTERS = {
    "par": "\n", "sect": "\n\n", "page": "\n\n", "line": "\n", "tab": "\t", "cell": " | ",
    "nestcell": " | ", "row": "\n", "nestrow": "\n", "emdash": "\u2014", "endash": "\u2013",
    "emspace": "\u2003", "enspace": "\u2002", "bullet": "\u2022", "lquote": "\u2018",
    "rquote": "\u2019", "ldblquote": "\u201c", "rdblquote": "\u201d",
}  # fmt: skip
_SYMBOLS = {b"~": "\u00a0", b"_": "-", b"{": "{", b"}": "}", b"\\": "\\", b"\n": "\n", b"\r": "\n"}
_WITHOUT_TEXT = frozenset(
    ("fonttbl", "colortbl", "stylesheet", "info", "pict", "object", "fldinst", "themedata",
     "colorschememapping", "datastore", "listtable", "listoverridetable", "revtbl", "rsidtbl",
     "generator", "filetbl", "latentstyles", "xmlnstbl", "nonshppict", "bkmkstart", "bkmkend",
     "listtext", "pntext", "pgdsctbl", "private", "xe", "tc", "docvar", "template", "userprops")
)  # fmt: skip
_CHARSETS = {
    0: "cp1252", 77: "mac_roman", 128: "cp932", 129: "cp949", 134: "gbk", 136: "big5",
    161: "cp1253", 162: "cp1254", 163: "cp1258", 177: "cp1255", 178: "cp1256", 186: "cp1257",
    204: "cp1251", 222: "cp874", 238: "cp1250",
}  # fmt: skip
"""Encoding of a font by its \\fcharset."""


def read_rtf(data: bytes) -> FileContent:
    """Read an RTF file.

    Raises:
        InputError: If it is not an RTF file.
    """
    if not data.lstrip().startswith(b"{\\rtf"):
        raise InputError("is not an RTF file")
    return FileContent([Section(_RtfText(data).read())])


@dataclass
class _Group:
    """What holds within a pair of braces.

    Attributes:
        is_shown: Whether its text belongs to the document.
        fallback: How many characters after a Unicode character stand for it in old programs.
        encoding: The encoding of its bytes.
    """

    is_shown: bool
    fallback: int
    encoding: str


class _RtfText:
    """One pass over a file.

    Args:
        data: The file.
    """

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._pieces: list[str] = []
        self._bytes = bytearray()
        self._encoding = "cp1252"
        self._fonts: dict[int, str] = {}
        self._font = 0
        self._in_font_table = 0
        self._group = _Group(is_shown=True, fallback=1, encoding="cp1252")
        self._outer: list[_Group] = []
        self._skip = 0

    def read(self) -> str:
        """Return the text."""
        position = 0
        while (match := _TOKEN.search(self._data, position)) is not None:
            position = match.end()
            word, number, hexadecimal, symbol, brace, plain = match.groups()
            if hexadecimal is not None:
                self._add_bytes(bytes.fromhex(hexadecimal.decode()))
            elif plain is not None:
                self._add_bytes(plain)
            elif word == b"bin":
                position += max(0, int(number or 0))
            elif word is not None:
                self._take_word(word.decode(), None if number is None else int(number))
            elif symbol is not None:
                self._take_symbol(symbol)
            else:
                self._take_brace(brace)
        self._flush()
        text = "".join(self._pieces).replace(" | \n", "\n")
        return text.replace("\0", "").strip()  # some programs end the file with a NUL

    def _take_word(self, word: str, number: int | None) -> None:
        if word == "u" and number is not None:
            self._add(chr(number % 0x10000))  # two halves of a character are joined later
            self._skip = self._group.fallback
        elif word == "uc":
            self._group.fallback = max(0, number or 0)
        elif word == "ansicpg":
            self._encoding = self._group.encoding = _known_encoding(f"cp{number}")
        elif word in ("mac", "pc"):
            self._encoding = self._group.encoding = "mac_roman" if word == "mac" else "cp437"
        elif word == "fonttbl":
            self._group.is_shown = False
            self._in_font_table = len(self._outer)
        elif word == "f":
            self._take_font(number or 0)
        elif word == "fcharset" and self._in_font_table:
            self._fonts[self._font] = _CHARSETS.get(number or 0, self._encoding)
        elif word in _WITHOUT_TEXT:
            self._group.is_shown = False
        elif word in _CHARACTERS:
            self._add(_CHARACTERS[word])

    def _take_font(self, number: int) -> None:
        if self._in_font_table:
            self._font = number
        else:
            self._flush()
            self._group.encoding = self._fonts.get(number, self._encoding)

    def _take_symbol(self, symbol: bytes) -> None:
        if symbol == b"*":
            self._group.is_shown = False  # what an old program may leave out
        elif symbol in _SYMBOLS:
            self._add(_SYMBOLS[symbol])

    def _take_brace(self, brace: bytes) -> None:
        self._flush()
        self._skip = 0
        if brace == b"{":
            group = self._group
            self._outer.append(group)
            self._group = _Group(group.is_shown, group.fallback, group.encoding)
        elif self._outer:
            self._group = self._outer.pop()
            if len(self._outer) < self._in_font_table:
                self._in_font_table = 0

    def _add_bytes(self, data: bytes) -> None:
        """Take bytes of text, without those that stand for a Unicode character before them."""
        skipped = min(self._skip, len(data))
        self._skip -= skipped
        if self._group.is_shown:
            self._bytes += data[skipped:]

    def _add(self, text: str) -> None:
        self._flush()
        if self._skip:
            self._skip -= 1
        elif self._group.is_shown:
            self._pieces.append(text)

    def _flush(self) -> None:
        """Decode the bytes so far: characters of East Asian encodings have two."""
        if self._bytes:
            self._pieces.append(self._bytes.decode(self._group.encoding, "replace"))
            self._bytes.clear()


def _known_encoding(name: str) -> str:
    """Return the name of an encoding, or of the usual one if Python does not know it."""
    try:
        codecs.lookup(name)
    except LookupError:
        return "cp1252"
    return name
