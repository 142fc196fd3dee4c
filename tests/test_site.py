"""The documentation site: `make docs` builds it, complete, and it works without a network."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import unified_embeddings

ROOT = Path(__file__).resolve().parents[1]
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.skipif(not (ROOT / "mkdocs.yml").is_file(), reason="not a checkout"),
    pytest.mark.skipif(
        not all(map(importlib.util.find_spec, ("mkdocs", "material", "mkdocstrings"))),
        reason="the site is built with the extra 'docs'",
    ),
]


def build(configuration: Path, out: Path) -> subprocess.CompletedProcess[str]:
    """Build a site as `make docs` does. (With `--quiet` a strict build would pass its warnings.)"""
    return subprocess.run(
        [
            *(sys.executable, "-m", "mkdocs", "build", "--strict"),
            *("--config-file", str(configuration), "--site-dir", str(out)),
        ],
        cwd=ROOT,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        encoding="utf-8",
    )


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder of the site, and what building it printed."""
    out = tmp_path_factory.mktemp("site")
    done = build(ROOT / "mkdocs.yml", out)
    assert done.returncode == 0, done.stdout + done.stderr
    return out, done.stderr


def read_pages(site: Path) -> dict[str, str]:
    return {
        path.relative_to(site).as_posix(): path.read_text("utf-8") for path in site.rglob("*.html")
    }


def test_the_build_tells_how_many_blocks_are_tested(built: tuple[Path, str]) -> None:
    told = re.search(r"(\d+) pages; (\d+) Python blocks and (\d+) commands, run", built[1])
    assert told is not None, built[1]
    pages, examples, commands = map(int, told.groups())
    assert pages > 60
    assert examples > 50
    assert commands > 150


def test_every_public_name_has_an_entry(built: tuple[Path, str]) -> None:
    reference = "".join(
        text for name, text in read_pages(built[0]).items() if name.startswith("reference/")
    )
    for name in unified_embeddings.__all__:
        assert f'id="unified_embeddings.{name}"' in reference, name


def test_every_decision_is_listed(built: tuple[Path, str]) -> None:
    page = (built[0] / "adr" / "index.html").read_text("utf-8")
    article = page[page.index("<article") : page.index("</article>")]
    decisions = sorted((ROOT / "docs" / "adr").glob("[0-9]*.md"))
    assert len(decisions) >= 38
    for path in decisions:
        assert f'href="{path.stem}.html"' in article, path.name


def test_no_page_loads_anything_from_elsewhere(built: tuple[Path, str]) -> None:
    loading = re.compile(
        r'<(?:script|img|iframe|source)[^>]*\ssrc="?(?:https?:)?//'
        r'|<link[^>]*rel="?(?:stylesheet|preconnect|icon)[^>]*href="?(?:https?:)?//'
    )
    for name, text in read_pages(built[0]).items():
        assert loading.search(text) is None, name
    for path in built[0].rglob("*.css"):
        assert "url(http" not in path.read_text("utf-8"), path
        assert "@import" not in path.read_text("utf-8"), path


@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium on the PATH")
def test_search_works_from_the_file_system(built: tuple[Path, str], tmp_path: Path) -> None:
    assert CHROMIUM is not None
    done = subprocess.run(
        [
            *(CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu"),
            *("--disable-background-networking", f"--user-data-dir={tmp_path}"),
            *("--virtual-time-budget=20000", "--timeout=60000", "--dump-dom"),
            f"{(built[0] / 'index.html').as_uri()}?q=maxsim",
        ],
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=120,
    )
    found = re.findall(r'<a href="([^"]+)"[^>]*class="md-search-result__link"', done.stdout)
    assert any("late-interaction.html" in address for address in found), found


def test_broken_links_and_lost_pages_fail(tmp_path: Path) -> None:
    docs = tmp_path / "docs"
    docs.mkdir()
    (docs / "index.md").write_text("# A\n\n[gone](gone.md) [here](#nowhere) [b](b.md)\n", "utf-8")
    (docs / "b.md").write_text("# B\n", "utf-8")
    configuration = tmp_path / "mkdocs.yml"
    configuration.write_text(
        f"INHERIT: {ROOT / 'mkdocs.yml'}\ndocs_dir: {docs}\nplugins: []\nhooks: []\n"
        "extra_css: []\nnav: [index.md]\n",
        "utf-8",
    )
    done = build(configuration, tmp_path / "site")
    assert done.returncode == 1
    told = done.stdout + done.stderr
    assert "'gone.md'" in told
    assert "'#nowhere'" in told
    assert 'not included in the "nav"' in told
    assert "b.md" in told
