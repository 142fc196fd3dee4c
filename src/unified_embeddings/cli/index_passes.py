"""The passes of `unified-embeddings index` over all files: one for texts, one for pictures.

What lives here: what is printed while they run, and asking before much is removed. What does not:
the command (`index`), its report, and following what changes afterwards (`index_watch`).
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from unified_embeddings.cli import pictures, shared

if TYPE_CHECKING:
    from llama_index.vector_stores.qdrant import QdrantVectorStore

    from unified_embeddings.embedders.base import TextEmbedder
    from unified_embeddings.embedders.clip import ClipEmbedder
    from unified_embeddings.llama.finding import FoundFiles
    from unified_embeddings.llama.index_report import IndexReport


class Passes:
    """Bringing collections in line with all files, and showing how far that is.

    Args:
        paths: Files and folders.
        found: What was found there.
        prune: Whether what is stored of a path that is gone may be removed without asking.
        dry_run: Whether nothing is stored or removed.
        verbose: Whether to print what became of each file.
        as_json: Whether to print JSON at the end.
    """

    def __init__(
        self,
        paths: list[Path],
        found: FoundFiles,
        *,
        prune: bool,
        dry_run: bool,
        verbose: bool,
        as_json: bool,
    ) -> None:
        self._paths = paths
        self._found = found
        self._prune = prune or (_would_refuse if dry_run else _ask)
        self._dry_run = dry_run
        self._is_quiet = not (verbose or dry_run)
        self._on_outcome = _ignore_outcome if self._is_quiet or as_json else _print_outcome

    def index_texts(
        self, store: QdrantVectorStore | None, embedder: TextEmbedder, chunk_tokens: int
    ) -> IndexReport:
        """Bring the collection of texts in line."""
        from unified_embeddings.llama.index_progress import ignore_position
        from unified_embeddings.llama.indexing import index_paths
        from unified_embeddings.system.progress import open_progress

        with open_progress("Indexing", "passages", on_terminal=shared.is_terminal()) as show:
            return index_paths(
                self._paths,
                store,
                embedder,
                chunk_tokens=chunk_tokens,
                prune=self._prune,
                dry_run=self._dry_run,
                found=self._found,
                on_outcome=self._on_outcome,
                on_progress=show if self._is_quiet else ignore_position,
            )

    def index_pictures(
        self, open_store: Callable[..., QdrantVectorStore], clip: ClipEmbedder
    ) -> IndexReport | None:
        """Bring the collection of pictures in line; None if there are none, and never were."""
        return pictures.index_pictures(
            self._paths,
            self._found,
            open_store,
            clip,
            prune=self._prune,
            dry_run=self._dry_run,
            shows_bar=shared.is_terminal() and self._is_quiet,
            on_outcome=self._on_outcome,
        )


def _ask(problem: str) -> bool:
    """Ask on a terminal whether passages are to be removed; elsewhere nobody is there to say so."""
    if not _is_answered():
        return False
    return typer.confirm(f"{shared.printable(problem)}. Remove their passages?", err=True)


def _is_answered() -> bool:
    """Tell whether somebody at a terminal can read a question and answer it."""
    return sys.stdin.isatty() and shared.is_terminal()


def _would_refuse(problem: str) -> bool:
    """Go on with a dry run, and say that the real run would not."""
    shared.print_note(f"{problem}. The run would ask first, or need --prune")
    return True


def _print_outcome(path: str, outcome: str) -> None:
    shared.print_line(shared.printable(f"{path}: {outcome}"))


def _ignore_outcome(path: str, outcome: str) -> None:
    pass
