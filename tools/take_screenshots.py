"""Take the pictures of the inspector that the documentation shows.

    make demo                                          # the collection that they show
    pip install -c constraints.txt '.[browser]'        # and a Chromium on the PATH
    python tools/take_screenshots.py [--path qdrant_data] [--collection python-reference-demo]

Each view is taken light and dark, 1280 and 390 pixels wide, into docs/inspector. The pictures have
few colours, so that a palette of 128 of them is enough; none is larger than 150 kB.
"""

from __future__ import annotations

import argparse
import io
import shutil
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import uvicorn
from PIL import Image

from unified_embeddings.inspector.app import make_app
from unified_embeddings.inspector.library import Library, Place
from unified_embeddings.inspector.server import address_of, open_port
from unified_embeddings.stores.opening import open_folder

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

OUT = Path(__file__).resolve().parents[1] / "docs" / "inspector"
QUESTION = "How+do+I+catch+several+exceptions+at+once%3F"
VIEWS = {
    "search": f"search?q={QUESTION}&rerank=1",
    "passage": "",  # the best one of the search
    "tokens": "",  # the same, further down
    "collection": "collection",
    "compare": f"compare?q={QUESTION}&b.mode=dense",
}
SIZES = {1280: 1000, 390: 844}
"""Width of a picture → its height."""
MOST_BYTES = 150_000
_COLOURS = 128
_FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]


def main() -> None:
    """Take all pictures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--path", type=Path, default=Path("qdrant_data"))
    parser.add_argument("--collection", default="python-reference-demo")
    parser.add_argument("--out", type=Path, default=OUT)
    arguments = parser.parse_args()
    if not arguments.path.is_dir():
        sys.exit(f"the folder {arguments.path} does not exist; run `make demo` first")
    arguments.out.mkdir(parents=True, exist_ok=True)
    from playwright.sync_api import sync_playwright

    with _running(arguments.path, arguments.collection) as address, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=_find_chromium(), args=_FLAGS)
        for scheme in ("light", "dark"):
            for width, height in SIZES.items():
                for view, picture in _take(browser, address, scheme, width, height):
                    file = arguments.out / f"{view}-{width}-{scheme}.png"
                    _write(file, picture)
                    print(f"{file.name} {file.stat().st_size / 1000:.0f} kB")
        browser.close()


@contextmanager
def _running(path: Path, collection: str) -> Iterator[str]:
    """Serve the inspector in a thread; yield its address."""
    with open_folder(path) as client, open_port(0) as listener:
        library = Library(client, Place(path=Path(path.name)))
        library.open(collection).embedder.encode_query("warm-up")
        app = make_app(library, collection=collection)
        server = uvicorn.Server(uvicorn.Config(app, log_config=None, lifespan="off", ws="none"))
        thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
        thread.start()
        yield address_of(listener)
        server.should_exit = True
        thread.join()


def _take(
    browser: Browser, address: str, scheme: str, width: int, height: int
) -> Iterator[tuple[str, bytes]]:
    """Yield each view with its picture."""
    context = browser.new_context(
        viewport={"width": width, "height": height},
        color_scheme="dark" if scheme == "dark" else "light",
    )
    page = context.new_page()
    passage = ""
    for view, path in VIEWS.items():
        page.goto(f"{address}{path}" if path else passage, wait_until="networkidle")
        if view == "search":
            link = page.locator("#list-fused .hit a").first
            passage = address + str(link.get_attribute("href")).lstrip("/")
            _show_arithmetic(page, width)
        if view == "tokens":
            page.locator(".tokens input").nth(5).check()
            page.locator("section.heat").evaluate("section => section.scrollIntoView()")
        yield view, page.screenshot()
    context.close()


def _show_arithmetic(page: Page, width: int) -> None:
    """Point at a passage whose lines cross others, where there is room for lines."""
    if width > 900:
        page.locator("#list-fused .hit").nth(3).hover()


def _find_chromium() -> str:
    for name in ("chromium", "chromium-browser", "google-chrome"):
        found = shutil.which(name)
        if found is not None:
            return found
    sys.exit("there is no Chromium on the PATH")


def _write(file: Path, picture: bytes) -> None:
    image = Image.open(io.BytesIO(picture)).convert("RGB")
    small = image.quantize(_COLOURS, dither=Image.Dither.NONE)
    small.save(file, optimize=True)
    if file.stat().st_size > MOST_BYTES:
        sys.exit(f"{file} has {file.stat().st_size:,} bytes, more than {MOST_BYTES:,}")


if __name__ == "__main__":
    main()
