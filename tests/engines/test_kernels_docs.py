"""docs/kernels.md shows the table that `auto` chooses by, and every field of a machine's file."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import record
from docs_page import read_page, run_command
from unified_embeddings.engines.processors import PROCESSORS

PAGE = read_page("kernels.md")


def test_the_table_is_the_one_in_use() -> None:
    rows = []
    for line in PAGE.text.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) == 5 and cells[3] in ("measured", "expected"):
            rows.append(cells)
    assert [row[0] for row in rows] == [kind.name for kind in PROCESSORS]
    for row, kind in zip(rows, PROCESSORS, strict=True):
        assert set(row[1].strip("`").split()) == kind.has
        assert row[2] == f"{kind.engine} {kind.precision}"
        assert row[3] == kind.basis
        if kind.int8_basis == "measured" and kind.name != "x86 without AVX2":
            assert row[4].startswith("measured")
        if ": " in row[4]:
            assert row[4].split(": ")[0] == kind.int8_basis


def test_its_command_prints_the_table(tmp_path: Path) -> None:
    (command,) = PAGE.commands
    ended = run_command(command, tmp_path)
    assert ended.code == 0, ended.err
    for kind in PROCESSORS:
        assert kind.reason in ended.out


def field_names(shape: record.Shape) -> Iterator[str]:
    if isinstance(shape, dict):
        for name, inner in shape.items():
            yield name
            yield from field_names(inner)


def test_every_field_of_the_file_is_explained() -> None:
    explained = set(re.findall(r"[a-z_0-9]+", PAGE.text[PAGE.text.index("## Send in") :]))
    assert set(field_names(record.SCHEMA)) <= explained
