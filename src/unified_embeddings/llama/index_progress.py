"""How far indexing is, in passages, and how much is still to come.

What lives here: counting. What does not: indexing (`indexing`), and showing it.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from unified_embeddings.embedders.base import TextEmbedder
from unified_embeddings.embedders.calls import EncodeCall
from unified_embeddings.llama.reading import FileChunks
from unified_embeddings.system.progress import Position, Show
from unified_embeddings.types import Text


class IndexProgress:
    """Counts the passages of the files that have to be read, and estimates those still unread.

    How much a file holds is known once it is read. Until then it is estimated by its size: a
    kilobyte of it holds as many passages, and as much text, as one of the files of its kind that
    were read; where there are none yet, of all files. The work is measured in bytes of text
    (UTF-8), since long passages take longer than short ones.

    Args:
        show: Called with each new position.
    """

    def __init__(self, show: Show) -> None:
        self._show = show
        self._unread_bytes: Counter[str] = Counter()
        self._sizes: dict[Path, int] = {}
        self._read = {"": _Read()}
        """What was read, by the ending of the files; "" for all of them."""
        self._doing = ""
        self._done_passages = 0.0
        self._done_text = 0.0

    def checking(self, file: Path) -> None:
        """Show that a file is compared with what is stored."""
        self._show(Position(0, None, doing=f"comparing {_short(file)}"))

    def expect(self, files: Sequence[Path]) -> None:
        """Take the files that will be read."""
        for file in files:
            size = 0
            with contextlib.suppress(OSError):  # it is gone, as reading it will find
                size = file.stat().st_size
            self._sizes[file] = size
            self._unread_bytes[file.suffix.lower()] += size

    def reading(self, file: Path) -> None:
        """Show that a file is read next."""
        self._doing = _short(file)
        self._tell()

    def note_read(self, file: Path, chunks: FileChunks | None) -> None:
        """Count what a file holds; nothing if it could not be read."""
        suffix = file.suffix.lower()
        size = self._sizes.get(file, 0)
        self._unread_bytes[suffix] -= size
        texts = [] if chunks is None else [node.text for node in chunks.nodes]
        for key in dict.fromkeys(("", suffix)):
            self._read.setdefault(key, _Read()).add(size, texts)

    @contextlib.contextmanager
    def embedding(self, batch: Sequence[FileChunks], embedder: TextEmbedder) -> Iterator[None]:
        """Count the passages of a batch as they are embedded; all of them are done at the end.

        Args:
            batch: The files.
            embedder: Embeds their passages; it tells which are done.
        """
        files = {node.text: changed.path for changed in batch for node in changed.nodes}
        texts = [node.text for changed in batch for node in changed.nodes]
        text_bytes = sum(map(_text_bytes, texts))
        before_passages, before_text = self._done_passages, self._done_text
        models = max(1, len(embedder.models))

        def count(text: Text) -> None:
            # Of two models, each does half of a passage.
            if isinstance(text, str) and text in files:
                self._doing = _short(Path(files[text]))
                self._done_passages += 1 / models
                self._done_text += _text_bytes(text) / models
                self._tell()

        @contextlib.contextmanager
        def watch(call: EncodeCall) -> Iterator[None]:
            call.on_text = count
            yield

        stop = embedder.watch(watch)
        try:
            yield
        finally:
            stop()
        # Those found in the cache were not told.
        self._done_passages = before_passages + len(texts)
        self._done_text = before_text + text_bytes
        if texts:
            self._tell()

    def _tell(self) -> None:
        passages, text = float(self._read[""].passages), float(self._read[""].text_bytes)
        unread = 0
        for suffix, size in self._unread_bytes.items():
            unread += size
            like = self._read.get(suffix, self._read[""])
            if not like.file_bytes:
                like = self._read[""]
            passages += size * like.passages / max(1, like.file_bytes)
            text += size * like.text_bytes / max(1, like.file_bytes)
        is_known = bool(self._read[""].passages)
        self._show(
            Position(
                done=int(self._done_passages + 1e-6),  # halves of two models
                total=round(passages) if is_known else None,
                is_exact=unread == 0,
                work=self._done_text,
                total_work=text if is_known else None,
                doing=self._doing,
            )
        )


class _Read:
    """What was read of files of a kind."""

    def __init__(self) -> None:
        self.file_bytes = 0
        self.passages = 0
        self.text_bytes = 0

    def add(self, file_bytes: int, texts: Sequence[str]) -> None:
        self.file_bytes += file_bytes
        self.passages += len(texts)
        self.text_bytes += sum(map(_text_bytes, texts))


def ignore_position(position: Position) -> None:
    """Show nothing."""


def _text_bytes(text: str) -> int:
    return len(text.encode(errors="replace"))


def _short(file: Path) -> str:
    """Return a file's name and its folder's: whole paths are too long for a line."""
    return str(Path(*file.parts[-2:]))
