"""Which files are indexed, and what is said about the rest."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from unified_embeddings.errors import InputError
from unified_embeddings.llama.finding import FileSelection, find_files, named_path


def write(folder: Path, *names: str) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"content of {name}")


def found(folder: Path, *roots: str | Path, **selection: object) -> list[str]:
    """Return the files found, relative to the folder."""
    chosen = FileSelection(**selection)  # type: ignore[arg-type]
    files = find_files([folder / root for root in roots or (".",)], chosen).files
    return [file.relative_to(folder).as_posix() for file in files]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path.resolve()


class TestWithin:
    def test_what_lies_outside_is_left_out_wherever_links_lead(self, folder: Path) -> None:
        write(folder, "in/a.md", "in/sub/b.md", "out/c.md", "out/sub/d.md")
        (folder / "in" / "file.md").symlink_to(folder / "out" / "c.md")
        (folder / "in" / "folder").symlink_to(folder / "out" / "sub")
        (folder / "in" / "back").symlink_to(folder / "in" / "sub")
        (folder / "in" / "up").symlink_to(folder)
        within = [folder / "in"]
        assert found(folder, "in", "out", "out/c.md", within=within) == ["in/a.md", "in/sub/b.md"]
        left_out = find_files([folder / "in"], FileSelection(within=within)).left_out
        assert set(left_out) == {str(folder / "in" / name) for name in ("file.md", "folder", "up")}
        everything = ["in/a.md", "in/sub/b.md", "out/c.md", "out/sub/d.md"]
        assert found(folder, "in", "out") == everything

    def test_a_folder_that_is_named_through_a_link_holds_its_files(self, folder: Path) -> None:
        write(folder, "in/a.md")
        (folder / "link").symlink_to(folder / "in")
        assert found(folder, "link", within=[folder / "link"]) == ["link/a.md"]


class TestPatterns:
    @pytest.fixture(autouse=True)
    def _files(self, folder: Path) -> None:
        write(folder, "a.md", "b.log", "drafts/c.md", "sub/drafts/d.md", "sub/e.md", "sub/f.log")

    @pytest.mark.parametrize(
        ("exclude", "left"),
        [
            (["*.log"], ["a.md", "drafts/c.md", "sub/drafts/d.md", "sub/e.md"]),
            (["drafts/"], ["a.md", "b.log", "sub/e.md", "sub/f.log"]),
            (["/drafts/"], ["a.md", "b.log", "sub/drafts/d.md", "sub/e.md", "sub/f.log"]),
            (["*", "!*.log"], ["b.log"]),
            (["sub"], ["a.md", "b.log", "drafts/c.md"]),
            (["**/d.md", "e.md"], ["a.md", "b.log", "drafts/c.md", "sub/f.log"]),
            ([Path("sub/drafts"), "*.log"], ["a.md", "drafts/c.md", "sub/e.md"]),
        ],
    )
    def test_exclude(
        self,
        folder: Path,
        monkeypatch: pytest.MonkeyPatch,
        exclude: list[str | Path],
        left: list[str],
    ) -> None:
        monkeypatch.chdir(folder)
        assert found(folder, exclude=exclude) == left

    def test_include(self, folder: Path) -> None:
        assert found(folder, include=["*.log"]) == ["b.log", "sub/f.log"]
        assert found(folder, include=["sub/e*"], exclude=["*.log"]) == ["sub/e.md"]

    def test_a_root_that_is_excluded_has_no_files_below_it(self, folder: Path) -> None:
        assert found(folder, exclude=[folder]) == []
        assert found(folder, "sub", exclude=[folder / "sub"]) == []
        assert found(folder, "sub", exclude=[folder]) == []
        assert found(folder, "sub", "a.md", exclude=[folder / "sub"]) == ["a.md"]

    def test_a_pattern_that_is_none_is_refused(self, folder: Path) -> None:
        with pytest.raises(InputError, match="pattern"):
            found(folder, exclude=["!"])


class TestGitignore:
    def test_it_is_honoured_with_the_flag_alone(self, folder: Path) -> None:
        write(folder, "a.md", "b.log", "sub/c.log", "sub/d.md", "build/e.md")
        (folder / ".gitignore").write_text("*.log\nbuild/\n")
        (folder / "sub" / ".gitignore").write_text("!c.log\nd.md\n")
        assert found(folder, gitignore=True) == ["a.md", "sub/c.log"]
        assert len(found(folder)) == 5

    def test_those_above_count_up_to_the_top_of_the_repository(self, folder: Path) -> None:
        write(folder, "repo/docs/a.md", "repo/docs/b.log", "repo/.git/config")
        (folder / ".gitignore").write_text("*.md\n")
        (folder / "repo" / ".gitignore").write_text("*.log\n")
        assert found(folder, "repo/docs", gitignore=True) == ["repo/docs/a.md"]

    def test_one_that_cannot_be_read_is_none(self, folder: Path) -> None:
        write(folder, "a.md")
        (folder / ".gitignore").mkdir()
        assert found(folder, gitignore=True) == ["a.md"]


class TestLinks:
    def test_a_linked_folder_is_followed_once(self, folder: Path) -> None:
        write(folder, "elsewhere/a.md")
        (folder / "docs").mkdir()
        for name in ("one", "two"):
            (folder / "docs" / name).symlink_to(folder / "elsewhere")
        assert found(folder, "docs") == ["docs/one/a.md"]

    def test_a_file_keeps_its_own_path(self, folder: Path) -> None:
        write(folder, "docs/z/a.md")
        (folder / "docs" / "a").symlink_to(folder / "docs" / "z")
        (folder / "docs" / "b.md").symlink_to(folder / "docs" / "z" / "a.md")
        assert found(folder, "docs") == ["docs/z/a.md"]

    def test_a_root_that_is_a_link_keeps_its_name(self, folder: Path) -> None:
        write(folder, "r1/a.md", "r2/a.md")
        (folder / "current").symlink_to("r2")
        assert found(folder, "current") == ["current/a.md"]
        assert found(folder, "current", "r2") == ["r2/a.md"]

    def test_what_leads_nowhere_is_named(self, folder: Path) -> None:
        (folder / "self").symlink_to(folder / "self")
        (folder / "gone.md").symlink_to(folder / "nothing.md")
        outcome = find_files([folder], FileSelection())
        assert outcome.files == []
        assert outcome.failed == {}
        assert set(outcome.left_out) == {str(folder / "self"), str(folder / "gone.md")}

    def test_a_link_up_is_not_followed(self, folder: Path) -> None:
        write(folder, "docs/a.md", "b.md")
        (folder / "docs" / "up").symlink_to(folder)
        outcome = find_files([folder / "docs"], FileSelection())
        assert [file.name for file in outcome.files] == ["a.md"]
        assert list(outcome.left_out) == [str(folder / "docs" / "up")]


def test_a_servers_storage_is_left_out(folder: Path) -> None:
    write(folder, "docs/a.md", "storage/raft_state.json", "storage/collections/notes/config.json")
    outcome = find_files([folder], FileSelection())
    assert outcome.files == [folder / "docs" / "a.md"]
    assert outcome.left_out == {str(folder / "storage"): "is the folder of a Qdrant store"}


class TestOddPaths:
    @pytest.mark.parametrize("name", ["x" * 300, "a\0b", "~nosuchuser/docs", "y/" * 3000])
    def test_a_name_that_is_none_is_an_input_error(self, name: str) -> None:
        with pytest.raises(InputError, match="is not a usable path"):
            named_path(Path(name))

    def test_a_link_to_itself_as_root(self, folder: Path) -> None:
        (folder / "self").symlink_to(folder / "self")
        with pytest.raises(InputError, match="is not a usable path"):
            named_path(folder / "self")

    def test_a_home_and_dots(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HOME", str(folder))
        monkeypatch.chdir(folder)
        assert named_path(Path("~/docs")) == folder / "docs"
        assert named_path(Path("a/../b")) == folder / "b"
        assert named_path(Path()) == folder

    @pytest.fixture
    def locked(self, folder: Path) -> Iterator[Path]:
        """A folder that can be listed but not entered."""
        write(folder, "docs/locked/a.md", "docs/locked/deep/b.md", "docs/open.md")
        path = folder / "docs" / "locked"
        path.chmod(stat.S_IRUSR)
        yield path
        path.chmod(stat.S_IRWXU)

    @pytest.mark.skipif(os.geteuid() == 0, reason="root enters every folder")
    def test_a_folder_that_cannot_be_entered(self, locked: Path) -> None:
        outcome = find_files([locked.parent], FileSelection())
        assert locked.parent / "open.md" in outcome.files
        assert str(locked / "deep") in outcome.failed

    def test_a_folder_that_cannot_be_listed_is_named(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        write(folder, "a.md", "shut/b.md")
        scan = os.scandir

        def refuse(path: Path) -> object:
            if Path(path).name == "shut":
                raise PermissionError(13, "Permission denied")
            return scan(path)

        monkeypatch.setattr(os, "scandir", refuse)
        outcome = find_files([folder], FileSelection())
        assert outcome.files == [folder / "a.md"]
        assert outcome.failed == {str(folder / "shut"): "cannot be listed: Permission denied"}

    @pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="the platform has no named pipes")
    def test_a_pipe_named_outright_is_refused_by_name(self, folder: Path) -> None:
        os.mkfifo(folder / "pipe")
        outcome = find_files([folder / "pipe"], FileSelection())
        assert outcome.failed == {str(folder / "pipe"): "is neither a file nor a folder"}
