"""Which reader reads which files.

What lives here: readers by the ending of a file's name. What does not: the readers.
"""

from __future__ import annotations

import codecs
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from unified_embeddings.errors import InputError
from unified_embeddings.llama.readers.content import FileContent, mend_characters
from unified_embeddings.llama.readers.delimited import read_csv, read_tsv
from unified_embeddings.llama.readers.epub import read_epub
from unified_embeddings.llama.readers.excel import read_xlsx
from unified_embeddings.llama.readers.mail import read_eml, read_mbox
from unified_embeddings.llama.readers.markup import read_html
from unified_embeddings.llama.readers.notebook import read_notebook
from unified_embeddings.llama.readers.office import read_docx, read_pptx
from unified_embeddings.llama.readers.opendocument import read_opendocument
from unified_embeddings.llama.readers.pdf import read_pdf
from unified_embeddings.llama.readers.plain_text import read_plain_text
from unified_embeddings.llama.readers.rtf import read_rtf

_START_BYTES = 8192
"""How much of a file of unknown type is looked at to tell text from binary data."""
_BLOCK_BYTES = 2**20


@dataclass(frozen=True)
class Reader:
    """A reader of one kind of file.

    Attributes:
        name: Its name and revision. It is a part of each file's version: another reader, or a
            reader that takes something else out of a file, makes the next run read it again.
        read: Takes a file's bytes. Raises InputError, MissingExtraError, or what its library does.
    """

    name: str
    read: Callable[[bytes], FileContent]


_PLAIN_TEXT = Reader("text 1", read_plain_text)
_READERS = {
    Reader("csv 1", read_csv): ".csv",
    Reader("docx 1", read_docx): ".docx .docm .dotx",
    Reader("eml 2", read_eml): ".eml",
    Reader("epub 1", read_epub): ".epub",
    Reader("html 2", read_html): ".html .htm .xhtml",
    Reader("mbox 2", read_mbox): ".mbox",
    Reader("notebook 1", read_notebook): ".ipynb",
    Reader("opendocument 1", read_opendocument): ".odt .ods .odp .ott",
    Reader("pdf pypdf 1", read_pdf): ".pdf",
    Reader("pptx 1", read_pptx): ".pptx .pptm .ppsx",
    Reader("rtf 1", read_rtf): ".rtf",
    Reader("tsv 1", read_tsv): ".tsv .tab",
    Reader("xlsx 2", read_xlsx): ".xlsx .xlsm .xltx",
}
_BY_SUFFIX = {
    suffix: reader for reader, suffixes in _READERS.items() for suffix in suffixes.split()
}
_UNREADABLE = {
    ".doc": "the format of old Word versions is not read; save it as .docx",
    ".ppt": "the format of old PowerPoint versions is not read; save it as .pptx",
    ".xls": "the format of old Excel versions is not read; save it as .xlsx",
    ".xlsb": "Excel's binary format is not read; save it as .xlsx",
    ".hwp": "Hangul Word Processor files are not read; save it as .docx or .pdf",
    ".msg": "Outlook's format is not read; save it as .eml",
    ".pages": "Pages files are not read; export it as .docx or .pdf",
    ".numbers": "Numbers files are not read; export it as .xlsx",
    ".key": "Keynote files are not read; export it as .pptx or .pdf",
    ".mobi": "Mobipocket books are not read; convert it to .epub",
    ".azw3": "Kindle books are not read; convert it to .epub",
    ".djvu": "DjVu files are not read; convert it to .pdf",
}
"""Documents that no reader reads, with the way out. They are reported, not skipped."""
_MEDIA = frozenset(
    (".png", ".jpg", ".jpeg", ".gif", ".webp", ".bmp", ".tif", ".tiff", ".svg", ".mp3", ".mp4",
     ".wav", ".avi", ".mov", ".zip", ".gz", ".tar", ".7z", ".exe", ".so", ".dll", ".pyc", ".bin",
     ".heic", ".ico", ".mkv", ".flac", ".ogg", ".xz", ".bz2", ".rar", ".iso", ".jar", ".woff",
     ".woff2", ".ttf", ".otf")
)  # fmt: skip
"""Types of files that hold no text."""


def reader_of(file: Path) -> Reader:
    """Return the reader for a file's type; plain text if there is none of its own."""
    return _BY_SUFFIX.get(file.suffix.lower(), _PLAIN_TEXT)


def why_without_text(file: Path) -> str | None:
    """Return why a file holds no text; None if it holds some.

    Its type holds none, or no reader knows its type and it begins with binary data (a NUL byte, and
    not valid UTF-8) or holds nothing but NUL bytes, as after a crash or a broken copy.

    Raises:
        OSError: If the file cannot be opened.
    """
    suffix = file.suffix.lower()
    if suffix in _MEDIA:
        return f"no text in {suffix} files"
    if suffix in _BY_SUFFIX or suffix in _UNREADABLE:
        return None
    with file.open("rb") as content:
        start = content.read(_START_BYTES)
    if start and not start.strip(b"\0") and _is_all_nul(file):
        return "it holds nothing but NUL bytes"
    marks = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE, codecs.BOM_UTF32_BE)
    if b"\0" not in start or start.startswith(marks):
        return None
    try:
        # An incremental decoder accepts a character that is cut off at the end.
        codecs.getincrementaldecoder("utf-8")().decode(start)
    except UnicodeDecodeError:
        return "it is binary data"
    return None


def _is_all_nul(file: Path) -> bool:
    """Tell whether a file holds NUL bytes only."""
    with file.open("rb") as content:
        while block := content.read(_BLOCK_BYTES):
            if block.strip(b"\0"):
                return False
    return True


def read_content(file: Path, data: bytes) -> FileContent:
    """Return what is in a file, as valid Unicode.

    Args:
        file: Its path, for its type.
        data: Its bytes.

    Raises:
        InputError: If it cannot be read; the message says why.
        MissingExtraError: If its reader is not installed.
    """
    suffix = file.suffix.lower()
    if suffix in _UNREADABLE:
        # A text file may bear any name: what is no binary data is read.
        if b"\0" in data[:_START_BYTES] or not data:
            raise InputError(_UNREADABLE[suffix])
        return mend_characters(read_plain_text(data))
    return mend_characters(reader_of(file).read(data))
