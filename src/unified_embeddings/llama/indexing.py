"""Files and folders into a collection: the next run stores only what has changed since.

What lives here: what a caller asks for. What does not: the run itself and its bookkeeping
(`file_run`), finding files (`finding`) and reading them (`text_files`).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from llama_index.vector_stores.qdrant import QdrantVectorStore

from unified_embeddings.embedders.base import TextEmbedder
from unified_embeddings.errors import InputError
from unified_embeddings.llama.file_run import FileRun
from unified_embeddings.llama.finding import FileSelection, FoundFiles, named_path
from unified_embeddings.llama.index_progress import ignore_position
from unified_embeddings.llama.index_report import IndexReport
from unified_embeddings.llama.splitter import FEWEST_TOKENS
from unified_embeddings.llama.text_files import TextFiles
from unified_embeddings.system.progress import Show

CHUNK_TOKENS = 512
"""Maximum number of tokens in a chunk, unless it is given."""


def index_paths(
    paths: Sequence[Path],
    store: QdrantVectorStore | None,
    embedder: TextEmbedder,
    *,
    chunk_tokens: int = CHUNK_TOKENS,
    exclude: Sequence[Path | str] = (),
    include: Sequence[str] = (),
    gitignore: bool = False,
    within: Sequence[Path] = (),
    prune: bool | Callable[[str], bool] = False,
    dry_run: bool = False,
    found: FoundFiles | None = None,
    on_files: Callable[[int], None] = lambda _: None,
    on_file: Callable[[Path], None] = lambda _: None,
    on_outcome: Callable[[str, str], None] = lambda _, __: None,
    on_progress: Show = ignore_position,
) -> IndexReport:
    """Bring a collection in line with files and folders.

    New and changed files are split into chunks of whole sentences, embedded and stored. Files that
    are gone from the given folders, or left out, lose their chunks. Everything else stays. The old
    chunks of a changed file are removed only after the new ones are stored. To resume an
    interrupted run, make the same call again.

    Args:
        paths: Files and folders. Hidden files within folders are left out, and so is the folder of
            an embedded store.
        store: The store of the collection; None if there is none yet, with `dry_run`.
        embedder: Embeds the chunks.
        chunk_tokens: Maximum number of tokens per chunk, or what fits the model if that is less.
        exclude: What to leave out: Path for folders and files, str for patterns in the syntax of
            .gitignore, relative to the folder that was given.
        include: Patterns. If there are any, only files that match one are taken.
        gitignore: Whether .gitignore files are honoured.
        within: Folders. If there are any, nothing outside them is read, wherever links lead.
        prune: Whether a given path that does not exist any more, or holds no file any more, loses
            all that is stored of it, and so does a link that leads to nothing now. A function is
            asked, with a text that says what would be removed.
        dry_run: Whether to read only, and to store and remove nothing.
        found: What `find_files` has found under the paths, where that is known; the arguments that
            select files are not looked at then.
        on_files: Called once with the number of files found.
        on_file: Called for each file once it has been processed.
        on_outcome: Called with a path and what became of it.
        on_progress: Called with how many passages are embedded and about how many there are.

    Raises:
        InputError: If a path does not exist and nothing of it is stored, a path or pattern is not
            usable, chunk_tokens < 32, or the collection has other software's payloads. If a path
            does not exist or holds no file any more, and `prune` does not allow to remove what is
            stored of it. Nothing is changed then.
        StoreError: If Qdrant fails.
    """
    if chunk_tokens < FEWEST_TOKENS:
        raise InputError(f"chunk_tokens must be at least {FEWEST_TOKENS}, got {chunk_tokens}")
    for name, values in (("paths", paths), ("exclude", exclude), ("include", include)):
        if isinstance(values, (str, os.PathLike)):
            raise InputError(f"{name} takes several, so put it into a list: [{values!r}]")
    roots = [named_path(Path(path)) for path in paths]
    run = FileRun(
        store,
        TextFiles(embedder, chunk_tokens),
        dry_run=dry_run,
        on_outcome=on_outcome,
        on_progress=on_progress,
    )
    if found is None:
        found = run.find_files(roots, FileSelection(exclude, include, gitignore, within))
    run.take_found(found, roots)
    run.check_known(roots)
    run.check_roots(roots, prune)
    run.check_links(prune)
    on_files(len(run.files))
    run.index_files(on_file)
    run.remove_missing_files(roots)
    return run.report
