"""The documentation site: `make docs` builds it, complete, and it works without a network."""

from __future__ import annotations

import dataclasses
import html
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import tested_blocks
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


def test_the_picture_of_the_demo_is_of_this_demo() -> None:
    from unified_embeddings.cli import demo

    picture = (ROOT / "docs" / "demo.svg").read_text("utf-8")
    texts = [
        html.unescape(text).replace("\xa0", " ") for text in re.findall(r">([^<]+)</text", picture)
    ]
    shown = "".join(texts)
    assert demo._QUESTIONS[0] in shown
    assert re.search(r"Embedded by mini-m3 \(.*tokens/s", shown)
    assert re.search(r"fused.*score.*dense.*sparse.*passage", shown)
    assert "url(" not in picture.replace("url(#", "")


def test_broken_links_and_lost_pages_fail(tmp_path: Path) -> None:
    docs = tmp_path / "docs"
    docs.mkdir()
    (docs / "index.md").write_text("# A\n\n[gone](gone.md) [here](#nowhere) [b](b.md)\n", "utf-8")
    (docs / "b.md").write_text("# B\n", "utf-8")
    configuration = tmp_path / "mkdocs.yml"
    configuration.write_text(
        f"INHERIT: {ROOT / 'mkdocs.yml'}\ndocs_dir: {docs}\nplugins: []\nhooks: []\n"
        "extra_css: []\nextra_javascript: []\nnav: [index.md]\n",
        "utf-8",
    )
    done = build(configuration, tmp_path / "site")
    assert done.returncode == 1
    told = done.stdout + done.stderr
    assert "'gone.md'" in told
    assert "'#nowhere'" in told
    assert 'not included in the "nav"' in told
    assert "b.md" in told


class TestChecks:
    """What fails the build beyond links: shown on pages and modules made for it."""

    ENTRY = tested_blocks.Entry("tests/test_site.py", examples=1, commands=1)

    def find(self, text: str, entry: tested_blocks.Entry = ENTRY) -> list[str]:
        blocks = tested_blocks.read_blocks(text)
        return tested_blocks._compare("test_site.md", blocks, entry)  # this file has the name

    def test_a_page_as_its_entry_says_is_no_problem(self) -> None:
        page = "```python\nrrf\n```\n\n```sh\nls \\\n  -l\n# a note\n```\n\n```text\nno\n```\n"
        assert self.find(page) == []

    def test_a_block_more_is_one(self) -> None:
        page = "```python\nrrf\n```\n\n- item\n\n  ```python\n  more\n  ```\n\n```sh\nls\n```\n"
        (problem,) = self.find(page)
        assert "has 2 Python blocks, docs_blocks.toml says 1" in problem

    def test_a_command_more_is_one(self) -> None:
        (problem,) = self.find("```python\nrrf\n```\n```bash\nls\nrm -r .\n```\n")
        assert "has 2 commands, docs_blocks.toml says 1" in problem

    def test_what_is_not_run_has_a_reason_and_exists(self) -> None:
        entry = dataclasses.replace(self.ENTRY, not_run={"ls": "slow", "cat": "needs a server"})
        first, second = self.find("```python\nrrf\n```\n```sh\nls\n```\n", entry)
        assert "gives no reason for 'ls'" in first
        assert "has no 'cat'" in second

    def test_a_test_that_does_not_read_the_page_is_one(self) -> None:
        entry = tested_blocks.Entry("tests/test_fusion.py")
        (problem,) = self.find("", entry)
        assert "tests/test_fusion.py does not read" in problem

    def test_the_pages_and_the_table_agree(self) -> None:
        assert tested_blocks.find_problems() == []

    def test_a_name_or_method_without_a_docstring_is_one(self) -> None:
        griffe = pytest.importorskip("griffe")
        site_pages = pytest.importorskip("site_pages")
        code = "class Box:\n  def open(self): ...\n  def _hidden(self): ...\n  @property\n"
        code += '  def size(self):\n    """Return it."""\n'
        with griffe.temporary_visited_module(code, module_name="unified_embeddings") as module:
            problems = site_pages._without_docstring(module["Box"])
        assert [problem.partition(" has")[0].split(".")[-1] for problem in problems] == [
            "Box",
            "open",
        ]

    def test_a_public_name_without_an_entry_is_one(self, monkeypatch: pytest.MonkeyPatch) -> None:
        site_pages = pytest.importorskip("site_pages")
        entries = site_pages.reference_entries()
        del entries["rrf"]
        del entries["embedders.fake.FakeEmbedder"]
        monkeypatch.setattr(site_pages, "reference_entries", lambda: entries)
        problems = site_pages.find_gaps()
        assert any("no entry for unified_embeddings.rrf" in problem for problem in problems)
        assert any("embedders.fake.FakeEmbedder" in problem for problem in problems)
        assert len(problems) == 2
