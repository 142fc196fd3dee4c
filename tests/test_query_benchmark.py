"""The benchmark of a query's time: that it runs and adds up, and what its flame graphs show."""

from __future__ import annotations

import re
import time
from collections import Counter
from pathlib import Path
from xml.etree import ElementTree

import pytest

import flame
import query
from docs_page import DOCS, read_page

PAGE = read_page("query-time.md")
SVG = "{http://www.w3.org/2000/svg}"
DRAWINGS = ("query-time-before.svg", "query-time-after.svg")


def numbers(line: str) -> list[float]:
    """Return the numbers of a row, without those in its name."""
    return [float(number) for number in re.findall(r"\d+\.\d+", line[64:])]


@pytest.mark.parametrize("engine", ["onnx", "torch"])
def test_it_measures_and_draws(
    xlmr: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], engine: str
) -> None:
    if engine == "onnx":
        pytest.importorskip("onnxruntime")
    drawing = tmp_path / "flame.svg"
    command = ["--model", str(xlmr), "--engines", engine, "--rounds", "2", "--queries", "3"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(query, "_FLAME_SECONDS", 0.2)
        patch.setattr(query, "_LENGTHS", (8,))
        query.main([*command, "--flame", str(drawing)])
    rows = {}
    for line in capsys.readouterr().out.splitlines():
        if line.startswith("  "):
            rows[line[2:64].strip()] = numbers(line)
    assert any(name.startswith("cached: get_query_embedding, ") for name in rows)
    whole, tokenizer, tensors, overhead, cpu = (
        rows[f"uncached: {name}"][0]
        for name in (
            "the whole, ms",
            "the tokenizer's Rust, ms",
            "the engine's tensors, ms",
            "overhead, ms",
            "overhead, ms of CPU",
        )
    )
    assert whole > max(tokenizer, tensors, overhead)
    assert tensors > 0
    assert cpu > 0
    assert ("8 tokens, 1 threads, ms; ms of CPU of all threads" in rows) == (engine == "onnx")
    titles = [text.text for text in ElementTree.parse(drawing).iter(f"{SVG}text")]
    assert f"get_query_embedding, cached ({xlmr}, {engine})" in titles


def test_a_box_is_as_wide_as_its_share_and_stands_on_its_caller(tmp_path: Path) -> None:
    stacks = Counter({("a",): 10, ("a", "b"): 30, ("c",): 60})
    flame.draw([flame.Panel("title", stacks)], tmp_path / "flame.svg")
    boxes = {}
    for group in ElementTree.parse(tmp_path / "flame.svg").iter(f"{SVG}g"):
        title, box = group.find(f"{SVG}title"), group.find(f"{SVG}rect")
        assert title is not None
        assert box is not None
        place = {name: float(box.attrib[name]) for name in ("x", "y", "width")}
        boxes[title.text] = place
    assert list(boxes) == ["a 40.0%", "b 30.0%", "c 60.0%"]
    a, b, c = boxes.values()
    assert (a["x"], a["width"]) == (10, 399.5)  # of a thousand, after the margin
    assert (b["x"], b["width"]) == (10, 299.5)
    assert (c["x"], c["width"]) == (410, 599.5)
    assert b["y"] < a["y"] == c["y"]


def busy(seconds: float) -> None:
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        sum(range(100))


def outer(seconds: float) -> None:
    busy(seconds)


def test_samples_are_the_calls_inside_the_root() -> None:
    stacks: Counter[flame.Stack] = Counter()
    with flame.sampled(stacks, outer):
        busy(0.05)  # outside the root: not counted
        outer(0.3)
    name = f"{__name__}.busy"
    assert stacks.total() > 0
    assert {stack[0] for stack in stacks if stack} == {name}


@pytest.mark.parametrize("name", DRAWINGS)
def test_the_pages_drawings_are_small_and_real(name: str) -> None:
    assert f"({name})" in PAGE.text
    path = DOCS / name
    assert path.stat().st_size < 150_000
    titles = [title.text or "" for title in ElementTree.parse(path).iter(f"{SVG}title")]
    assert any("CachedTextEmbedder._compute" in title for title in titles)
    # Nobody listened: afterwards no span of LlamaIndex is on the way.
    spans = [title for title in titles if "Dispatcher.span" in title]
    assert bool(spans) == (name == DRAWINGS[0])


def test_the_pages_commands_are_the_benchmarks() -> None:
    assert PAGE.commands
    for line in PAGE.commands:
        program, script, *arguments = line.split()
        assert (program, script) == ("python", "benchmarks/query.py")
        query._parse_arguments(arguments)
