"""Add the addresses of a repository to `pyproject.toml`, for the distributions that are built next.

The file in the repository names none: they are known where a release is made, and differ between
copies of the repository.

    python tools/add_project_urls.py https://github.com/OWNER/NAME
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

PYPROJECT = Path(__file__).parents[1] / "pyproject.toml"
_TABLE = "[project.urls]"
_FOLLOWING = "[project.scripts]"
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
    if _TABLE in pyproject or _FOLLOWING not in pyproject:
        raise ValueError(f"expected a file with {_FOLLOWING} and without {_TABLE}")
    urls = {
        "Repository": repository,
        "Documentation": f"{repository}/tree/HEAD/docs",
        "Changelog": f"{repository}/blob/HEAD/CHANGELOG.md",
        "Issues": f"{repository}/issues",
    }
    lines = [f'{name} = "{url}"' for name, url in urls.items()]
    table = "\n".join([_TABLE, *lines])
    return pyproject.replace(_FOLLOWING, f"{table}\n\n{_FOLLOWING}", 1)


def main() -> None:
    """Change the file."""
    if len(sys.argv) != 2:
        sys.exit("usage: add_project_urls.py https://HOST/OWNER/NAME")
    try:
        changed = add_urls(PYPROJECT.read_text("utf-8"), sys.argv[1])
    except ValueError as error:
        sys.exit(f"error: {error}")
    PYPROJECT.write_text(changed, "utf-8")


if __name__ == "__main__":
    main()
