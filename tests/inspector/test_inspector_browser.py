"""The inspector in a real browser: what it loads, how it looks, and how it is used by keyboard.

They need the package playwright and a Chromium on the PATH; axe's checks need axe-core, whose
`axe.min.js` the variable AXE_CORE names (`npm install axe-core`).
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from qdrant_client import QdrantClient

from inspected_pages import QUESTION, TEXTS, browse, fill, library_over, serve, uuid_of
from unified_embeddings.config.pipeline import UnifiedEmbeddingConfig

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium on the PATH")
AXE = os.environ.get("AXE_CORE", "")
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]
HOSTILE = [
    "<script>document.title = 'taken'</script> travel",
    "</p></li></ol><img src=x onerror=\"document.title='taken'\"> travel",
    "\u202egnihtemos si sihT\u202c travel \x00\x1b[31m \u05e9\u05dc\u05d5\u05dd",
    "travel " + "x" * 100_000,
]
VIEWS = {
    "empty": "/search",
    "search": "/search?q=Who+reimburses+travel%3F",
    "reranked": "/search?q=Who+reimburses+travel%3F&rerank=1&filter=page%3E%3D0",
    "passage": f"/passage?q=Who+reimburses+travel%3F&id={uuid_of(1)}",
    "collection": "/collection",
    "compare": "/compare",
    "compared": "/compare?q=Who+reimburses+travel%3F&b.mode=sparse",
    "hostile": "/search?q=travel&collection=hostile&rerank=1",
    "hostile passage": f"/passage?q=travel&collection=hostile&id={uuid_of(3)}",
    "hostile collection": "/collection?collection=hostile",
}


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    config = UnifiedEmbeddingConfig("mini-m3", precision="fp32", device="cpu")
    client = QdrantClient(":memory:")
    repeated = "Everybody who enters the building at night signs the book at the gate."
    fill(config, client, [*TEXTS, repeated, f"{repeated} Always."])
    fill(config, client, HOSTILE, name="hostile")
    app = browse(library_over(config, client), collection="handbook").app
    with serve(app) as running:
        yield running


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield launched
        launched.close()


class Visitor:
    """A page that remembers what it loaded and what went wrong."""

    def __init__(self, page: Any, address: str) -> None:
        self.page = page
        self.address = address
        self.problems: list[str] = []
        self.requests: list[str] = []
        page.on("console", self._note)
        page.on("pageerror", lambda error: self.problems.append(str(error)))
        page.on("dialog", lambda dialog: self.problems.append(dialog.message))
        page.on("request", lambda request: self.requests.append(request.url))
        page.add_init_script(
            "window.shift = 0; new PerformanceObserver(list => {"
            " for (const entry of list.getEntries()) window.shift += entry.value;"
            "}).observe({type: 'layout-shift', buffered: true});"
        )

    def _note(self, message: Any) -> None:
        if message.type in ("error", "warning"):
            self.problems.append(message.text)

    def go(self, path: str) -> Any:
        answer = self.page.goto(self.address + path, wait_until="networkidle")
        assert answer.status == 200
        return self.page


Visit = Callable[..., Visitor]


@pytest.fixture
def visit(browser: Any, address: str) -> Iterator[Visit]:
    contexts = []

    def make(width: int = 1280, scheme: str = "light", **options: Any) -> Visitor:
        context = browser.new_context(
            viewport={"width": width, "height": 900}, color_scheme=scheme, **options
        )
        contexts.append(context)
        return Visitor(context.new_page(), address)

    yield make
    for context in contexts:
        context.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("view", VIEWS)
def test_a_view_loads_in_peace(
    visit: Visit, address: str, view: str, width: int, scheme: str
) -> None:
    visitor = visit(width, scheme)
    page = visitor.go(VIEWS[view])
    assert not visitor.problems
    assert all(url.startswith(f"{address}/") for url in visitor.requests)
    assert page.evaluate("window.shift") == 0
    assert page.title() != "taken"
    # Nothing has to be scrolled sideways but what has a bar of its own.
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")


@pytest.mark.skipif(not AXE, reason="AXE_CORE does not name axe-core's axe.min.js")
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("view", VIEWS)
def test_a_view_is_accessible(visit: Visit, view: str, width: int, scheme: str) -> None:
    page = visit(width, scheme).go(VIEWS[view])
    for details in page.query_selector_all("details"):
        details.evaluate("element => element.open = true")
    page.evaluate(Path(AXE).read_text("utf-8"))
    found = page.evaluate("axe.run()")
    assert len(found["passes"]) > 15  # it did look
    assert [
        (violation["id"], [node["target"] for node in violation["nodes"]])
        for violation in found["violations"]
    ] == []


@pytest.mark.parametrize("number", range(1, len(HOSTILE) + 1))
def test_hostile_passages_are_shown_as_text(visit: Visit, number: int) -> None:
    from unified_embeddings.inspector.visible import visible

    visitor = visit()
    page = visitor.go(f"/passage?q=travel&collection=hostile&id={uuid_of(number)}")
    assert page.text_content(".passage") == visible(HOSTILE[number - 1])
    assert page.title() != "taken"
    assert not visitor.problems
    # What stands below is where it stands without the passage: nothing reaches out of its box.
    box = page.query_selector(".passage").bounding_box()
    assert box["height"] < 600
    assert box["x"] + box["width"] <= 1280


def test_the_lines_end_at_the_passages(visit: Visit) -> None:
    page = visit().go(VIEWS["reranked"])
    misses = page.evaluate("""() => {
      const lists = [...document.querySelectorAll('.list')];
      const boxes = lists.map(list => new Map([...list.querySelectorAll('.hit')].map(
        hit => [hit.dataset.key, hit.getBoundingClientRect()])));
      const drawing = document.querySelector('.joins');
      const toScreen = point => point.matrixTransform(drawing.getScreenCTM());
      const misses = [];
      for (const path of drawing.querySelectorAll('path')) {
        const length = path.getTotalLength();
        const ends = [0, length].map(place => toScreen(path.getPointAtLength(place)));
        const with_key = boxes.map(of_list => of_list.get(path.dataset.key)).filter(Boolean);
        const near = (x, y, side) => with_key.some(box =>
          Math.abs(box[side] - x) < 1.5 && box.top < y && y < box.bottom);
        if (!near(ends[0].x, ends[0].y, 'right')) misses.push(['start', ends[0].x, ends[0].y]);
        if (!near(ends[1].x, ends[1].y, 'left')) misses.push(['end', ends[1].x, ends[1].y]);
      }
      return {misses, lines: drawing.querySelectorAll('path').length};
    }""")
    assert misses["lines"] > 10
    assert misses["misses"] == []


def test_the_arithmetic_is_shown_by_keyboard_and_hidden_by_escape(visit: Visit) -> None:
    page = visit().go(VIEWS["search"])
    link = page.locator("#list-fused .hit a").first
    total = page.locator("#list-fused .sum").first
    assert not total.is_visible()
    link.focus()
    assert total.is_visible()
    assert "1 / (" in total.inner_text()
    assert page.locator(".hit.on").count() == 3  # in each list
    page.keyboard.press("Escape")
    assert not total.is_visible()
    page.locator("#list-fused .hit").nth(1).hover()
    assert page.locator("#list-fused .sum").nth(1).is_visible()


def test_a_question_is_asked_by_keyboard_alone(visit: Visit) -> None:
    page = visit().go("/search?q=parking")
    page.keyboard.press("/")
    page.keyboard.type("lunch")
    page.keyboard.press("Enter")
    page.wait_for_url(re.compile("lunch"))
    # Fields that were left empty are not in the address.
    assert page.url.endswith("/search?q=lunch&collection=handbook")
    assert "canteen" in page.locator("#list-fused .hit").first.inner_text()


def test_the_map_is_read_by_keyboard(visit: Visit) -> None:
    page = visit().go(VIEWS["collection"])
    page.locator("[data-map]").focus()
    page.keyboard.press("ArrowRight")
    first = page.inner_text("[data-map-label]")
    assert first.startswith("Page ")
    seen = {first}
    for key in ("ArrowRight", "ArrowDown", "ArrowLeft", "ArrowLeft", "ArrowUp", "ArrowUp"):
        page.keyboard.press(key)
        seen.add(page.inner_text("[data-map-label]"))
    assert len(seen) > 2
    page.keyboard.press("Enter")
    page.wait_for_url(re.compile("/passage"))


def test_colours_are_switched_and_kept(visit: Visit) -> None:
    page = visit(scheme="light").go("/search")
    ground = "getComputedStyle(document.body).backgroundColor"
    light = page.evaluate(ground)
    button = page.locator("[data-theme-switch]")
    button.click()  # from "as the system" to light
    assert page.evaluate(ground) == light
    button.click()
    dark = page.evaluate(ground)
    assert dark != light
    page.reload()
    assert page.evaluate(ground) == dark
    assert button.inner_text() == "Dark"
    button.click()
    assert page.evaluate(ground) == light


def test_the_python_of_a_view_is_copied(visit: Visit) -> None:
    page = visit(permissions=["clipboard-read", "clipboard-write"]).go(VIEWS["search"])
    page.click("[data-copy]")
    page.wait_for_selector("text=Copied")
    copied = page.evaluate("navigator.clipboard.readText()")
    assert copied == page.text_content(".python code")
    assert f"retriever.retrieve({QUESTION!r})" in copied


def test_a_token_colours_the_passage(visit: Visit) -> None:
    page = visit().go(VIEWS["passage"])
    classes = "[...document.querySelectorAll('.flow span')].map(span => span.className)"
    before = page.evaluate(classes)
    page.locator(".tokens input").nth(3).check()
    after = page.evaluate(classes)
    assert all(re.fullmatch("h[0-9]", shade) for shade in after)
    assert all(one >= other for one, other in zip(before, after, strict=True))
    assert before != after


def test_without_scripts_every_view_says_the_same(visit: Visit) -> None:
    with_scripts = visit().go(VIEWS["reranked"])
    without = visit(java_script_enabled=False).go(VIEWS["reranked"])
    for selector in ("#list-dense", "#list-sparse", "#list-fused", "#list-reranked"):
        assert without.inner_text(selector) == with_scripts.inner_text(selector)
