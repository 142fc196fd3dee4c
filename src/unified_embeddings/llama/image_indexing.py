"""Pictures on disk into a collection of their own: the next run stores only what has changed.

What lives here: a picture as a node, and the bookkeeping of a run, which is that of files with
texts (`indexing`): each picture carries its file's path and version. What does not: finding files,
and which of them are pictures (`finding`), reading and embedding an image (`embedders.clip`).
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from llama_index.core.schema import ImageNode, NodeRelationship, RelatedNodeInfo
from llama_index.vector_stores.qdrant import QdrantVectorStore

from unified_embeddings.errors import InputError
from unified_embeddings.llama.finding import (
    FileSelection,
    Places,
    find_files,
    is_gone,
    is_image,
    named_path,
)
from unified_embeddings.llama.reading import (
    bookkeeping,
    check_name,
    chunk_id,
    document_id,
    file_facts,
)
from unified_embeddings.llama.stored_files import (
    StoredFile,
    identify,
    read_stored_files,
    relative_to_store,
    remove_chunks,
)
from unified_embeddings.stores.edge.client import EdgeQdrantClient
from unified_embeddings.stores.errors import store_errors

if TYPE_CHECKING:
    from unified_embeddings.embedders.clip import ClipEmbedder

_BATCH = 64
"""Pictures that are read, embedded and stored at a time."""


@dataclass
class ImageReport:
    """What a run did, or with `dry_run` what it would do.

    Attributes:
        unchanged: Pictures that were stored already.
        indexed: Pictures embedded and stored.
        removed: Pictures removed because their files are gone.
        failed: Pictures that could not be read, each with the reason. What was stored of them
            before stays.
    """

    unchanged: int = 0
    indexed: int = 0
    removed: int = 0
    failed: dict[str, str] = field(default_factory=dict)


def find_images(
    paths: Sequence[Path],
    *,
    exclude: Sequence[Path | str] = (),
    include: Sequence[str] = (),
    gitignore: bool = False,
) -> list[Path]:
    """Return the pictures under files and folders, sorted.

    Args:
        paths: Files and folders.
        exclude: What to leave out; see `index_paths`.
        include: Patterns. If there are any, only files that match one are taken.
        gitignore: Whether .gitignore files are honoured.

    Raises:
        InputError: If a path or a pattern is not valid.
    """
    roots = [named_path(Path(path)) for path in paths]
    found = find_files(roots, FileSelection(exclude, include, gitignore))
    return [file for file in found.files if is_image(file)]


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
    on_images: Callable[[int], None] = lambda _: None,
    on_image: Callable[[Path], None] = lambda _: None,
    on_outcome: Callable[[str, str], None] = lambda _, __: None,
) -> ImageReport:
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
            its pictures. A function is asked, with a text that says what would be removed.
        dry_run: Whether to store and remove nothing.
        on_images: Called once with the number of pictures found.
        on_image: Called for each picture once it has been processed.
        on_outcome: Called with a path and what became of it.

    Raises:
        InputError: If a path is not valid, or pictures would be lost that `prune` does not allow.
        ModelLoadError: If the model cannot be loaded.
        StoreError: If Qdrant fails.
    """
    if store is None and not dry_run:
        raise InputError("indexing needs a store; only a dry run goes without")
    roots = [named_path(Path(path)) for path in paths]
    run = _ImageRun(store, clip, dry_run=dry_run, on_outcome=on_outcome)
    run.find_images(roots, FileSelection(exclude, include, gitignore))
    run.check_roots(roots, prune)
    on_images(len(run.images))
    run.store_images(on_image)
    run.remove_missing_images(roots)
    return run.report


class _ImageRun:
    """One run of `index_images`: what was stored before it, and what it has done so far.

    Args:
        store: The store of the collection; None if there is none.
        clip: Embeds the pictures.
        dry_run: Whether nothing is stored or removed.
        on_outcome: Called with a path and what became of it.

    Attributes:
        images: The pictures that were found.
        report: What was done so far.
    """

    def __init__(
        self,
        store: QdrantVectorStore | None,
        clip: ClipEmbedder,
        *,
        dry_run: bool,
        on_outcome: Callable[[str, str], None],
    ) -> None:
        self.report = ImageReport()
        self.images: list[Path] = []
        self._files: list[Path] = []
        self._unreadable: list[str] = []
        self._store = store
        self._clip = clip
        self._dry_run = dry_run
        self._tell = on_outcome
        self._store_folder: Path | None = None
        if store is not None and isinstance(store.client, EdgeQdrantClient):
            self._store_folder = store.client.path
        self._base = self._store_folder.parent if self._store_folder else None
        self._stored: dict[str, StoredFile] = {}

    def find_images(self, roots: Sequence[Path], selection: FileSelection) -> None:
        """Find the pictures under all roots, and what is stored of them."""
        if self._store_folder is not None:
            selection = replace(selection, exclude=(*selection.exclude, self._store_folder))
        found = find_files(roots, selection)
        self._files = found.files
        self._unreadable = [*found.failed, *found.dead_links]
        self.images = [file for file in found.files if is_image(file)]
        if self._store is not None:
            self._stored = identify(
                read_stored_files(self._store), self.images, roots, self._base, _versions_of
            )

    def check_roots(self, roots: Sequence[Path], prune: bool | Callable[[str], bool]) -> None:
        """Reject a root without any file whose pictures are stored, unless that is meant.

        A folder whose files are gone at once is more often a disk that is not mounted than a
        folder that was emptied.

        Raises:
            InputError: If there is one.
        """
        places = Places(roots)
        stored = Counter(place for path in self._stored for place in places.holding(path))
        with_files = {place for file in self._files for place in places.holding(str(file))}
        for root in roots:
            count = stored[str(root)]
            if not count or str(root) in with_files:
                continue
            gone = "does not exist any more" if is_gone(root) else "holds no files any more"
            pictures = "1 picture of it is" if count == 1 else f"{count} pictures of it are"
            problem = f"{root} {gone}, but {pictures} indexed"
            if prune is True or (callable(prune) and prune(problem)):
                continue
            raise InputError(
                f"{problem}. No picture was removed. If it is a disk that is not mounted, mount "
                "it; to remove the pictures, say so: --prune, or prune=True in Python"
            )

    def store_images(self, on_image: Callable[[Path], None]) -> None:
        """Embed and store those pictures that are new or changed."""
        batch: list[ImageNode] = []
        for file in self.images:
            node = self._read_if_changed(file)
            if node is not None:
                batch.append(node)
            if len(batch) >= _BATCH:
                self._store_batch(batch)
                batch = []
            on_image(file)
        self._store_batch(batch)

    def remove_missing_images(self, roots: Sequence[Path]) -> None:
        """Remove the pictures that are gone from the roots.

        What is in a folder that could not be listed, or behind a link that leads to nothing, may
        still exist.
        """
        present = {str(file) for file in self.images}
        places, unreadable = Places(roots), Places(self._unreadable)
        for path, stored in self._stored.items():
            if path in present or not places.holding(path) or unreadable.holding(path):
                continue
            self._remove(stored.all_ids())
            self.report.removed += 1
            self._tell(path, "removed")

    def _read_if_changed(self, file: Path) -> ImageNode | None:
        """Return a picture's node if it has to be stored; the report says why not."""
        path = str(file)
        stored = self._stored.get(path, StoredFile())
        try:
            check_name(file)
            (version,) = _image_versions(file)
        except (OSError, InputError) as error:
            self._fail(path, error)
            return None
        if stored.is_complete(path, version):
            self.report.unchanged += 1
            self._tell(path, "unchanged")
            self._remove(stored.all_ids() - {chunk_id(path, version, 0)})
            return None
        return _make_node(file, version, relative_to_store(file, self._base))

    def _store_batch(self, batch: Sequence[ImageNode]) -> None:
        """Store pictures, and only then remove what was stored of them before."""
        stored_nodes: Sequence[ImageNode] = batch
        if batch and not self._dry_run:
            stored_nodes = self._embed(batch)
            if stored_nodes:
                assert self._store is not None
                with store_errors(self._store.collection_name, "adding pictures"):
                    self._store.add([*stored_nodes])
        for node in stored_nodes:
            path = str(node.image_path)
            self._remove(self._stored.get(path, StoredFile()).all_ids() - {node.node_id})
            self.report.indexed += 1
            self._tell(path, "indexed")

    def _embed(self, batch: Sequence[ImageNode]) -> list[ImageNode]:
        """Give nodes the vectors of their pictures; leave out those that cannot be read."""
        paths = [Path(str(node.image_path)) for node in batch]
        encoded = self._clip.encode_images(paths, skip_bad=True)
        for error in encoded.errors:
            assert error.index is not None
            self._fail(str(paths[error.index]), error)
        embedded = []
        for row, index in enumerate(encoded.indices):
            batch[index].embedding = encoded.dense[row].tolist()
            embedded.append(batch[index])
        return embedded

    def _fail(self, path: str, error: OSError | InputError) -> None:
        problem = error.strerror if isinstance(error, OSError) else error.problem
        # The path stands before it wherever it is shown.
        problem = (problem or str(error)).removeprefix(path).lstrip(": ")
        self.report.failed[path] = problem
        self._tell(path, f"failed: {problem}")

    def _remove(self, ids: set[str]) -> None:
        if ids and not self._dry_run and self._store is not None:
            remove_chunks(self._store, ids)


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


def _image_versions(file: Path) -> list[str]:
    """Return the version of a picture's content, alone in a list.

    Raises:
        OSError: If the file cannot be read.
    """
    digest = hashlib.blake2b(b"image 1:", digest_size=12)
    with file.open("rb") as content:
        while block := content.read(2**20):
            digest.update(block)
    return [digest.hexdigest()]


def _versions_of(file: Path) -> list[str]:
    """Return the versions that a picture may be stored under; none if it cannot be read."""
    try:
        check_name(file)
        return _image_versions(file)
    except (OSError, InputError):
        return []
