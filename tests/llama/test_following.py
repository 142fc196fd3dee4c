"""Following folders: what is told as changed and when, and that the collection follows.

The clock is the test's own; the files are real.
"""

from __future__ import annotations

import errno
import os
import shutil
import sys
from pathlib import Path

import pytest
from llama_index.vector_stores.qdrant import QdrantVectorStore
from qdrant_client import QdrantClient

from unified_embeddings import EdgeQdrantClient
from unified_embeddings.embedders.fake import FakeEmbedder
from unified_embeddings.llama import following
from unified_embeddings.llama.finding import FileSelection
from unified_embeddings.llama.following import Changes, FolderWatch, index_changes
from unified_embeddings.llama.index_report import IndexReport
from unified_embeddings.llama.indexing import index_paths
from unified_embeddings.llama.vector_store import build_vector_store


class Watched:
    """A folder that is watched, with a clock that moves when a test says so."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.now = 0.0
        self.notes: list[str] = []
        self.watch = self.begin()

    def begin(self, *paths: Path, selection: FileSelection | None = None) -> FolderWatch:
        self.watch = FolderWatch(
            paths or [self.folder],
            selection or FileSelection(),
            settle_seconds=2.0,
            clock=lambda: self.now,
            note=self.notes.append,
        )
        return self.watch

    def write(self, name: str, text: str) -> Path:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, "utf-8")
        return path

    def look(self, seconds: float = 1.0) -> tuple[set[str], set[str]]:
        """Let some seconds pass; return the names of what has changed and what is gone."""
        self.now += seconds
        changes = self.watch.look()
        names = {path.name for path in changes.changed}
        return names, {Path(path).name for path in changes.removed}

    def settle(self) -> tuple[set[str], set[str]]:
        """Look until all is ready; return it, and count it as done."""
        self.look()
        self.now += 2.0
        changes = self.watch.look()
        self.watch.done(changes)
        names = {path.name for path in changes.changed}
        return names, {Path(path).name for path in changes.removed}


NOTHING: tuple[set[str], set[str]] = (set(), set())


@pytest.fixture
def watched(tmp_path: Path) -> Watched:
    folder = tmp_path / "notes"
    folder.mkdir()
    for name in ("a.md", "b.md"):
        (folder / name).write_text(f"The text of {name}.")
    return Watched(folder)


class TestFolderWatch:
    def test_what_is_there_at_first_is_no_change(self, watched: Watched) -> None:
        assert watched.look(60.0) == NOTHING
        assert watched.watch.waiting == 0

    def test_new_changed_and_removed_files(self, watched: Watched) -> None:
        watched.write("new.md", "new")
        watched.write("a.md", "changed, and of another length")
        (watched.folder / "b.md").unlink()
        assert watched.look() == NOTHING
        assert watched.watch.waiting == 3
        assert watched.look(2.0) == ({"new.md", "a.md"}, {"b.md"})

    def test_a_change_is_told_again_until_it_is_done(self, watched: Watched) -> None:
        watched.write("new.md", "new")
        watched.look()
        assert watched.look(2.0) == watched.look(60.0) == ({"new.md"}, set())
        watched.watch.done(watched.watch.look())
        assert watched.look(60.0) == NOTHING

    def test_a_file_is_told_once_it_is_written_to_its_end(self, watched: Watched) -> None:
        with (watched.folder / "long.md").open("w") as file:
            for part in range(10):
                file.write(f"part {part} ")
                file.flush()
                assert watched.look(1.5) == NOTHING
        assert watched.look(1.5) == NOTHING
        assert watched.look(1.5) == ({"long.md"}, set())

    def test_a_file_that_is_replaced_is_not_removed(self, watched: Watched) -> None:
        """Editors write a new file, and put it in the place of the old one."""
        text = (watched.folder / "a.md").read_text()
        (watched.folder / "a.md").unlink()
        assert watched.look(1.0) == NOTHING
        watched.write(".a.md.tmp", text.replace("a", "o")).rename(watched.folder / "a.md")
        assert watched.look(1.0) == NOTHING
        assert watched.look(2.0) == ({"a.md"}, set())

    def test_a_file_that_comes_and_goes_is_never_told(self, watched: Watched) -> None:
        for _ in range(5):
            watched.write("lock.md", "mine")
            assert watched.look(1.0) == NOTHING
            (watched.folder / "lock.md").unlink()
            assert watched.look(1.0) == NOTHING
        assert watched.watch.waiting == 0

    def test_a_change_after_it_was_told_is_another_one(self, watched: Watched) -> None:
        watched.write("a.md", "second version")
        watched.look()
        changes = watched.look(2.0)
        assert changes == ({"a.md"}, set())
        told = watched.watch.look()
        watched.write("a.md", "third version, while the second is indexed")
        watched.watch.done(told)
        assert watched.settle() == ({"a.md"}, set())

    def test_the_same_size_and_time_in_another_file_is_a_change(self, watched: Watched) -> None:
        old = watched.folder / "a.md"
        status = old.stat()
        other = watched.write("z.tmp", "THE TEXT OF A.MD.")
        os.utime(other, ns=(status.st_atime_ns, status.st_mtime_ns))
        other.replace(old)
        assert watched.settle() == ({"a.md"}, set())

    def test_folders_that_come_and_go(self, watched: Watched) -> None:
        watched.write("2024/may/c.md", "c")
        watched.write("2024/june/d.md", "d")
        assert watched.settle() == ({"c.md", "d.md"}, set())
        shutil.rmtree(watched.folder / "2024")
        assert watched.settle() == (set(), {"c.md", "d.md"})

    def test_only_what_the_selection_takes(self, watched: Watched) -> None:
        selection = FileSelection(exclude=["drafts/"], include=["*.md"], gitignore=True)
        watched.begin(selection=selection)
        for name in ("drafts/x.md", "x.txt", ".hidden.md", "y.md"):
            watched.write(name, "text")
        assert watched.settle() == ({"y.md"}, set())
        watched.write(".git/config", "")
        watched.write(".gitignore", "y.md\n")  # what it leaves out now is gone from the collection
        assert watched.settle() == (set(), {"y.md"})

    def test_a_file_that_was_named(self, watched: Watched) -> None:
        watched.begin(watched.folder / "a.md")
        watched.write("new.md", "new")
        watched.write("a.md", "a longer text than before")
        assert watched.settle() == ({"a.md"}, set())


class TestPlacesThatGoAway:
    @pytest.mark.parametrize("how", ["gone", "emptied"])
    def test_a_folder_is_waited_for(self, watched: Watched, tmp_path: Path, how: str) -> None:
        watched.folder.rename(tmp_path / "elsewhere")
        if how == "emptied":  # as the folder on which a disk was mounted
            watched.folder.mkdir()
        for _ in range(10):
            assert watched.look(60.0) == NOTHING
        (note,) = watched.notes
        problem = "is not there" if how == "gone" else "holds no files any more"
        assert note.startswith(f"{watched.folder} {problem}; waiting for it, and nothing")
        if how == "emptied":
            watched.folder.rmdir()
        (tmp_path / "elsewhere").rename(watched.folder)
        watched.write("a.md", "changed while it was away")
        assert watched.settle() == ({"a.md"}, set())
        assert watched.notes[1:] == [f"{watched.folder} is there again"]

    def test_it_comes_back_with_less(self, watched: Watched, tmp_path: Path) -> None:
        watched.folder.rename(tmp_path / "elsewhere")
        assert watched.settle() == NOTHING
        (tmp_path / "elsewhere" / "b.md").unlink()
        (tmp_path / "elsewhere").rename(watched.folder)
        assert watched.settle() == (set(), {"b.md"})

    def test_the_others_go_on(self, watched: Watched, tmp_path: Path) -> None:
        other = tmp_path / "other"
        other.mkdir()
        (other / "c.md").write_text("c")
        (other / "d.md").write_text("d")
        watched.begin(watched.folder, other)
        shutil.rmtree(watched.folder)
        (other / "c.md").unlink()
        assert watched.settle() == (set(), {"c.md"})

    def test_a_disk_below_the_folder(
        self, watched: Watched, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Where a file was on another disk than its folder is on now, the disk is away."""
        watched.write("disk/c.md", "on a disk of its own")
        watched.settle()
        mine = watched.folder.stat().st_dev
        known = watched.watch._known[str(watched.folder / "disk" / "c.md")]
        watched.watch._known[str(watched.folder / "disk" / "c.md")] = known._replace(
            device=mine + 1
        )
        (watched.folder / "disk" / "c.md").unlink()
        for _ in range(3):
            assert watched.look(60.0) == NOTHING
        assert watched.notes[0].startswith(f"{watched.folder / 'disk'} holds no files any more")
        monkeypatch.setattr(following, "_device_of", lambda _: mine + 1)  # it is mounted again
        assert watched.settle() == (set(), {"c.md"})

    @pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may read anything")
    def test_a_folder_that_cannot_be_listed(self, watched: Watched) -> None:
        watched.write("sub/c.md", "c")
        watched.settle()
        (watched.folder / "sub").chmod(0)
        try:
            assert watched.settle() == NOTHING
        finally:
            (watched.folder / "sub").chmod(0o755)
        assert watched.settle() == NOTHING

    @pytest.mark.skipif(os.name != "posix", reason="links need rights on Windows")
    def test_a_file_that_cannot_be_looked_at(
        self, watched: Watched, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        stat = Path.stat

        def refuse(path: Path, *, follow_symlinks: bool = True) -> os.stat_result:
            if path.name == "a.md":
                raise PermissionError(errno.EACCES, "Permission denied", str(path))
            return stat(path, follow_symlinks=follow_symlinks)

        monkeypatch.setattr(Path, "stat", refuse)
        assert watched.settle() == NOTHING
        monkeypatch.undo()
        assert watched.settle() == NOTHING
        (watched.folder / "a.md").unlink()
        assert watched.settle() == (set(), {"a.md"})

    def test_a_link_that_leads_to_nothing(self, watched: Watched, tmp_path: Path) -> None:
        target = tmp_path / "target"
        target.mkdir()
        (target / "c.md").write_text("c")
        (watched.folder / "link").symlink_to(target)
        assert watched.settle() == ({"c.md"}, set())
        target.rename(tmp_path / "away")
        assert watched.settle() == NOTHING
        (tmp_path / "away").rename(target)
        assert watched.settle() == NOTHING


class TestIndexChanges:
    @pytest.fixture
    def embedder(self) -> FakeEmbedder:
        return FakeEmbedder(max_length=256)

    def test_the_collection_is_as_after_a_whole_run(
        self, watched: Watched, embedder: FakeEmbedder
    ) -> None:
        store = build_vector_store(embedder, "notes", client=QdrantClient(":memory:"))
        index_paths([watched.folder], store, embedder)
        watched.write("a.md", "Foxes jump. " * 300)
        watched.write("new.txt", "Owls watch.")
        (watched.folder / "b.md").unlink()
        watched.look()
        watched.now += 2
        changes = watched.watch.look()
        outcomes: list[tuple[str, str]] = []
        report = index_changes(
            changes, store, embedder, on_outcome=lambda *outcome: outcomes.append(outcome)
        )
        assert (report.indexed, report.removed, report.unchanged) == (2, 1, 0)
        assert report.chunks_removed == 2
        assert (str(watched.folder / "b.md"), "removed") in outcomes
        whole = build_vector_store(embedder, "whole", client=QdrantClient(":memory:"))
        index_paths([watched.folder], whole, embedder)
        assert _points(store) == _points(whole)
        assert index_paths([watched.folder], store, embedder) == IndexReport(unchanged=2)

    def test_the_same_changes_again_do_nothing(
        self, watched: Watched, embedder: FakeEmbedder
    ) -> None:
        store = build_vector_store(embedder, "notes", client=QdrantClient(":memory:"))
        index_paths([watched.folder], store, embedder)
        file = watched.write("a.md", "Another text.")
        changes = Changes((file,), (str(watched.folder / "never.md"),))
        assert index_changes(changes, store, embedder).indexed == 1
        assert index_changes(changes, store, embedder) == IndexReport(unchanged=1)

    def test_a_file_that_is_gone_by_then_is_named_and_keeps_its_chunks(
        self, watched: Watched, embedder: FakeEmbedder
    ) -> None:
        store = build_vector_store(embedder, "notes", client=QdrantClient(":memory:"))
        index_paths([watched.folder], store, embedder)
        (watched.folder / "a.md").unlink()
        report = index_changes(Changes((watched.folder / "a.md",)), store, embedder)
        assert list(report.failed) == [str(watched.folder / "a.md")]
        assert len(_points(store)) == 2

    def test_a_file_that_has_lost_its_text_loses_its_chunks(
        self, watched: Watched, embedder: FakeEmbedder
    ) -> None:
        store = build_vector_store(embedder, "notes", client=QdrantClient(":memory:"))
        index_paths([watched.folder], store, embedder)
        file = watched.folder / "a.md"
        file.write_text("")
        index_changes(Changes((file,)), store, embedder)
        assert {path for path, _ in _points(store)} == {str(watched.folder / "b.md")}

    @pytest.mark.skipif(sys.platform == "darwin", reason="macOS takes no such name")
    def test_a_name_that_is_not_unicode_keeps_no_other_file_waiting(
        self, watched: Watched, embedder: FakeEmbedder, tmp_path: Path
    ) -> None:
        with EdgeQdrantClient(tmp_path / "store") as client:
            store = build_vector_store(embedder, "notes", client=client)
            index_paths([watched.folder], store, embedder)
            bad = watched.write(os.fsdecode(b"bad\xff.md"), "Bats hang.")
            good = watched.write("good.md", "Owls watch.")
            report = index_changes(Changes((bad, good)), store, embedder)
        assert report.failed == {str(bad): "its name is not valid Unicode; rename it"}
        assert report.indexed == 1


def _points(store: QdrantVectorStore) -> set[tuple[str, str]]:
    """Return path and id of every stored chunk."""
    found, _ = store.client.scroll(store.collection_name, limit=1000)
    return {((point.payload or {})["file_path"], str(point.id)) for point in found}
