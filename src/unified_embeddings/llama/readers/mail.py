"""E-mails into text: the head, the body, and texts that are attached.

What lives here: one message, and mailboxes of many. What does not: HTML (`markup`).
"""

from __future__ import annotations

import re
from email import message_from_bytes, policy
from email.message import Message

from unified_embeddings.errors import InputError
from unified_embeddings.llama.readers.content import FileContent, Section, lost_note
from unified_embeddings.llama.readers.markup import html_to_text
from unified_embeddings.llama.readers.plain_text import codec_of

_HEADERS = ("Subject", "From", "To", "Cc", "Date")
_NEXT_MESSAGE = re.compile(
    rb"(?:(?:\A|(?<=\n\n)|(?<=\n\r\n))From [^\r\n]*|^From [^\r\n]*\d:\d\d[^\r\n]*)"
    rb"\r?\n(?=[!-9;-~]+:|\Z)",
    re.MULTILINE,
)
"""The line before a message: after a blank line or with a time of day, and before a header. Others
that begin with "From " are text."""
_MOST_PARTS = 1000


def read_eml(data: bytes) -> FileContent:
    """Read an e-mail.

    Raises:
        InputError: If it has neither a head nor a body.
    """
    notes: list[str] = []
    text = _message_text(data, notes)
    if not text.strip():
        raise InputError("is not an e-mail: it has neither a subject nor a text")
    return FileContent([Section(text)], notes)


def read_mbox(data: bytes) -> FileContent:
    """Read a mailbox: each message is a section."""
    notes: list[str] = []
    marks = [match.span() for match in _NEXT_MESSAGE.finditer(data)]
    # What is before the first mark is a message too, if there is anything.
    starts = [0, *(end for _, end in marks)]
    ends = [*(start for start, _ in marks), len(data)]
    texts = [_message_text(data[start:end], notes) for start, end in zip(starts, ends, strict=True)]
    return FileContent([Section(text) for text in texts if text.strip()], notes)


def _message_text(data: bytes, notes: list[str]) -> str:
    """Return a message's head and all its texts, and note what is attached and not read."""
    message = message_from_bytes(data, policy=policy.default)
    blocks = [_head(message)]
    unread: list[str] = []
    replaced = 0
    redundant = _parts_with_plainer_form(message)
    for number, part in enumerate(message.walk()):
        if number >= _MOST_PARTS:
            break
        kind = part.get_content_maintype()
        if id(part) in redundant or (kind == "multipart" and part.is_multipart()):
            continue
        if part.get_content_type() == "message/rfc822":
            inner = part.get_payload()
            if isinstance(inner, list) and inner and isinstance(inner[0], Message):
                blocks.append(_head(inner[0]))
            continue  # its parts follow
        if kind in ("text", "multipart"):  # "multipart" without a boundary is a text
            text, lost = _part_text(part)
            blocks.append(text)
            replaced += lost
        else:
            unread.append(_file_name(part))
    if unread:
        notes.append(f"attachments that are not read: {', '.join(unread)}")
    if replaced:
        notes.append(lost_note(replaced))
    return "\n\n".join(block.strip() for block in blocks if block.strip())


def _head(message: Message) -> str:
    lines = []
    for name in _HEADERS:
        try:
            value = message.get(name)
        except Exception:  # noqa: S112 — a header that the library cannot parse; the text matters
            continue
        if value is not None and str(value).strip():
            lines.append(f"{name}: {' '.join(str(value).split())}")
    return "\n".join(lines)


def _part_text(part: Message) -> tuple[str, int]:
    """Return a part's text, and how many characters of it had to be replaced."""
    payload = part.get_payload(decode=True)
    if not isinstance(payload, bytes):
        return "", 0
    text, lost = _decode(payload, part.get_content_charset())
    if part.get_content_subtype() == "html":
        return html_to_text(text), lost
    return text.replace("\r\n", "\n"), lost


def _decode(payload: bytes, declared: str | None) -> tuple[str, int]:
    """Decode a part as it declares, else as UTF-8, else with replacements, which are counted."""
    for encoding in (codec_of(declared), "utf-8"):
        try:
            if encoding is not None:
                return payload.decode(encoding), 0
        except UnicodeError:
            continue
    text = payload.decode(codec_of(declared) or "utf-8", "replace")
    return text, text.count("\ufffd")


def _parts_with_plainer_form(message: Message) -> set[int]:
    """Return the ids (as `id` gives them) of HTML parts that are there as plain text too.

    Each part is looked at once or twice, so that the cost does not grow with their square.
    """
    redundant: set[int] = set()
    waiting = [message]
    while waiting:
        part = waiting.pop()
        if not part.is_multipart():
            continue
        if part.get_content_type() != "multipart/alternative":
            waiting.extend(inner for inner in part.get_payload() if isinstance(inner, Message))
            continue
        inside = list(part.walk())
        plain = (one for one in inside if one.get_content_type() == "text/plain")
        if any(_part_text(one)[0].strip() for one in plain):
            redundant.update(id(one) for one in inside if _is_html_body(one))
    return redundant


def _is_html_body(part: Message) -> bool:
    is_attached = part.get_content_disposition() == "attachment"
    return part.get_content_type() == "text/html" and not is_attached


def _file_name(part: Message) -> str:
    try:
        name = part.get_filename()
    except Exception:  # a name that the library cannot parse
        name = None
    return name or part.get_content_type()
