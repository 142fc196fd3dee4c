"""EPUB books into text, in reading order.

What lives here: the book's packaging. What does not: the pages, which are HTML (`markup`).
"""

from __future__ import annotations

import posixpath
from urllib.parse import unquote

from unified_embeddings.errors import InputError
from unified_embeddings.llama.readers.content import FileContent, Section
from unified_embeddings.llama.readers.markup import read_html
from unified_embeddings.llama.readers.zipped_xml import ZippedFile

_CONTAINER = "META-INF/container.xml"
_PAGES = frozenset(("application/xhtml+xml", "text/html"))


def read_epub(data: bytes) -> FileContent:
    """Read a book: each of its documents is a section.

    Raises:
        InputError: If it is not an EPUB file.
    """
    file = ZippedFile(data, "an EPUB book")
    container = _Container()
    file.parse(_CONTAINER, container)
    if not container.packages:
        raise InputError(f"is not an EPUB book: {_CONTAINER} names no content")
    package_name = container.packages[0]
    package = _Package()
    file.parse(package_name, package)
    folder = posixpath.dirname(package_name)
    parts: list[Section] = []
    if package.title:
        parts.append(Section(package.title))
    notes: list[str] = []
    for address in package.pages():
        name = posixpath.normpath(posixpath.join(folder, unquote(address)))
        if name not in file.names:
            notes.append(f"the book names a part {name} that is not in it")
            continue
        page = read_html(file.read(name))
        parts.extend(part for part in page.parts if isinstance(part, Section))
        notes.extend(page.notes)
    return FileContent([*parts], [*notes, *file.notes])


class _Container:
    """Collects the names of the package documents."""

    def __init__(self) -> None:
        self.packages: list[str] = []

    def start(self, name: str, attributes: dict[str, str]) -> None:
        if name == "rootfile" and "full-path" in attributes:
            self.packages.append(attributes["full-path"])

    def end(self, name: str) -> None:
        pass

    def data(self, text: str) -> None:
        pass


class _Package:
    """Collects the title, the documents, and the order in which they are read."""

    def __init__(self) -> None:
        self.title = ""
        self._documents: dict[str, str] = {}
        self._order: list[str] = []
        self._in_title = False

    def start(self, name: str, attributes: dict[str, str]) -> None:
        if name == "title" and not self.title:
            self._in_title = True
        elif name == "item" and attributes.get("media-type") in _PAGES:
            self._documents[attributes.get("id", "")] = attributes.get("href", "")
        elif name == "itemref":
            self._order.append(attributes.get("idref", ""))

    def end(self, name: str) -> None:
        if name == "title":
            self._in_title = False

    def data(self, text: str) -> None:
        if self._in_title:
            self.title += text

    def pages(self) -> list[str]:
        """Return the addresses of the documents in reading order, each once."""
        ordered = [self._documents[item] for item in self._order if item in self._documents]
        return list(dict.fromkeys([*ordered, *self._documents.values()]))
