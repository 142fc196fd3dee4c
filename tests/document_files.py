"""Files of document formats, written out by hand from the formats' descriptions."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping, Sequence
from xml.sax.saxutils import escape, quoteattr

_PACKAGE = "http://schemas.openxmlformats.org/package/2006/relationships"
_OFFICE = "http://schemas.openxmlformats.org/officeDocument/2006/relationships"
_SHEET = "http://schemas.openxmlformats.org/spreadsheetml/2006/main"
_WORD = "http://schemas.openxmlformats.org/wordprocessingml/2006/main"


def zipped(parts: Mapping[str, str | bytes]) -> bytes:
    """Return a zip archive of the parts."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in parts.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def relations(*targets: tuple[str, str]) -> str:
    """Return an office file's list of relations from (type, target) pairs; ids are r1, r2, ..."""
    listed = "".join(
        f'<Relationship Id="r{number}" Type="{_OFFICE}/{kind}" Target={quoteattr(target)}/>'
        for number, (kind, target) in enumerate(targets, 1)
    )
    return f'<Relationships xmlns="{_PACKAGE}">{listed}</Relationships>'


def docx(body: str, **parts: str) -> bytes:
    """Return a Word file with the XML of its body; other parts by their type."""
    targets = [(kind, f"{kind}.xml") for kind in parts]
    others = {f"word/{kind}.xml": _word(kind, content) for kind, content in parts.items()}
    return zipped(
        {
            "_rels/.rels": relations(("officeDocument", "word/document.xml")),
            "word/document.xml": _word("document", f"<w:body>{body}</w:body>"),
            "word/_rels/document.xml.rels": relations(*targets),
            **others,
        }
    )


def _word(element: str, content: str) -> str:
    return f'<w:{element} xmlns:w="{_WORD}">{content}</w:{element}>'


def paragraph(text: str) -> str:
    """Return a Word paragraph of one run."""
    return f'<w:p><w:r><w:t xml:space="preserve">{escape(text)}</w:t></w:r></w:p>'


def xlsx(
    sheets: Mapping[str, Sequence[Sequence[str]]],
    *,
    strings: Sequence[str] = (),
    formats: Sequence[str] = (),
) -> bytes:
    """Return an Excel file.

    Args:
        sheets: Rows of cells by sheet name, each cell as made by `text_cell` and the like.
        strings: The shared strings, to which cells refer by number.
        formats: Number formats. Style 1 has the first.
    """
    names = list(sheets)
    listed = "".join(
        f'<sheet name={quoteattr(name)} sheetId="{number}" r:id="r{number}"/>'
        for number, name in enumerate(names, 1)
    )
    own = "".join(
        f'<numFmt numFmtId="{200 + number}" formatCode={quoteattr(code)}/>'
        for number, code in enumerate(formats)
    )
    styles = "".join(f'<xf numFmtId="{200 + number}"/>' for number in range(len(formats)))
    shared = "".join(f'<si><t xml:space="preserve">{_kept(text)}</t></si>' for text in strings)
    targets = [
        ("worksheet", f"worksheets/sheet{number}.xml") for number in range(1, len(names) + 1)
    ]
    parts = {
        "_rels/.rels": relations(("officeDocument", "xl/workbook.xml")),
        "xl/workbook.xml": (
            f'<workbook xmlns="{_SHEET}" xmlns:r="{_OFFICE}"><sheets>{listed}</sheets></workbook>'
        ),
        "xl/_rels/workbook.xml.rels": relations(
            *targets, ("sharedStrings", "sharedStrings.xml"), ("styles", "/xl/styles.xml")
        ),
        "xl/sharedStrings.xml": f'<sst xmlns="{_SHEET}">{shared}</sst>',
        "xl/styles.xml": (
            f'<styleSheet xmlns="{_SHEET}"><numFmts>{own}</numFmts>'
            f'<cellXfs><xf numFmtId="0"/>{styles}</cellXfs></styleSheet>'
        ),
    }
    for number, rows in enumerate(sheets.values(), 1):
        lines = "".join(_row(line, cells) for line, cells in enumerate(rows, 1))
        parts[f"xl/worksheets/sheet{number}.xml"] = (
            f'<worksheet xmlns="{_SHEET}"><sheetData>{lines}</sheetData></worksheet>'
        )
    return zipped(parts)


def _row(line: int, cells: Sequence[str]) -> str:
    placed = [
        cell.replace("<c", f'<c r="{_column(column)}{line}"', 1)
        for column, cell in enumerate(cells)
        if cell
    ]
    return f'<row r="{line}">{"".join(placed)}</row>'


def _column(number: int) -> str:
    letters = ""
    while number >= 0:
        letters = chr(ord("A") + number % 26) + letters
        number = number // 26 - 1
    return letters


def text_cell(text: str) -> str:
    """Return a cell with a text of its own."""
    return f'<c t="inlineStr"><is><t xml:space="preserve">{_kept(text)}</t></is></c>'


def _kept(text: str) -> str:
    """Escape a text as Excel does, so that carriage returns are kept."""
    return escape(text, {"\r": "_x000D_"})


def shared_cell(number: int) -> str:
    """Return a cell with the shared string of that number."""
    return f'<c t="s"><v>{number}</v></c>'


def number_cell(value: str, style: int = 0) -> str:
    """Return a cell with a number, in a style."""
    return f'<c s="{style}"><v>{value}</v></c>'


def formula_cell(formula: str, result: str = "", kind: str = "str") -> str:
    """Return a cell with a formula and its last result, if it has one."""
    value = f"<v>{escape(result)}</v>" if result else ""
    return f'<c t="{kind}"><f>{escape(formula)}</f>{value}</c>'


def pdf(*pages: str, unicode_of: Mapping[int, bytes] | None = None) -> bytes:
    """Return a PDF with one line on each page; "" is a page with a picture alone.

    Args:
        pages: The lines, in Latin-1.
        unicode_of: What each byte of a line means, as UTF-16 in hexadecimal digits; None leaves
            that to the reader.
    """
    first = 6  # after catalogue, page tree, font, its mapping and the picture
    kids = b" ".join(b"%d 0 R" % (first + 2 * number) for number in range(len(pages)))
    mapping = b"" if unicode_of is None else b"/ToUnicode 4 0 R"
    objects = [
        b"<< /Type /Catalog /Pages 2 0 R >>",
        b"<< /Type /Pages /Kids [%s] /Count %d >>" % (kids, len(pages)),
        b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica %s >>" % mapping,
        _stream(_character_map(unicode_of or {})),
        _stream(
            b"\x80",
            b"/Type /XObject /Subtype /Image /Width 1 /Height 1 /ColorSpace /DeviceGray "
            b"/BitsPerComponent 8",
        ),
    ]
    for number, text in enumerate(pages):
        line = text.encode("latin-1")
        content = b"BT /F1 12 Tf 72 720 Td (%s) Tj ET" % line if line else b"/I1 Do"
        resources = b"/Font << /F1 3 0 R >>" if line else b"/XObject << /I1 5 0 R >>"
        objects.append(
            b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Resources << %s >> "
            b"/Contents %d 0 R >>" % (resources, first + 2 * number + 1)
        )
        objects.append(_stream(content))
    return _pdf_file(objects)


def _stream(content: bytes, entries: bytes = b"") -> bytes:
    return b"<< /Length %d %s >>\nstream\n%s\nendstream" % (len(content), entries, content)


def _character_map(unicode_of: Mapping[int, bytes]) -> bytes:
    lines = b"".join(b"<%02X> <%s>\n" % (code, text) for code, text in unicode_of.items())
    return (
        b"/CIDInit /ProcSet findresource begin 12 dict begin begincmap /CMapName /X def "
        b"/CMapType 2 def 1 begincodespacerange <00> <FF> endcodespacerange %d beginbfchar\n"
        b"%sendbfchar endcmap end end" % (len(unicode_of), lines)
    )


def _pdf_file(objects: Sequence[bytes]) -> bytes:
    out, offsets = b"%PDF-1.4\n", []
    for number, item in enumerate(objects, 1):
        offsets.append(len(out))
        out += b"%d 0 obj\n%s\nendobj\n" % (number, item)
    table = b"".join(b"%010d 00000 n \n" % offset for offset in offsets)
    out += b"xref\n0 %d\n0000000000 65535 f \n%s" % (len(objects) + 1, table)
    size, start = len(objects) + 1, out.index(b"xref\n")
    return out + b"trailer << /Size %d /Root 1 0 R >>\nstartxref\n%d\n%%%%EOF\n" % (size, start)
