"""Add the addresses of a repository to each `pyproject.toml`, for the distributions built next.

The files in the repository name none: they are known where a release is made, and differ between
copies of the repository.

    python tools/add_project_urls.py https://github.com/OWNER/NAME
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
_PROJECT = "[project]"
_TABLE = "[project.urls]"
_REPOSITORY = re.compile(r"https://[\w.-]+/[\w.-]+/[\w.-]+")


def add_urls(pyproject: str, repository: str) -> str:
    """Return the text of a `pyproject.toml` with the addresses of a repository.

    Args:
        pyproject: The text of the file.
        repository: The repository's address, as https://github.com/OWNER/NAME.

    Raises:
        ValueError: If it is no such address, or the file names addresses already.
    """
    repository = repository.rstrip("/")
    if not _REPOSITORY.fullmatch(repository):
        raise ValueError(f"expected https://HOST/OWNER/NAME, got {repository!r}")
    if _TABLE in pyproject or _PROJECT not in pyproject:
        raise ValueError(f"expected a file with {_PROJECT} and without {_TABLE}")
    urls = {
        "Repository": repository,
        "Documentation": f"{repository}/tree/HEAD/docs",
        "Changelog": f"{repository}/blob/HEAD/CHANGELOG.md",
        "Issues": f"{repository}/issues",
    }
    lines = [f'{name} = "{url}"' for name, url in urls.items()]
    return "\n".join([pyproject.rstrip("\n"), "", _TABLE, *lines, ""])


def find_projects() -> list[Path]:
    """Return the file of each distribution that a release publishes."""
    return [ROOT / "pyproject.toml", *sorted(ROOT.glob("integrations/*/pyproject.toml"))]


def main() -> None:
    """Change the files; none if one of them cannot be."""
    if len(sys.argv) != 2:
        sys.exit("usage: add_project_urls.py https://HOST/OWNER/NAME")
    changed = {}
    for path in find_projects():
        try:
            changed[path] = add_urls(path.read_text("utf-8"), sys.argv[1])
        except ValueError as error:
            sys.exit(f"error: {path}: {error}")
    for path, text in changed.items():
        path.write_text(text, "utf-8")


if __name__ == "__main__":
    main()
