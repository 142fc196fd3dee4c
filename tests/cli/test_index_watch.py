"""`index --watch`: what it prints, how it ends, and that nothing is lost.

Where time matters it is the test's: `sleep` does what happens meanwhile. The installed command is
run for real signals.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from llama_index.vector_stores.qdrant import QdrantVectorStore

from command import Ended, Lines, start
from unified_embeddings import StoreError
from unified_embeddings.cli import app as cli
from unified_embeddings.cli import index_watch, shared
from unified_embeddings.cli.index_watch import Watching
from unified_embeddings.embedders.fake import FakeEmbedder
from unified_embeddings.errors import OverloadedError, ServiceError, UnifiedEmbeddingsError
from unified_embeddings.llama.following import FolderWatch
from unified_embeddings.llama.index_report import IndexReport
from unified_embeddings.llama.indexing import index_paths
from unified_embeddings.llama.vector_store import build_vector_store
from unified_embeddings.types import Embeddings

Step = Callable[[], object]


class Scene:
    """A folder, a store in another, and a clock; steps that happen while the command sleeps."""

    def __init__(self, folder: Path) -> None:
        self.docs = folder / "docs"
        self.store_folder = folder / "qdrant_data"
        self.docs.mkdir()
        (self.docs / "a.md").write_text("Foxes jump.")
        (self.docs / "b.md").write_text("Owls watch.")
        self.now = 0.0
        self.embedder = FakeEmbedder(max_length=256)
        self.opened = 0
        store = self.open_store()
        index_paths([self.docs], store, self.embedder)
        store.client.close()

    def open_store(self) -> QdrantVectorStore:
        self.opened += 1
        return build_vector_store(self.embedder, "documents", path=self.store_folder)

    def run(self, *steps: Step, as_json: bool = False, open_store: object = None) -> None:
        """Watch while steps happen, three seconds apart, and then press Ctrl-C."""
        remaining: Iterator[Step] = iter([*steps, press_control_c])

        def sleep(seconds: float) -> None:
            assert seconds >= 1.0
            if self.now % 3.0 == 0.0:
                next(remaining)()
            self.now += 1.0

        folders = FolderWatch([self.docs], clock=lambda: self.now, note=shared.print_note)
        watching = Watching(
            open_store=self.open_store if open_store is None else open_store,  # type: ignore[arg-type]
            embedder=self.embedder,
            chunk_tokens=512,
            as_json=as_json,
            clock=lambda: self.now,
            sleep=sleep,
        )
        index_watch.watch(folders, watching)

    def write(self, name: str, text: str) -> Step:
        def step() -> None:
            (self.docs / name).write_text(text, "utf-8")

        return step

    def stored(self) -> dict[str, str]:
        """Return the stored texts by file name; the store is free for others meanwhile."""
        store = self.open_store()
        found, _ = store.client.scroll("documents", limit=1000)
        nodes = store.parse_to_query_result(found).nodes or []
        store.client.close()
        return {node.metadata["file_name"]: node.get_content() for node in nodes}


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return Scene(tmp_path)


def _run(step: Step) -> None:
    step()


def press_control_c() -> None:
    signal.raise_signal(signal.SIGINT)


def pause() -> None:
    """Let three seconds pass."""


class TestWatching:
    def test_a_line_for_each_change_and_the_collection_follows(
        self, scene: Scene, capsys: pytest.CaptureFixture[str]
    ) -> None:
        scene.run(
            scene.write("c.md", "Ducks swim."),
            scene.write("a.md", "Foxes sleep."),
            (scene.docs / "b.md").unlink,
            pause,
        )
        out, err = capsys.readouterr()
        assert out.splitlines() == [
            f"{scene.docs / 'c.md'}: indexed, 1 chunk, 0.00 s",
            f"{scene.docs / 'a.md'}: indexed, 1 chunk, 0.00 s",
            f"{scene.docs / 'b.md'}: removed, 0.00 s",
        ]
        assert err == "note: watching ended; all that was seen is indexed\n"
        assert scene.stored() == {"c.md": "Ducks swim.", "a.md": "Foxes sleep."}

    def test_as_json(self, scene: Scene, capsys: pytest.CaptureFixture[str]) -> None:
        scene.run(scene.write("c.md", "Ducks swim."), pause, as_json=True)
        (line,) = capsys.readouterr().out.splitlines()
        assert json.loads(line) == {
            "file": str(scene.docs / "c.md"),
            "outcome": "indexed, 1 chunk",
            "seconds": 0.0,
        }

    def test_many_at_once(self, scene: Scene, capsys: pytest.CaptureFixture[str]) -> None:
        def copy_many() -> None:
            for number in range(70):
                (scene.docs / f"{number:02d}.txt").write_text(f"Text number {number}.")

        scene.run(copy_many, pause)
        lines = capsys.readouterr().out.splitlines()
        assert len(lines) == 70
        assert lines[0] == f"{scene.docs / '00.txt'}: indexed, 1 chunk, 0.00 s for 32 files"
        assert lines[-1] == f"{scene.docs / '69.txt'}: indexed, 1 chunk, 0.00 s for 6 files"
        assert len(scene.stored()) == 72

    def test_a_touched_file_is_not_embedded_and_not_told(
        self, scene: Scene, capsys: pytest.CaptureFixture[str]
    ) -> None:
        scene.run((scene.docs / "a.md").touch, pause)
        assert capsys.readouterr().out == ""

    def test_a_file_that_cannot_be_read_is_told_and_the_others_go_on(
        self, scene: Scene, capsys: pytest.CaptureFixture[str]
    ) -> None:
        def break_one() -> None:
            (scene.docs / "bad.docx").write_bytes(b"no Word file")
            (scene.docs / "c.md").write_text("Ducks swim.")

        scene.run(break_one, pause, pause)
        lines = capsys.readouterr().out.splitlines()
        assert len(lines) == 2
        assert lines[0].startswith(f"{scene.docs / 'bad.docx'}: failed: is not a Word file")
        assert set(scene.stored()) == {"a.md", "b.md", "c.md"}

    def test_a_folder_that_goes_away_keeps_its_passages(
        self, scene: Scene, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        def leave() -> None:
            scene.docs.rename(tmp_path / "elsewhere")

        def come_back() -> None:
            (tmp_path / "elsewhere").rename(scene.docs)

        scene.run(leave, pause, pause, come_back, pause)
        out, err = capsys.readouterr()
        assert out == ""
        assert err.count("is not there; waiting for it") == 1
        assert err.count("is there again") == 1
        assert set(scene.stored()) == {"a.md", "b.md"}

    def test_the_folder_of_the_store_is_free_in_between(self, scene: Scene) -> None:
        seen: list[dict[str, str]] = []
        scene.run(
            scene.write("c.md", "Ducks swim."),
            pause,
            lambda: seen.append(scene.stored()),
            scene.write("d.md", "Geese fly."),
            pause,
            lambda: seen.append(scene.stored()),
        )
        assert [sorted(names) for names in seen] == [
            ["a.md", "b.md", "c.md"],
            ["a.md", "b.md", "c.md", "d.md"],
        ]

    def test_a_store_that_cannot_be_opened_is_waited_for(
        self, scene: Scene, capsys: pytest.CaptureFixture[str]
    ) -> None:
        in_use = [True]

        def open_store() -> QdrantVectorStore:
            if in_use[0]:
                raise StoreError("documents", "opening", "another process has the folder open")
            return scene.open_store()

        scene.run(
            scene.write("c.md", "Ducks swim."),
            pause,
            pause,
            lambda: in_use.clear() or in_use.append(False),  # type: ignore[func-returns-value]
            open_store=open_store,
        )
        out, err = capsys.readouterr()
        assert err.count("another process has the folder open. Waiting for it") == 1
        assert out == f"{scene.docs / 'c.md'}: indexed, 1 chunk, 0.00 s\n"
        assert set(scene.stored()) == {"a.md", "b.md", "c.md"}

    @pytest.mark.parametrize(
        "error",
        [
            OverloadedError("the service has too much to do"),
            ServiceError("http://gpu:8000", "embedding", "the service has too much to do"),
        ],
    )
    def test_an_embedding_service_that_cannot_now_is_waited_for(
        self,
        scene: Scene,
        error: UnifiedEmbeddingsError,
        capsys: pytest.CaptureFixture[str],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        calls: list[str] = []
        encode = scene.embedder.encode_documents

        def encode_later(*arguments: Any, **options: Any) -> Embeddings:
            calls.append("")
            if len(calls) == 1:
                raise error
            return encode(*arguments, **options)

        monkeypatch.setattr(scene.embedder, "encode_documents", encode_later)
        scene.run(scene.write("c.md", "Ducks swim."), pause)
        out, err = capsys.readouterr()
        assert err.count("the service has too much to do. Waiting for it") == 1
        assert out == f"{scene.docs / 'c.md'}: indexed, 1 chunk, 0.00 s\n"

    def test_what_was_not_ready_is_counted_and_left_to_the_next_run(
        self, scene: Scene, capsys: pytest.CaptureFixture[str]
    ) -> None:
        def write_and_end() -> None:
            (scene.docs / "c.md").write_text("Ducks swim.")

        steps: Iterator[Step] = iter((write_and_end, pause, press_control_c))
        folders = FolderWatch([scene.docs], clock=lambda: scene.now)
        watching = Watching(
            open_store=scene.open_store,
            embedder=scene.embedder,
            chunk_tokens=512,
            as_json=False,
            clock=lambda: scene.now,  # it stands still: nothing is ever ready
            sleep=lambda _: _run(next(steps)),
        )
        index_watch.watch(folders, watching)
        assert "1 change was not indexed yet, the next run will" in capsys.readouterr().err
        store = scene.open_store()
        report = index_paths([scene.docs], store, scene.embedder)
        assert report == IndexReport(indexed=1, chunks_added=1, unchanged=2)

    @pytest.mark.parametrize("times", [1, 2])
    def test_a_signal_waits_until_the_files_in_hand_are_stored_a_second_does_not(
        self,
        scene: Scene,
        capsys: pytest.CaptureFixture[str],
        monkeypatch: pytest.MonkeyPatch,
        times: int,
    ) -> None:
        encode = scene.embedder.encode_documents
        remaining = [signal.SIGTERM] * times

        def interrupted(*arguments: object, **options: object) -> object:
            while remaining:
                signal.raise_signal(remaining.pop())
            return encode(*arguments, **options)  # type: ignore[arg-type]

        monkeypatch.setattr(scene.embedder, "encode_documents", interrupted)
        steps = (scene.write("c.md", "Ducks swim."), pause, pause)
        if times == 1:
            scene.run(*steps)
            assert "c.md: indexed, 1 chunk" in capsys.readouterr().out
        else:
            with pytest.raises(typer.Exit) as ended:
                scene.run(*steps)
            assert ended.value.exit_code == 130
            assert "interrupted; what was stored is kept" in capsys.readouterr().err
        assert ("c.md" in scene.stored()) == (times == 1)
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


class TestInstalledCommand:
    @pytest.mark.skipif(os.name != "posix", reason="sends signals")
    @pytest.mark.parametrize("kind", [signal.SIGINT, signal.SIGTERM])
    def test_it_follows_until_a_signal_ends_it(
        self, tmp_path: Path, xlmr: Path, kind: signal.Signals
    ) -> None:
        docs = tmp_path / "docs"
        docs.mkdir()
        (docs / "a.md").write_text("Foxes jump.")
        process = start("index", "docs", "--model", xlmr, "--watch", cwd=tmp_path)
        lines = Lines(process)
        try:
            assert lines.wait_for("note: watching docs").endswith("--url")
            (docs / "b.md").write_text("Owls watch.")
            assert "indexed, 1 chunk" in lines.wait_for("b.md: ")
            (docs / "a.md").unlink()
            assert "removed" in lines.wait_for("a.md: ")
            process.send_signal(kind)
            assert process.wait(timeout=60) == 0
        finally:
            process.kill()
        assert "all that was seen is indexed" in lines.wait_for("note: watching ended")
        assert not lines.hold("Traceback")


class TestOptions:
    @pytest.fixture
    def run(
        self,
        tmp_path: Path,
        xlmr: Path,
        capsys: pytest.CaptureFixture[str],
        monkeypatch: pytest.MonkeyPatch,
    ) -> Callable[..., Ended]:
        monkeypatch.chdir(tmp_path)
        (tmp_path / "docs").mkdir()
        (tmp_path / "docs" / "a.md").write_text("Foxes jump.")

        def run(*arguments: str) -> Ended:
            words = ["unified-embeddings", "index", *arguments, "--model", str(xlmr)]
            monkeypatch.setattr(sys, "argv", words)
            with pytest.raises(SystemExit) as ended:
                cli.main()
            out, err = capsys.readouterr()
            assert "Traceback" not in out + err
            return Ended(int(ended.value.code or 0), out, err)

        return run

    @pytest.mark.parametrize(("first", "words"), [("-", "stands alone"), ("docs", "--dry-run")])
    def test_what_does_not_go_together_is_refused(
        self, run: Callable[..., Ended], tmp_path: Path, first: str, words: str
    ) -> None:
        ended = run(first, "--watch", *(["--dry-run"] if first == "docs" else []))
        assert (ended.code, ended.out) == (1, "")
        assert words in ended.err
        assert not (tmp_path / "qdrant_data").exists()

    def test_what_changes_during_the_first_pass_is_seen(
        self, run: Callable[..., Ended], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from unified_embeddings.llama.adding import add_chunks

        docs = tmp_path / "docs"

        def add(*arguments: object) -> None:
            (docs / "late.md").write_text("It came while others were embedded.")
            add_chunks(*arguments)  # type: ignore[arg-type]

        seen: list[set[str]] = []

        def look_once(folders: FolderWatch, watching: Watching) -> None:
            assert watching.chunk_tokens == 512
            folders.look()
            folders._clock = lambda: float("inf")
            seen.append({path.name for path in folders.look().changed})

        monkeypatch.setattr("unified_embeddings.llama.text_files.add_chunks", add)
        monkeypatch.setattr(index_watch, "watch", look_once)
        assert run("docs", "--watch").code == 0
        assert seen == [{"late.md"}]

    def test_skipped_files_are_named_with_the_reason(
        self, run: Callable[..., Ended], tmp_path: Path
    ) -> None:
        docs = tmp_path / "docs"
        (docs / "empty.txt").touch()
        (docs / "film.mp4").write_bytes(b"\0")
        assert run("docs").err == (
            "note: 2 files were skipped: empty.txt (it is empty), film.mp4 (no text in .mp4 "
            "files)\n"
        )
        for number in range(20):
            (docs / f"{number}.dat").write_bytes(b"\0\xff\xfe")
        assert run("docs").err == (
            "note: 22 files were skipped: 0.dat (it is binary data), 1.dat (it is binary data), "
            "10.dat (it is binary data) and 19 more; --verbose names all\n"
        )
        assert run("docs", "--verbose").out.count(": skipped: ") == 22
        shutil.rmtree(docs)
