"""Pictures in a collection: the run that texts have too, and following what changes."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from llama_index.vector_stores.qdrant import QdrantVectorStore
from qdrant_client import QdrantClient

from image_files import noise
from unified_embeddings import EdgeQdrantClient, InputError
from unified_embeddings.embedders.clip import ClipEmbedder
from unified_embeddings.embedders.clip_text import ClipTextEmbedder
from unified_embeddings.llama.finding import FileSelection, find_files
from unified_embeddings.llama.following import Changes, FolderWatch, index_image_changes
from unified_embeddings.llama.image_indexing import index_images
from unified_embeddings.llama.index_report import IndexReport
from unified_embeddings.llama.vector_store import build_vector_store

Points = dict[str, tuple[dict[str, object], list[float]]]


@pytest.fixture
def clip_model(clip: Path) -> ClipEmbedder:
    return ClipEmbedder(clip)


@pytest.fixture
def open_store(clip_model: ClipEmbedder) -> Callable[[], QdrantVectorStore]:
    def open_store() -> QdrantVectorStore:
        client = QdrantClient(":memory:")
        return build_vector_store(ClipTextEmbedder(clip_model), "pictures", client=client)

    return open_store


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    """A folder with three pictures and a text."""
    folder = tmp_path / "shop"
    (folder / "more").mkdir(parents=True)
    for number, name in enumerate(("a.png", "b.jpg", "more/c.png")):
        noise(30 + number, 40, seed=number).save(folder / name)
    (folder / "note.txt").write_text("Foxes jump.")
    return folder


def points_of(store: QdrantVectorStore) -> Points:
    """Return payload and vector of each stored picture, by its id."""
    found, _ = store.client.scroll("pictures", limit=1000, with_vectors=True)
    points: Points = {}
    for point in found:
        vector = point.vector
        assert point.payload is not None
        assert isinstance(vector, dict | list)
        dense = next(iter(vector.values())) if isinstance(vector, dict) else vector
        points[str(point.id)] = (point.payload, dense)  # type: ignore[assignment]
    return points


def paths_of(store: QdrantVectorStore) -> set[str]:
    return {str(payload["file_path"]) for payload, _ in points_of(store).values()}


class TestIndexImages:
    def test_a_picture_that_moved_is_stored_as_if_it_were_new_without_being_embedded(
        self,
        shop: Path,
        clip_model: ClipEmbedder,
        open_store: Callable[[], QdrantVectorStore],
        tmp_path: Path,
    ) -> None:
        store = open_store()
        index_images([shop], store, clip_model)
        moved = tmp_path / "elsewhere"
        shop.rename(moved)
        seen = clip_model.stats().images
        report = index_images([moved], store, clip_model)
        assert report == IndexReport(moved=3)
        assert clip_model.stats().images == seen
        whole = open_store()
        index_images([moved], whole, clip_model)
        fresh = points_of(whole)
        assert points_of(store) == fresh
        nodes = store.parse_to_query_result(store.client.scroll("pictures", limit=9)[0]).nodes
        assert {node.image_path for node in nodes or ()} == {  # type: ignore[attr-defined]
            str(moved / name) for name in ("a.png", "b.jpg", "more/c.png")
        }

    def test_what_was_found_before_is_taken_as_it_was_found(
        self, shop: Path, clip_model: ClipEmbedder, open_store: Callable[[], QdrantVectorStore]
    ) -> None:
        found = find_files([shop], FileSelection(exclude=["more/"]))
        store = open_store()
        assert index_images([shop], store, clip_model, found=found).indexed == 2
        assert paths_of(store) == {str(shop / "a.png"), str(shop / "b.jpg")}

    @pytest.mark.skipif(os.name != "posix", reason="links need rights on Windows")
    def test_a_link_to_a_disk_that_is_away_keeps_its_pictures(
        self,
        shop: Path,
        clip_model: ClipEmbedder,
        open_store: Callable[[], QdrantVectorStore],
        tmp_path: Path,
    ) -> None:
        disk = tmp_path / "disk"
        disk.mkdir()
        noise(20, 20, seed=9).save(disk / "d.png")
        (shop / "link").symlink_to(disk)
        store = open_store()
        index_images([shop], store, clip_model)
        disk.rename(tmp_path / "away")
        report = index_images([shop], store, clip_model)
        assert report == IndexReport(unchanged=3)
        assert report.left_out[str(shop / "link")].endswith(
            "its pictures are kept, --prune removes them"
        )
        assert index_images([shop], store, clip_model, prune=True).removed == 1

    def test_a_store_is_needed(self, shop: Path, clip_model: ClipEmbedder) -> None:
        with pytest.raises(InputError, match="indexing needs a store"):
            index_images([shop], None, clip_model)
        assert index_images([shop], None, clip_model, dry_run=True).indexed == 3


class TestIndexImageChanges:
    def test_the_collection_is_as_after_a_whole_run(
        self, shop: Path, clip_model: ClipEmbedder, open_store: Callable[[], QdrantVectorStore]
    ) -> None:
        now = 0.0
        store = open_store()
        index_images([shop], store, clip_model)
        watch = FolderWatch([shop], clock=lambda: now)
        noise(50, 50, seed=7).save(shop / "a.png")
        noise(20, 20, seed=8).save(shop / "new.webp")
        (shop / "b.jpg").unlink()
        (shop / "note.txt").write_text("Foxes sleep.")
        (shop / "more" / "c.png").touch()
        watch.look()
        now = 2.0
        changes = watch.look()
        outcomes: list[tuple[str, str]] = []
        report = index_image_changes(
            changes, store, clip_model, on_outcome=lambda *outcome: outcomes.append(outcome)
        )
        assert (report.indexed, report.removed, report.unchanged) == (2, 1, 1)
        assert outcomes == [
            (str(shop / "more" / "c.png"), "unchanged"),
            (str(shop / "a.png"), "indexed"),
            (str(shop / "new.webp"), "indexed"),
            (str(shop / "b.jpg"), "removed"),
        ]
        whole = open_store()
        index_images([shop], whole, clip_model)
        assert points_of(store) == points_of(whole)
        again = index_image_changes(changes, store, clip_model)
        assert again == IndexReport(unchanged=3)

    @pytest.mark.parametrize("problem", ["half", "gone", "locked"])
    def test_a_picture_that_cannot_be_read_for_a_moment_is_named_and_kept(
        self,
        shop: Path,
        clip_model: ClipEmbedder,
        open_store: Callable[[], QdrantVectorStore],
        problem: str,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        store = open_store()
        index_images([shop], store, clip_model)
        before = points_of(store)
        picture, other = shop / "a.png", shop / "new.png"
        noise(20, 20, seed=8).save(other)
        content = picture.read_bytes()
        if problem == "half":
            picture.write_bytes(content[: len(content) // 2])
        elif problem == "gone":
            picture.unlink()
        else:
            open_file = Path.open

            def refuse(path: Path, *arguments: str) -> object:
                if path == picture:
                    raise PermissionError(13, "Permission denied", str(path))
                return open_file(path, *arguments)

            monkeypatch.setattr(Path, "open", refuse)
        report = index_image_changes(Changes((picture, other)), store, clip_model)
        assert list(report.failed) == [str(picture)]
        assert str(picture) not in report.failed[str(picture)]
        assert report.indexed == 1
        after = points_of(store)
        assert before.items() <= after.items()
        assert len(after) == 4
        monkeypatch.undo()
        noise(24, 24, seed=11).save(picture)
        assert index_image_changes(Changes((picture,)), store, clip_model).indexed == 1
        assert paths_of(store) == {
            str(shop / name) for name in ("a.png", "b.jpg", "more/c.png", "new.png")
        }

    @pytest.mark.skipif(sys.platform == "darwin", reason="macOS takes no such name")
    def test_odd_names(self, shop: Path, clip_model: ClipEmbedder, tmp_path: Path) -> None:
        with EdgeQdrantClient(tmp_path / "store") as client:
            store = build_vector_store(ClipTextEmbedder(clip_model), "pictures", client=client)
            bad = shop / os.fsdecode(b"bad\xff.png")
            good = shop / "a red 'chair' – 椅子 [1].PNG"
            for file in (bad, good):
                with file.open("wb") as content:
                    noise(20, 20, seed=5).save(content, "PNG")
            report = index_image_changes(Changes((bad, good)), store, clip_model)
            assert report.failed == {str(bad): "its name is not valid Unicode; rename it"}
            assert paths_of(store) == {str(good)}
            report = index_image_changes(Changes((), (str(bad), str(good))), store, clip_model)
            assert report == IndexReport(removed=1, chunks_removed=1)


def test_texts_and_pictures_share_nothing() -> None:
    changes = Changes((Path("/a.md"), Path("/a.PNG")), ("/b.jpeg", "/b", "/png"))
    assert changes.pictures == Changes((Path("/a.PNG"),), ("/b.jpeg",))
    assert changes.texts == Changes((Path("/a.md"),), ("/b", "/png"))
    assert not Changes().pictures
