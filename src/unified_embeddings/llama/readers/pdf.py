"""PDF files into text, page by page.

What lives here: pypdf, without its log. What does not: recognising text in pictures (OCR).
"""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Iterator
from typing import TYPE_CHECKING

from unified_embeddings.errors import InputError, MissingExtraError
from unified_embeddings.llama.readers.content import FileContent, Section

if TYPE_CHECKING:
    from pypdf import PageObject, PdfReader


def read_pdf(data: bytes) -> FileContent:
    """Read a PDF file: each page is a section, with its label as `page_label`.

    Raises:
        InputError: If it is not a PDF file, needs a password, or holds no text.
        MissingExtraError: If pypdf is not installed.
    """
    try:
        import pypdf
    except ImportError as error:
        raise MissingExtraError("the reader for .pdf files", extra="files") from error
    with _without_log("pypdf"):
        try:
            reader = pypdf.PdfReader(io.BytesIO(data))
        except Exception as error:
            if b"%PDF" in data:
                raise
            raise InputError("is not a PDF file") from error
        _decrypt(reader)
        return _read_pages(reader)


def _read_pages(reader: PdfReader) -> FileContent:
    """Return the text of all pages that can be read, and note those that cannot.

    Raises:
        InputError: If no page holds text.
    """
    count = len(reader.pages)
    sections: list[Section] = []
    pictures: list[str] = []
    damaged: dict[str, str] = {}
    for number, label in enumerate(_page_labels(reader, count)):
        try:
            page = reader.pages[number]
            text = page.extract_text()
        except Exception as error:  # one damaged page does not cost the others
            damaged[label] = str(error).strip() or type(error).__name__
            continue
        sections.append(Section(text, {"page_label": label}))
        if not text.strip() and _shows_picture(page):
            pictures.append(label)
    if not any(section.text.strip() for section in sections):
        if damaged:
            raise InputError(f"no page can be read: {next(iter(damaged.values()))}")
        raise InputError("no text; needs OCR")
    notes = []
    if pictures:
        notes.append(
            f"{len(pictures)} of {count} pages are pictures without text: {_listed(pictures)}"
        )
    if damaged:
        notes.append(f"{len(damaged)} of {count} pages cannot be read: {_listed([*damaged])}")
    return FileContent([*sections], notes)


def _page_labels(reader: PdfReader, count: int) -> list[str]:
    """Return the pages' labels, or their numbers where the file's labels are damaged."""
    try:
        labels = [*reader.page_labels]
    except Exception:
        labels = []
    return labels if len(labels) == count else [str(number) for number in range(1, count + 1)]


def _listed(labels: list[str]) -> str:
    """Return the labels in a row, ten at most."""
    return ", ".join(labels[:10]) + (", ..." if len(labels) > 10 else "")


def _decrypt(reader: PdfReader) -> None:
    """Open a file that is encrypted without a password for reading.

    Raises:
        InputError: If it needs a password, or a library that decrypts.
    """
    if not reader.is_encrypted:
        return
    try:
        opened = reader.decrypt("")
    except Exception as error:  # pypdf's DependencyError, or whatever a damaged file leads to
        raise InputError(f"is encrypted and cannot be opened: {error}") from error
    if not opened:
        raise InputError("is encrypted; save it without a password")


def _shows_picture(page: PageObject) -> bool:
    """Tell whether a page refers to a picture or a drawing that may hold one."""
    try:
        resources = page.get("/Resources")
        return bool(resources is not None and resources.get_object().get("/XObject"))
    except Exception:  # a damaged page; it only costs the note
        return False


@contextlib.contextmanager
def _without_log(name: str) -> Iterator[None]:
    """Keep a library's warnings about odd files off the terminal."""
    logger = logging.getLogger(name)
    handler = logging.NullHandler()  # without any, the log would print on standard error
    propagated = logger.propagate
    logger.addHandler(handler)
    logger.propagate = False
    try:
        yield
    finally:
        logger.propagate = propagated
        logger.removeHandler(handler)
