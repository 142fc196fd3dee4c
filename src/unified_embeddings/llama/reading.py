"""Files on disk into chunks: which files there are, their versions and their texts.

What lives here: finding, reading and splitting files. What does not: which of them are stored
already (`indexing`).
"""

from __future__ import annotations

import codecs
import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

from llama_index.core.node_parser import SentenceSplitter
from llama_index.core.readers import SimpleDirectoryReader
from llama_index.core.schema import BaseNode

from unified_embeddings.embedders.base import TextEmbedder
from unified_embeddings.errors import InputError, MissingExtraError

_FEWEST_TOKENS = 32
_OVERLAP = 0.125
"""Share of a chunk that repeats the end of the chunk before."""
_START_BYTES = 8192
"""How much of a file of unknown type is looked at to tell text from binary data."""
_BLOCK_BYTES = 2**20
_NEEDS_READER = frozenset((".pdf", ".docx", ".pptx", ".ppt", ".epub", ".xls", ".xlsx", ".hwp"))
"""Types that only LlamaIndex's own readers can read."""
_NOT_TEXT = frozenset(
    (".png", ".jpg", ".jpeg", ".gif", ".webp", ".bmp", ".tif", ".tiff", ".mp3", ".mp4", ".wav",
     ".avi", ".mov", ".zip", ".gz", ".tar", ".7z", ".exe", ".so", ".dll", ".pyc", ".bin")
)  # fmt: skip


class _TextSplitter(SentenceSplitter):
    """LlamaIndex's splitter, which measures chunks by their text alone.

    The stock splitter leaves room for the metadata, but no metadata is embedded here.
    """

    def split_text_metadata_aware(self, text: str, metadata_str: str) -> list[str]:  # noqa: ARG002
        return self.split_text(text)


def make_splitter(embedder: TextEmbedder, chunk_tokens: int) -> SentenceSplitter:
    """Return a splitter into chunks of whole sentences, measured in the model's own tokens.

    Args:
        embedder: The embedder that the chunks have to fit.
        chunk_tokens: Maximum number of tokens per chunk, or what fits the model if that is less.

    Raises:
        InputError: If `chunk_tokens` is below 32.
    """
    if chunk_tokens < _FEWEST_TOKENS:
        raise InputError(f"chunk_tokens must be at least {_FEWEST_TOKENS}, got {chunk_tokens}")
    chunk_size = min(chunk_tokens, embedder.document_length)
    return _TextSplitter(
        chunk_size=chunk_size,
        chunk_overlap=int(chunk_size * _OVERLAP),
        tokenizer=embedder.tokenise,  # type: ignore[call-arg]  # pydantic hides the inherited __init__
    )


def find_files(root: Path, excluded: Sequence[Path]) -> tuple[list[Path], dict[str, str]]:
    """Find the files under a root, without hidden ones and without those in hidden folders.

    Args:
        root: A folder, or a file, which is then the only one. Nothing is found under one that does
            not exist.
        excluded: Folders to leave out.

    Returns:
        The files, and the folders that cannot be listed, each with the reason.
    """
    if root.is_file():
        return [root], {}
    if not root.is_dir():
        return [], {}
    files: list[Path] = []
    unlisted: dict[str, str] = {}

    def note_unlisted(error: OSError) -> None:
        unlisted[str(error.filename)] = f"cannot be listed: {error.strerror or error}"

    for folder_name, subfolder_names, file_names in os.walk(root, onerror=note_unlisted):
        folder = Path(folder_name)
        # os.walk descends into what is left in this list.
        subfolder_names[:] = [
            name
            for name in subfolder_names
            if not name.startswith(".") and folder / name not in excluded
        ]
        if folder in excluded:
            continue
        for name in file_names:
            if not name.startswith(".") and (folder / name).is_file():
                files.append(folder / name)
    return files, unlisted


def holds_no_text(file: Path) -> bool:
    """Tell whether a file holds no text.

    Either its type holds none, or no reader knows its type and it begins with binary data: a NUL
    byte, and not valid UTF-8.

    Raises:
        OSError: If the file cannot be opened.
    """
    suffix = file.suffix.lower()
    if suffix in _NOT_TEXT:
        return True
    if suffix in _NEEDS_READER or suffix in SimpleDirectoryReader.supported_suffix_fn():
        return False
    with file.open("rb") as content:
        start = content.read(_START_BYTES)
    if b"\0" not in start or start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return False
    try:
        # An incremental decoder accepts a character that is cut off at the end.
        codecs.getincrementaldecoder("utf-8")().decode(start)
    except UnicodeDecodeError:
        return True
    return False


def file_version(file: Path, splitter: SentenceSplitter) -> str:
    """Return a digest of a file's bytes and of how it is split, as 24 hex digits.

    Raises:
        InputError: If the file's name is not valid Unicode, since the store cannot hold it.
        OSError: If the file cannot be read.
    """
    try:
        str(file).encode()
    except UnicodeEncodeError:
        raise InputError("its name is not valid Unicode; rename it") from None
    digest = hashlib.blake2b(digest_size=12)
    digest.update(f"1:{splitter.chunk_size}:{splitter.chunk_overlap}:".encode())
    with file.open("rb") as content:
        while block := content.read(_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def read_chunks(file: Path, splitter: SentenceSplitter) -> list[BaseNode]:
    """Read a file with LlamaIndex's reader for its type, and split it into chunks.

    Returns:
        The chunks that are not blank, each with `file_path` in its metadata.

    Raises:
        InputError: If the file is not UTF-8 text, or its reader or the splitter fails.
        MissingExtraError: If its reader is not installed.
    """
    suffix = file.suffix.lower()
    if suffix in _NEEDS_READER and suffix not in SimpleDirectoryReader.supported_suffix_fn():
        raise MissingExtraError(f"the reader for {file.suffix} files", extra="files")
    try:
        documents = SimpleDirectoryReader(
            input_files=[file], errors="strict", raise_on_error=True
        ).load_data()
        for document in documents:
            document.metadata["file_path"] = str(file)
        chunks = splitter.get_nodes_from_documents(documents)
    except ImportError as error:  # a library of the reader's own, which no extra of ours brings
        raise InputError(f"cannot be read: its reader needs another library: {error}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"is not UTF-8 text: {error}") from error
    except Exception as error:  # readers and splitter raise what their libraries raise
        raise InputError(f"cannot be read: {error.__cause__ or error}") from error
    return [chunk for chunk in chunks if chunk.get_content().strip()]
