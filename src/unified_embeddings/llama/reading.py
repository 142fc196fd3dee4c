"""Files on disk into chunks: their versions, their texts, and nodes that can be stored.

What lives here: from a file to its chunks. What does not: reading a format (`readers`), where a
chunk ends (`chunking`), which files there are (`finding`) and which are stored (`indexing`).
"""

from __future__ import annotations

import hashlib
import mimetypes
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

from llama_index.core.schema import NodeRelationship, RelatedNodeInfo, TextNode

from unified_embeddings.errors import InputError, UnifiedEmbeddingsError
from unified_embeddings.llama.chunking import split_table
from unified_embeddings.llama.readers.content import FileContent, Metadata, Section
from unified_embeddings.llama.readers.registry import read_content, reader_of
from unified_embeddings.llama.splitter import UnifiedSentenceSplitter

_BLOCK_BYTES = 2**20
_NAMESPACE = uuid.UUID("6f1f9c1e-6a55-4c0a-9d3b-7f0c2f6f5a10")
"""Makes chunk ids (UUID version 5) this project's own."""
_SHOWN_TO_LLM = frozenset(("file_name", "page_label", "sheet_name"))
"""Metadata that goes into a prompt along with the text. None of it is embedded."""


@dataclass(frozen=True)
class FileChunks:
    """A file in chunks.

    Attributes:
        path: The file's path.
        version: Digest of its content and of how it is read and split.
        nodes: The chunks, with ids and metadata; none if the file holds no text.
        notes: What the user should know about the file.
    """

    path: str
    version: str
    nodes: list[TextNode]
    notes: list[str]


def check_name(file: Path) -> None:
    """Reject a file whose name the store cannot hold.

    Raises:
        InputError: If the name is not valid Unicode.
    """
    try:
        str(file).encode()
    except UnicodeEncodeError:
        raise InputError("its name is not valid Unicode; rename it") from None


def file_version(file: Path, splitter: UnifiedSentenceSplitter) -> str:
    """Return a digest of a file's bytes and of how it is read and split, as 24 hex digits.

    Raises:
        OSError: If the file cannot be read.
    """
    return _digest(f"2:{_size_of(splitter)}:{reader_of(file).name}:", _blocks(file))


def old_file_version(file: Path, splitter: UnifiedSentenceSplitter) -> str:
    """Return the version that a file had before readers were a part of it.

    Raises:
        OSError: If the file cannot be read.
    """
    return _digest(f"1:{_size_of(splitter)}:", _blocks(file))


def read_chunks(
    file: Path,
    splitter: UnifiedSentenceSplitter,
    relative_path: str | None,
    *,
    stored_as: Path | None = None,
) -> FileChunks:
    """Read a file, and split it into chunks.

    Args:
        file: The file.
        splitter: Splits its texts.
        relative_path: The file's path as seen from the store's folder, which both keep when they
            are moved together; None if the store is elsewhere.
        stored_as: The path that the chunks carry; None for the file's own.

    Raises:
        InputError: If the file cannot be read; the message says why.
        MissingExtraError: If its reader is not installed.
        OSError: If it cannot be opened.
    """
    data = file.read_bytes()
    # Of the very bytes that are read: the file may change at any time.
    version = _digest(f"2:{_size_of(splitter)}:{reader_of(file).name}:", iter((data,)))
    try:
        content = read_content(file, data)
        chunks = list(_split(content, splitter))
    except UnifiedEmbeddingsError:
        raise
    except Exception as error:  # readers raise what their libraries raise
        problem = str(error).strip() or type(error).__name__
        raise InputError(f"cannot be read: {problem}") from error
    named = stored_as or file
    nodes = _make_nodes(chunks, named, version, len(data), relative_path)
    return FileChunks(str(named), version, nodes, content.notes)


def chunk_id(path: str, version: str, position: int) -> str:
    """Return a chunk's id.

    It depends on path, version and position alone, so a run that is repeated overwrites what an
    interrupted one has stored.
    """
    return str(uuid.uuid5(_NAMESPACE, f"{path}\0{version}\0{position}"))


def document_id(path: str) -> str:
    """Return the id of the document that all chunks of a file belong to."""
    return str(uuid.uuid5(_NAMESPACE, path))


def bookkeeping(
    path: str, version: str, chunks: int, relative_path: str | None
) -> dict[str, str | int]:
    """Return the metadata that the next run reads."""
    kept: dict[str, str | int] = {
        "file_path": path,
        "file_version": version,
        "file_chunks": chunks,
    }
    if relative_path is not None:
        kept["file_relative_path"] = relative_path
    return kept


def _split(
    content: FileContent, splitter: UnifiedSentenceSplitter
) -> Iterator[tuple[str, Metadata]]:
    """Yield the chunks that are not blank, each with its place in the file.

    A chunk of nothing but NUL characters counts as blank. A crash can leave a file full of them.
    """
    for part in content.parts:
        if isinstance(part, Section):
            texts = splitter.split_text(part.text)
        else:
            texts = split_table(
                part.rows,
                part.separator,
                part.title,
                splitter.count_tokens,
                splitter.chunk_size,
                announce=splitter.embedder.announce,
            )
        for text in texts:
            if text.replace("\0", "").strip():
                yield text, part.metadata


def _make_nodes(
    chunks: list[tuple[str, Metadata]],
    file: Path,
    version: str,
    size: int,
    relative_path: str | None,
) -> list[TextNode]:
    path = str(file)
    shared = bookkeeping(path, version, len(chunks), relative_path) | file_facts(file, size)
    ids = [chunk_id(path, version, position) for position in range(len(chunks))]
    nodes = []
    for position, (text, metadata) in enumerate(chunks):
        related = {NodeRelationship.SOURCE: RelatedNodeInfo(node_id=document_id(path))}
        if position:
            related[NodeRelationship.PREVIOUS] = RelatedNodeInfo(node_id=ids[position - 1])
        if position + 1 < len(ids):
            related[NodeRelationship.NEXT] = RelatedNodeInfo(node_id=ids[position + 1])
        all_metadata = metadata | shared
        nodes.append(
            TextNode(
                id_=ids[position],
                text=text,
                metadata=all_metadata,
                excluded_embed_metadata_keys=list(all_metadata),
                excluded_llm_metadata_keys=[
                    key for key in all_metadata if key not in _SHOWN_TO_LLM
                ],
                relationships=related,
            )
        )
    return nodes


def file_facts(file: Path, size: int) -> Metadata:
    """Return what is known of a file: the keys and forms of LlamaIndex's readers."""
    facts: Metadata = {"file_name": file.name, "file_size": size}
    kind, _ = mimetypes.guess_type(file.name)
    if kind is not None:
        facts["file_type"] = kind
    try:
        status = file.stat()
    except OSError:  # it was removed after it was read
        return facts
    facts["creation_date"] = _day(status.st_ctime)
    facts["last_modified_date"] = _day(status.st_mtime)
    return facts


def _day(seconds: float) -> str:
    try:
        return datetime.fromtimestamp(seconds, tz=timezone.utc).strftime("%Y-%m-%d")
    except (OverflowError, OSError, ValueError):
        return "1970-01-01"


def _size_of(splitter: UnifiedSentenceSplitter) -> str:
    return f"{splitter.chunk_size}:{splitter.chunk_overlap}"


def _digest(how: str, blocks: Iterator[bytes]) -> str:
    digest = hashlib.blake2b(how.encode(), digest_size=12)
    for block in blocks:
        digest.update(block)
    return digest.hexdigest()


def _blocks(file: Path) -> Iterator[bytes]:
    with file.open("rb") as content:
        while block := content.read(_BLOCK_BYTES):
            yield block
