"""What comes through a pipe into a collection, as a file of its own.

What lives here: one document without a file. What does not: files and folders (`indexing`).
"""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

from llama_index.vector_stores.qdrant import QdrantVectorStore

from unified_embeddings.embedders.base import TextEmbedder
from unified_embeddings.errors import InputError
from unified_embeddings.llama.adding import add_chunks
from unified_embeddings.llama.index_report import IndexReport
from unified_embeddings.llama.indexing import CHUNK_TOKENS
from unified_embeddings.llama.readers.registry import why_without_text
from unified_embeddings.llama.reading import check_name, read_chunks
from unified_embeddings.llama.splitter import UnifiedSentenceSplitter
from unified_embeddings.llama.store_settings import fields_of
from unified_embeddings.llama.stored_files import (
    StoredFile,
    StoredPath,
    read_stored_files,
    remove_chunks,
)

INPUT_FOLDER = Path("(standard input)")
"""Where the paths of such documents lie. No path of a file begins like this: those are absolute."""


def index_input(
    data: bytes,
    name: str,
    store: QdrantVectorStore | None,
    embedder: TextEmbedder,
    *,
    chunk_tokens: int = CHUNK_TOKENS,
    dry_run: bool = False,
) -> IndexReport:
    """Store a document that is no file; what was stored under its name before is replaced.

    Args:
        data: Its bytes.
        name: What to call it; how it is read depends on the ending, as with files.
        store: The store of the collection; None if there is none yet, with `dry_run`.
        embedder: Embeds the chunks.
        chunk_tokens: Maximum number of tokens per chunk, or what fits the model if that is less.
        dry_run: Whether to store and remove nothing.

    Returns:
        What was done. Input without text leaves what was stored under the name before.

    Raises:
        InputError: If the name is not a file's, the document cannot be read, or the collection has
            other software's payloads.
        MissingExtraError: If its reader is not installed.
        StoreError: If Qdrant fails.
    """
    check_name(Path(name))
    if name in ("", "..") or Path(name).name != name:
        raise InputError(f"a name of a file is needed, as notes.md, not {name!r}")
    if store is not None and not fields_of(store).is_llama_index:
        raise InputError(
            f"collection {store.collection_name!r} is laid out as other software's; index into a "
            "collection of its own"
        )
    path = INPUT_FOLDER / name
    report = IndexReport()
    splitter = UnifiedSentenceSplitter(embedder, chunk_size=chunk_tokens)
    with TemporaryDirectory() as folder:
        spooled = Path(folder) / name
        spooled.write_bytes(data)
        if reason := why_without_text(spooled):
            report.skipped[str(path)] = reason
            return report
        document = read_chunks(spooled, splitter, None, stored_as=path)
    if document.notes:
        report.notes[str(path)] = "; ".join(document.notes)
    if not document.nodes:
        report.skipped[str(path)] = "it is empty"
        return report
    stored = StoredFile()
    if store is not None:
        stored = read_stored_files(store).get(StoredPath(str(path), None), stored)
    new_ids = {node.node_id for node in document.nodes}
    if stored.is_complete(str(path), document.version):
        report.unchanged = 1
    else:
        report.indexed = 1
        report.chunks_added = len(document.nodes)
        if store is not None and not dry_run:
            add_chunks(store, embedder, document.nodes)
    old_ids = stored.all_ids() - new_ids
    report.chunks_removed = len(old_ids)
    if store is not None and not dry_run:
        remove_chunks(store, old_ids)
    return report
