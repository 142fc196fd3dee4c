"""Pictures in `index` and `search`: into a collection of their own, found by words or pictures."""

from __future__ import annotations

import gc
import io
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from command import Ended
from image_files import noise
from unified_embeddings.cli import app as cli

Command = Callable[..., Ended]


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with two texts and three pictures, and no image model in the environment."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("UNIFIED_EMBEDDINGS_IMAGE_MODEL", raising=False)
    (tmp_path / "shop" / "more").mkdir(parents=True)
    for number in range(3):
        noise(30 + number, 40, seed=number).save(picture(tmp_path, number))
    (tmp_path / "shop" / "fox.txt").write_text("Foxes jump over dogs.")
    (tmp_path / "shop" / "owl.md").write_text("Owls watch them from a tree.")
    return tmp_path


def picture(work: Path, number: int) -> Path:
    return work / "shop" / ("more/2.png" if number == 2 else f"{number}.png")


@pytest.fixture
def call(
    work: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Command:
    """Run the command in this process."""

    def call(*arguments: str | Path) -> Ended:
        capsys.readouterr()
        monkeypatch.setattr(sys, "stdin", io.StringIO())
        monkeypatch.setattr(sys, "argv", ["unified-embeddings", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        gc.collect()  # a store is closed now
        out, err = capsys.readouterr()
        assert "Traceback" not in out + err
        return Ended(int(ended.value.code or 0), out, err)

    return call


@pytest.fixture
def index(call: Command, xlmr: Path, clip: Path) -> Command:
    def index(*more: str | Path) -> Ended:
        return call("index", "shop", "--model", xlmr, "--image-model", clip, *more)

    return index


def stored(call: Command, clip: Path) -> set[str]:
    found = call("search", "x", "--images", "--image-model", clip, "-k", "99", "--json").json
    return {row["metadata"]["file_path"] for row in found}


def test_pictures_have_a_collection_of_their_own(
    index: Command, call: Command, work: Path, clip: Path
) -> None:
    ended = index()
    assert ended.code == 0
    assert "2 files indexed (2 chunks added), 0 unchanged, 0 removed" in ended.out
    assert "0 skipped" in ended.out
    assert "3 pictures indexed, 0 unchanged, 0 removed, 0 failed" in ended.out
    assert "'documents-images'" in ended.out
    assert stored(call, clip) == {str(picture(work, number)) for number in range(3)}
    listed = {row["collection"]: row for row in call("list", "--json").json}
    assert listed["documents-images"]["points"] == 3
    assert listed["documents-images"]["documents"] == 3
    assert listed["documents-images"]["model"] == str(clip)
    assert listed["documents"]["points"] == 2
    info = call("info", "documents-images").out
    assert "image/png" in info
    assert str(clip) in info


def test_a_second_run_stores_what_changed_and_removes_what_is_gone(
    index: Command, call: Command, work: Path, clip: Path
) -> None:
    index()
    noise(50, 50, seed=7).save(picture(work, 0))
    picture(work, 1).unlink()
    noise(20, 20, seed=8).save(work / "shop" / "new.png")
    report = index("--json").json["images"]
    assert report == {"unchanged": 1, "indexed": 2, "moved": 0, "removed": 1, "failed": {}}
    expected = {str(picture(work, 0)), str(picture(work, 2)), str(work / "shop" / "new.png")}
    assert stored(call, clip) == expected
    report = index("--json", "--exclude", "more").json["images"]
    assert report == {"unchanged": 2, "indexed": 0, "moved": 0, "removed": 1, "failed": {}}


def test_a_picture_finds_itself_and_the_filter_holds(
    index: Command, call: Command, work: Path, clip: Path
) -> None:
    index()
    for number in range(3):
        ended = call("search", "--image", picture(work, number), "--image-model", clip, "-k", "1")
        assert ended.out == f"1. 1.0000  {picture(work, number)}\n"
    rows = call(
        "search", "--image", picture(work, 0), "--image-model", clip, "--json",
        "--filter", "file_name=2.png",
    ).json  # fmt: skip
    assert [row["metadata"]["file_name"] for row in rows] == ["2.png"]


def test_texts_are_searched_as_ever(
    index: Command, call: Command, xlmr: Path, monkeypatch: pytest.MonkeyPatch, clip: Path
) -> None:
    index()
    monkeypatch.setenv("UNIFIED_EMBEDDINGS_IMAGE_MODEL", str(clip))
    rows = call("search", "foxes", "--model", xlmr, "--json").json
    assert {row["metadata"]["file_name"] for row in rows} == {"fox.txt", "owl.md"}


def test_the_environment_names_the_model(
    call: Command, xlmr: Path, clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UNIFIED_EMBEDDINGS_IMAGE_MODEL", str(clip))
    assert "3 pictures indexed" in call("index", "shop", "--model", xlmr).out
    ended = call("index", "shop", "--model", xlmr, "--image-model", "none", "-c", "texts")
    assert "pictures" not in ended.out + ended.err
    assert {row["collection"] for row in call("list", "--json").json} == {
        "documents", "documents-images", "texts",
    }  # fmt: skip


def test_without_an_image_model_there_is_one_hint(call: Command, xlmr: Path) -> None:
    ended = call("index", "shop", "--model", xlmr)
    assert ended.code == 0
    assert "3 skipped" in ended.out
    (hint,) = [line for line in ended.err.splitlines() if "picture" in line]
    assert "3 pictures were not indexed" in hint
    assert "--image-model clip" in hint
    assert [row["collection"] for row in call("list", "--json").json] == ["documents"]


def test_texts_alone_make_no_collection_of_pictures(
    index: Command, call: Command, work: Path
) -> None:
    for number in range(3):
        picture(work, number).unlink()
    ended = index()
    assert ended.code == 0
    assert "picture" not in ended.out + ended.err
    assert [row["collection"] for row in call("list", "--json").json] == ["documents"]


def test_a_broken_picture_is_named_and_keeps_what_was_stored(
    index: Command, call: Command, work: Path, clip: Path
) -> None:
    index()
    picture(work, 1).write_bytes(b"\x89PNG\r\n\x1a\n and no more")
    ended = index()
    assert ended.code == 1
    assert "0 pictures indexed, 2 unchanged, 0 removed, 1 failed" in ended.out
    assert str(picture(work, 1)) in ended.err
    assert len(stored(call, clip)) == 3
    assert index("--allow-errors").code == 0


def test_a_dry_run_changes_nothing(index: Command, call: Command, work: Path, clip: Path) -> None:
    ended = index("--dry-run")
    assert "dry run, nothing was changed: 3 pictures indexed" in ended.out
    assert not (work / "qdrant_data").exists()
    index()
    picture(work, 0).unlink()
    assert "2 unchanged, 1 removed" in index("--dry-run").out
    assert len(stored(call, clip)) == 3


def test_a_folder_that_is_empty_at_once_may_not_be_mounted(
    call: Command, work: Path, xlmr: Path, clip: Path
) -> None:
    def index(*more: str) -> Ended:
        return call("index", "pictures", "--model", xlmr, "--image-model", clip, *more)

    (work / "pictures").mkdir()
    noise(20, 20).save(work / "pictures" / "a.png")
    assert index().code == 0
    (work / "pictures" / "a.png").unlink()
    ended = index()
    assert ended.code == 1
    assert "holds no files to index any more, but 1 picture of it is indexed" in ended.err
    assert len(stored(call, clip)) == 1
    assert "1 removed" in index("--prune").out
    assert stored(call, clip) == set()


def test_pictures_move_with_their_store(
    index: Command, work: Path, clip: Path, call: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    index()
    moved = work / "elsewhere"
    moved.mkdir()
    for name in ("shop", "qdrant_data"):
        shutil.move(work / name, moved / name)
    monkeypatch.chdir(moved)
    assert index().code == 0
    assert stored(call, clip) == {str(picture(moved, number)) for number in range(3)}


def test_what_was_forgotten_is_said(
    index: Command, call: Command, work: Path, clip: Path, xlmr: Path
) -> None:
    assert call("search").code == 2
    ended = call("search", "fox", "--images", "--image-model", clip)
    assert ended.code == 1
    assert "index" in ended.err
    index()
    ended = call("search", "fox", "--images")
    assert ended.code == 1
    assert f"'documents-images' was made by '{clip}'" in ended.err
    ended = call("search", "fox", "--image", picture(work, 0), "--image-model", clip)
    assert "give one of the two" in ended.err
    ended = call("search", "--image", "missing.png", "--image-model", clip)
    assert ended.code == 1
    assert "missing.png: no such file" in ended.err


def test_another_model_is_refused(index: Command, call: Command, tmp_path: Path) -> None:
    import checkpoints

    index()
    other = checkpoints.clip(tmp_path / "other-clip", seed=3)
    ended = call("search", "fox", "--images", "--image-model", other)
    assert ended.code == 1
    assert "documents-images" in ended.err
    assert json.dumps(str(other))[1:-1] in ended.err


def test_a_listed_model_that_made_the_pictures_is_taken_by_itself(
    call: Command, work: Path, xlmr: Path
) -> None:
    """mini-clip, which every installation has."""
    assert call("index", "shop", "--model", xlmr, "--image-model", "mini-clip").code == 0
    named = call("search", "a red circle", "--images", "--image-model", "mini-clip", "--json")
    assert call("search", "a red circle", "--images", "--json").out == named.out
    assert len(named.json) == 3


def test_what_is_for_texts_alone_is_refused(call: Command) -> None:
    for option in ("--explain", "--rerank"):
        ended = call("search", "fox", "--images", option)
        assert ended.code == 1
        assert "pictures are searched without" in ended.err
