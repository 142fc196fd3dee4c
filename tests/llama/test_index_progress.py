"""What indexing tells of its progress: passages, files, and work by which the rest is estimated."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from qdrant_client import QdrantClient

from unified_embeddings.embedders.cached import Vectors
from unified_embeddings.embedders.fake import FakeEmbedder
from unified_embeddings.embedders.paired import PairedEmbedder
from unified_embeddings.llama.indexing import index_paths
from unified_embeddings.llama.vector_store import build_vector_store
from unified_embeddings.system.progress import Position
from unified_embeddings.system.remaining import RemainingTime
from unified_embeddings.types import HeadName, Role, Text

_LOADING = 300.0
_BYTES_PER_SECOND = 2000


class TimedEmbedder(FakeEmbedder):
    """Takes five minutes to load, and then a second for each 2,000 bytes, by its own clock."""

    def __init__(self) -> None:
        super().__init__(8, max_length=512)
        self.now = 0.0

    def _run(
        self, texts: Sequence[Text], role: Role, heads: frozenset[HeadName]
    ) -> Iterator[tuple[Text, Vectors]]:
        if self.now == 0.0:
            self.now = _LOADING
        for text, vectors in super()._run(texts, role, heads):
            self.now += len(str(text).encode()) / _BYTES_PER_SECOND
            yield text, vectors


def write_notes(folder: Path, count: int) -> None:
    """Write files of three kinds, most of them short and some long, with CJK in one of five."""
    rng = random.Random(3)
    folder.mkdir()
    for number in range(count):
        sentences = rng.choice((2, 5, 10, 200))
        words = "Owls watch foxes in the dark of the wood" if number % 5 else "狐狸跳過了懶狗。"
        text = " ".join(f"{words} {number} {each}." for each in range(sentences))
        kind = rng.choice((".md", ".txt", ".html"))
        if kind == ".html":
            text = f"<html><head><style>{'x' * 500}</style></head><body><p>{text}</p></body></html>"
        (folder / f"{number:03d}{kind}").write_text(text, "utf-8")


def test_the_remaining_time_is_right_after_the_first_tenth(tmp_path: Path) -> None:
    write_notes(tmp_path / "notes", 150)
    embedder = TimedEmbedder()
    store = build_vector_store(embedder, "notes", client=QdrantClient(":memory:"))
    seen: list[tuple[float, Position]] = []
    report = index_paths(
        [tmp_path / "notes"],
        store,
        embedder,
        chunk_tokens=64,
        on_progress=lambda position: seen.append((embedder.now, position)),
    )
    assert report.indexed == 150
    end = embedder.now
    remaining = RemainingTime(clock=lambda: now)
    checked = 0
    for now, position in seen:
        if not position.work:
            continue
        assert position.total_work is not None
        remaining.note(position.work)
        is_past_tenth = now > _LOADING + (end - _LOADING) / 10
        if is_past_tenth and now < end:
            estimate = remaining.seconds(position.total_work - position.work)
            assert estimate == pytest.approx(end - now, rel=0.1, abs=1.0)
            checked += 1
    assert checked > 500


def test_passages_are_counted_and_files_named(tmp_path: Path) -> None:
    write_notes(tmp_path / "notes", 40)
    embedder = FakeEmbedder(8)
    store = build_vector_store(embedder, "notes", client=QdrantClient(":memory:"))
    seen: list[Position] = []
    report = index_paths(
        [tmp_path / "notes"], store, embedder, chunk_tokens=64, on_progress=seen.append
    )
    counts = [position.done for position in seen]
    assert counts == sorted(counts)
    assert counts[-1] == report.chunks_added > 256
    last = seen[-1]
    assert (last.total, last.is_exact) == (report.chunks_added, True)
    assert last.work == last.total_work
    early = next(position for position in seen if position.done)
    assert not early.is_exact
    assert {position.doing for position in seen} == {
        name
        for file in (tmp_path / "notes").iterdir()
        for name in (f"notes/{file.name}", f"comparing notes/{file.name}")
    }

    again: list[Position] = []
    index_paths([tmp_path / "notes"], store, embedder, chunk_tokens=64, on_progress=again.append)
    assert [position.done for position in again] == [0] * 40  # unchanged: none is embedded


def test_of_two_models_each_does_half_of_a_passage(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("Foxes jump over dogs.")
    (tmp_path / "b.txt").write_text("Owls watch them.")
    dense, sparse = FakeEmbedder(8, heads=("dense",)), FakeEmbedder(8, heads=("sparse",))
    embedder = PairedEmbedder(dense, sparse)
    store = build_vector_store(embedder, "notes", client=QdrantClient(":memory:"))
    seen: list[Position] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PairedEmbedder, "models", (dense, sparse))
        index_paths([tmp_path], store, embedder, on_progress=seen.append)
    work = [position.work for position in seen if position.work]
    assert work == [10.5, 18.5, 29.0, 37.0, 37.0]
    assert [position.done for position in seen if position.work] == [0, 1, 1, 2, 2]


def test_what_the_cache_holds_counts_at_the_end_of_a_batch(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("Foxes jump over dogs.")
    embedder = FakeEmbedder(8)
    embedder.encode_documents(["Foxes jump over dogs."])
    store = build_vector_store(embedder, "notes", client=QdrantClient(":memory:"))
    seen: list[Position] = []
    index_paths([tmp_path], store, embedder, on_progress=seen.append)
    assert seen[-1].done == 1


def test_an_embedder_is_watched_no_longer_than_a_batch_takes(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("Foxes jump over dogs.")
    embedder = FakeEmbedder(8)
    store = build_vector_store(embedder, "notes", client=QdrantClient(":memory:"))
    seen: list[Position] = []
    index_paths([tmp_path], store, embedder, on_progress=seen.append)
    count = len(seen)
    embedder.encode_documents(["Foxes jump over dogs again."])
    assert len(seen) == count
