"""The files under folders that are to be indexed: which there are, and which are left out.

What lives here: walking folders, symbolic links, patterns and .gitignore. What does not: reading
files (`reading`).

A file is known by the path that leads to it from the folder that was named, links included: where
a link is pointed elsewhere, the files behind it are the same files with other content. Within a
run, each file is taken once, by its own path if there is one.
"""

from __future__ import annotations

import os
import stat
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from pathspec import GitIgnoreSpec

from unified_embeddings.errors import InputError

_IMAGE_SUFFIXES = frozenset(
    (".png", ".jpg", ".jpeg", ".gif", ".webp", ".bmp", ".tif", ".tiff", ".jp2", ".avif")
)
"""Endings of the names of pictures."""
_HIDDEN = (".", "~$")
"""Beginnings of hidden names. With the second, Office names a file while it has it open."""
_STORE_MARKS = (
    {".lock", "catalog.json", "shards"},
    {".lock", "meta.json", "collection"},
    {"raft_state.json", "collections"},
)
"""What is in the folder of an embedded store, of qdrant-client's local mode, of a server."""

_OUTSIDE = "leads outside the folders that may be read"


class _Place(NamedTuple):
    """A folder or file on the way: `path` as it was reached, `real` without links."""

    path: Path
    real: str
    root: Path
    ignored_by: tuple[_IgnoreFile, ...] = ()


class _IgnoreFile(NamedTuple):
    folder: Path
    patterns: GitIgnoreSpec


@dataclass(frozen=True)
class FileSelection:
    """Which files under the named folders are taken.

    Args:
        exclude: What is left out: a Path is a folder or file; a str is a pattern in the syntax of
            .gitignore, relative to the folder that was named.
        include: Patterns; if there are any, only files that match one are taken.
        gitignore: Whether the .gitignore files in the folders, and in those above up to the top of
            the repository, are honoured.
        within: Folders; if there are any, what lies outside them, links followed, is left out.
    """

    exclude: Sequence[Path | str] = ()
    include: Sequence[str] = ()
    gitignore: bool = False
    within: Sequence[Path] = ()


@dataclass
class FoundFiles:
    """What was found.

    Attributes:
        files: The files, each once, in alphabetical order.
        left_out: Links and folders of stores that are left out, each with the reason.
        dead_links: Those of the links that lead to nothing now. What they led to before may be on a
            disk that is not mounted.
        failed: Files and folders that cannot be entered or looked at, each with the reason.
    """

    files: list[Path] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)
    dead_links: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)


def named_path(path: Path) -> Path:
    """Return a path that the user named as an absolute one, links in it kept.

    Raises:
        InputError: If it cannot be a path: its name is too long or holds a NUL, the user that `~`
            names does not exist, or it is a link that leads to itself.
    """
    try:
        absolute = path.expanduser()
        if ".." in absolute.parts:
            absolute = _without_dots(absolute)
        absolute = Path(os.path.abspath(absolute))  # noqa: PTH100 — Path.resolve follows links
        os.stat(absolute)  # noqa: PTH116 — for its error
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return absolute
    except (OSError, RuntimeError, ValueError) as error:
        problem = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise InputError(f"{_shortened(path)} is not a usable path: {problem}") from error
    return absolute


def _without_dots(path: Path) -> Path:
    """Return a path without `..`; links on the way to the last one are followed, as they must be.

    Those behind it are kept: `../current` is known by that name, wherever it leads.
    """
    after_dots = len(path.parts) - path.parts[::-1].index("..")
    return Path(*path.parts[:after_dots]).resolve() / Path(*path.parts[after_dots:])


def find_files(roots: Sequence[Path], selection: FileSelection) -> FoundFiles:
    """Find the files under folders, without hidden ones and without those in hidden folders.

    A link is followed, unless what it leads to is found by its own path, or contains the link.

    Args:
        roots: Folders and files, as `named_path` returns them. A file is taken even if it is
            hidden, unless the selection leaves it out.
        selection: Which files are taken.

    Raises:
        InputError: If a pattern of the selection is not valid.
    """
    search = _Search(selection)
    # Those without links on the way come first, so that files keep their own paths.
    for root in sorted(roots, key=_has_link):
        search.add_root(root)
    search.run()
    found = search.found
    found.files = sorted(search.files.values())
    return found


def is_image(file: Path) -> bool:
    """Tell by its name whether a file is a picture."""
    return file.suffix.lower() in _IMAGE_SUFFIXES


def is_gone(root: Path) -> bool:
    """Tell whether there is nothing at a path; what cannot be looked at is not gone."""
    try:
        root.stat()
    except (FileNotFoundError, NotADirectoryError):
        return True
    except OSError:
        return False
    return False


def is_under(path: str | Path, place: Path) -> bool:
    """Tell whether a path is a place itself or lies somewhere below it."""
    return Path(path).is_relative_to(place)


class Places:
    """Folders and files, asked which of them hold a path.

    Args:
        paths: Absolute paths.
    """

    def __init__(self, paths: Iterable[Path | str]) -> None:
        self._paths = {str(path) for path in paths}

    def holding(self, path: str) -> list[str]:
        """Return those that are a path itself or a folder somewhere above it.

        The cost depends on how deep the path is, not on how many places there are: `index *.md` may
        name thousands of files.
        """
        found = []
        while True:
            if path in self._paths:
                found.append(path)
            above = os.path.dirname(path)  # noqa: PTH120 — a str
            if above == path:
                return found
            path = above


class _Search:
    """One walk over all roots.

    Args:
        selection: Which files are taken.
    """

    def __init__(self, selection: FileSelection) -> None:
        self.found = FoundFiles()
        self.files: dict[str, Path] = {}
        """By the path without links."""
        self._folders: deque[_Place] = deque()
        self._links: deque[_Place] = deque()
        self._seen_folders: set[str] = set()
        self._gitignore = selection.gitignore
        self._within = [Path(os.path.realpath(place)) for place in selection.within]
        self._excluded_places = {
            os.path.realpath(named_path(place))
            for place in selection.exclude
            if isinstance(place, Path)
        }
        patterns = [pattern for pattern in selection.exclude if isinstance(pattern, str)]
        self._excluded = _compile(patterns)
        self._included = _compile(selection.include) if selection.include else None

    def add_root(self, root: Path) -> None:
        """Take a folder or file that the user named; nothing if it does not exist."""
        real = os.path.realpath(root)
        if any(is_under(real, Path(place)) for place in self._excluded_places):
            return
        if self._lies_outside(real):
            self.found.left_out[str(root)] = _OUTSIDE
            return
        try:
            mode = root.stat().st_mode
        except FileNotFoundError:
            return
        except OSError as error:
            self.found.failed[str(root)] = _reason("cannot be looked at", error)
            return
        if stat.S_ISDIR(mode):
            ignored_by = _ignore_files_above(root) if self._gitignore else ()
            self._folders.append(_Place(root, real, root, ignored_by))
        elif stat.S_ISREG(mode):
            self._take_file(_Place(root, real, root.parent))
        else:
            self.found.failed[str(root)] = "is neither a file nor a folder"

    def run(self) -> None:
        """Walk all folders, and only then follow links, so that files keep their own paths."""
        while self._folders or self._links:
            if self._folders:
                self._walk(self._folders.popleft())
            else:
                self._follow(self._links.popleft())

    def _walk(self, folder: _Place) -> None:
        if folder.real in self._seen_folders or folder.real in self._excluded_places:
            return
        self._seen_folders.add(folder.real)
        try:
            with os.scandir(folder.path) as entries:
                listed = sorted(entries, key=_entry_name)
        except OSError as error:
            self.found.failed[str(folder.path)] = _reason("cannot be listed", error)
            return
        names = {entry.name for entry in listed}
        if any(marks <= names for marks in _STORE_MARKS):
            self.found.left_out[str(folder.path)] = "is the folder of a Qdrant store"
            return
        if self._gitignore:
            folder = folder._replace(ignored_by=folder.ignored_by + _ignore_file(folder.path))
        for entry in listed:
            if not entry.name.startswith(_HIDDEN):
                self._take_entry(entry, folder)

    def _take_entry(self, entry: os.DirEntry[str], folder: _Place) -> None:
        place = folder._replace(
            path=folder.path / entry.name,
            real=os.path.join(folder.real, entry.name),  # noqa: PTH118 — a str
        )
        try:
            if entry.is_symlink():
                self._links.append(place)
            elif entry.is_dir(follow_symlinks=False):
                if not self._leaves_out(place, is_folder=True):
                    self._folders.append(place)
            elif entry.is_file(follow_symlinks=False):
                self._take_file(place)
        except OSError as error:
            self.found.failed[str(place.path)] = _reason("cannot be looked at", error)

    def _follow(self, link: _Place) -> None:
        """Take what a link leads to, unless it was found by another path."""
        real = os.path.realpath(link.path)
        if self._lies_outside(real):
            self.found.left_out[str(link.path)] = _OUTSIDE
            return
        try:
            mode = link.path.stat().st_mode
        except FileNotFoundError:
            self._leave_out_dead(link, "is a link to something that does not exist")
            return
        except PermissionError as error:
            self.found.failed[str(link.path)] = _reason("cannot be followed", error)
            return
        except OSError as error:
            self._leave_out_dead(link, _reason("is a link that leads nowhere", error))
            return
        target = link._replace(real=real)
        if stat.S_ISREG(mode):
            self._take_file(target)
        elif stat.S_ISDIR(mode) and not self._leaves_out(target, is_folder=True):
            if is_under(os.path.realpath(link.path.parent), Path(real)):
                if real not in self._seen_folders:
                    self.found.left_out[str(link.path)] = "is a link to a folder that contains it"
                return
            self._folders.append(target)

    def _lies_outside(self, real: str) -> bool:
        """Tell whether a path without links is in none of the folders that may be read."""
        if not self._within:
            return False
        return not any(is_under(real, place) for place in self._within)

    def _leave_out_dead(self, link: _Place, reason: str) -> None:
        self.found.left_out[str(link.path)] = reason
        self.found.dead_links.append(str(link.path))

    def _take_file(self, file: _Place) -> None:
        if file.real not in self.files and not self._leaves_out(file, is_folder=False):
            self.files[file.real] = file.path

    def _leaves_out(self, place: _Place, *, is_folder: bool) -> bool:
        """Tell whether the selection leaves a folder or file out."""
        if place.real in self._excluded_places:
            return True
        relative = place.path.relative_to(place.root).as_posix() + ("/" if is_folder else "")
        if self._excluded.match_file(relative):
            return True
        if self._included is not None and not is_folder and not self._included.match_file(relative):
            return True
        # The .gitignore nearest to a file has the last word.
        for ignore_file in reversed(place.ignored_by):
            path = place.path.relative_to(ignore_file.folder).as_posix() + ("/" * is_folder)
            verdict = ignore_file.patterns.check_file(path).include
            if verdict is not None:
                return verdict
        return False


def _compile(patterns: Sequence[str]) -> GitIgnoreSpec:
    try:
        return GitIgnoreSpec.from_lines(patterns)
    except (ValueError, TypeError) as error:
        raise InputError(f"a pattern is not valid: {error}") from error


def _ignore_file(folder: Path) -> tuple[_IgnoreFile, ...]:
    """Return the folder's .gitignore; nothing if there is none that can be read."""
    try:
        lines = (folder / ".gitignore").read_text("utf-8", errors="replace").splitlines()
        return (_IgnoreFile(folder, GitIgnoreSpec.from_lines(lines)),)
    except (OSError, ValueError):
        return ()


def _ignore_files_above(folder: Path) -> tuple[_IgnoreFile, ...]:
    """Return the .gitignore files above a folder, up to the top of its repository."""
    above: list[Path] = []
    top = folder
    while not (top / ".git").exists():
        if top.parent == top:
            return ()  # it is in no repository
        top = top.parent
        above.insert(0, top)
    files: list[_IgnoreFile] = []
    for place in above:
        files.extend(_ignore_file(place))
    return tuple(files)


def _has_link(path: Path) -> bool:
    return os.path.realpath(path) != str(path)


def _entry_name(entry: os.DirEntry[str]) -> str:
    return entry.name


def _reason(problem: str, error: OSError) -> str:
    return f"{problem}: {error.strerror or error}"


def _shortened(path: Path) -> str:
    text = str(path)
    return repr(text if len(text) <= 80 else f"{text[:79]}…")
