"""What a reader takes out of a file is what the file says, as it is written there.

Files are written by hand (`document_files`), or were saved by real programs (`files/`). The oracle
for CSV is Python's csv module.
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
import logging
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from document_files import (
    docx,
    formula_cell,
    number_cell,
    paragraph,
    pdf,
    relations,
    shared_cell,
    text_cell,
    xlsx,
    zipped,
)
from unified_embeddings.embedders.fake import FakeEmbedder
from unified_embeddings.errors import InputError, MissingExtraError, UnifiedEmbeddingsError
from unified_embeddings.llama.chunking import is_header
from unified_embeddings.llama.readers.content import FileContent, Section, Table
from unified_embeddings.llama.readers.delimited import parse_rows
from unified_embeddings.llama.readers.excel_numbers import format_number
from unified_embeddings.llama.readers.markup import html_to_text
from unified_embeddings.llama.readers.registry import read_content, why_without_text
from unified_embeddings.llama.reading import read_chunks
from unified_embeddings.llama.splitter import UnifiedSentenceSplitter

SPLITTER = UnifiedSentenceSplitter(FakeEmbedder(), chunk_size=64)


def content_of(name: str, data: bytes) -> FileContent:
    return read_content(Path(name), data)


def text_of(name: str, data: bytes) -> str:
    """Return all sections of a file, and the cells of its tables."""
    parts = content_of(name, data).parts
    return "\n".join(
        part.text if isinstance(part, Section) else "\n".join(map("|".join, part.rows))
        for part in parts
    )


def rows_of(name: str, data: bytes) -> list[list[str]]:
    (table,) = content_of(name, data).parts
    assert isinstance(table, Table)
    return table.rows


def chunks_of(folder: Path, name: str, data: bytes) -> list[str]:
    path = folder / name
    path.write_bytes(data)
    return [node.text for node in read_chunks(path, SPLITTER, None).nodes]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("documents")


# --- tables ---------------------------------------------------------------------------------------

SPECIAL_CELLS = [
    "00417", "NA", "null", "NaN", "None", "", "TRUE", "1e5", "1,5", "00012345678901234567", "0.10",
    "2024-03-01", "01/02/2024", "+49 30 1234", "#N/A", "=1+1", " padded ", "a;b", 'say "hi"',
    "two\nlines", "two\r\nlines", "é\u0301", "日本語", "-", "|", "\t", "\ufeff", "'0012", "1.50",
    "1e-7", "12345678901234567890", "\u00a0", "x\u2028y", "inf", "_x000D_",
]  # fmt: skip
CELLS = st.one_of(
    st.sampled_from(SPECIAL_CELLS),
    st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\0"), max_size=12),
    st.from_regex(r"0{0,3}[0-9]{1,20}", fullmatch=True),
)


@st.composite
def tables(draw: st.DrawFn) -> list[list[str]]:
    width = draw(st.integers(1, 6))
    return draw(st.lists(st.lists(CELLS, min_size=width, max_size=width), min_size=1, max_size=12))


def assert_every_cell_is_in(rows: list[list[str]], chunks: list[str]) -> None:
    """Check that each cell with more than white space is whole in one of the chunks."""
    for row in rows:
        for cell in row:
            if cell.strip():
                assert any(cell in chunk for chunk in chunks), f"{cell!r} is lost"


class TestCsv:
    @settings(max_examples=100)
    @given(rows=tables(), delimiter=st.sampled_from(",;\t|"), quoting=st.sampled_from([0, 1]))
    def test_every_cell_of_a_table_is_found(
        self, folder: Path, rows: list[list[str]], delimiter: str, quoting: int
    ) -> None:
        if rows[0][0].startswith("\ufeff"):
            return  # at the start of a file it is a byte order mark
        file = io.StringIO(newline="")
        csv.writer(file, delimiter=delimiter, quoting=quoting).writerows(rows)  # type: ignore[arg-type]
        name = "table.tsv" if delimiter == "\t" else "table.csv"
        data = file.getvalue().encode()
        written = csv.reader(io.StringIO(file.getvalue(), newline=""), delimiter=delimiter)
        if delimiter in ",\t":
            assert_every_cell_is_in(list(written), chunks_of(folder, name, data))
        # Whatever the delimiter is taken for, a plain cell stays as it is.
        plain = [[cell for cell in row if cell.isalnum()] for row in rows]
        assert_every_cell_is_in(plain, chunks_of(folder, name, data))

    @given(
        text=st.text(st.sampled_from('ab",;\r\n \té\0'), max_size=40),
        delimiter=st.sampled_from(",;\t|"),
    )
    def test_any_text_is_parsed_as_by_the_csv_module(self, text: str, delimiter: str) -> None:
        if "\0" in text and sys.version_info < (3, 11):
            return  # refused there
        expected = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
        assert parse_rows(text, delimiter) == [row for row in expected if row]

    @pytest.mark.parametrize(
        ("text", "rows"),
        [
            ("", []),
            ("\n\n", []),
            ("name,email\n", [["name", "email"]]),
            ("\ufeffname,email\r\nIda,\r\n", [["name", "email"], ["Ida", ""]]),
            ('a,"b\n""c"""\n', [["a", 'b\n"c"']]),
            ("a,b", [["a", "b"]]),
            (",", [["", ""]]),
            ("sep=;\r\nname;price\nFaro;3,5\n", [["name", "price"], ["Faro", "3,5"]]),
        ],
    )
    def test_odd_files(self, text: str, rows: list[list[str]]) -> None:
        assert rows_of("odd.csv", text.encode()) == rows

    def test_a_cell_longer_than_the_csv_modules_limit(self) -> None:
        assert rows_of("long.csv", b"a," + b"x" * 200_000) == [["a", "x" * 200_000]]

    def test_semicolons_are_taken_where_they_are_certain(self) -> None:
        text = "".join(f"Faro;{number},5\n" for number in range(10))
        assert rows_of("de.csv", text.encode())[3] == ["Faro", "3,5"]

    @pytest.mark.parametrize("rows", [2, 20])
    def test_a_decimal_comma_stays_one_number(self, folder: Path, rows: int) -> None:
        text = "name;price\n" + "".join(f"Faro {row};{row},50\n" for row in range(rows))
        chunks = chunks_of(folder, "prices.csv", text.encode())
        assert all(any(f"{row},50" in chunk for chunk in chunks) for row in range(rows))

    def test_the_header_is_in_each_chunk(self, folder: Path) -> None:
        lines = ["sku,place", *(f"{number:05d},shelf number {number}" for number in range(200))]
        chunks = chunks_of(folder, "stock.csv", "\n".join(lines).encode())
        assert len(chunks) > 5
        assert all(chunk.startswith("sku, place\n") for chunk in chunks)
        assert sum(chunk.count("\n") for chunk in chunks) == 200

    def test_a_wide_header_goes_with_each_cell(self, folder: Path) -> None:
        names = [f"column {number}" for number in range(40)]
        rows = [names, *([f"v{line}x{number}" for number in range(40)] for line in range(3))]
        chunks = chunks_of(folder, "wide.csv", "\n".join(map(",".join, rows)).encode())
        assert any("column 17: v2x17" in chunk for chunk in chunks)

    @pytest.mark.parametrize(
        ("rows", "expected"),
        [
            ([["name", "age"], ["Ida", "7"]], True),
            ([["", "age"], ["Ida", "7"]], True),
            ([["Faro", "Portugal"], ["Braga", "Portugal"]], False),
            ([["Ida", "7"], ["Ole", "8"]], False),
            ([["Ida", "2024-03-01"], ["Ole", "x"]], False),
            ([["a", "a"], ["1", "2"]], False),
            ([["country", "2019", "2020"], ["Faro", "1", "2"]], True),
            ([["name", "age"]], False),
        ],
    )
    def test_what_looks_like_a_header(self, rows: list[list[str]], expected: bool) -> None:
        assert is_header(rows) is expected

    def test_a_bad_byte_costs_one_character(self) -> None:
        content = content_of("a.csv", b"name,city\nIda,Faro\nJos\xe9,Braga\n")
        assert content.parts[0].rows[2] == ["Jos\ufffd", "Braga"]  # type: ignore[union-attr]
        assert content.notes == ["1 character is not valid and was replaced by U+FFFD"]


class TestExcel:
    @settings(max_examples=100)
    @given(rows=tables(), share=st.booleans())
    def test_every_cell_of_a_table_is_found(
        self, folder: Path, rows: list[list[str]], share: bool
    ) -> None:
        valid = [[_xml_text(cell) for cell in row] for row in rows]
        strings = sorted({cell for row in valid for cell in row})
        if "_x000D_" in "".join(strings):  # Excel writes the underscore as _x005F_ then
            return
        cells = [[text_cell(cell) for cell in row] for row in valid]
        if share:
            cells = [[shared_cell(strings.index(cell)) for cell in row] for row in valid]
        data = xlsx({"Sheet 1": cells}, strings=strings)
        assert_every_cell_is_in(valid, chunks_of(folder, "table.xlsx", data))

    @pytest.mark.parametrize(
        ("stored", "code", "shown"),
        [
            ("417", "00000", "00417"),
            ("123456789", "000-00-0000", "123-45-6789"),
            ("123456789", r"000\-00\-0000", "123-45-6789"),
            ("12345678901234567", "", "12345678901234567"),
            ("1.2345678901234567E+19", "", "12345678901234567000"),
            ("0.1", "", "0.1"),
            ("0.30000000000000004", "", "0.30000000000000004"),
            ("0.10000000000000001", "", "0.1"),
            ("1E-7", "", "1e-07"),
            ("0.125", "0.0%", "12.5%"),
            ("7.0000000000000007E-2", "0%", "7%"),
            ("0.28999999999999998", "0.00%", "29%"),
            ("45352", "yyyy-mm-dd", "2024-03-01"),
            ("45352.604166666664", "dd/mm/yyyy hh:mm", "2024-03-01 14:30:00"),
            ("0.604166666664", "h:mm AM/PM", "14:30:00"),
            ("1.5", "[h]:mm:ss", "36:00:00"),
            ("45352", "[$-409]mmmm d, yyyy;@", "2024-03-01"),
            ("59", "yyyy-mm-dd", "1900-02-28"),
            ("61", "yyyy-mm-dd", "1900-03-01"),
            ("-1", "yyyy-mm-dd", "-1"),
            ("42", '"Day" 0', "42"),
            ("1234.5", "#,##0.00", "1234.5"),
            ("nonsense", "0", "nonsense"),
            ("1e999999999", "", "1e999999999"),
        ],
    )
    def test_numbers_read_as_the_sheet_shows_them(self, stored: str, code: str, shown: str) -> None:
        assert format_number(stored, code, from_1904=False) == shown

    def test_old_macs_count_days_from_1904(self) -> None:
        assert format_number("0", "yyyy-mm-dd", from_1904=True) == "1904-01-01"

    def test_a_sheet_with_all_kinds_of_cells(self) -> None:
        rows = [
            [text_cell("sku"), text_cell("since"), text_cell("sum")],
            [number_cell("417", 1), number_cell("45352", 2), formula_cell("A1&B1", "done")],
            [shared_cell(0), "", formula_cell("SUM(A1:A2)")],
            [],
            ['<c t="b"><v>1</v></c>', '<c t="e"><v>#N/A</v></c>', number_cell("1e5")],
        ]
        sheets = {"Stock": rows, "Empty": []}
        data = xlsx(sheets, strings=["NA"], formats=["00000", "yyyy-mm-dd"])
        stock, empty = content_of("stock.xlsx", data).parts
        assert stock == Table(
            [
                ["sku", "since", "sum"],
                ["00417", "2024-03-01", "done"],
                ["NA", "", "=SUM(A1:A2)"],
                ["TRUE", "#N/A", "100000"],
            ],
            " | ",
            "Stock",
            {"sheet_name": "Stock"},
        )
        assert empty.rows == []  # type: ignore[union-attr]

    def test_the_sheets_name_is_in_each_chunk(self, folder: Path) -> None:
        rows = [[text_cell(f"line {number}"), text_cell("fox")] for number in range(100)]
        chunks = chunks_of(folder, "a.xlsx", xlsx({"Second Quarter": rows}))
        assert len(chunks) > 3
        assert all(chunk.startswith("Second Quarter\n") for chunk in chunks)


def _xml_text(text: str) -> str:
    """Return what of a text XML can hold; a carriage return alone is written as Excel does."""
    return "".join(c for c in text if c in "\t\n\r" or (ord(c) >= 32 and c not in "\ufffe\uffff"))


# --- the formats that `.[files]` promises ---------------------------------------------------------


class TestWord:
    def test_paragraphs_tables_and_notes(self) -> None:
        cells = "".join(f"<w:tc>{paragraph(text)}</w:tc>" for text in ("sku", "00417"))
        body = (
            paragraph("The boiler is serviced.")
            + f"<w:tbl><w:tr>{cells}</w:tr></w:tbl>"
            + "<w:p><w:r><w:t>In</w:t></w:r><w:r><w:t>side</w:t><w:tab/><w:t>out</w:t></w:r></w:p>"
        )
        data = docx(body, footnotes=paragraph("See page 7."), comments=paragraph("Really?"))
        text = text_of("letter.docx", data)
        assert text == (
            "The boiler is serviced.\n\nsku | 00417\n\nInside\tout\n\nSee page 7.\n\nReally?"
        )

    def test_tracked_deletions_are_no_text(self) -> None:
        deleted = "<w:del><w:r><w:delText>gone</w:delText></w:r></w:del>"
        body = f"<w:p><w:r><w:t>kept</w:t></w:r>{deleted}</w:p>"
        assert text_of("letter.docx", docx(body)) == "kept"

    @pytest.mark.parametrize("bad", ["&#1;", "&#x0;", "&#xD835;", "&#1114112;", "&#x110000;"])
    def test_a_reference_to_no_character_costs_itself(self, bad: str) -> None:
        body = f"<w:p><w:r><w:t>Zone {bad} &#x41;&#66; is closed.</w:t></w:r></w:p>"
        content = content_of("a.docx", docx(body))
        assert content.parts == [Section("Zone \ufffd AB is closed.")]
        assert content.notes == ["1 character is not valid and was replaced by U+FFFD"]

    @pytest.mark.parametrize("bad", [b"\x01", b"\xff", b"\xef\xbf\xbe"])
    def test_a_byte_that_no_xml_may_hold_costs_itself(self, bad: bytes) -> None:
        with zipfile.ZipFile(io.BytesIO(docx(paragraph("Zone Q is closed.")))) as archive:
            parts = {name: archive.read(name) for name in archive.namelist()}
        parts["word/document.xml"] = parts["word/document.xml"].replace(b"Q", bad)
        content = content_of("a.docx", zipped(parts))
        assert content.parts == [Section("Zone \ufffd is closed.")]
        assert content.notes == ["1 character is not valid and was replaced by U+FFFD"]


class TestSlides:
    def test_each_slide_is_a_section_in_the_order_shown(self) -> None:
        draw = "http://schemas.openxmlformats.org/drawingml/2006/main"
        main = "http://schemas.openxmlformats.org/presentationml/2006/main"
        office = "http://schemas.openxmlformats.org/officeDocument/2006/relationships"

        def slide(text: str) -> str:
            return (
                f'<p:sld xmlns:p="{main}" xmlns:a="{draw}"><a:p><a:r><a:t>{text}</a:t></a:r>'
                "</a:p></p:sld>"
            )

        parts = {
            "_rels/.rels": relations(("officeDocument", "ppt/presentation.xml")),
            "ppt/presentation.xml": (
                f'<p:presentation xmlns:p="{main}" xmlns:r="{office}"><p:sldIdLst>'
                '<p:sldId id="256" r:id="r2"/><p:sldId id="257" r:id="r1"/></p:sldIdLst>'
                "</p:presentation>"
            ),
            "ppt/_rels/presentation.xml.rels": relations(
                ("slide", "slides/slide1.xml"), ("slide", "slides/slide2.xml")
            ),
            "ppt/slides/slide1.xml": slide("The end"),
            "ppt/slides/slide2.xml": slide("The beginning"),
            "ppt/slides/_rels/slide2.xml.rels": relations(("notesSlide", "../notes/n.xml")),
            "ppt/notes/n.xml": slide("Say hello."),
        }
        assert content_of("talk.pptx", zipped(parts)).parts == [
            Section("The beginning\n\nSay hello.", {"page_label": "1"}),
            Section("The end", {"page_label": "2"}),
        ]


class TestHtml:
    @pytest.mark.parametrize(
        ("source", "text"),
        [
            ("<p>One.</p><p>Two.</p>", "One.\n\nTwo."),
            ("<b>bold</b>ly", "boldly"),
            ("<script>var x = '<p>no</p>';</script>yes", "yes"),
            ("<style>p {}</style><!-- no --><p title='a > b'>yes", "yes"),
            ("a &lt; b &amp; c &eacute; &#8364;", "a < b & c é €"),
            ("<table><tr><td>a</td><td>b</td></tr></table>", "a | b"),
            ("1 < 2 and 3 > 2", "1 < 2 and 3 > 2"),
            ("<pre>  kept\n   as is</pre>", "kept\n   as is"),
            ("line<br>break", "line\nbreak"),
            ("<ul><li>one<li>two</ul>", "one\ntwo"),
            ("<ul>\n<li>one</li>\n <li>two</li>three</ul>", "one\ntwo\nthree"),
            ("a<br><br>b <i>c</i> d", "a\n\nb c d"),
            ("", ""),
            ("<p", "<p"),
            ("<![CDATA[x]]>y", "y"),
        ],
    )
    def test_text_without_tags(self, source: str, text: str) -> None:
        assert html_to_text(source) == text

    @given(st.text(st.sampled_from("<>/!-?&;ab'\"= pscript"), max_size=80))
    def test_anything_is_read(self, source: str) -> None:
        html_to_text(source)

    @pytest.mark.parametrize("piece", ["<p ", "<!--", "<a b='", "&#", "</", "<script>", "<p>", "&"])
    def test_the_cost_does_not_grow_with_the_square(self, piece: str) -> None:
        html_to_text(piece * 100_000)

    def test_the_declared_encoding_is_taken_if_it_is_not_utf8(self) -> None:
        source = '<meta charset="gb2312"><p>中文镕'  # the last one is in GBK alone
        assert text_of("a.html", source.encode("gbk")) == "中文镕"
        source = '<meta charset="iso-8859-1"><p>Größe und Maß'
        assert text_of("a.html", source.encode("latin-1")) == "Größe und Maß"
        assert text_of("a.html", source.encode()) == "Größe und Maß"


class TestMail:
    def test_head_body_and_attachments(self) -> None:
        from email.message import EmailMessage

        mail = EmailMessage()
        mail["Subject"] = "Größe"
        mail["From"] = "ida@example.org"
        mail.set_content("The boiler is serviced.\n")
        mail.add_alternative("<p>The boiler is <b>serviced</b>.</p>", subtype="html")
        mail.add_attachment("sku,place\n", subtype="csv", filename="stock.csv")
        mail.add_attachment(b"\x89PNG", maintype="image", subtype="png", filename="photo.png")
        content = content_of("a.eml", bytes(mail))
        (section,) = content.parts
        assert isinstance(section, Section)
        assert section.text == (
            "Subject: Größe\nFrom: ida@example.org\n\nThe boiler is serviced.\n\nsku,place"
        )
        assert content.notes == ["attachments that are not read: photo.png"]

    def test_html_alone(self) -> None:
        data = b"Subject: x\nContent-Type: text/html; charset=utf-8\n\n<p>Hello &amp; bye</p>"
        assert text_of("a.eml", data) == "Subject: x\n\nHello & bye"

    def test_a_mailbox(self) -> None:
        data = b"From a\nSubject: one\n\nfirst\n\nFrom b\nSubject: two\n\nsecond\n"
        assert text_of("a.mbox", data) == "Subject: one\n\nfirst\nSubject: two\n\nsecond"

    def test_a_line_of_text_that_begins_with_from(self) -> None:
        data = b"From a\nSubject: one\n\nfirst\nFrom here on\n\nFrom me to you,\nsecond\n"
        assert text_of("a.mbox", data) == (
            "Subject: one\n\nfirst\nFrom here on\n\nFrom me to you,\nsecond"
        )

    def test_a_message_behind_another_without_a_blank_line(self) -> None:
        first = b"From a\nSubject: one\n\nfirst\n"
        second = b"From b Thu Nov 26 06:04:06 2026\nSubject: two\n\nsecond\n"
        assert len(content_of("a.mbox", first + second).parts) == 2

    def test_a_message_that_is_attached_keeps_its_head(self) -> None:
        from email.message import EmailMessage

        inner = EmailMessage()
        inner["Subject"] = "The boiler"
        inner.set_content("It is serviced.")
        mail = EmailMessage()
        mail["Subject"] = "Fwd"
        mail.set_content("See below.")
        mail.add_attachment(inner)
        assert text_of("a.eml", bytes(mail)) == (
            "Subject: Fwd\n\nSee below.\n\nSubject: The boiler\n\nIt is serviced."
        )

    @pytest.mark.parametrize(
        ("declared", "encoding", "text"),
        [
            ("gb2312", "gb18030", "中文镕"),
            ("iso-8859-1", "cp1252", "“Größe” – 5 €"),
            ("us-ascii", "utf-8", "Größe"),
            ("unknown-8bit", "utf-8", "Größe"),
        ],
    )
    def test_encodings(self, declared: str, encoding: str, text: str) -> None:
        head = f"Subject: x\nContent-Type: text/plain; charset={declared}\n\n".encode()
        content = content_of("a.eml", head + text.encode(encoding))
        assert content.notes == []
        assert text_of("a.eml", head + text.encode(encoding)) == f"Subject: x\n\n{text}"

    def test_the_cost_does_not_grow_with_the_square_of_the_parts(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        read: list[object] = []

        def count(part: object) -> tuple[str, int]:
            read.append(part)
            return "", 0

        monkeypatch.setattr("unified_embeddings.llama.readers.mail._part_text", count)
        head = b"Subject: x\nContent-Type: multipart/alternative; boundary=b\n\n"
        parts = b"--b\nContent-Type: text/html\n\n<p>x\n--b\n\n \n" * 200
        content_of("a.eml", head + parts + b"--b--\n")
        assert len(read) <= 3 * 200

    def test_several_parts_without_a_boundary_are_one_text(self) -> None:
        data = b"Subject: x\nContent-Type: multipart/mixed\n\nThe boiler is serviced."
        assert text_of("a.eml", data) == "Subject: x\n\nThe boiler is serviced."

    def test_characters_that_are_lost_are_noted(self) -> None:
        data = "Subject: x\n\nGröße".encode("latin-1")
        (note,) = content_of("a.eml", data).notes
        assert note.startswith("2 characters are not valid")


class TestNotebook:
    def test_prose_code_and_output(self) -> None:
        notebook = {
            "nbformat": 4,
            "cells": [
                {"cell_type": "markdown", "source": ["# Foxes\n", "They jump."]},
                {
                    "cell_type": "code",
                    "source": "print(7)",
                    "outputs": [
                        {"output_type": "stream", "text": ["7\n"]},
                        {"output_type": "execute_result", "data": {"text/plain": "49"}},
                        {"output_type": "display_data", "data": {"image/png": "iVBO"}},
                    ],
                },
            ],
        }
        text = text_of("a.ipynb", json.dumps(notebook).encode())
        assert text == "# Foxes\nThey jump.\n\nprint(7)\n\n7\n\n\n49"

    @pytest.mark.parametrize("data", [b"", b"[]", b"{}", b"[" * 100_000, b'{"cells": 7}'])
    def test_what_is_none(self, data: bytes) -> None:
        with pytest.raises(InputError, match="is not a Jupyter notebook"):
            content_of("a.ipynb", data)


class TestRtf:
    @pytest.mark.parametrize(
        ("source", "text"),
        [
            (rb"{\rtf1\ansi Hello\par World}", "Hello\nWorld"),
            (rb"{\rtf1\ansi{\fonttbl{\f0 Arial;}}\f0 Hello}", "Hello"),
            (rb"{\rtf1\ansi\ansicpg1252 Gr\'f6\'dfe}", "Größe"),
            (rb"{\rtf1\ansi Gr\u246?\u223?e}", "Größe"),
            (rb"{\rtf1\ansi\uc2 \u8364??euro}", "€euro"),
            (rb"{\rtf1 \u-10179?\u-8704?}", "😀"),
            (rb"{\rtf1\ansi{\*\generator Msftedit;}{\info{\title no}}yes}", "yes"),
            (rb"{\rtf1{\fonttbl{\f0\fcharset204 Arial;}}\f0 \'cf\'f0}", "Пр"),
            (rb"{\rtf1 a\tab b\line c\{d\}\\}", "a\tb\nc{d}\\"),
            (rb"{\rtf1 \trowd one\cell two\cell\row after}", "one | two\nafter"),
        ],
    )
    def test_text(self, source: bytes, text: str) -> None:
        assert text_of("a.rtf", source) == text

    def test_what_is_none(self) -> None:
        with pytest.raises(InputError, match="is not an RTF file"):
            content_of("a.rtf", b"hello")


class TestOpenDocument:
    CONTENT = (
        '<o:document-content xmlns:o="urn:o" xmlns:text="urn:text" xmlns:table="urn:table" '
        'xmlns:draw="urn:draw"><o:body>{body}</o:body></o:document-content>'
    )

    def read(self, name: str, body: str) -> FileContent:
        return content_of(name, zipped({"content.xml": self.CONTENT.format(body=body)}))

    def test_a_text(self) -> None:
        body = (
            "<text:h>Title</text:h><text:p>a<text:s text:c='2'/>b<text:tab/>c<text:line-break/>d"
            "</text:p><table:table><table:table-row><table:table-cell><text:p>sku</text:p>"
            "</table:table-cell><table:table-cell><text:p>00417</text:p></table:table-cell>"
            "</table:table-row></table:table>"
        )
        (section,) = self.read("a.odt", body).parts
        assert section == Section("Title\n\na  b\tc\nd\n\nsku | 00417")

    def test_a_spreadsheet(self) -> None:
        cell = "<table:table-cell{repeated}><text:p>{text}</text:p></table:table-cell>"
        row = "<table:table-row>{cells}</table:table-row>"
        twice = " table:number-columns-repeated='2'"
        cells = cell.format(repeated="", text="00417") + cell.format(repeated=twice, text="x")
        rows = row.format(cells=cells) + row.format(cells="<table:table-cell/>")
        body = (
            f"<o:spreadsheet><table:table table:name='Stock'>{rows}</table:table></o:spreadsheet>"
        )
        (table,) = self.read("a.ods", body).parts
        assert table == Table([["00417", "x", "x"]], " | ", "Stock", {"sheet_name": "Stock"})

    def test_a_count_that_is_made_to_fill_the_memory(self) -> None:
        self.read("a.odt", "<text:p><text:s text:c='999999999'/></text:p>")


class TestEpub:
    def test_pages_in_reading_order(self) -> None:
        def page(text: str) -> str:
            return f"<!DOCTYPE html><html><body><p>{text}</p></body></html>"

        parts = {
            "mimetype": "application/epub+zip",
            "META-INF/container.xml": (
                '<container><rootfiles><rootfile full-path="OEBPS/book.opf"/></rootfiles>'
                "</container>"
            ),
            "OEBPS/book.opf": (
                '<package xmlns:dc="urn:dc"><metadata><dc:title>Foxes</dc:title></metadata>'
                '<manifest><item id="b" href="b%20c.xhtml" media-type="application/xhtml+xml"/>'
                '<item id="a" href="a.xhtml" media-type="application/xhtml+xml"/>'
                '<item id="c" href="c.css" media-type="text/css"/></manifest>'
                '<spine><itemref idref="a"/><itemref idref="b"/></spine></package>'
            ),
            "OEBPS/a.xhtml": page("One."),
            "OEBPS/b c.xhtml": page("Two."),
        }
        assert text_of("a.epub", zipped(parts)) == "Foxes\nOne.\nTwo."


@pytest.fixture
def _pypdf() -> None:
    pytest.importorskip("pypdf", reason="the extra 'files', which reads PDF, is not installed")


PLAIN = {code: b"%04X" % code for code in range(32, 127)}
"""Each ASCII byte means itself."""


@pytest.mark.usefixtures("_pypdf")
class TestPdf:
    def test_halves_of_characters(self) -> None:
        half = pdf("Zone Q is closed.", unicode_of={**PLAIN, ord("Q"): b"D835"})
        content = content_of("half.pdf", half)
        assert [part.text.strip() for part in content.parts if isinstance(part, Section)] == [
            "Zone \ufffd is closed."
        ]
        assert content.notes == ["1 character is not valid and was replaced by U+FFFD"]
        pair = {**PLAIN, ord("Q"): b"D835", ord("R"): b"DC34"}
        assert text_of("pair.pdf", pdf("Set QR is open.", unicode_of=pair)).strip() == (
            "Set \U0001d434 is open."
        )

    def test_another_file_under_the_name_is_told(self) -> None:
        with pytest.raises(InputError, match="is not a PDF file"):
            content_of("page.pdf", b"<html><h1>404 Not Found</h1></html>")

    def test_a_scan_is_named(self) -> None:
        with pytest.raises(InputError, match="no text; needs OCR"):
            content_of("scan.pdf", pdf("", ""))

    def test_scanned_pages_are_noted(self) -> None:
        content = content_of("mixed.pdf", pdf("One.", "", "Three.", ""))
        assert content.notes == ["2 of 4 pages are pictures without text: 2, 4"]

    def test_a_damaged_page_costs_no_other(self) -> None:
        data = pdf("One.", "Two.", "Three.")
        damaged = data.replace(b"/Contents 9 0 R", b"/Contents 2 0 R")
        content = content_of("damaged.pdf", damaged)
        assert "One." in text_of("damaged.pdf", damaged)
        assert "Three." in text_of("damaged.pdf", damaged)
        assert len(content.parts) >= 2

    @pytest.mark.parametrize("data", [b"", b"%PDF-1.7", b"hello", pdf("One.")[:300]])
    def test_what_is_none_is_an_error_without_noise(
        self, data: bytes, capfd: pytest.CaptureFixture[str]
    ) -> None:
        with pytest.raises(Exception, match=r"\w") as caught:
            content_of("a.pdf", data)
        assert str(caught.value)
        assert capfd.readouterr() == ("", "")
        assert logging.getLogger("pypdf").propagate

    def test_without_its_library_the_extra_is_named(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "pypdf", None)
        with pytest.raises(MissingExtraError, match="files"):
            content_of("a.pdf", pdf("One."))


# --- files that real programs saved ---------------------------------------------------------------

FILES = Path(__file__).with_name("files")
BOILER = "The boiler is serviced every March."
SAVED = {
    "foxes.epub": "Foxes|Foxes\n\nFoxes\n\nChapter 1\nChapter 2|Chapter 1\n\nChapter 1\n\n"
    "The quick fox.|Chapter 2\n\nChapter 2\n\nThe lazy dog & cat.",
    "foxes.ipynb": "# Foxes\nThey jump.\n\nprint(6 * 7)\n\n42\n",
    "heating.pptx": f"Heating\n\n{BOILER}\n\nMention the invoice.|Stock\n\nsku | place\n00417 | NA",
    "letter.rtf": "Grüße aus München, Konto 00417.\nПривет\n€ 3,50",
    "mail.eml": "Subject: Käste 00417\nFrom: Ida Grün <ida@example.org>\nTo: ole@example.org\n"
    "Date: Fri, 01 Mar 2024 14:30:00 +0100\n\nThe boiler is serviced every März, says Ida in a "
    "line that is soft wrapped.",
    "manual.docx": f"Service manual\n\n{BOILER}\n\nBold and plain\n\nsku | place\n00417 | NA\n\n"
    "First point\n\nFooter: page one",
    "manual.odt": f"Service manual\n\n{BOILER}",
    "page.html": "Heating\n\nHome\n\nThe\xa0boiler\n\nIt is serviced every March & June.\n\n"
    "sku | place\n00417 | NA",
    "readme.md": "# Boiler\n\nIt is serviced **every March**.\n\n"
    "| sku | place |\n|---|---|\n| 00417 | NA |\n",
    "manual.pdf": f"{BOILER}\n|Größe: 00417\n",
    "open.pdf": f"{BOILER}\n|Größe: 00417\n",  # encrypted, without a password
}
"""What the sections of each file say, with a bar between."""


@pytest.mark.parametrize("name", SAVED)
def test_a_saved_file_gives_its_text(name: str) -> None:
    if name.endswith(".pdf"):
        pytest.importorskip("pypdf", reason="the extra 'files', which reads PDF, is not installed")
    if name == "open.pdf":
        pytest.importorskip("cryptography", reason="it comes with the extra 'files'")
    content = content_of(name, (FILES / name).read_bytes())
    texts = [part.text for part in content.parts if isinstance(part, Section)]
    assert "|".join(texts).replace(" | ", "¦") == SAVED[name].replace(" | ", "¦")
    assert content.notes == []


def test_saved_tables_give_their_cells() -> None:
    stock, _ = content_of("stock.xlsx", (FILES / "stock.xlsx").read_bytes()).parts
    assert stock.rows == [  # type: ignore[union-attr]
        ["sku", "place", "since", "amount", "share", "open", "account"],
        # openpyxl itself stores 12345678901234567 as 1.234567890123457e+16.
        ["00417", "NA", "2024-03-01", "3", "12.5%", "TRUE", "12345678901234570"],
        ["00417", "null", "2024-03-01 14:30:00", "0.1", "", "FALSE", "00012345678901234567"],
        ["=A2&B2", "", "07:05:00", "1e-07", "#N/A", "", "two\nlines"],
    ]
    assert content_of("sales.xlsx", (FILES / "sales.xlsx").read_bytes()).parts == [
        Table(
            [["day", "town", "sum"], ["2024-12-31", "Faro", "42"]],
            " | ", "Sales", {"sheet_name": "Sales"},
        ),
        Section("A text box", {"sheet_name": "Sales"}),
        Section("A comment", {"sheet_name": "Sales"}),
    ]  # fmt: skip
    assert rows_of("stock.ods", (FILES / "stock.ods").read_bytes()) == [
        ["sku", "place"], ["00417", "NA"],
    ]  # fmt: skip


@pytest.mark.usefixtures("_pypdf")
def test_a_password_is_asked_for_by_name() -> None:
    with pytest.raises(InputError, match="is encrypted"):
        content_of("secret.pdf", (FILES / "secret.pdf").read_bytes())


# --- whatever the format --------------------------------------------------------------------------


class TestPlainText:
    def test_halves_of_characters_in_utf8_are_joined(self) -> None:
        pair, half = b"\xed\xa0\xb5\xed\xb0\xb4", b"\xed\xa0\xb5"
        assert text_of("a.txt", b"Set " + pair + b" is open.") == "Set \U0001d434 is open."
        content = content_of("a.txt", b"Zone " + half + b" is closed.")
        assert content.parts == [Section("Zone \ufffd is closed.")]
        assert content.notes == ["1 character is not valid and was replaced by U+FFFD"]

    @pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
    def test_encodings(self, encoding: str) -> None:
        assert (
            text_of("a.txt", "Größe 日本".encode(encoding)).removeprefix("\ufeff") == "Größe 日本"
        )

    @pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
    def test_utf16_without_a_mark(self, encoding: str) -> None:
        text = "The boiler is serviced in März."
        assert text_of("a.txt", text.encode(encoding)) == text

    @pytest.mark.parametrize(
        ("data", "text", "count"),
        [
            (b"caf\xe9", "caf\ufffd", "1 character is"),
            (
                b"the \xff\xfe fox jumps over the dog",
                "the \ufffd\ufffd fox jumps over the dog",
                "2",
            ),
            (b"half \xed\xa0\xb5 of a character and more text", "half \ufffd of", "1"),
        ],
    )
    def test_bad_bytes_are_replaced_and_counted(self, data: bytes, text: str, count: str) -> None:
        content = content_of("a.txt", data)
        assert text_of("a.txt", data).startswith(text)
        (note,) = content.notes
        assert note.startswith(count)

    def test_a_text_in_another_encoding_is_refused(self) -> None:
        text = "Größe, Maß und Übergröße für Bäume, überall schön geprüft." * 20
        with pytest.raises(InputError, match="Convert it to UTF-8"):
            content_of("a.txt", text.encode("latin-1"))


BROKEN: dict[str, Callable[[], bytes]] = {
    "empty": lambda: b"",
    "no zip": lambda: b"hello",
    "old office": lambda: b"\xd0\xcf\x11\xe0" + bytes(600),
    "cut short": lambda: docx(paragraph("x") * 50)[:-40],
    "another zip": lambda: zipped({"a.txt": "x"}),
    "no xml": lambda: zipped(dict.fromkeys(_MAIN_PARTS, "<")),
    "entities": lambda: zipped(dict.fromkeys(_MAIN_PARTS, _BOMB)),
    "deep": lambda: zipped(dict.fromkeys(_MAIN_PARTS, "<a>" * 100000 + "</a>" * 100000)),
}
_MAIN_PARTS = (
    "word/document.xml", "ppt/presentation.xml", "xl/workbook.xml", "content.xml",
    "META-INF/container.xml",
)  # fmt: skip
_BOMB = '<!DOCTYPE a [<!ENTITY b "bbbb"><!ENTITY c "&b;&b;">]><a>&c;</a>'


@pytest.mark.parametrize("suffix", [".docx", ".pptx", ".xlsx", ".odt", ".ods", ".epub"])
@pytest.mark.parametrize("how", BROKEN)
def test_a_broken_archive_is_an_error_that_says_why(suffix: str, how: str) -> None:
    if how == "deep" and suffix != ".epub":  # valid, and without text
        parts = content_of("a" + suffix, BROKEN[how]()).parts
        assert not any(isinstance(part, Section) and part.text for part in parts)
        return
    with pytest.raises(UnifiedEmbeddingsError, match=r"\w"):
        content_of("a" + suffix, BROKEN[how]())


@given(data=st.data())
@pytest.mark.parametrize("suffix", [".docx", ".xlsx", ".rtf", ".eml", ".csv", ".html", ".ipynb"])
def test_any_damage_is_an_error_or_other_text(suffix: str, data: st.DataObject) -> None:
    """No reader raises anything that `read_chunks` would not report, or hangs."""
    samples = {
        ".docx": docx(paragraph("The boiler is serviced.")),
        ".xlsx": xlsx({"S": [[text_cell("a"), number_cell("7")]]}),
        ".rtf": rb"{\rtf1\ansi{\fonttbl{\f0 Arial;}}\uc1 Hello\u246? \'f6\par}",
        ".eml": b"Subject: x\nContent-Type: multipart/mixed; boundary=b\n\n--b\n\nhi\n--b--",
        ".csv": b'a,"b"\n1,2\n',
        ".html": b"<p title='x'>a &amp; <b>b</b></p><!-- c --><script>d</script>",
        ".ipynb": b'{"cells": [{"source": ["a"], "outputs": [{"text": "b"}]}]}',
    }
    damaged = bytearray(samples[suffix])
    for position in data.draw(st.lists(st.integers(0, len(damaged) - 1), max_size=6)):
        damaged[position] = data.draw(st.integers(0, 255))
    with contextlib.suppress(UnifiedEmbeddingsError):
        content_of("a" + suffix, bytes(damaged))


@pytest.mark.parametrize("suffix", [".doc", ".xls", ".ppt", ".pages", ".msg"])
def test_a_format_that_is_not_read_is_named_with_the_way_out(suffix: str) -> None:
    with pytest.raises(InputError, match=r"(save|export) it as"):
        content_of("a" + suffix, b"\xd0\xcf\x11\xe0\0\0")
    assert text_of("a" + suffix, b"plain text under that name") == "plain text under that name"


@pytest.mark.parametrize(
    ("name", "data", "expected"),
    [
        ("a.png", b"text", True),
        ("a.unknown", b"\x7fELF\0\xff\xfe", True),
        ("a.unknown", b"text", False),
        ("a.unknown", "text".encode("utf-16"), False),
        ("noname", b"", False),
        ("a.docx", b"\0\xff", False),
        ("a.doc", b"\0\xff", False),
        ("a.md", b"\0" * 10, True),
        ("a.md", b"\0" * 10_000_000, True),
        ("a.log", b"\0" * 10_000_000 + b"text after a crash", False),
        ("a.md", b"\0 text", False),
    ],
    ids=range(11),
)
def test_files_without_text_are_told_by_type_or_beginning(
    tmp_path: Path, name: str, data: bytes, expected: bool
) -> None:
    (tmp_path / name).write_bytes(data)
    assert (why_without_text(tmp_path / name) is not None) is expected
