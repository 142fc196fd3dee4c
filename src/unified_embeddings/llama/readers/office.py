"""Word and PowerPoint files into text.

What lives here: paragraphs, tables, notes, headers and slides. What does not: Excel (`excel`), and
the archive that such a file is (`zipped_xml`).
"""

from __future__ import annotations

from unified_embeddings.errors import InputError
from unified_embeddings.llama.readers.content import FileContent, Section
from unified_embeddings.llama.readers.zipped_xml import ZippedFile

_TEXT_CHARACTERS = {"tab": "\t", "br": "\n", "cr": "\n", "noBreakHyphen": "-"}
_LEFT_OUT = frozenset(
    (
        "Fallback",  # an older form of what the element before it says
        "moveFrom",  # text that was moved elsewhere, where it is read
        "tabs",  # positions of tab stops, whose elements are named like tab characters
        "tabLst",
        "rt",  # how a word is pronounced
    )
)
_WORD_PARTS = ("footnotes", "endnotes", "comments", "header", "footer")
_SLIDE_PARTS = ("diagramData", "chart", "notesSlide", "comments")


def read_docx(data: bytes) -> FileContent:
    """Read a Word file: its text with tables, then notes, comments, headers and footers.

    Raises:
        InputError: If it is not a Word file.
    """
    file = ZippedFile(data, "a Word file")
    main = main_part(file, "a Word file", "word/document.xml")
    blocks = [office_text(file, part) for part in (main, *file.related(main, *_WORD_PARTS))]
    # The same header may stand on several kinds of pages.
    texts = dict.fromkeys(block for block in blocks if block.strip())
    return FileContent([Section("\n\n".join(texts))], file.notes)


def read_pptx(data: bytes) -> FileContent:
    """Read a PowerPoint file: each slide with its notes is a section, numbered `page_label`.

    Raises:
        InputError: If it is not a PowerPoint file.
    """
    file = ZippedFile(data, "a PowerPoint file")
    main = main_part(file, "a PowerPoint file", "ppt/presentation.xml")
    order = _SlideOrder()
    file.parse(main, order)
    relations = file.relations(main)
    sections: list[Section] = []
    for number, relation_id in enumerate(order.relation_ids, 1):
        _, slide = relations.get(relation_id, ("", ""))
        if slide not in file.names:
            continue
        parts = [slide, *file.related(slide, *_SLIDE_PARTS)]
        texts = [office_text(file, part) for part in parts]
        text = "\n\n".join(text for text in texts if text.strip())
        sections.append(Section(text, {"page_label": str(number)}))
    return FileContent([*sections], file.notes)


def office_text(file: ZippedFile, part: str) -> str:
    """Return the text of one part: paragraphs with a blank line between, tables row by row."""
    text = _OfficeText()
    file.parse(part, text)
    return "\n\n".join(text.finished())


def main_part(file: ZippedFile, kind: str, usual: str) -> str:
    """Return the name of the part that everything else hangs on."""
    for part in (*file.related("", "officeDocument"), usual):
        if part in file.names:
            return part
    raise InputError(f"is not {kind}: it has no part {usual}")


class _OfficeText:
    """Collects blocks of text from the elements that Word and PowerPoint share by name.

    Paragraphs and tables may be nested in table cells and text boxes, so each kind has a stack.
    """

    def __init__(self) -> None:
        self._blocks: list[list[str]] = [[]]
        self._paragraphs: list[list[str]] = []
        self._tables: list[list[str]] = []
        self._rows: list[list[str]] = []
        self._left_out = 0
        self._in_text = False

    def start(self, name: str, attributes: dict[str, str]) -> None:  # noqa: ARG002
        if self._left_out or name in _LEFT_OUT:
            self._left_out += 1
        elif name == "t":
            self._in_text = True
        elif name in _TEXT_CHARACTERS:
            self._add(_TEXT_CHARACTERS[name])
        elif name == "p":
            self._paragraphs.append([])
        elif name == "tbl":
            self._tables.append([])
        elif name == "tr":
            self._rows.append([])
        elif name == "tc":
            self._blocks.append([])

    def data(self, text: str) -> None:
        if self._in_text:
            self._add(text)

    def end(self, name: str) -> None:
        if self._left_out:
            self._left_out -= 1
        elif name == "t":
            self._in_text = False
        elif name == "p" and self._paragraphs:
            self._blocks[-1].append("".join(self._paragraphs.pop()))
        elif name == "tc" and len(self._blocks) > 1:
            cell = "\n".join(block for block in self._blocks.pop() if block.strip())
            if self._rows:
                self._rows[-1].append(cell)
        elif name == "tr" and self._rows:
            row = " | ".join(self._rows.pop())
            if self._tables:
                self._tables[-1].append(row)
        elif name == "tbl" and self._tables:
            self._blocks[-1].append("\n".join(self._tables.pop()))

    def finished(self) -> list[str]:
        """Return the blocks that are not blank."""
        return [block for block in self._blocks[0] if block.strip()]

    def _add(self, text: str) -> None:
        if self._paragraphs:
            self._paragraphs[-1].append(text)
        elif text.strip():  # an axis or a legend of a chart, outside of any paragraph
            self._blocks[-1].append(text)


class _SlideOrder:
    """Collects the slides of a presentation in the order in which they are shown."""

    def __init__(self) -> None:
        self.relation_ids: list[str] = []

    def start(self, name: str, attributes: dict[str, str]) -> None:
        if name == "sldId":
            self.relation_ids.append(attributes.get(":id", ""))

    def end(self, name: str) -> None:
        pass

    def data(self, text: str) -> None:
        pass
