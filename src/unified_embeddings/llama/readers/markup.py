"""HTML into text without tags.

What lives here: a scanner whose cost is linear in the text. Python's html.parser looks for the end
of each tag anew, which takes a minute for 100 KB of tags that never end. What does not: the files
that hold HTML (`epub`, `mail`).
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterator

from unified_embeddings.llama.readers.content import FileContent, Section
from unified_embeddings.llama.readers.plain_text import decode_text

_TAG_NAME = re.compile(r"/?[a-zA-Z][^\s/>]*")
_QUOTE_OR_END = re.compile(r"=\s*([\"'])|>")
_WHITE_SPACE = re.compile(r"[ \t\r\n\f]+")
_BLANK_LINES = re.compile(r"\n[ \t]*\n\s*")
_SPACES_AT_LINE_ENDS = re.compile(r"(?<! ) *\n *")
_SPACES = re.compile(r"  +")
_DECLARED = re.compile(rb"""(?:charset|encoding)\s*=\s*["']?\s*([A-Za-z0-9_.:-]+)""", re.IGNORECASE)
_HEAD_BYTES = 4096
"""How much of a file may declare its encoding."""
_MOST_ATTRIBUTES = 100
"""Quoted attributes of one tag that are looked at."""

_WITHOUT_TEXT = frozenset(("script", "style", "template"))
_LINES = frozenset(("tr", "li", "dt", "dd", "option", "figcaption", "caption", "summary"))
_BLOCKS = frozenset(
    ("address", "article", "aside", "blockquote", "body", "div", "dl", "fieldset", "figure",
     "footer", "form", "h1", "h2", "h3", "h4", "h5", "h6", "head", "header", "hr", "html", "legend",
     "main", "nav", "ol", "p", "pre", "section", "table", "tbody", "tfoot", "thead", "title", "ul",
     "details", "dialog", "center", "textarea", "select")
)  # fmt: skip
_CELLS = frozenset(("td", "th"))


def read_html(data: bytes) -> FileContent:
    """Read an HTML file: its text, without tags, scripts and styles.

    Raises:
        InputError: If it is not text in the encoding that it declares, or UTF-8.
    """
    declared = _DECLARED.search(data[:_HEAD_BYTES])
    encoding = declared[1].decode("ascii") if declared else None
    text, notes = decode_text(data, encoding)
    return FileContent([Section(html_to_text(text.removeprefix("\ufeff")))], notes)


def html_to_text(source: str) -> str:
    """Return the text of HTML: blocks with a blank line between, cells of a table with a bar."""
    pieces: list[str] = []
    preformatted = 0
    for text, tag in _scan(source):
        at_line_start = bool(pieces) and pieces[-1].endswith("\n")
        if text:
            text = _unescape(text)
            if not preformatted:
                text = _WHITE_SPACE.sub(" ", text)
            if preformatted or text != " " or not at_line_start:
                pieces.append(text)
                at_line_start = text.endswith("\n")
        name = tag.removeprefix("/")
        if name == "pre":
            preformatted = max(0, preformatted + (-1 if tag.startswith("/") else 1))
        if name in _BLOCKS:
            pieces.append("\n\n")
        elif name == "br" or (name in _LINES and not at_line_start):
            pieces.append("\n")
        elif name in _CELLS and tag.startswith("/"):
            pieces.append(" | ")
    text = "".join(pieces).replace("\r\n", "\n")
    text = text.replace(" | \n", "\n")
    if "<pre" not in source.lower():
        text = _SPACES_AT_LINE_ENDS.sub("\n", _SPACES.sub(" ", text))
    return _BLANK_LINES.sub("\n\n", text).strip()


def _scan(source: str) -> Iterator[tuple[str, str]]:
    """Yield each stretch of text with the tag behind it: `p`, `/p`, or "" for none of interest.

    A `<` that begins no tag is text. A tag that does not end is text too.
    """
    position = text_start = 0
    last_end = source.rfind(">")
    while True:
        position = source.find("<", position)
        if position < 0 or position > last_end:
            yield source[text_start:], ""
            return
        if source.startswith("<!--", position):
            end = source.find("-->", position + 4)
            if end < 0:
                yield source[text_start:position], ""
                return  # as in a browser, nothing behind an unclosed comment is text
            yield source[text_start:position], ""
            position = text_start = end + 3
            continue
        match = _TAG_NAME.match(source, position + 1)
        if match is None and not source.startswith(("<!", "<?"), position):
            position += 1
            continue
        name = match[0].lower() if match else ""
        end = _find_tag_end(source, position)
        yield source[text_start:position], name
        if name in _WITHOUT_TEXT and not source.endswith("/", 0, end - 1):
            end = _find_closing(source, name, end)
        position = text_start = end


def _find_tag_end(source: str, start: int) -> int:
    """Return the position after a tag. A `>` in a quoted attribute does not end it."""
    position = start
    for _ in range(_MOST_ATTRIBUTES):
        match = _QUOTE_OR_END.search(source, position)
        if match is None:
            break
        if match[1] is None:
            return match.end()
        closing = source.find(match[1], match.end())
        if closing < 0:
            break
        position = closing + 1
    return source.find(">", start) + 1  # the quotes do not match up; there is a `>`


def _find_closing(source: str, name: str, start: int) -> int:
    """Return where the closing tag of an element without text is; the end if there is none."""
    match = re.compile(rf"</{name}\b", re.IGNORECASE).search(source, start)
    return match.start() if match else len(source)


def _unescape(text: str) -> str:
    """Return a text with `&amp;` and the like replaced."""
    if "&" not in text:
        return text
    try:
        return html.unescape(text)
    except ValueError:  # a number of thousands of digits
        return text
