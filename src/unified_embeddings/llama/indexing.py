"""Files into a collection: read, split, embed, store; again, and only what changed is done again.

What lives here: the bookkeeping that makes indexing repeatable. The collection itself is its only
memory: every chunk carries its file's path and version and how many chunks the file has, so that a
run killed anywhere is completed by the next one.
"""

from __future__ import annotations

import codecs
import contextlib
import hashlib
import os
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llama_index.core.node_parser import SentenceSplitter
from llama_index.core.readers import SimpleDirectoryReader
from llama_index.core.schema import BaseNode, MetadataMode
from llama_index.vector_stores.qdrant import QdrantVectorStore
from qdrant_client import models

from unified_embeddings.embedders.base import TextEmbedder
from unified_embeddings.errors import InputError, MissingExtraError, UnifiedEmbeddingsError
from unified_embeddings.stores.errors import store_errors

_CHUNK_TOKENS = 512
_OVERLAP = 0.125
"""Share of a chunk that repeats the end of the one before."""
_BATCH_NODES = 256
_NAMESPACE = uuid.UUID("6f1f9c1e-6a55-4c0a-9d3b-7f0c2f6f5a10")
"""Makes chunk ids (UUID version 5) this project's own."""
_NEEDS_READER = frozenset((".pdf", ".docx", ".pptx", ".ppt", ".epub", ".xls", ".xlsx", ".hwp"))
_NOT_TEXT = frozenset(
    (".png", ".jpg", ".jpeg", ".gif", ".webp", ".bmp", ".tif", ".tiff", ".mp3", ".mp4", ".wav",
     ".avi", ".mov", ".zip", ".gz", ".tar", ".7z", ".exe", ".so", ".dll", ".pyc", ".bin")
)  # fmt: skip
_OWN_METADATA = ("file_version", "file_chunks")
_SHOWN_TO_LLM = frozenset(("file_name", "page_label"))
"""Metadata that goes into a prompt beside the text; none of it is embedded."""


class _TextSplitter(SentenceSplitter):
    """LlamaIndex's splitter, chunks measured by their text: no metadata is embedded with it."""

    def split_text_metadata_aware(self, text: str, metadata_str: str) -> list[str]:  # noqa: ARG002
        return self.split_text(text)


@dataclass
class IndexReport:
    """What a run did.

    Attributes:
        unchanged: Files whose chunks were all there already.
        indexed: Files read and stored.
        removed: Files whose chunks were dropped because the file is gone.
        chunks_added: Chunks stored.
        chunks_removed: Chunks dropped, of changed files too.
        skipped: Files without text: empty, or of a kind that holds none.
        failed: File → why it could not be read; what was stored of it before is still there.
    """

    unchanged: int = 0
    indexed: int = 0
    removed: int = 0
    chunks_added: int = 0
    chunks_removed: int = 0
    skipped: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)


@dataclass
class _Stored:
    """What the collection holds of one file: chunk ids by version, and the chunks that has."""

    ids: dict[str, list[str]] = field(default_factory=dict)
    chunks: dict[str, int] = field(default_factory=dict)

    def has(self, version: str) -> bool:
        return version in self.ids and len(self.ids[version]) == self.chunks[version]

    def version_ids(self, version: str) -> set[str]:
        return set(self.ids.get(version, ()))

    def all_ids(self) -> set[str]:
        return {chunk for ids in self.ids.values() for chunk in ids}


def index_paths(
    paths: Sequence[Path],
    store: QdrantVectorStore,
    embedder: TextEmbedder,
    *,
    chunk_tokens: int = _CHUNK_TOKENS,
    exclude: Sequence[Path] = (),
    on_files: Callable[[int], None] = lambda _: None,
    on_file: Callable[[Path], None] = lambda _: None,
) -> IndexReport:
    """Bring the collection in line with files and folders.

    New and changed files are split into chunks of whole sentences, embedded and stored; files that
    have gone from the folders given lose their chunks; everything else stays. The old chunks of a
    changed file go only after the new ones are stored.

    Args:
        paths: Files and folders; hidden ones within folders are left out. A path that is gone but
            has chunks stored loses them.
        store: Where to.
        embedder: Whose vectors.
        chunk_tokens: Most tokens of a chunk; what fits the model where that is less.
        exclude: Folders to leave out, such as the store's own.
        on_files: Called once with the number of files found.
        on_file: Called as each file is done with.

    Raises:
        InputError: If a path does not exist and nothing is stored of it, or chunk_tokens < 32.
        StoreError: If Qdrant fails.
    """
    if chunk_tokens < 32:
        raise InputError(f"chunk_tokens must be at least 32, got {chunk_tokens}")
    size = min(chunk_tokens, embedder.document_length)
    splitter = _TextSplitter(
        chunk_size=size,
        chunk_overlap=int(size * _OVERLAP),
        tokenizer=embedder.tokenise,  # type: ignore[call-arg]  # pydantic hides the inherited __init__
    )
    roots = [path.expanduser().resolve() for path in paths]
    stored = _stored_files(store)
    for root in roots:
        if not root.exists() and not any(_is_under(path, root) for path in stored):
            raise InputError(f"{root} does not exist, and nothing of it is indexed")
    excluded = [path.expanduser().resolve() for path in exclude]
    report = IndexReport()
    files = sorted({file for root in roots for file in _files(root, excluded, report)})
    on_files(len(files))

    def fresh() -> Iterator[tuple[str, list[BaseNode]]]:
        for file in files:
            was = stored.get(str(file), _Stored())
            nodes = _file_nodes(file, splitter, was, report)
            if isinstance(nodes, list):
                yield str(file), nodes
            elif nodes is not None:  # a run was stopped before it dropped the other versions
                _drop(store, was.all_ids() - was.version_ids(nodes), report)
            on_file(file)

    for batch in _batched(fresh()):
        nodes = [node for _, file_nodes in batch for node in file_nodes]
        _add(store, embedder, nodes)
        report.chunks_added += len(nodes)
        for path, file_nodes in batch:
            stale = stored.get(path, _Stored()).all_ids() - {node.node_id for node in file_nodes}
            _drop(store, stale, report)
    present = {str(file) for file in files}
    unreadable = [Path(folder) for folder in report.failed]
    for path, was in stored.items():
        if any(_is_under(path, folder) for folder in unreadable):
            continue
        if path not in present and any(_is_under(path, root) for root in roots):
            _drop(store, was.all_ids(), report)
            report.removed += 1
    return report


def _files(root: Path, excluded: Sequence[Path], report: IndexReport) -> Iterator[Path]:
    """The files under a root; a folder that cannot be listed is reported as failed."""
    if root.is_file():
        yield root

    def note(error: OSError) -> None:
        report.failed[str(error.filename)] = f"cannot be listed: {error.strerror or error}"

    for folder, folders, names in os.walk(root, onerror=note) if root.is_dir() else ():
        here = Path(folder)
        folders[:] = [
            name for name in folders if not name.startswith(".") and here / name not in excluded
        ]
        for name in names:
            path = here / name
            if not name.startswith(".") and here not in excluded and path.is_file():
                yield path


def _is_under(path: str, root: Path) -> bool:
    return Path(path) == root or root in Path(path).parents


def _file_nodes(
    file: Path, splitter: SentenceSplitter, was: _Stored, report: IndexReport
) -> list[BaseNode] | str | None:
    """The file's new chunks; its version if that is stored; None if it gives none to store."""
    try:
        if _holds_no_text(file):
            report.skipped.append(str(file))
            return None
        str(file).encode()
        version = _version(file, splitter)
        if was.has(version):
            report.unchanged += 1
            return version
        nodes = _read(file, splitter)
    except UnicodeEncodeError:
        report.failed[str(file)] = "its name is no valid Unicode; rename it"
        return None
    except (OSError, UnifiedEmbeddingsError) as error:
        report.failed[str(file)] = str(error)
        return None
    if not nodes and not was.ids:
        report.skipped.append(str(file))
        return None
    for i, node in enumerate(nodes):
        node.id_ = str(uuid.uuid5(_NAMESPACE, f"{file}\0{version}\0{i}"))
        node.metadata |= {"file_version": version, "file_chunks": len(nodes)}
        node.excluded_embed_metadata_keys = list(node.metadata)
        node.excluded_llm_metadata_keys = [key for key in node.metadata if key not in _SHOWN_TO_LLM]
    report.indexed += 1
    return nodes


def _holds_no_text(file: Path) -> bool:
    """Whether a file is of a kind without text, or no reader's and binary: a NUL, and no UTF-8."""
    suffix = file.suffix.lower()
    if suffix in _NOT_TEXT:
        return True
    if suffix in _NEEDS_READER or suffix in SimpleDirectoryReader.supported_suffix_fn():
        return False
    with file.open("rb") as content:
        start = content.read(8192)
    if b"\0" not in start or start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return False
    try:
        codecs.getincrementaldecoder("utf-8")().decode(start)
    except UnicodeDecodeError:
        return True
    return False


def _version(file: Path, splitter: SentenceSplitter) -> str:
    """Digest of the file's bytes and of how it is split."""
    digest = hashlib.blake2b(digest_size=12)
    digest.update(f"1:{splitter.chunk_size}:{splitter.chunk_overlap}:".encode())
    with file.open("rb") as content:
        while block := content.read(2**20):
            digest.update(block)
    return digest.hexdigest()


def _read(file: Path, splitter: SentenceSplitter) -> list[BaseNode]:
    """Read by LlamaIndex's reader for this kind of file, and split.

    Raises:
        InputError: If it is not text in UTF-8, or its reader or the splitter fails.
        MissingExtraError: If its reader is not installed.
    """
    if (
        file.suffix.lower() in _NEEDS_READER
        and file.suffix.lower() not in SimpleDirectoryReader.supported_suffix_fn()
    ):
        raise MissingExtraError(f"the reader for {file.suffix} files", extra="files")
    try:
        documents = SimpleDirectoryReader(
            input_files=[file], errors="strict", raise_on_error=True
        ).load_data()
        for document in documents:
            document.metadata["file_path"] = str(file)
        nodes: list[BaseNode] = splitter.get_nodes_from_documents(documents)
    except ImportError as error:  # a library of the reader's own, which no extra of ours brings
        raise InputError(f"cannot be read: its reader needs another library: {error}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"is not text in UTF-8: {error}") from error
    except Exception as error:  # readers and splitter raise what their libraries raise
        raise InputError(f"cannot be read: {error.__cause__ or error}") from error
    return [node for node in nodes if node.get_content().strip()]


def _batched(
    files: Iterable[tuple[str, list[BaseNode]]],
) -> Iterator[list[tuple[str, list[BaseNode]]]]:
    """Groups of whole files with about `_BATCH_NODES` chunks."""
    batch: list[tuple[str, list[BaseNode]]] = []
    for path, nodes in files:
        batch.append((path, nodes))
        if sum(len(nodes) for _, nodes in batch) >= _BATCH_NODES:
            yield batch
            batch = []
    if batch:
        yield batch


def _add(store: QdrantVectorStore, embedder: TextEmbedder, nodes: list[BaseNode]) -> None:
    """Embed and store, a bounded number at a time; the sparse half comes from the cache."""
    for start in range(0, len(nodes), _BATCH_NODES):
        part = nodes[start : start + _BATCH_NODES]
        texts = [node.get_content(metadata_mode=MetadataMode.EMBED) for node in part]
        dense = embedder.encode_documents(texts).dense
        assert dense is not None
        for node, vector in zip(part, dense, strict=True):
            node.embedding = vector.tolist()
        with store_errors(store.collection_name, "adding chunks"):
            store.add(part)


def _drop(store: QdrantVectorStore, ids: Iterable[str], report: IndexReport) -> None:
    gone: list[Any] = sorted(ids)
    if gone:
        with store_errors(store.collection_name, "dropping chunks"):
            store.client.delete(
                store.collection_name, points_selector=models.PointIdsList(points=gone)
            )
        report.chunks_removed += len(gone)


def _stored_files(store: QdrantVectorStore) -> dict[str, _Stored]:
    """What the collection holds, by file."""
    files: dict[str, _Stored] = {}
    offset = None
    while True:
        with store_errors(store.collection_name, "listing what is stored"):
            points, offset = store.client.scroll(
                store.collection_name,
                limit=1000,
                offset=offset,
                with_payload=["file_path", *_OWN_METADATA],
                with_vectors=False,
            )
        for point in points:
            with contextlib.suppress(
                KeyError
            ):  # a chunk that came another way is not ours to count
                payload = point.payload or {}
                path, version = payload["file_path"], payload["file_version"]
                file = files.setdefault(path, _Stored())
                file.chunks[version] = payload["file_chunks"]
                file.ids.setdefault(version, []).append(str(point.id))
        if offset is None:
            return files
