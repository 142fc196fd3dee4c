"""Pictures on disk into a collection of their own: the next run stores only what has changed.

What lives here: a picture as a node, and pictures as a kind of file that a run indexes. What does
not: the run (`file_run`), finding files, and which of them are pictures (`finding`), reading and
embedding an image (`embedders.clip`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from llama_index.core.schema import BaseNode, ImageNode, NodeRelationship, RelatedNodeInfo
from llama_index.vector_stores.qdrant import QdrantVectorStore

from unified_embeddings.errors import InputError
from unified_embeddings.llama.file_kind import FileKind
from unified_embeddings.llama.file_run import FileRun
from unified_embeddings.llama.finding import FileSelection, FoundFiles, is_image, named_path
from unified_embeddings.llama.index_progress import IndexProgress
from unified_embeddings.llama.index_report import IndexReport
from unified_embeddings.llama.reading import (
    FileChunks,
    bookkeeping,
    chunk_id,
    document_id,
    file_facts,
)
from unified_embeddings.stores.errors import store_errors

if TYPE_CHECKING:
    from unified_embeddings.embedders.clip import ClipEmbedder

_BATCH = 64
"""Pictures that are embedded and stored at a time."""


def index_images(
    paths: Sequence[Path],
    store: QdrantVectorStore | None,
    clip: ClipEmbedder,
    *,
    exclude: Sequence[Path | str] = (),
    include: Sequence[str] = (),
    gitignore: bool = False,
    prune: bool | Callable[[str], bool] = False,
    dry_run: bool = False,
    found: FoundFiles | None = None,
    on_images: Callable[[int], None] = lambda _: None,
    on_image: Callable[[Path], None] = lambda _: None,
    on_outcome: Callable[[str, str], None] = lambda _, __: None,
) -> IndexReport:
    """Bring a collection of pictures in line with files and folders.

    New and changed pictures are embedded and stored. Those that are gone from the given folders, or
    left out, are removed. Everything else stays. To resume an interrupted run, make the same call
    again.

    Args:
        paths: Files and folders; what is no picture is passed over.
        store: The store of the collection; None if there is none yet, with `dry_run`.
        clip: Embeds the pictures.
        exclude: What to leave out; see `index_paths`.
        include: Patterns. If there are any, only files that match one are taken.
        gitignore: Whether .gitignore files are honoured.
        prune: Whether a given path that does not exist any more, or holds no file any more, loses
            its pictures, and so does a link that leads to nothing now. A function is asked, with a
            text that says what would be removed.
        dry_run: Whether to store and remove nothing.
        found: What `find_files` has found under the paths; see `index_paths`.
        on_images: Called once with the number of pictures found.
        on_image: Called for each picture once it has been processed.
        on_outcome: Called with a path and what became of it.

    Returns:
        What was done; a picture is one chunk.

    Raises:
        InputError: If a path is not valid, or pictures would be lost that `prune` does not allow.
        ModelLoadError: If the model cannot be loaded.
        StoreError: If Qdrant fails.
    """
    roots = [named_path(Path(path)) for path in paths]
    run = FileRun(store, PictureFiles(clip), dry_run=dry_run, on_outcome=on_outcome)
    if found is None:
        found = run.find_files(roots, FileSelection(exclude, include, gitignore))
    run.take_found(found, roots)
    run.check_roots(roots, prune)
    run.check_links(prune)
    on_images(len(run.files))
    run.index_files(on_image)
    run.remove_missing_files(roots)
    return run.report


class PictureFiles(FileKind):
    """Pictures, each of which is stored as one node.

    Args:
        clip: Embeds the pictures.
    """

    name = "picture"
    contents = "pictures"
    batch_size = _BATCH

    def __init__(self, clip: ClipEmbedder) -> None:
        self._clip = clip

    def takes(self, file: Path) -> bool:
        """Tell by its name whether a file is a picture."""
        return is_image(file)

    def why_empty(self, file: Path) -> str | None:  # noqa: ARG002 — it is not opened yet
        """Return None: whether a picture can be read shows when it is embedded."""
        return None

    def version_of(self, file: Path) -> str:
        """Return a digest of a picture's bytes."""
        digest = hashlib.blake2b(b"image 1:", digest_size=12)
        with file.open("rb") as content:
            while block := content.read(2**20):
                digest.update(block)
        return digest.hexdigest()

    def read(self, file: Path, relative_path: str | None) -> FileChunks:
        """Return a picture as a node; it is decoded when it is embedded."""
        version = self.version_of(file)
        node = _make_node(file, version, relative_path)
        return FileChunks(str(file), version, [node], notes=[])

    def old_versions_of(self, file: Path) -> list[str]:  # noqa: ARG002 — no release had others
        """Return that there are none."""
        return []

    def add(
        self,
        store: QdrantVectorStore,
        batch: Sequence[FileChunks],
        progress: IndexProgress,  # noqa: ARG002 — it counts passages
    ) -> Mapping[str, InputError]:
        """Embed and store those pictures that can be decoded; return what is wrong with others."""
        nodes: list[BaseNode] = [node for changed in batch for node in changed.nodes]
        paths = [Path(changed.path) for changed in batch]
        encoded = self._clip.encode_images(paths, skip_bad=True)
        for row, index in enumerate(encoded.indices):
            nodes[index].embedding = encoded.dense[row].tolist()
        embedded = [nodes[index] for index in encoded.indices]
        if embedded:
            with store_errors(store.collection_name, "adding pictures"):
                store.add(embedded)
        unreadable = {}
        for error in encoded.errors:
            assert error.index is not None
            path = str(paths[error.index])
            # The path stands before it wherever it is shown.
            unreadable[path] = InputError(error.problem.removeprefix(path).lstrip(": "))
        return unreadable

    def describe_stored(self, changed: FileChunks) -> str:  # noqa: ARG002 — it is always one
        """Return that a picture was stored."""
        return "indexed"


def _make_node(file: Path, version: str, relative_path: str | None) -> ImageNode:
    """Return a picture as a node that can be stored, with the facts that texts carry too."""
    path = str(file)
    metadata = bookkeeping(path, version, 1, relative_path) | file_facts(file, file.stat().st_size)
    return ImageNode(
        id_=chunk_id(path, version, 0),
        image_path=path,
        metadata=metadata,
        excluded_embed_metadata_keys=list(metadata),
        excluded_llm_metadata_keys=[key for key in metadata if key != "file_name"],
        relationships={NodeRelationship.SOURCE: RelatedNodeInfo(node_id=document_id(path))},
    )
