"""The benchmark of packed queries runs on a tiny checkpoint; times mean nothing here."""

from __future__ import annotations

from pathlib import Path

import pytest

import packed


def test_both_ways_are_compared_on_every_engine(
    xlmr: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["packed.py", "--model", str(xlmr), "--rounds", "2"])
    packed.main()
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    engines = [row.split("|")[1].strip() for row in rows]
    assert engines.count("onnx int8") == engines.count("onnx fp32") == 2
    assert engines.count("torch fp32") == 2


def test_a_ratio_is_that_of_one_call_to_eight(monkeypatch: pytest.MonkeyPatch) -> None:
    class Counted:
        clock = 0.0

        def run(self, queries: list[object], *_: object) -> None:
            Counted.clock += 1.0 + len(queries)  # one call of eight takes 9, eight of one take 16

    monkeypatch.setattr(packed.time, "perf_counter", lambda: Counted.clock)
    monkeypatch.setattr(packed.time, "process_time", lambda: Counted.clock)
    options = packed.argparse.Namespace(rounds=2)
    cells = packed._compare(Counted(), [4] * 8, options)  # type: ignore[arg-type]
    assert cells == ["9000.0", "16000.0", "0.56", "0.56 to 0.56", "0.56", "0.56 to 0.56"]
