"""Files with texts: each becomes its passages.

What lives here: texts as a kind of file that a run indexes. What does not: the run (`file_run`),
reading a file (`reading`), and embedding (`adding`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from llama_index.core.schema import BaseNode
from llama_index.vector_stores.qdrant import QdrantVectorStore

from unified_embeddings.embedders.base import TextEmbedder
from unified_embeddings.errors import InputError
from unified_embeddings.llama.adding import BATCH_CHUNKS, add_chunks
from unified_embeddings.llama.file_kind import FileKind
from unified_embeddings.llama.index_progress import IndexProgress
from unified_embeddings.llama.readers.registry import why_without_text
from unified_embeddings.llama.reading import (
    FileChunks,
    file_version,
    old_file_version,
    read_chunks,
)
from unified_embeddings.llama.splitter import UnifiedSentenceSplitter


class TextFiles(FileKind):
    """Files with texts, of which the passages are stored.

    All files are taken; those that hold no text are skipped.

    Args:
        embedder: Embeds the passages.
        chunk_tokens: Maximum number of tokens per passage, or what fits the model if that is less.
    """

    name = "file"
    contents = "passages"

    def __init__(self, embedder: TextEmbedder, chunk_tokens: int) -> None:
        self.batch_size = BATCH_CHUNKS
        self._embedder = embedder
        self._splitter = UnifiedSentenceSplitter(embedder, chunk_size=chunk_tokens)

    def takes(self, file: Path) -> bool:  # noqa: ARG002 — any name may stand on a text
        """Tell that every file is taken."""
        return True

    def why_empty(self, file: Path) -> str | None:
        """Return why a file holds no text; None if it may hold some."""
        return why_without_text(file)

    def version_of(self, file: Path) -> str:
        """Return a digest of a file's content and of how it is read and split."""
        return file_version(file, self._splitter)

    def old_versions_of(self, file: Path) -> list[str]:
        """Return the digest that a file had before readers were a part of it."""
        return [old_file_version(file, self._splitter)]

    def read(self, file: Path, relative_path: str | None) -> FileChunks:
        """Read a file, and split it into passages."""
        return read_chunks(file, self._splitter, relative_path)

    def add(
        self, store: QdrantVectorStore, batch: Sequence[FileChunks], progress: IndexProgress
    ) -> Mapping[str, InputError]:
        """Embed and store the passages of files."""
        chunks: list[BaseNode] = [node for changed in batch for node in changed.nodes]
        with progress.embedding(batch, self._embedder):
            add_chunks(store, self._embedder, chunks)
        return {}

    def describe_stored(self, changed: FileChunks) -> str:
        """Return how many passages were stored."""
        count = len(changed.nodes)
        return f"indexed, {count} chunk{'' if count == 1 else 's'}"
