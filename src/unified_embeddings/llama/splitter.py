"""LlamaIndex's node parser for chunks that fit the model, measured in its own tokens.

What lives here: the parser's interface and options. What does not: where a chunk ends (`chunking`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llama_index.core import Settings
from llama_index.core.bridge.pydantic import Field, PrivateAttr
from llama_index.core.callbacks import CBEventType, EventPayload
from llama_index.core.node_parser.interface import MetadataAwareTextSplitter
from llama_index.core.schema import BaseNode, MetadataMode

from unified_embeddings.embedders.base import TextEmbedder
from unified_embeddings.embedders.factory import make_embedder
from unified_embeddings.embedders.paired import PairedEmbedder
from unified_embeddings.errors import InputError
from unified_embeddings.llama.chunking import split_text
from unified_embeddings.llama.pickling import WithEmbedder
from unified_embeddings.validation import require_whole_number

FEWEST_TOKENS = 32
"""Tokens of the smallest chunk: a single character can have 18."""
_OVERLAP_SHARE = 8
"""By default an eighth of a chunk repeats the end of the one before."""


class UnifiedSentenceSplitter(WithEmbedder, MetadataAwareTextSplitter):
    """Split documents into chunks of whole sentences that an embedder can take whole.

    Chunks are measured in the model's own tokens, and the metadata that is embedded with a chunk
    counts. The cost is linear in the text. LlamaIndex's SentenceSplitter measures in tokens of
    another model, and its cost grows with the square of a sentence's length.

    Making one loads nothing; the first text loads the model's tokenizer.

    Args:
        embedder: The embedder that the chunks have to fit: `config.embedder`. None makes one from
            `model_name` and `options`.
        chunk_size: Most tokens of a chunk, or what fits the model if that is less.
        chunk_overlap: Most tokens that a chunk repeats from the end of the one before, in whole
            sentences. None takes an eighth of the chunk size.
        model_name: As in `make_embedder`; taken if there is no embedder.
        options: As in `make_embedder`; taken if there is no embedder.
        **fields: The fields of LlamaIndex's NodeParser: include_metadata, id_func, ...

    Raises:
        InputError: If `chunk_size` is below 32 or not above `chunk_overlap`, or `embedder` is
            something else.

    Example:
        >>> from unified_embeddings import UnifiedSentenceSplitter
        >>> from unified_embeddings.embedders.fake import FakeEmbedder
        >>> splitter = UnifiedSentenceSplitter(FakeEmbedder(), chunk_size=32, chunk_overlap=0)
        >>> chunks = splitter.split_text("A fox jumps over a dog that sleeps. " * 10)
        >>> [len(chunk.split()) for chunk in chunks]
        [32, 32, 16]
    """

    model_name: str = Field(description="The embedder's name.")
    options: dict[str, Any] = Field(description="The embedder's options.")
    size_limit: int = Field(description="Most tokens of a chunk, as asked for.")
    overlap_limit: int | None = Field(description="Most tokens of an overlap, as asked for.")
    _embedder: TextEmbedder = PrivateAttr()

    def __init__(
        self,
        embedder: TextEmbedder | None = None,
        *,
        chunk_size: int = 512,
        chunk_overlap: int | None = None,
        model_name: str = "BAAI/bge-m3",
        options: dict[str, Any] | None = None,
        **fields: Any,
    ) -> None:
        if embedder is None:
            embedder = make_embedder(model_name, **(options or {}))
        if not isinstance(embedder, TextEmbedder):
            raise InputError(
                f"a splitter takes an embedder such as config.embedder, got "
                f"{type(embedder).__name__}"
            )
        size = require_whole_number("chunk_size", chunk_size, least=FEWEST_TOKENS)
        fields |= {
            "model_name": embedder.model_name,
            "options": dict(embedder.options),
            "size_limit": size,
            "overlap_limit": _check_overlap(chunk_overlap, size),
        }
        super().__init__(**fields)
        self._embedder = embedder

    @classmethod
    def class_name(cls) -> str:
        """Return the name by which LlamaIndex stores the type."""
        return "UnifiedSentenceSplitter"

    @classmethod
    def from_dict(cls, data: dict[str, Any], **kwargs: Any) -> UnifiedSentenceSplitter:
        """Return the splitter that `to_dict` described; its model is loaded with its first text."""
        fields = {**data, **kwargs}
        fields["chunk_size"] = fields.pop("size_limit", 512)
        fields["chunk_overlap"] = fields.pop("overlap_limit", None)
        fields.pop("class_name", None)
        fields.pop("id_func", None)
        return cls(**fields)

    @property
    def chunk_size(self) -> int:
        """Return the most tokens of a chunk: the smaller of asked for and possible."""
        return min(self.size_limit, self._embedder.document_length)

    @chunk_size.setter
    def chunk_size(self, tokens: int) -> None:
        """Set the most tokens of a chunk, as `Settings.chunk_size = ...` does."""
        self.size_limit = require_whole_number("chunk_size", tokens, least=FEWEST_TOKENS)

    @property
    def chunk_overlap(self) -> int:
        """Return the most tokens that a chunk repeats from the one before."""
        size = self.chunk_size
        if self.overlap_limit is None:
            return size // _OVERLAP_SHARE
        return min(self.overlap_limit, size // 2)

    @chunk_overlap.setter
    def chunk_overlap(self, tokens: int) -> None:
        """Set the most tokens of an overlap, as `Settings.chunk_overlap = ...` does."""
        self.overlap_limit = _check_overlap(tokens, self.size_limit)

    @property
    def embedder(self) -> TextEmbedder:
        """Return the embedder that the chunks fit."""
        return self._embedder

    def count_tokens(self, text: str) -> int:
        """Return how many of a document's own tokens a text has, without special tokens.

        Raises:
            InputError: If it is not a str or holds lone surrogates.
        """
        return token_counter(self._embedder)(text)

    def split_text(self, text: str) -> list[str]:
        """Return the chunks of a text without metadata; "" is one empty chunk.

        Raises:
            InputError: If it is not a str or holds lone surrogates.
        """
        return self._split(text, self.chunk_size)

    def split_text_metadata_aware(self, text: str, metadata_str: str) -> list[str]:
        """Return the chunks of a text that is embedded behind `metadata_str`.

        Raises:
            InputError: If the metadata leaves too little room for text, or a text is not valid.
        """
        size = self.chunk_size
        taken = self.count_tokens(metadata_str) if metadata_str else 0
        if taken and size - taken < min(FEWEST_TOKENS, size):
            raise InputError(
                f"metadata of {taken} tokens leaves too little room in chunks of {size}; keep keys "
                "out of the vectors by excluded_embed_metadata_keys, or out of the splitter by "
                "include_metadata=False"
            )
        return self._split(text, size - taken)

    def _split(self, text: str, size: int) -> list[str]:
        if text == "":
            # As LlamaIndex's SentenceSplitter does: an image without a caption stays a node.
            return [text]
        payload: dict[str, Any] = {EventPayload.CHUNKS: [text]}
        with self.callback_manager.event(CBEventType.CHUNKING, payload=payload) as event:
            overlap = min(self.chunk_overlap, size // 2)
            count = token_counter(self._embedder)
            announce = self._embedder.announce
            spans = split_text(text, count, size=size, overlap=overlap, announce=announce)
            chunks = [text[start:end] for start, end in spans]
            event.on_end(payload={EventPayload.CHUNKS: chunks})
        return chunks

    def _get_metadata_str(self, node: BaseNode) -> str:
        """Return the metadata that is embedded; what only a language model sees does not count."""
        if not self.include_metadata:
            return ""
        return node.get_metadata_str(mode=MetadataMode.EMBED)


def set_node_parser(embedder: TextEmbedder) -> None:
    """Make a splitter for the embedder LlamaIndex's global node parser.

    `Settings` keeps the list of transformations that it made of an earlier node parser with the
    first index, so that list is replaced too; one that somebody set is left alone.
    """
    earlier, transformations = Settings._node_parser, Settings._transformations
    Settings.node_parser = UnifiedSentenceSplitter(embedder)
    if transformations is not None and [*transformations] == [earlier]:
        Settings.transformations = [Settings.node_parser]


def token_counter(embedder: TextEmbedder) -> Callable[[str], int]:
    """Return a function that counts a text's tokens; of two models, the one that has more."""
    if isinstance(embedder, PairedEmbedder):
        dense, sparse = embedder.dense.tokenise, embedder.sparse.tokenise
        return lambda text: max(len(dense(text)), len(sparse(text)))
    tokenise = embedder.tokenise
    return lambda text: len(tokenise(text))


def _check_overlap(overlap: int | None, size: int) -> int | None:
    """Return an overlap that leaves room for new text.

    Raises:
        InputError: If it is not a whole number, or not below `size`.
    """
    if overlap is None:
        return None
    if require_whole_number("chunk_overlap", overlap, least=0) >= size:
        raise InputError(f"chunk_overlap must be below chunk_size ({size}), got {overlap}")
    return overlap
