"""Hooks of the documentation site: pages made from the sources, and checks that fail the build.

MkDocs calls the functions `on_…` of this file (mkdocs.yml, "hooks"). Made here: the list of
decisions, the pages of the project from the files in its root, the options of the command, the list
of public names. Checked here: each public name has an entry with a docstring, and each block of
code is run by a test (tools/tested_blocks.py). A warning fails a strict build.
"""

from __future__ import annotations

import logging
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import griffe
from mkdocs.structure.files import File

sys.path.insert(0, str(Path(__file__).parent))
import command_page
import tested_blocks

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "unified_embeddings"
PROJECT_PAGES = {
    "CHANGELOG.md": "project/changes.md",
    "CONTRIBUTING.md": "project/contributing.md",
    "SECURITY.md": "project/security.md",
    "CODE_OF_CONDUCT.md": "project/conduct.md",
}
"""File in the project's root → its page on the site."""
DECISIONS_HERE = "<!-- every decision -->"
NAMES_HERE = "<!-- every name -->"
ENTRY = re.compile(rf"^::: {PACKAGE}\.([\w.]+)$", re.MULTILINE)

log = logging.getLogger("mkdocs.hooks.site_pages")


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Add every decision to the navigation, below the list of decisions."""
    assert config.nav is not None
    entries = _entries_below(config.nav, "Decisions")
    entries += [f"adr/{path.name}" for path in decision_files()]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are made: those of the project and the command's options."""
    for source, page in PROJECT_PAGES.items():
        text = link_to_pages((ROOT / source).read_text("utf-8"))
        files.append(File.generated(config, page, content=text))
    content = command_page.describe_command()
    files.append(File.generated(config, "reference/command.md", content=content))
    return files


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Put the two lists in their places."""
    if DECISIONS_HERE in markdown:
        markdown = markdown.replace(DECISIONS_HERE, list_decisions())
    if NAMES_HERE in markdown:
        markdown = markdown.replace(NAMES_HERE, list_names())
    return markdown


def on_post_build(*, config: MkDocsConfig) -> None:
    """Check the reference and the blocks of code; tell how many are tested."""
    for problem in [*find_gaps(), *tested_blocks.find_problems()]:
        log.warning(problem)
    log.info(tested_blocks.summarise())


def decision_files() -> list[Path]:
    """Return the pages of the decisions, in their order."""
    return sorted((ROOT / "docs" / "adr").glob("[0-9]*.md"))


def list_decisions() -> str:
    """Return a list with a link to every decision."""
    lines = []
    for path in decision_files():
        title = path.read_text("utf-8").splitlines()[0].removeprefix("# ")
        number, _, words = title.partition(". ")
        lines.append(f"{number}. [{words}]({path.name})")
    return "\n".join(lines)


def link_to_pages(text: str) -> str:
    """Return a text of the project's root with links to the pages of the site."""
    for source, page in PROJECT_PAGES.items():
        text = text.replace(f"]({source})", f"]({Path(page).name})")
    text = text.replace("[docs/adr](docs/adr)", "[Decisions](../adr/index.md)")
    text = re.sub(r"\]\(docs/([\w/-]+\.md)", r"](../\1", text)
    text = re.sub(r"(?<![\w/`\[])docs/([\w-]+)\.md", r"[\1](../\1.md)", text)
    for path in decision_files():
        number = int(path.name.partition("-")[0])
        text = re.sub(rf"(?<!\[)\bADR {number}\b", f"[ADR {number}](../adr/{path.name})", text)
    return text


def _entries_below(navigation: list[Any], title: str) -> list[Any]:
    """Return the list of entries of the section with a title."""
    for entry in navigation:
        if not isinstance(entry, dict):
            continue
        for name, inner in entry.items():
            if name == title:
                assert isinstance(inner, list)
                return inner
            if isinstance(inner, list):
                below = _entries_below(inner, title)
                if below:
                    return below
    return []


def reference_entries() -> dict[str, str]:
    """Return every name that has an entry in the reference, and the page that has it."""
    entries = {}
    for path in sorted((ROOT / "docs" / "reference").glob("*.md")):
        for name in ENTRY.findall(path.read_text("utf-8")):
            entries[name] = path.name
    return entries


def list_names() -> str:
    """Return a table of the package's own names and what each is."""
    package = _load_package()
    lines = ["| name | what it is |", "|---|---|"]
    pages = reference_entries()
    for name in sorted(public_names(package)):
        docstring = package[name].docstring
        summary = docstring.value.split("\n\n")[0].replace("\n", " ") if docstring else ""
        target = f"{pages.get(name, '')}#{PACKAGE}.{name}"
        lines.append(f"| [`{name}`]({target}) | {summary} |")
    return "\n".join(lines)


def public_names(package: griffe.Object) -> set[str]:
    """Return what `__all__` names."""
    return {str(name) for name in package.exports or ()}


def imported_names() -> dict[str, str]:
    """Return what the pages' examples import from the package, and a page that does."""
    names = {}
    statement = re.compile(rf"from {PACKAGE}(\.[\w.]+)? import (\([^)]*\)|[^\n#]*)")
    for path in sorted((ROOT / "docs").glob("*.md")):
        for block in tested_blocks.read_blocks(path.read_text("utf-8")).examples:
            for module, listed in statement.findall(block):
                for name in re.findall(r"\w+", listed):
                    names[f"{module}.{name}".lstrip(".")] = path.name
    return names


def find_gaps() -> list[str]:
    """Return what the reference lacks: entries, and docstrings of what it shows."""
    package = _load_package()
    entries = reference_entries()
    needed = dict.fromkeys(public_names(package), "__all__") | imported_names()
    public_paths = {package[name].canonical_path for name in public_names(package)}
    problems = []
    for name, origin in sorted(needed.items()):
        known = name in entries or f"{PACKAGE}.{name}" in public_paths
        if not known:
            problems.append(f"docs/reference: no entry for {PACKAGE}.{name}, named by {origin}")
    for name in sorted(entries):
        problems += _without_docstring(package[name])
    return problems


def _without_docstring(value: griffe.Object | griffe.Alias) -> list[str]:
    """Return a complaint about a name, and each public method of a class, without a docstring."""
    problems = []
    if not value.has_docstring:
        problems.append(f"{value.canonical_path} has no docstring")
    if not value.is_class:
        return problems
    for name, member in value.all_members.items():
        is_described = member.is_function or "property" in member.labels
        inherited = not member.canonical_path.startswith(PACKAGE)
        if is_described and not name.startswith("_") and not inherited and not member.has_docstring:
            problems.append(f"{value.path}.{name} has no docstring ({member.canonical_path})")
    return problems


def _load_package() -> griffe.Object:
    """Read the package's sources; they are not imported."""
    global _package
    if _package is None:
        loaded = griffe.load(PACKAGE, search_paths=[str(ROOT / "src")], try_relative_path=False)
        assert isinstance(loaded, griffe.Object)
        _package = loaded
    return _package


_package: griffe.Object | None = None
