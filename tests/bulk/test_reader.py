"""Rows of every format, whole and broken."""

from __future__ import annotations

import csv
import datetime
import decimal
import gzip
import io
import json
import os
import subprocess
import sys
import threading
import tracemalloc
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from unified_embeddings.bulk import byte_streams
from unified_embeddings.bulk.delimited import read_delimited
from unified_embeddings.bulk.input_files import describe_input
from unified_embeddings.bulk.reader import check_input, read_rows
from unified_embeddings.bulk.records import Unreadable, read_json_array, read_json_map
from unified_embeddings.bulk.rows import BrokenInputError, InputOptions, Row
from unified_embeddings.errors import InputError, MissingExtraError

TEXTS = st.text(max_size=30)  # without surrogates, with NUL, line ends and quotation marks
LINES = st.text(st.characters(exclude_characters="\r\n", exclude_categories=["Cs"]))
RECORDS = st.lists(
    st.fixed_dictionaries(
        {"text": TEXTS, "id": st.integers(), "tags": st.lists(st.text(max_size=3), max_size=2)}
    ),
    min_size=1,
    max_size=8,
)
FINE: list[dict[str, object]] = [{"id": 1, "text": "one"}, {"id": 2, "text": "two ü"}]


def texts_of(rows: Iterator[Row]) -> list[str | None]:
    return [row.text for row in rows]


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(
        content.encode("utf-8", "surrogatepass") if isinstance(content, str) else content
    )
    return path


def lines(*records: object) -> str:
    return "".join(f"{json.dumps(record)}\n" for record in records)


def compress(content: bytes, kind: str) -> bytes:
    if kind == "gz":
        return gzip.compress(content)
    if kind == "zst":
        zstandard = pytest.importorskip("zstandard")
        # As the command zstd does, and one call of the library does not.
        return zstandard.ZstdCompressor(write_checksum=True).compress(content)  # type: ignore[no-any-return]
    return content


def pipe_of(content: bytes, monkeypatch: pytest.MonkeyPatch) -> str:
    stream = io.TextIOWrapper(io.BufferedReader(io.BytesIO(content)))  # type: ignore[arg-type]
    monkeypatch.setattr(sys, "stdin", stream)
    return "-"


# --- whole inputs -------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["", "gz", "zst"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-be"])
@settings(max_examples=15)
@given(records=RECORDS)
def test_json_lines_come_back(
    records: list[dict[str, Any]], encoding: str, kind: str, tmp_path_factory: Any
) -> None:
    folder = tmp_path_factory.mktemp("in")
    text = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
    mark = "\ufeff" if encoding == "utf-16-be" else ""
    content = compress((mark + text).encode(encoding), kind)
    path = write(folder / ("a.jsonl" + (f".{kind}" if kind else "")), content)
    rows = list(read_rows(path))
    assert [row.text for row in rows] == [record["text"] for record in records]
    for number, (row, record) in enumerate(zip(rows, records, strict=True)):
        assert row.number == number
        assert row.problem is None
        assert row.fields == {"id": record["id"], "tags": record["tags"]}


@settings(max_examples=40)
@given(records=RECORDS, indent=st.sampled_from([None, 1]), block=st.integers(1, 20))
def test_json_arrays_come_back_however_they_are_cut(
    records: list[dict[str, Any]], indent: int | None, block: int
) -> None:
    content = json.dumps(records, ensure_ascii=False, indent=indent).encode()
    blocks = (content[start : start + block] for start in range(0, len(content), block))
    assert [value for _, value in read_json_array(blocks, 10**6)] == records


@settings(max_examples=40)
@given(
    values=st.lists(
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.text(),
            lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
            max_leaves=6,
        )
    ),
    block=st.integers(1, 9),
)
def test_any_json_array_is_read_as_json_reads_it(values: list[Any], block: int) -> None:
    content = json.dumps(values).encode()
    blocks = (content[start : start + block] for start in range(0, len(content), block))
    assert [value for _, value in read_json_array(blocks, 10**6)] == values


CELLS = st.text(st.sampled_from('ab",\n\r;\0 ü'), max_size=8)


@settings(max_examples=200)
@given(
    rows=st.lists(st.tuples(CELLS, CELLS), min_size=1, max_size=6),
    quoting=st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]),
    end=st.sampled_from(["\n", "\r\n"]),
)
def test_delimited_cells_are_as_pythons_csv_writes_them(
    rows: list[tuple[str, str]], quoting: Any, end: str
) -> None:
    if quoting == csv.QUOTE_MINIMAL:  # which does not quote a line end of another kind
        rows = [(one.replace("\r", ""), two.replace("\r", "")) for one, two in rows]
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer, quoting=quoting, lineterminator=end)
    writer.writerow(["a", "b"])
    writer.writerows(rows)
    content = buffer.getvalue().encode()
    found = [value for _, value in read_delimited(iter([content]), 10**6, ",")]
    assert found == [{"a": one, "b": two} for one, two in rows]


@settings(max_examples=300)
@given(text=st.text(st.sampled_from('a",\n'), max_size=25))
@example(text='"a"b,"c\n')
def test_odd_quotation_marks_are_read_as_pythons_csv_reads_them(text: str) -> None:
    content = f"x,y\n{text}\n"
    expected = [row for row in csv.reader(io.StringIO(content, newline="")) if row][1:]
    try:
        found = list(read_delimited(iter([content.encode()]), 10**6, ","))
    except byte_streams.DamagedStreamError:
        # csv takes the open cell for closed, line end and all.
        assert expected[-1][-1].endswith("\n")
        return
    for (_, value), row in zip(found, expected, strict=True):
        if len(row) == 2:
            assert value == {"x": row[0], "y": row[1]}
        else:
            assert f"has {len(row)} cells" in value.problem  # type: ignore[attr-defined]


@settings(max_examples=25)
@given(records=RECORDS)
def test_parquet_comes_back(records: list[dict[str, Any]], tmp_path_factory: Any) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    small = [{**record, "id": record["id"] % 2**31} for record in records]
    path = tmp_path_factory.mktemp("in") / "a.parquet"
    parquet.write_table(pyarrow.Table.from_pylist(small), path, row_group_size=3)
    rows = list(read_rows(path))
    assert [{"text": row.text, **row.fields} for row in rows] == small
    assert rows[-1].place == f"a.parquet, row {len(records)}"


@settings(max_examples=40)
@given(
    texts=st.lists(
        st.text(st.characters(exclude_characters="\r\n", exclude_categories=["Cs"])), min_size=1
    )
)
def test_each_line_of_a_text_file_is_a_row(texts: list[str], tmp_path_factory: Any) -> None:
    path = tmp_path_factory.mktemp("in") / "a.txt"
    write(path, "\r\n".join(texts) + "\n")
    if texts[0].startswith("\ufeff"):
        texts[0] = texts[0][1:]
    found = "".join(texts).encode()
    if found[:400].count(0) * 3 > len(found[:400]):
        return  # mostly NUL: not text
    assert texts_of(read_rows(path)) == texts


@settings(max_examples=200)
@given(
    texts=st.dictionaries(st.text(), st.text() | st.dictionaries(st.text(), st.integers())),
    block=st.integers(1, 9),
    indent=st.none() | st.integers(0, 3),
)
def test_any_object_of_rows_is_read_as_json_reads_it(
    texts: dict[str, Any], block: int, indent: int | None
) -> None:
    content = json.dumps(texts, indent=indent).encode()
    blocks = (content[start : start + block] for start in range(0, len(content), block))
    found = [value for _, value in read_json_map(blocks, 10**6)]
    for (key, value), row in zip(texts.items(), found, strict=True):
        if isinstance(value, str):
            assert row == {"id": key, "text": value}
        elif "id" in value:
            assert isinstance(row, Unreadable)
        else:
            assert row == {"id": key, **value}


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ('{"a": "one", "b": "two"}', ["one", "two"]),
        ('\n {\n"a": "one",\n"b": "two"\n}\n', ["one", "two"]),
        ('{"a": {"text": "one"}, "b": {"text": "two", "n": 1}}', ["one", "two"]),
        ('{"text": "one"}', ["one"]),
        ('{"text": "one"}\n{"text": "two"}\n', ["one", "two"]),
        ('{"n": 1, "Text": "one"}\n', ["one"]),
        (json.dumps({"a": "x" * 3_000_000, "b": "two"}), ["x" * 3_000_000, "two"]),
        (json.dumps({"n": 1, "text": "x" * 3_000_000}) + '\n{"text": "two"}', None),
    ],
)
def test_a_json_file_holds_one_object_of_rows_or_an_object_a_line(
    tmp_path: Path, content: str, expected: list[str] | None
) -> None:
    path = write(tmp_path / "a.json", content)
    assert texts_of(read_rows(path)) == (expected or ["x" * 3_000_000, "two"])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"a": "one", "b": "tw', "cut off in element 2"),
        ('{"a": "one", "b": "two"', "cut off after element 2"),
        ('{"a": "one" "b": "two"}', 'there is .* after element 1, not "," or "}"'),
        ('{"a" "one"}', 'no ":" after the key of entry 1'),
        ('{"documents": [{"text": "one"}]}', "key 'documents' .* save that list alone"),
    ],
)
def test_broken_objects_of_rows(tmp_path: Path, content: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        list(read_rows(write(tmp_path / "a.json", content)))


def test_what_parquet_holds_is_kept_as_json_can_hold_it(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    moment = datetime.datetime(2024, 5, 1, 12, 30)
    table = pyarrow.table(
        {
            "text": ["a"],
            "us": pyarrow.array([moment], pyarrow.timestamp("us")),
            "ns": pyarrow.array([1_500_000_000_123_456_789], pyarrow.timestamp("ns")),
            "day": [moment.date()],
            "price": [decimal.Decimal("1.50")],
            "score": [float("nan")],
            "raw": [b"\xff\x00"],
            "nested": [{"a": [1, float("inf")]}],
            "kind": pyarrow.array(["x"]).dictionary_encode(),
        }
    )
    parquet.write_table(table, tmp_path / "a.parquet")
    (row,) = read_rows(tmp_path / "a.parquet")
    assert row.fields == {
        "us": "2024-05-01T12:30:00",
        "ns": "2017-07-14T02:40:00.123456789",
        "day": "2024-05-01",
        "price": "1.50",
        "score": None,
        "raw": "/wA=",
        "nested": {"a": [1, None]},
        "kind": "x",
    }


def test_only_the_columns_that_are_kept_are_read(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pyarrow.table({"text": ["a"], "k": [1], "z": [2]}), tmp_path / "a.parquet")
    options = InputOptions(keep_fields=("k",))
    (row,) = read_rows(tmp_path / "a.parquet", options)
    assert row.fields == {"k": 1}


def test_rows_from_python_may_be_mappings_or_texts() -> None:
    number = uuid.UUID(int=1)
    rows = list(
        read_rows([{"text": "a", "id": number, "n": np.float32(0.5), "a": np.arange(2)}, "b"])
    )
    assert texts_of(iter(rows)) == ["a", "b"]
    assert rows[0].fields == {"id": str(number), "n": 0.5, "a": [0, 1]}
    assert rows[1].place == "item 1"


def test_an_iterator_gives_the_rows_that_were_looked_at_again() -> None:
    checked = check_input(iter([{"body": str(number)} for number in range(50)]))
    assert checked.options.text_field == "body"
    assert texts_of(read_rows(checked)) == [str(number) for number in range(50)]
    again = check_input([{"body": "a"}])
    assert [texts_of(read_rows(again)), texts_of(read_rows(again))] == [["a"], ["a"]]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (lines(*FINE), ["one", "two ü"]),
        ("  \n" + lines(*FINE), ["one", "two ü"]),
        (json.dumps(FINE), ["one", "two ü"]),
        ('["a", "b"]', ["a", "b"]),
        ("[1] a note\nanother", ["[1] a note", "another"]),
        ("plain\n\nlines", ["plain", "", "lines"]),
    ],
)
@pytest.mark.parametrize("kind", ["", "gz"])
def test_standard_input_is_what_its_first_character_says(
    content: str, expected: list[str], kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = pipe_of(compress(content.encode(), kind), monkeypatch)
    checked = check_input(source)
    assert checked.description.total_bytes is None
    assert texts_of(read_rows(checked)) == expected


def test_standard_input_longer_than_what_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(byte_streams, "BLOCK_BYTES", 64)
    source = pipe_of(lines(*[{"text": f"{n}"} for n in range(1000)]).encode(), monkeypatch)
    assert texts_of(read_rows(source)) == [f"{n}" for n in range(1000)]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_named_pipe_is_read_as_a_pipe(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    os.mkfifo(path)
    writer = threading.Thread(target=write, args=(path, lines(*FINE)))
    writer.start()
    assert texts_of(read_rows(path)) == ["one", "two ü"]
    writer.join()


# --- folders ------------------------------------------------------------------------------------


def test_a_folder_is_read_in_the_order_of_names(tmp_path: Path) -> None:
    write(tmp_path / "b.jsonl", lines({"text": "b", "n": 1}))
    (tmp_path / "a").mkdir()
    (tmp_path / "out").mkdir()
    write(tmp_path / "a" / "z.csv", "text,n\nz,2\n")
    write(tmp_path / "a" / "empty.jsonl", "")
    write(tmp_path / "c.txt.gz", gzip.compress(b"c"))
    write(tmp_path / "notes.pdf", b"%PDF")
    write(tmp_path / ".hidden.txt", "no")
    write(tmp_path / "out" / "m.jsonl", lines({"text": "no"}))
    options = InputOptions(leave_out=(tmp_path / "out",))
    checked = check_input(tmp_path, options)
    names = [file.name for file in checked.description.files]
    assert names == ["a/empty.jsonl", "a/z.csv", "b.jsonl", "c.txt.gz"]
    assert checked.description.left_out == (".hidden.txt", "notes.pdf", "out/")
    with read_rows(checked) as reader:
        rows = list(reader)
        assert reader.bytes_read == checked.description.total_bytes
    assert [(row.number, row.text) for row in rows] == [(0, "z"), (1, "b"), (2, "c")]
    assert rows[0].place == "a/z.csv, line 2"


def test_the_bytes_read_grow_with_the_rows(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write(tmp_path / f"{name}.jsonl", lines(*[{"text": "x" * 1000}] * 2000))
    total = describe_input(tmp_path).total_bytes
    assert total == 2 * 2000 * len('{"text": ""}\n' + "x" * 1000)
    reader = read_rows(tmp_path)
    seen = [reader.bytes_read for _ in reader]
    assert seen == sorted(seen)
    assert seen[0] < total / 5 < seen[len(seen) // 2] < total * 0.7
    assert reader.bytes_read == total


def test_files_of_any_name_are_read_in_a_format_that_is_named(tmp_path: Path) -> None:
    for name in ("part-00000", "part-00001", "_SUCCESS", ".part-00000.crc"):
        write(tmp_path / name, lines({"text": name}))
    checked = check_input(tmp_path, InputOptions(format="jsonl"))
    assert texts_of(read_rows(checked)) == ["part-00000", "part-00001"]
    assert checked.description.left_out == (".part-00000.crc", "_SUCCESS")


# --- what is checked first ----------------------------------------------------------------------


def test_a_missing_field_is_told_with_the_fields_there_are(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", lines({"label": 1, "title": "x"}))
    with pytest.raises(
        InputError,
        match=r"a\.jsonl: .* no field 'abstract' .*fields are 'label', 'title'",
    ):
        check_input(path, InputOptions(text_field="abstract"))
    with pytest.raises(InputError, match=r"which field holds the text.*'label', 'title'"):
        check_input(path)
    with pytest.raises(InputError, match=r"no field 'doi' for the id; the fields are"):
        check_input(path, InputOptions(text_field="title", id_field="doi"))
    with pytest.raises(InputError, match=r"no field 'year' to keep; the fields are"):
        check_input(path, InputOptions(text_field="title", keep_fields=("label", "year")))
    with pytest.raises(InputError, match=r"field 'label' is not a text but a number"):
        check_input(path, InputOptions(text_field="label"))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", "", "holds no rows"),
        ("a.jsonl", "\n\n", "holds no rows"),
        ("a.json", "[]", "holds no rows"),
        ("a.csv", "text\n", "holds no rows"),
        ("a.txt", "", "holds no rows"),
        ("a.jsonl", "one\ntwo\n", "none of the first 2 rows .* line 1: is not JSON"),
        ("a.json", '"text"', "not a JSON array"),
        ("a.json", '{"rows": [\n1\n]}', "key 'rows' has neither .* save that list alone"),
        ("a.csv", "text,text\na,b\n", "names 'text' more than once"),
        ("a.csv", b"t\xe9xt\na\n", r"header cannot be used: byte 2 \(0xE9\)"),
        ("a.doc", "text", "does not tell its format: expected one of .jsonl"),
        ("a.txt", "text".encode("utf-16-le"), "UTF-16 without a byte order mark"),
        ("a.txt.bz2", b"BZh91AY&SY", "does not tell its format"),
        ("a.txt", b"BZh91AY&SY", "it is bzip2, which is not read"),
        ("a.parquet", b"PAR1 nothing", "not a whole Parquet file"),
        ("a.jsonl.gz", b"\x1f\x8b\x08", "gzip data is cut off"),
        ("a.jsonl", b'{"text": "a\xe9"}\n', r"0xE9\) is not UTF-8"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_refused_first(
    name: str, content: str | bytes, message: str, tmp_path: Path
) -> None:
    if name.endswith("parquet"):
        pytest.importorskip("pyarrow")
    with pytest.raises(InputError, match=message):
        check_input(write(tmp_path / name, content))


def test_paths_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no file or folder"):
        check_input(tmp_path / "none.jsonl")
    with pytest.raises(InputError, match="holds no file that is read"):
        check_input(tmp_path)
    with pytest.raises(InputError, match="cannot be the path"):
        check_input("a\0.jsonl")
    for source in ({"text": "a"}, b"text", 3, {"a", "b"}):
        with pytest.raises(InputError, match="expected a list of rows"):
            check_input(source)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="holds no rows"):
        check_input([])
    with pytest.raises(InputError, match="delimiter must be one character"):
        check_input(["a"], InputOptions(delimiter="::"))
    with pytest.raises(InputError, match="has no form in JSON"):
        check_input([{"text": "a", "x": {1}}])


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root reads everything")
def test_a_file_that_may_not_be_read(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", lines(*FINE))
    path.chmod(0)
    with pytest.raises(InputError, match="Permission denied"):
        check_input(path)


def test_the_format_can_be_named(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.data", lines(*FINE))
    assert texts_of(read_rows(path, InputOptions(format="jsonl"))) == ["one", "two ü"]
    assert len(list(read_rows(path, InputOptions(format="txt")))) == 2
    write(tmp_path / "a.csv", "id;text\n1;a,b\n")
    assert texts_of(read_rows(tmp_path / "a.csv", InputOptions(delimiter=";"))) == ["a,b"]
    write(tmp_path / "a.tsv", 'id\ttext\n1\ta "b"\n')
    assert texts_of(read_rows(tmp_path / "a.tsv")) == ['a "b"']
    write(tmp_path / "a.json", lines(*FINE))
    assert texts_of(read_rows(tmp_path / "a.json")) == ["one", "two ü"]


def test_a_missing_library_names_its_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "zstandard", None)
    for name, content in (("a.parquet", b"PAR1"), ("a.jsonl.zst", b"\x28\xb5\x2f\xfd")):
        with pytest.raises(MissingExtraError, match=r"unified-embeddings\[bulk\]"):
            check_input(write(tmp_path / name, content))


# --- broken rows --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (b"nothing", "is not JSON: Expecting value at character 1"),
        (b'{"text": "a", }', "is not JSON"),
        (b"[1]", "expected an object with fields, got a list"),
        (b"7", "expected an object with fields, got a number (7)"),
        (b"null", "expected an object with fields, got null"),
        (b'{"id": 1}', "there is no field 'text'; the fields are 'id'"),
        (b"{}", "there is no field 'text'; the row has no fields"),
        (b'{"text": null}', "field 'text' is not a text but null"),
        (b'{"text": ["a"]}', "field 'text' is not a text but a list"),
        (b'{"text": 1.5}', "field 'text' is not a text but a number (1.5)"),
        (b'{"text": "a\\ud800"}', "holds a lone surrogate at character 1"),
        (b'{"text": "\xff"}', "byte 11 (0xFF) is not UTF-8"),
        (b"[" * 100_000, "is nested too deeply"),
        (b'{"text": "a", "n": ' + b"9" * 5000 + b"}", "cannot be read"),
        (b'{"text": "' + b"a" * 2**20 + b'"}', "is 1.0 MiB long; at most 0.5 MiB are read"),
    ],
)
@pytest.mark.parametrize("form", ["jsonl", "json"])
def test_a_broken_row_is_a_row(line: bytes, problem: str, form: str, tmp_path: Path) -> None:
    if form == "json" and line.startswith(b"[["):
        pytest.skip("brackets that do not close leave no next element")
    good = b'{"text": "fine"}'
    content = b"\n".join([good, line, good, b""])
    if form == "json":
        content = b"[" + b",".join([good, line, good]) + b"]"
    path = write(tmp_path / f"a.{form}", content)
    first, broken, last = read_rows(path, InputOptions(max_row_bytes=2**19))
    assert (first.text, broken.text, last.text) == ("fine", None, "fine")
    assert broken.problem is not None
    piece = "line" if form == "jsonl" else "element"
    assert broken.problem.startswith(f"a.{form}, {piece} 2: ")
    assert problem in broken.problem
    assert (broken.number, last.number) == (1, 2)


def test_objects_among_bare_texts_need_a_text_field(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", lines(*["text"] * 30, {"text": "a"}))
    *texts, last = read_rows(path)
    assert [row.text for row in texts] == ["text"] * 30
    assert "bare texts; name the text field" in (last.problem or "")
    assert texts_of(read_rows(path, InputOptions(text_field="text")))[-1] == "a"


def test_standard_input_in_a_format_that_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    source = pipe_of(b"id;text\n1;a\n", monkeypatch)
    (row,) = read_rows(source, InputOptions(format="csv", delimiter=";"))
    assert (row.text, row.fields, row.place) == ("a", {"id": "1"}, "standard input, line 2")


def test_what_is_kept_of_a_broken_row(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", lines({"id": 1, "text": "a"}, {"id": 2, "text": None}))
    assert [row.fields for row in read_rows(path)] == [{"id": 1}, {"id": 2}]


def test_nul_is_a_character_and_nan_is_null(tmp_path: Path) -> None:
    path = write(
        tmp_path / "a.jsonl", '{"text": "a\0b\\u0000", "x": NaN, "y": [-Infinity, 1e999]}\n'
    )
    (row,) = read_rows(path)
    assert row.text == "a\0b\0"
    assert row.fields == {"x": None, "y": [None, None]}


def test_a_row_without_its_id_is_a_problem(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", lines({"id": 1, "text": "a"}, {"text": "b"}, "c"))
    rows = list(read_rows(path, InputOptions(id_field="id", keep_fields=())))
    assert rows[0].fields == {"id": 1}
    assert rows[1].problem == "a.jsonl, line 2: there is no id: field 'id' is missing or null"
    assert rows[2].text is None


def test_bytes_that_are_not_utf_8_spoil_their_row_alone(tmp_path: Path) -> None:
    write(tmp_path / "a.csv", b"text,id\na,1\nb\xe9,2\nc,\xe9\nd,4\n")
    rows = list(read_rows(tmp_path / "a.csv"))
    assert [row.text for row in rows] == ["a", None, None, "d"]
    assert "0xE9" in (rows[1].problem or "")
    assert "a.csv, line 4" in (rows[2].problem or "")
    write(tmp_path / "a.txt", b"a\nb\xe9\nc")
    assert texts_of(read_rows(tmp_path / "a.txt")) == ["a", None, "c"]


def test_csv_rows_of_another_width_are_problems(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", 'text,id\na,1\nb,c,2\nd\n\n"e\nf",3\n')
    rows = list(read_rows(path))
    assert [row.text for row in rows] == ["a", None, None, "e\nf"]
    assert rows[1].problem is not None
    assert rows[1].problem.startswith("a.csv, line 3: has 3 cells where the header names 2")
    assert rows[3].place == "a.csv, line 6"


def test_a_long_quoted_cell_is_one_problem(tmp_path: Path) -> None:
    long_cell = ('x"",' * 300 + "\n") * 100
    content = f'text,id\n"a",1\n"{long_cell}",2\nb,3\n"{"y" * 5000}\nz,",4\nc,5\n'
    rows = list(read_rows(write(tmp_path / "a.csv", content), InputOptions(max_row_bytes=2000)))
    assert [row.text for row in rows] == ["a", None, "b", None, "c"]
    assert all("MiB long" in (rows[number].problem or "") for number in (1, 3))


def test_parquet_texts_that_are_not_texts(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    raw = pyarrow.array([b"fine", b"\xff", None, b"x" * 5000], pyarrow.binary())
    texts = pyarrow.Array.from_buffers(pyarrow.string(), 4, raw.buffers())
    parquet.write_table(pyarrow.table({"text": texts, "id": [1, 2, 3, 4]}), tmp_path / "a.parquet")
    rows = list(read_rows(tmp_path / "a.parquet", InputOptions(max_row_bytes=2000)))
    assert [row.text for row in rows] == ["fine", None, None, None]
    problems = [row.problem or "" for row in rows]
    assert "row 2: column 'text' cannot be read" in problems[1]
    assert "not a text but null" in problems[2]
    assert "MiB long" in problems[3]


# --- broken ends --------------------------------------------------------------------------------

MANY = lines(*[{"text": f"text number {n}", "n": n} for n in range(2000)]).encode()
CUT_CSV = b"text,n\n" + b"a,1\n" * 50 + b'"a,2\n'
MANY_ELEMENTS = b"[" + MANY.replace(b"\n", b",\n")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", MANY[:-5], "cut off in line 2000; 1,999 rows"),
        ("a.json", MANY_ELEMENTS[:-2], "cut off after element 2000; 2,000 rows"),
        ("a.json", MANY_ELEMENTS[:-9], "cut off in element 2000; 1,999 rows"),
        ("a.json", b"[" + b"7," * 30 + b"7 7]", "not \",\" or \"]\"; 31 rows"),
        ("a.json", b'["a"] x', "something follows the end"),
        ("a.csv", CUT_CSV, "within a quoted cell .* line 52.*; 50 rows"),
        ("a.jsonl", MANY.decode().encode("utf-16")[:-1], "UTF-16-LE text is cut off.*; 1,999 rows"),
    ],
)  # fmt: skip
def test_half_a_file_is_not_taken_for_the_whole(
    name: str, content: bytes, message: str, tmp_path: Path
) -> None:
    path = write(tmp_path / name, content)
    if name == "a.json" and content.startswith(b"[7"):
        content = content.replace(b"7", b'"x"')
        path.write_bytes(content)
    with pytest.raises(InputError, match=message):
        for _ in read_rows(path):
            pass


@pytest.mark.parametrize("kind", ["gz", "zst"])
@pytest.mark.parametrize("damage", ["cut", "flipped", "junk"])
def test_a_damaged_compressed_file_says_how_far_it_was_read(
    kind: str, damage: str, tmp_path: Path
) -> None:
    rng = np.random.default_rng(0)
    texts = ["".join(map(chr, rng.integers(97, 123, 400))) for _ in range(4000)]
    content = compress(lines(*[{"text": text} for text in texts]).encode(), kind)
    if damage == "cut":
        content = content[:-100]
    elif damage == "flipped":
        middle = len(content) * 3 // 4
        content = content[:middle] + bytes(64) + content[middle + 64 :]
    else:
        content += b"junk after the end"
    reader = read_rows(write(tmp_path / f"a.jsonl.{kind}", content))
    with pytest.raises(BrokenInputError) as caught:
        for _ in reader:
            pass
    assert caught.value.rows_read == reader.rows_read > 100
    assert f"{reader.rows_read:,} rows were read before" in str(caught.value)


def test_members_and_frames_follow_each_other(tmp_path: Path) -> None:
    zstandard = pytest.importorskip("zstandard")
    skipped = b"\x50\x2a\x4d\x18" + (4).to_bytes(4, "little") + b"note"
    parts = [lines(record).encode() for record in FINE]
    frames = skipped + b"".join(zstandard.compress(part) for part in parts)
    write(tmp_path / "a.jsonl.zst", frames)
    write(tmp_path / "b.jsonl", b"".join(gzip.compress(part) for part in parts) + bytes(512))
    assert texts_of(read_rows(tmp_path)) == ["one", "two ü"] * 2


def test_a_parquet_file_that_is_cut_off(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "a.parquet"
    parquet.write_table(pyarrow.table({"text": ["a"] * 1000}), path)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(InputError, match="not a whole Parquet file"):
        check_input(path)


def test_a_file_that_is_taken_away_meanwhile(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write(tmp_path / f"{name}.jsonl", lines(*FINE))
    checked = check_input(tmp_path)
    (tmp_path / "b.jsonl").unlink()
    with pytest.raises(BrokenInputError, match=r"b\.jsonl: No such file.*; 2 rows"):
        list(read_rows(checked))


def test_what_the_callers_iterator_raises_is_the_callers() -> None:
    def rows() -> Iterator[object]:
        yield from [{"text": "a"}] * 30
        raise KeyError("mine")

    reader = read_rows(rows())
    with pytest.raises(KeyError, match="mine"):
        list(reader)
    assert reader.rows_read == 30


def test_standard_input_that_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(InputError, match="standard input is closed"):
        check_input("-")


@settings(max_examples=250)
@given(
    name=st.sampled_from(["a.jsonl", "a.json", "a.csv", "a.txt", "a.jsonl.gz", "a.json.zst"]),
    edits=st.lists(
        st.tuples(st.floats(0, 1), st.binary(max_size=3), st.integers(0, 40)), max_size=4
    ),
    mark=st.sampled_from([b"", b"\xff\xfe", b"\xef\xbb\xbf", b"\xfe\xff"]),
)
def test_whatever_comes_nothing_but_an_input_error_is_raised(
    name: str, edits: list[tuple[float, bytes, int]], mark: bytes, tmp_path_factory: Any
) -> None:
    records: list[dict[str, object]] = [{"text": f'a "{n}"', "n": [n]} for n in range(30)]
    content = lines(*records).encode()
    if name.startswith("a.json."):
        content = json.dumps(records).encode()
    elif name == "a.csv":
        content = b"text,n\n" + b'"a ""b""\nc",1\n' * 30
    content = bytearray(compress(mark + content, name.rpartition(".")[2]))
    for place, inserted, removed in edits:
        start = int(place * len(content))
        content[start : start + removed] = inserted
    path = write(tmp_path_factory.mktemp("in") / name, bytes(content))
    try:
        for number, row in enumerate(read_rows(path)):
            assert row.number == number
            assert (row.text is None) == (row.problem is not None)
            json.dumps(row.fields, allow_nan=False)
    except InputError as raised:
        message = str(raised)
    else:
        message = ""
    assert "\n" not in message


# --- memory -------------------------------------------------------------------------------------

PEAK = """
import resource, sys
from unified_embeddings.bulk.reader import read_rows
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
before = peak()
rows = sum(1 for _ in read_rows(sys.argv[1]))
print(rows, peak() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="counts in Linux's units")
@pytest.mark.parametrize(
    "name", ["a.jsonl", "a.jsonl.gz", "a.jsonl.zst", "a.json", "a.csv", "a.txt"]
)
def test_a_line_of_200_mib_is_not_held_in_memory(name: str, tmp_path: Path) -> None:
    long = b"x" * (200 * 2**20)
    content = b'{"text": "a"}\n{"text": "' + long + b'"}\n{"text": "b"}\n'
    if name == "a.json":
        content = b"[" + content.replace(b"\n", b",", 2) + b"]"
    elif name == "a.csv":
        content = b"text\na\n" + long + b"\nb\n"
    path = write(tmp_path / name, compress(content, name.rpartition(".")[2]))
    del content, long
    done = subprocess.run(
        [sys.executable, "-c", PEAK, str(path)], capture_output=True, text=True, check=True
    )
    rows, growth = done.stdout.split()
    assert int(rows) == 3
    assert float(growth) < 130


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.json", "a.csv", "a.parquet"])
def test_memory_does_not_grow_with_the_rows(name: str, tmp_path: Path) -> None:
    peaks = []
    for count in (1000, 1000, 20_000):  # the first one imports and compiles
        path = tmp_path / f"{count}-{name}"
        records = [{"id": number, "text": f"{number} words " * 40} for number in range(count)]
        if name == "a.parquet":
            pyarrow = pytest.importorskip("pyarrow")
            parquet = pytest.importorskip("pyarrow.parquet")
            parquet.write_table(pyarrow.Table.from_pylist(records), path)
        elif name == "a.csv":
            table = "".join(f"{record['id']},{record['text']}\n" for record in records)
            write(path, f"id,text\n{table}")
        elif name == "a.json":
            write(path, json.dumps(records))
        else:
            write(path, compress(lines(*records).encode(), name.rpartition(".")[2]))
        del records
        tracemalloc.start()
        assert sum(1 for _ in read_rows(path)) == count
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[2] < 1.3 * peaks[1] + 6 * byte_streams.BLOCK_BYTES
