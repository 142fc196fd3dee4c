"""What is written for good is there whole or not at all, whatever happens meanwhile."""

from __future__ import annotations

import errno
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import portalocker
import pytest

import child_functions
from unified_embeddings.system import files
from unified_embeddings.system.files import (
    FileLock,
    LockHeldError,
    LockUnsupportedError,
    NoSpaceError,
    copy_with_holes,
    free_space,
    make_folder,
    publish_folder,
    remove_litter,
    replace_file,
    require_space,
    scratch_folder,
    sync_tree,
)

KILLS = 30


def run(*arguments: object) -> subprocess.Popen[str]:
    """Start `child_functions` in a process of its own."""
    return subprocess.Popen(
        [sys.executable, child_functions.__file__, *map(str, arguments)],
        stdout=subprocess.PIPE,
        text=True,
    )


def first_line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def write_tree(folder: Path, text: str = "new") -> Path:
    (folder / "inner").mkdir(parents=True)
    (folder / "file").write_text(text)
    (folder / "inner" / "file").write_text(text)
    return folder


def is_complete(folder: Path) -> bool:
    return (folder / "file").is_file() and (folder / "inner" / "file").is_file()


# --- killed -------------------------------------------------------------------------------------


@pytest.mark.skipif(sys.platform == "win32", reason="kill -9 is POSIX")
def test_killed_at_any_time_there_is_the_old_or_the_new_content_and_no_litter(
    tmp_path: Path,
) -> None:
    generator = random.Random(0)
    acknowledged, littered = 0, 0
    for _ in range(KILLS):
        first = acknowledged + 2  # The one after the last may have been published unannounced.
        process = run("publish_generations", tmp_path, first)
        assert first_line(process) == str(first)
        time.sleep(generator.random() * 0.02)
        process.send_signal(signal.SIGKILL)
        assert process.stdout is not None
        acknowledged = max([first, *map(int, process.stdout.read().split())])
        assert process.wait() == -signal.SIGKILL

        replaced = (tmp_path / "file").read_bytes()
        assert replaced in (
            child_functions.content(acknowledged),
            child_functions.content(acknowledged + 1),
        )
        for generation in range(first, acknowledged + 1):
            assert (tmp_path / f"folder {generation}").is_dir()
        for folder in tmp_path.glob("folder *"):
            whole = child_functions.content(int(folder.name.split()[1]))
            found = [path.read_bytes() for path in sorted((folder / "inner").iterdir())]
            assert found == [whole] * child_functions.FILES
            shutil.rmtree(folder)
        littered += names(tmp_path) != ["file"]
        remove_litter(tmp_path)
        assert names(tmp_path) == ["file"]
    assert littered > 0, "no process was killed in the middle"


@pytest.mark.skipif(sys.platform == "win32", reason="kill -9 is POSIX")
def test_the_litter_of_the_killed_goes_at_the_next_start_and_that_of_the_living_stays(
    tmp_path: Path,
) -> None:
    killed, living = run("hold_scratch", tmp_path), run("hold_scratch", tmp_path)
    try:
        litter, held = first_line(killed), first_line(living)
        assert names(tmp_path) == sorted([litter, held])
        killed.kill()
        killed.wait()
        replace_file(tmp_path / "file", b"content")
        assert names(tmp_path) == [held, "file"]
        assert (tmp_path / held / "work" / "half").read_text() == "written"
    finally:
        for process in (killed, living):
            process.kill()
            process.wait()
    replace_file(tmp_path / "file", b"content")
    assert names(tmp_path) == ["file"]


def test_nobody_elses_folder_is_litter(tmp_path: Path) -> None:
    own = [".unified-embeddings", ".unified-embeddings-backup", ".file-12345678", "file-old"]
    for name in own:
        write_tree(tmp_path / name)
        os.utime(tmp_path / name, (0, 0))
    remove_litter(tmp_path)
    assert names(tmp_path) == sorted(own)


def test_another_machines_litter_goes_after_a_day(tmp_path: Path) -> None:
    """Its locks need not be seen here."""
    old, young = (tmp_path / f".unified-embeddings-00000000-{digit * 16}" for digit in "0f")
    for folder in (old, young):
        write_tree(folder / "work")
        (folder / "lock").touch()
    os.utime(old, (time.time() - 25 * 3600,) * 2)
    os.utime(young, (time.time() - 23 * 3600,) * 2)
    remove_litter(tmp_path)
    assert names(tmp_path) == [young.name]


def test_a_removal_that_was_killed_halfway_is_finished(tmp_path: Path) -> None:
    machine = files._this_machine()
    content_left, empty = (
        tmp_path / f".unified-embeddings-{machine}-{digit * 16}" for digit in "0f"
    )
    write_tree(content_left / "work")
    (content_left / "lock").touch()
    empty.mkdir()
    remove_litter(tmp_path)
    assert names(tmp_path) == []


def test_scratch_folders_survive_others_that_are_made_and_cleaned_up_at_once(
    tmp_path: Path,
) -> None:
    def work(number: int) -> None:
        for _ in range(30):
            with scratch_folder(tmp_path) as scratch:
                file = scratch / "file"
                file.write_text(str(number))
                remove_litter(tmp_path)
                assert file.read_text() == str(number)

    with ThreadPoolExecutor(8) as pool:
        for work_done in [pool.submit(work, number) for number in range(8)]:
            work_done.result()
    assert names(tmp_path) == []


def test_without_locks_everything_works_and_nothing_is_taken_for_litter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unsupported(*_: object) -> None:
        raise portalocker.LockException("not supported")

    monkeypatch.setattr(portalocker, "lock", unsupported)
    with pytest.raises(LockUnsupportedError, match="not supported"):
        FileLock(tmp_path / "lock")
    (tmp_path / "lock").unlink()
    with scratch_folder(tmp_path) as scratch:
        (scratch / "file").touch()
        remove_litter(tmp_path)
        assert (scratch / "file").exists()
    assert names(tmp_path) == []


# --- publishing ---------------------------------------------------------------------------------


def test_a_folder_is_published_whole(tmp_path: Path) -> None:
    target = tmp_path / "new parent" / "target"
    with scratch_folder(target.parent) as scratch:
        publish_folder(write_tree(scratch / "new"), target)
    assert is_complete(target)
    assert names(target.parent) == ["target"]


def test_an_empty_folder_in_its_place_is_replaced_and_another_is_not(tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.mkdir()
    with scratch_folder(tmp_path) as scratch:
        publish_folder(write_tree(scratch / "new"), target)
    assert is_complete(target)
    with scratch_folder(tmp_path) as scratch, pytest.raises(OSError, match="target"):
        publish_folder(write_tree(scratch / "new", "newer"), target)
    assert (target / "file").read_text() == "new"
    assert names(tmp_path) == ["target"]


@pytest.mark.parametrize("what", ["folder", "file"])
def test_what_is_incomplete_is_replaced(tmp_path: Path, what: str) -> None:
    target = tmp_path / "target"
    if what == "folder":
        (target / "inner").mkdir(parents=True)
    else:
        target.write_text("in the way")
    with scratch_folder(tmp_path) as scratch:
        publish_folder(write_tree(scratch / "new"), target, is_complete=is_complete)
    assert is_complete(target)
    assert names(tmp_path) == ["target"]


def test_what_another_process_published_first_is_kept(tmp_path: Path) -> None:
    target = write_tree(tmp_path / "target", "first")
    with scratch_folder(tmp_path) as scratch:
        publish_folder(write_tree(scratch / "new"), target, is_complete=is_complete)
    assert (target / "file").read_text() == "first"
    assert names(tmp_path) == ["target"]


@pytest.mark.parametrize("before", ["nothing", "a damaged folder"])
def test_many_publish_to_one_path_at_once(tmp_path: Path, before: str) -> None:
    target = tmp_path / "target"
    if before != "nothing":
        (target / "inner").mkdir(parents=True)
    barrier = threading.Barrier(8)

    def publish(number: int) -> None:
        with scratch_folder(tmp_path) as scratch:
            new = write_tree(scratch / "new", str(number))
            barrier.wait(60)
            publish_folder(new, target, is_complete=is_complete)

    with ThreadPoolExecutor(8) as pool:
        for published in [pool.submit(publish, number) for number in range(8)]:
            published.result()
    assert is_complete(target)
    assert (target / "file").read_text() == (target / "inner" / "file").read_text()
    assert names(tmp_path) == ["target"]


def test_everything_is_flushed_before_the_rename_and_the_parent_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[str] = []
    fsync, replace = os.fsync, Path.replace

    def noted_fsync(handle: int) -> None:
        steps.append(Path(f"/proc/self/fd/{handle}").readlink().name)
        fsync(handle)

    def noted_replace(path: Path, target: Path) -> Path:
        steps.append(f"{path.name} → {target.name}")
        return replace(path, target)

    if not Path("/proc/self/fd").exists():
        pytest.skip("the system does not tell a handle's path")
    with scratch_folder(tmp_path) as scratch:
        new = write_tree(scratch / "new")
        monkeypatch.setattr(os, "fsync", noted_fsync)
        monkeypatch.setattr(Path, "replace", noted_replace)
        publish_folder(new, tmp_path / "target")
    assert steps == ["file", "inner", "file", "new", "new → target", tmp_path.name]
    steps.clear()
    replace_file(tmp_path / "single", b"content")
    assert steps == ["single", "single → single", tmp_path.name]
    steps.clear()
    make_folder(tmp_path / "a" / "b")
    assert steps == [tmp_path.name, "a"]


def test_what_cannot_be_replaced_stays_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace_file(tmp_path / "file", b"old")

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space left"):
            replace_file(tmp_path / "file", b"new")
    assert (tmp_path / "file").read_bytes() == b"old"
    assert names(tmp_path) == ["file"]


def test_links_in_a_folder_do_not_stop_it_from_being_flushed(tmp_path: Path) -> None:
    (write_tree(tmp_path / "new") / "link").symlink_to("nowhere")
    sync_tree(tmp_path / "new")


def test_a_file_that_goes_while_its_folder_is_flushed_does_not_stop_that(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Qdrant's core renames files of its log in a thread of its own."""
    folder, fsync = write_tree(tmp_path / "new"), os.fsync

    def renaming(handle: int) -> None:
        fsync(handle)
        if (folder / "file").exists():
            (folder / "file").rename(folder / "renamed")

    monkeypatch.setattr(os, "fsync", renaming)
    sync_tree(folder)
    assert names(folder) == ["inner", "renamed"]


def test_a_file_where_a_folder_should_be_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "file" / "inner"):
        with pytest.raises(OSError, match="file"):
            make_folder(folder)


# --- locks and space ----------------------------------------------------------------------------


def test_a_lock_excludes_everybody_until_it_is_released(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with FileLock(path) as lock:
        with pytest.raises(LockHeldError, match="is locked"):
            FileLock(path)
        lock.release()
        lock.release()
        FileLock(path).release()
    with FileLock(path):
        pass


def test_a_lock_on_a_file_that_was_deleted_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, lock = tmp_path / "lock", portalocker.lock

    def deleted_before(*arguments: object) -> None:
        path.unlink()
        lock(*arguments)

    monkeypatch.setattr(portalocker, "lock", deleted_before)
    with pytest.raises(FileNotFoundError):
        FileLock(path)

    def replaced_before(*arguments: object) -> None:
        path.unlink()
        path.touch()
        lock(*arguments)

    monkeypatch.setattr(portalocker, "lock", replaced_before)
    with pytest.raises(LockHeldError, match="replaced"):
        FileLock(path)


def test_a_lock_file_that_is_not_there_is_made_only_if_wanted(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        FileLock(tmp_path / "lock", create=False)
    assert names(tmp_path) == []


def test_free_space_is_that_of_a_path_to_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Path] = []

    def usage(path: Path) -> SimpleNamespace:
        asked.append(path)
        return SimpleNamespace(free=3 * 2**20)

    monkeypatch.setattr(shutil, "disk_usage", usage)
    assert free_space(tmp_path / "a" / "b") == 3 * 2**20
    assert asked == [tmp_path]
    require_space(tmp_path / "a", 3 * 2**20)
    with pytest.raises(NoSpaceError, match=r"3\.0 MiB free, 4\.0 MiB are needed") as caught:
        require_space(tmp_path / "a", 4 * 2**20)
    assert caught.value.errno == errno.ENOSPC
    assert str(tmp_path) in str(caught.value)


# --- copying ------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, 65_535, 65_536, 65_537, 300_000])
@pytest.mark.parametrize("content", ["zeros", "random", "a byte at the end", "a byte in between"])
def test_a_copy_with_holes_has_the_same_content(tmp_path: Path, content: str, size: int) -> None:
    data = bytearray(random.Random(size).randbytes(size) if content == "random" else size)
    if content == "a byte at the end" and size:
        data[-1] = 1
    elif content == "a byte in between" and size:
        data[size // 2] = 1
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(data)
    copy_with_holes(str(source), str(target))
    assert target.read_bytes() == data
