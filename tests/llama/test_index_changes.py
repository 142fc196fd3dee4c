"""Indexing after files moved, vanished, or cannot be read: the collection holds what it should."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from qdrant_client import QdrantClient

from unified_embeddings import InputError
from unified_embeddings.embedders.fake import FakeEmbedder
from unified_embeddings.llama import reading
from unified_embeddings.llama.adding import add_chunks
from unified_embeddings.llama.index_report import IndexReport
from unified_embeddings.llama.indexing import index_paths
from unified_embeddings.llama.readers import registry
from unified_embeddings.llama.vector_store import build_vector_store
from unified_embeddings.stores.opening import open_folder
from unified_embeddings.system.files import copy_with_holes


class Project:
    """A folder with `docs`, and a store beside it unless a client is given."""

    def __init__(self, folder: Path, client: Any = None) -> None:
        self.folder = folder.resolve()
        (self.folder / "docs").mkdir(parents=True, exist_ok=True)
        self.embedder = FakeEmbedder()
        self.client = client if client is not None else open_folder(self.folder / "store")
        self.store = build_vector_store(self.embedder, "notes", client=self.client)
        OPENED.append(self)

    def write(self, name: str, text: str) -> Path:
        path = self.folder / "docs" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    def index(self, *roots: Path | str, **options: Any) -> IndexReport:
        paths = [self.folder / root for root in roots or ("docs",)]
        return index_paths(paths, self.store, self.embedder, **options)

    def chunks(self) -> list[tuple[str, str]]:
        """Return path and text of each chunk, and check that its bookkeeping agrees."""
        points, _ = self.client.scroll("notes", limit=10_000)
        nodes = self.store.parse_to_query_result(points).nodes or []
        for point, node in zip(points, nodes, strict=True):
            assert str(point.id) == node.node_id
            assert node.ref_doc_id == reading.document_id(node.metadata["file_path"])
            assert node.metadata["file_name"] == Path(node.metadata["file_path"]).name
        return sorted((node.metadata["file_path"], node.get_content()) for node in nodes)

    def files(self) -> list[str]:
        """Return the stored files, relative to the folder."""
        paths = {path for path, _ in self.chunks()}
        return sorted(os.path.relpath(path, self.folder) for path in paths)

    def embedded(self) -> int:
        return self.embedder.stats().texts

    def moved_to(self, folder: Path, *, copied: bool = False) -> Project:
        """Move the project with its store, or copy it, and open it there."""
        self.client.close()
        if copied:
            shutil.copytree(self.folder, folder, copy_function=copy_with_holes)
        else:
            self.folder.rename(folder)
        return Project(folder)


OPENED: list[Project] = []


@pytest.fixture(autouse=True)
def _close(tmp_path: Path) -> Iterator[None]:  # before the folder is removed
    yield
    while OPENED:
        OPENED.pop().client.close()


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path / "project")


@pytest.fixture
def in_memory(tmp_path: Path) -> Project:
    return Project(tmp_path / "project", QdrantClient(":memory:"))


LONG = " ".join(f"Note {number} says that the fox jumps over it." for number in range(200))


class TestMoves:
    @pytest.mark.parametrize("copied", [False, True])
    def test_a_project_that_moved_with_its_store_is_not_embedded_again(
        self, project: Project, tmp_path: Path, copied: bool
    ) -> None:
        project.write("a.md", LONG)
        project.write("sub/b.md", "The boiler is serviced.")
        project.index()
        before = project.chunks()
        moved = project.moved_to(
            tmp_path / "elsewhere" if copied else tmp_path / "new", copied=copied
        )
        report = moved.index()
        assert (report.moved, report.indexed, report.removed) == (2, 0, 0)
        assert moved.embedded() == 0
        old, new = str(project.folder), str(moved.folder)
        assert moved.chunks() == [(path.replace(old, new), text) for path, text in before]
        assert moved.index() == IndexReport(unchanged=2)

    def test_a_store_that_moved_alone_and_then_with_the_project(
        self, project: Project, tmp_path: Path
    ) -> None:
        project.write("a.md", "first")
        project.index()
        project.client.close()
        new = tmp_path / "new"
        (project.folder / "data").mkdir()
        (project.folder / "store").rename(project.folder / "data" / "store")
        project.folder.rename(new)
        moved = Project(new, open_folder(new / "data" / "store"))
        assert moved.index() == IndexReport(moved=1)
        assert moved.files() == ["docs/a.md"]

    def test_neighbours_follow_the_move(self, project: Project, tmp_path: Path) -> None:
        project.write("a.md", LONG)
        project.index()
        moved = project.moved_to(tmp_path / "new")
        moved.index()
        points, _ = moved.client.scroll("notes", limit=100)
        nodes = {
            node.node_id: node for node in moved.store.parse_to_query_result(points).nodes or []
        }
        assert len(nodes) > 2
        for node in nodes.values():
            for other in (node.prev_node, node.next_node):
                assert other is None or other.node_id in nodes

    def test_a_change_and_a_deletion_on_the_way_are_noticed(
        self, project: Project, tmp_path: Path
    ) -> None:
        project.write("a.md", "first")
        project.write("b.md", "second")
        project.write("c.md", "third")
        project.index()
        moved = project.moved_to(tmp_path / "new")
        moved.write("a.md", "changed")
        (moved.folder / "docs" / "b.md").unlink()
        report = moved.index()
        assert (report.moved, report.indexed, report.removed) == (1, 1, 1)
        assert [text for _, text in moved.chunks()] == ["changed", "third"]

    def test_documents_that_moved_away_from_the_store_are_known_by_content(
        self, in_memory: Project
    ) -> None:
        in_memory.write("a.md", "first")
        in_memory.write("b.md", "second")
        in_memory.index()
        (in_memory.folder / "docs").rename(in_memory.folder / "papers")
        texts = in_memory.embedded()
        report = in_memory.index("papers")
        assert (report.moved, report.indexed) == (2, 0)
        assert in_memory.embedded() == texts
        assert in_memory.files() == ["papers/a.md", "papers/b.md"]

    def test_files_of_one_name_are_read_once_each(
        self, in_memory: Project, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for number in range(30):
            in_memory.write(f"{number}/index.md", f"page {number}")
        in_memory.index()
        (in_memory.folder / "docs").rename(in_memory.folder / "papers")
        read: list[Path] = []

        def count(file: Path, *_: Any) -> str:
            read.append(file)
            return reading.file_version(file, *_)

        monkeypatch.setattr("unified_embeddings.llama.text_files.file_version", count)
        assert in_memory.index("papers").moved == 30
        assert len(read) == 60  # to tell which they are, and whether they are stored

    def test_another_file_of_the_same_name_is_another_file(self, in_memory: Project) -> None:
        in_memory.write("a.md", "first")
        in_memory.index()
        other = in_memory.folder / "other"
        other.mkdir()
        (other / "a.md").write_text("first")
        assert in_memory.index("other").indexed == 1
        assert in_memory.files() == ["docs/a.md", "other/a.md"]

    def test_a_move_that_was_interrupted_is_completed(
        self, project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        project.write("a.md", LONG)
        project.index()
        moved = project.moved_to(tmp_path / "new")

        def interrupt(*_: Any) -> None:
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr("unified_embeddings.llama.file_run.remove_chunks", interrupt)
            with pytest.raises(KeyboardInterrupt):
                moved.index()
        moved.index()
        assert moved.files() == ["docs/a.md"]
        assert moved.index() == IndexReport(unchanged=1)
        fresh = Project(tmp_path / "new", QdrantClient(":memory:"))
        fresh.index()
        assert moved.chunks() == fresh.chunks()


def test_an_early_interrupt_keeps_what_was_embedded(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Batches hold 32, 64, 128, 256, 256 ... passages, in whole files."""
    for number in range(600):
        project.write(f"{number:03d}.md", f"Text number {number}.")
    sizes: list[int] = []

    def interrupted(store: Any, embedder: Any, chunks: list[Any]) -> None:
        sizes.append(len(chunks))
        if len(sizes) == 3:
            raise KeyboardInterrupt
        add_chunks(store, embedder, chunks)

    with monkeypatch.context() as patch:
        patch.setattr("unified_embeddings.llama.text_files.add_chunks", interrupted)
        with pytest.raises(KeyboardInterrupt):
            project.index()
        assert sizes == [32, 64, 128]
        assert len(project.files()) == 32 + 64
        report = project.index()
    assert sizes[3:] == [32, 64, 128, 256, 24]
    assert report == IndexReport(indexed=504, chunks_added=504, unchanged=96)


class TestLinks:
    def test_a_link_that_was_switched_gives_the_new_content(self, in_memory: Project) -> None:
        folder = in_memory.folder
        for release in ("r1", "r2"):
            (folder / release).mkdir()
            (folder / release / "a.md").write_text(f"content of {release}")
        current = folder / "current"
        current.symlink_to("r1")
        in_memory.index("current")
        current.unlink()
        current.symlink_to("r2")
        in_memory.index("current")
        assert in_memory.chunks() == [(str(current / "a.md"), "content of r2")]
        assert in_memory.index("current") == IndexReport(unchanged=1)

    def test_a_link_within_a_folder_that_was_switched(self, in_memory: Project) -> None:
        folder = in_memory.folder
        for release in ("r1", "r2"):
            (folder / release).mkdir()
            (folder / release / "a.md").write_text(f"content of {release}")
        current = folder / "docs" / "current"
        current.symlink_to(folder / "r1")
        in_memory.index()
        current.unlink()
        current.symlink_to(folder / "r2")
        in_memory.index()
        assert in_memory.chunks() == [(str(current / "a.md"), "content of r2")]

    def test_a_link_that_is_named_by_dots_keeps_its_name(
        self, in_memory: Project, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        folder = in_memory.folder
        for release in ("r1", "r2"):
            (folder / release).mkdir()
            (folder / release / "a.md").write_text(f"content of {release}")
        current = folder / "current"
        current.symlink_to("r1")
        monkeypatch.chdir(folder / "docs")
        for release in ("r1", "r2"):
            current.unlink()
            current.symlink_to(release)
            index_paths([Path("../current")], in_memory.store, in_memory.embedder)
            assert in_memory.chunks() == [(str(current / "a.md"), f"content of {release}")]

    @pytest.fixture
    def disk(self, in_memory: Project) -> Path:
        """A folder elsewhere that a link in `docs` leads to, indexed, and gone by now."""
        disk = in_memory.folder / "disk"
        disk.mkdir()
        (disk / "a.md").write_text("on the disk")
        in_memory.write("b.md", "in the folder")
        (in_memory.folder / "docs" / "link").symlink_to(disk)
        in_memory.index()
        disk.rename(in_memory.folder / "unmounted")
        return disk

    def test_what_is_behind_a_link_to_nothing_stays(self, in_memory: Project, disk: Path) -> None:
        report = in_memory.index()
        assert report == IndexReport(unchanged=1)
        (problem,) = report.left_out.values()
        assert "does not exist; its passages are kept, --prune removes them" in problem
        assert in_memory.files() == ["docs/b.md", "docs/link/a.md"]
        (in_memory.folder / "unmounted").rename(disk)
        assert in_memory.index() == IndexReport(unchanged=2)

    @pytest.mark.usefixtures("disk")
    def test_it_is_removed_if_that_is_said(self, in_memory: Project) -> None:
        asked: list[str] = []

        def answer(problem: str) -> bool:
            asked.append(problem)
            return len(asked) > 1

        assert in_memory.index(prune=answer).removed == 0
        assert in_memory.index(prune=answer).removed == 1
        assert "1 file" in asked[0]
        assert in_memory.files() == ["docs/b.md"]

    def test_a_file_that_is_gone_is_gone_by_every_name(self, in_memory: Project) -> None:
        in_memory.write("a.md", "first")
        gone = in_memory.write("b.md", "second")
        in_memory.index()
        (in_memory.folder / "alias").symlink_to("docs")
        gone.unlink()
        report = in_memory.index("alias")
        assert (report.moved, report.removed) == (1, 1)
        assert in_memory.files() == ["alias/a.md"]


class TestAbsence:
    @pytest.fixture(autouse=True)
    def _indexed(self, project: Project) -> None:
        project.write("a.md", "first")
        project.write("sub/b.md", "second")
        project.index()

    @pytest.mark.parametrize("gone", ["emptied", "deleted"])
    def test_a_root_without_its_files_is_refused_and_nothing_changes(
        self, project: Project, gone: str
    ) -> None:
        before = project.chunks()
        shutil.rmtree(project.folder / "docs")
        if gone == "emptied":
            (project.folder / "docs").mkdir()
        with pytest.raises(InputError, match=r"2 files of it are indexed.*--prune"):
            project.index()
        assert project.chunks() == before
        assert project.index(prune=True).removed == 2
        assert project.chunks() == []

    def test_a_root_that_cannot_be_looked_at_is_reported_and_loses_nothing(
        self, project: Project, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        before = project.chunks()
        root, look_at = project.folder / "docs", Path.stat

        def refuse(path: Path, **options: Any) -> os.stat_result:
            if path == root:
                raise PermissionError(13, "Permission denied")
            return look_at(path, **options)

        monkeypatch.setattr(Path, "stat", refuse)
        report = project.index()
        monkeypatch.undo()
        assert report.failed == {str(root): "cannot be looked at: Permission denied"}
        assert project.chunks() == before

    def test_another_root_is_not_touched_either(self, project: Project) -> None:
        (project.folder / "more").mkdir()
        (project.folder / "more" / "c.md").write_text("third")
        shutil.rmtree(project.folder / "docs")
        with pytest.raises(InputError, match="does not exist any more"):
            project.index("more", "docs")
        assert project.files() == ["docs/a.md", "docs/sub/b.md"]

    def test_the_question_is_asked_once_with_what_would_be_lost(self, project: Project) -> None:
        shutil.rmtree(project.folder / "docs")
        asked: list[str] = []

        def answer(problem: str) -> bool:
            asked.append(problem)
            return True

        assert project.index(prune=answer).removed == 2
        assert asked == [
            f"{project.folder / 'docs'} does not exist any more, but 2 files of it are indexed"
        ]

    def test_one_file_of_several_is_removed_without_asking(self, project: Project) -> None:
        (project.folder / "docs" / "a.md").unlink()
        assert project.index().removed == 1

    def test_a_folder_that_cannot_be_listed_loses_nothing(
        self, project: Project, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        scan = os.scandir

        def refuse(path: Path) -> object:
            if Path(path).name == "sub":
                raise PermissionError(13, "Permission denied")
            return scan(path)

        monkeypatch.setattr(os, "scandir", refuse)
        report = project.index()
        assert list(report.failed) == [str(project.folder / "docs" / "sub")]
        assert project.files() == ["docs/a.md", "docs/sub/b.md"]


class TestDryRun:
    def test_it_says_what_would_be_done_and_does_nothing(self, project: Project) -> None:
        for name in ("same.md", "changed.md", "gone.md"):
            project.write(name, name)
        project.index()
        before = project.chunks()
        project.write("changed.md", "other")
        project.write("new.md", "new")
        project.write("photo.png", "x")
        (project.folder / "docs" / "gone.md").unlink()
        outcomes: dict[str, str] = {}
        report = project.index(
            dry_run=True,
            on_outcome=lambda path, outcome: outcomes.update({Path(path).name: outcome}),
        )
        assert (report.unchanged, report.indexed, report.removed) == (1, 2, 1)
        assert outcomes == {
            "same.md": "unchanged",
            "changed.md": "indexed, 1 chunk",
            "new.md": "indexed, 1 chunk",
            "gone.md": "removed",
            "photo.png": "skipped: no text in .png files",
        }
        assert project.chunks() == before

    def test_without_a_collection(self, tmp_path: Path) -> None:
        (tmp_path / "a.md").write_text("first")
        report = index_paths([tmp_path], None, FakeEmbedder(), dry_run=True)
        assert (report.indexed, report.chunks_added) == (1, 1)
        with pytest.raises(InputError, match="needs a store"):
            index_paths([tmp_path], None, FakeEmbedder())


class TestArguments:
    @pytest.mark.parametrize("name", ["paths", "exclude", "include"])
    @pytest.mark.parametrize("value", ["docs", Path("docs")])
    def test_one_instead_of_several_is_refused(
        self, project: Project, name: str, value: str | Path
    ) -> None:
        options: Any = {"paths": [project.folder / "docs"], name: value}
        with pytest.raises(InputError, match=rf"{name} takes several"):
            index_paths(options.pop("paths"), project.store, project.embedder, **options)


class TestVersions:
    def test_another_reader_reads_again(
        self, project: Project, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        project.write("a.csv", "name,place\nIda,Faro\n")
        project.write("b.md", "text")
        project.index()
        reader = registry.Reader("csv 2", lambda _: registry.read_plain_text(b"read anew"))
        monkeypatch.setitem(registry._BY_SUFFIX, ".csv", reader)
        report = project.index()
        assert (report.indexed, report.unchanged) == (1, 1)
        assert [text for _, text in project.chunks()] == ["read anew", "text"]

    def test_no_stores_folder_is_indexed(self, project: Project) -> None:
        project.write("a.md", "first")
        local = Project(project.folder, QdrantClient(path=str(project.folder / "local")))
        local.client.close()
        elsewhere = Project(project.folder, QdrantClient(":memory:"))
        report = elsewhere.index(".")
        assert elsewhere.files() == ["docs/a.md"]
        folders = [str(project.folder / name) for name in ("local", "store")]
        assert sorted(report.left_out) == folders

    def test_a_text_that_became_binary_loses_its_chunks(self, project: Project) -> None:
        project.write("b.md", "second")
        project.write("a.txt", "first")
        project.index()
        (project.folder / "docs" / "a.txt").write_bytes(b"\0\xff\xfe" * 100)
        report = project.index()
        assert (len(report.skipped), report.chunks_removed) == (1, 1)
        assert project.files() == ["docs/b.md"]

    def test_the_stores_own_folder_is_never_indexed(self, project: Project) -> None:
        project.write("a.md", "first")
        project.index(".")
        assert project.files() == ["docs/a.md"]


class TestNotes:
    def test_each_file_with_lost_characters_is_noted_once(self, project: Project) -> None:
        path = project.folder / "docs" / "a.txt"
        path.write_bytes(b"caf\xe9 is open, and the fox is in. " * 2 + b"x" * 200)
        report = project.index()
        assert report.failed == {}
        assert report.notes == {str(path): "2 characters are not valid and were replaced by U+FFFD"}
        assert "caf\ufffd is open" in project.chunks()[0][1]
        assert project.index() == IndexReport(unchanged=1)

    def test_one_bad_file_does_not_stop_the_others(self, project: Project) -> None:
        bad = project.write("bad.docx", "no Word file")
        project.write("good.md", "good")
        report = project.index()
        assert list(report.failed) == [str(bad)]
        assert "is not a Word file" in report.failed[str(bad)]
        assert project.files() == ["docs/good.md"]
