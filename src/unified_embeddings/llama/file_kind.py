"""A kind of file that can be indexed, as a run over files sees it.

What lives here: the seam between the bookkeeping of a run (`file_run`) and what its files are:
texts (`text_files`) or pictures (`image_indexing`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

from llama_index.vector_stores.qdrant import QdrantVectorStore

from unified_embeddings.errors import InputError
from unified_embeddings.llama.index_progress import IndexProgress
from unified_embeddings.llama.reading import FileChunks


class FileKind(ABC):
    """What a run has to know about the files that it indexes.

    Attributes:
        name: What a file is called in messages.
        contents: What is stored of files, in the plural.
        batch_size: How many chunks are embedded and stored at a time at most.
    """

    name: ClassVar[str]
    contents: ClassVar[str]
    batch_size: int

    @abstractmethod
    def takes(self, file: Path) -> bool:
        """Tell by its name whether a file is of this kind; others are passed over."""

    @abstractmethod
    def why_empty(self, file: Path) -> str | None:
        """Return why nothing is stored of a file; None if it is to be read.

        Raises:
            OSError: If it cannot be opened.
        """

    @abstractmethod
    def version_of(self, file: Path) -> str:
        """Return a digest of a file's content and of how it is read.

        Raises:
            OSError: If it cannot be read.
        """

    @abstractmethod
    def old_versions_of(self, file: Path) -> list[str]:
        """Return the digests that earlier releases stored a file's content under.

        Raises:
            OSError: If it cannot be read.
        """

    @abstractmethod
    def read(self, file: Path, relative_path: str | None) -> FileChunks:
        """Return a file in chunks that can be stored once they are embedded.

        Args:
            file: The file.
            relative_path: Its path as seen from the store's folder; None if the store is elsewhere.

        Raises:
            OSError, UnifiedEmbeddingsError: If it cannot be read.
        """

    @abstractmethod
    def add(
        self, store: QdrantVectorStore, batch: Sequence[FileChunks], progress: IndexProgress
    ) -> Mapping[str, InputError]:
        """Embed and store the chunks of files.

        Returns:
            The files that turned out to be unreadable, by path. Nothing of them is stored.

        Raises:
            StoreError: If Qdrant fails.
        """

    @abstractmethod
    def describe_stored(self, changed: FileChunks) -> str:
        """Return what became of a file that was stored, in words."""
