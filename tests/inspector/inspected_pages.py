"""A small collection, the inspector over it, and reading its pages as a browser would."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from html.parser import HTMLParser
from typing import Any

import uvicorn
from llama_index.core.schema import TextNode
from starlette.testclient import TestClient
from starlette.types import ASGIApp

from unified_embeddings.config.pipeline import UnifiedEmbeddingConfig
from unified_embeddings.inspector.app import make_app
from unified_embeddings.inspector.library import Library, Place
from unified_embeddings.inspector.server import address_of, open_port
from unified_embeddings.stores.opening import Client

QUESTION = "Who reimburses travel?"
TEXTS = [
    "Employees have thirty days of leave each year. Ask the travel desk for reimbursements.",
    "Parking is behind the building.",
    "The travel desk opens at nine.",
    "Whoever loses a badge asks the guard.",
    "Parking is behind the building, too.",
    "The canteen serves lunch at noon.",
]
_VOID = {"area", "base", "br", "col", "hr", "img", "input", "link", "meta", "source"}


def uuid_of(number: int) -> str:
    return f"00000000-0000-0000-0000-{number:012}"


def fill(
    config: UnifiedEmbeddingConfig,
    client: Client,
    texts: list[str] = TEXTS,
    *,
    name: str = "handbook",
    metadata: list[dict[str, Any]] | None = None,
) -> None:
    """Store texts, whose ids count from 1; the metadata says on which page each stands."""
    given = metadata or [{"page": number % 2, "title": f"Page {number}"} for number in range(99)]
    nodes = [
        TextNode(
            id_=uuid_of(number),
            text=text,
            metadata=given[number - 1],
            excluded_embed_metadata_keys=list(given[number - 1]),
        )
        for number, text in enumerate(texts, 1)
    ]
    config.vector_store(name, client=client).add(config.text_model(nodes))


def browse(library: Library, **options: Any) -> TestClient:
    """Return a client whose requests reach the inspector as a browser's on this machine do."""
    return TestClient(
        make_app(library, **options), base_url="http://127.0.0.1", follow_redirects=False
    )


def library_over(config: UnifiedEmbeddingConfig, client: Client) -> Library:
    return Library(client, Place(), config=config)


@dataclass
class Element:
    """An element of a page."""

    tag: str
    attributes: dict[str, str]
    children: list[Element | str] = field(default_factory=list)

    @property
    def text(self) -> str:
        return "".join(one if isinstance(one, str) else one.text for one in self.children)

    def find(self, tag: str = "", **attributes: str) -> list[Element]:
        """All elements within with these attributes; `cls` is one of its classes."""
        found = []
        for child in self.children:
            if isinstance(child, str):
                continue
            wanted_class = attributes.get("cls")
            classes = child.attributes.get("class", "").split()
            if (
                tag in ("", child.tag)
                and (wanted_class is None or wanted_class in classes)
                and all(
                    child.attributes.get(name.replace("_", "-")) == value
                    for name, value in attributes.items()
                    if name != "cls"
                )
            ):
                found.append(child)
            found += child.find(tag, **attributes)
        return found

    def one(self, tag: str = "", **attributes: str) -> Element:
        (found,) = self.find(tag, **attributes)
        return found


class _Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.root = Element("", {})
        self._open = [self.root]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        element = Element(tag, {name: value or "" for name, value in attrs})
        self._open[-1].children.append(element)
        if tag not in _VOID:
            self._open.append(element)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._open[-1].children.append(Element(tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self._open[-1].tag == tag, f"</{tag}> closes <{self._open[-1].tag}>"
        self._open.pop()

    def handle_data(self, data: str) -> None:
        self._open[-1].children.append(data)


def read_page(html: str) -> Element:
    """Return a page's elements; it must be well formed."""
    reader = _Reader()
    reader.feed(html)
    reader.close()
    assert len(reader._open) == 1, f"<{reader._open[-1].tag}> is not closed"
    return reader.root


def read_list(page: Element, name: str) -> list[tuple[str, str]]:
    """Return the ids and scores of a list."""
    shown = page.one("section", id=f"list-{name}")
    return [
        (hit.attributes["data-key"], hit.one(cls="score").text) for hit in shown.find(cls="hit")
    ]


@contextmanager
def serve(app: ASGIApp) -> Iterator[str]:
    """Serve an application on this machine in a thread; yield its address."""
    with open_port(0) as listener:
        config = uvicorn.Config(app, log_config=None, access_log=False, lifespan="off", ws="none")
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
        thread.start()
        try:
            yield address_of(listener).rstrip("/")
        finally:
            server.should_exit = True
            thread.join(30)
