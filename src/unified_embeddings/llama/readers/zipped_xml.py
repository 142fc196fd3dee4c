"""Office files are zip archives of XML: opening them, and reading a part without trusting it.

What lives here: the archive, its relations between parts, and events of an XML part. What does not:
what the elements of a format mean.
"""

from __future__ import annotations

import io
import lzma
import posixpath
import re
import struct
import zipfile
import zlib
from typing import Protocol
from xml.etree import ElementTree

from unified_embeddings.errors import InputError
from unified_embeddings.llama.readers.content import lost_note

_LARGEST_PART = 2**29
"""Bytes of an unpacked part, against archives made to fill the memory."""
_OLD_OFFICE_FILE = b"\xd0\xcf\x11\xe0"
_UTF16_STARTS = (b"\xff\xfe", b"\xfe\xff", b"<\0", b"\0<")
_CONTROL_CHARACTERS = re.compile(rb"[\x00-\x08\x0b\x0c\x0e-\x1f]|\xef\xbf[\xbe\xbf]")
"""Bytes in UTF-8 that no XML may hold; a parser gives up at the first."""
_REFERENCE = re.compile(rb"&#(?:x([0-9a-fA-F]+)|([0-9]+));")
_REPLACEMENT = "\ufffd".encode()


class XmlTarget(Protocol):
    """Receives the events of an XML part; names are without their namespace.

    An attribute in a namespace is also there with a colon in front, since an element may have two
    of one name: `id` and `:id`.
    """

    def start(self, name: str, attributes: dict[str, str]) -> None:
        """Take the start of an element."""

    def end(self, name: str) -> None:
        """Take the end of an element."""

    def data(self, text: str) -> None:
        """Take text within an element."""


class ZippedFile:
    """A file that is a zip archive.

    Args:
        data: Its bytes.
        kind: What it should be, for messages.

    Raises:
        InputError: If it is not a zip archive.
    """

    def __init__(self, data: bytes, kind: str) -> None:
        self._kind = kind
        if data.startswith(_OLD_OFFICE_FILE):
            raise InputError(
                f"is not {kind}: it is protected by a password, or in the binary format of old "
                "Office versions. Save it again without a password, in the current format"
            )
        try:
            self._archive = zipfile.ZipFile(io.BytesIO(data))
        except (
            zipfile.BadZipFile,
            ValueError,
            NotImplementedError,
            OSError,
            struct.error,
        ) as error:
            raise InputError(f"is not {kind}: {error}") from error
        self.names = self._archive.namelist()
        self._lost = 0

    @property
    def notes(self) -> list[str]:
        """Return the note on characters that no XML may hold, if parts had some."""
        return [lost_note(self._lost)] if self._lost else []

    def read(self, name: str) -> bytes:
        """Return the bytes of a part.

        Raises:
            InputError: If it does not exist, is damaged, encrypted or too large.
        """
        try:
            size = self._archive.getinfo(name).file_size
            if size > _LARGEST_PART:
                raise InputError(f"its part {name} is too large to read: {size:,} bytes")
            return self._archive.read(name)
        except KeyError:
            raise InputError(f"is not {self._kind}: it has no part {name}") from None
        except InputError:
            raise
        except (zipfile.BadZipFile, RuntimeError, NotImplementedError, OSError, EOFError,
                ValueError, struct.error, zlib.error, lzma.LZMAError) as error:  # fmt: skip
            raise InputError(f"its part {name} cannot be unpacked: {error}") from error

    def parse(self, name: str, target: XmlTarget) -> None:
        """Send the events of an XML part to a target.

        Characters that no XML may hold are replaced by U+FFFD, and counted for `notes`.

        Raises:
            InputError: Like `read`, or if the part is not valid XML.
        """
        data, lost = _mend_xml(self.read(name))
        self._lost += lost
        parse_xml(data, target, name)

    def relations(self, part: str) -> dict[str, tuple[str, str]]:
        """Return what a part refers to within the file: id → (type, name of the part).

        Args:
            part: A part's name; "" for the file itself.
        """
        folder, file_name = posixpath.split(part)
        name = posixpath.join(folder, "_rels", f"{file_name}.rels")
        if name not in self.names:
            return {}
        target = _Relations(folder)
        self.parse(name, target)
        return target.relations

    def related(self, part: str, *types: str) -> list[str]:
        """Return the parts of these types that a part refers to and that exist, in order."""
        related = []
        for kind, name in self.relations(part).values():
            if kind in types and name in self.names and name not in related:
                related.append(name)
        return related


def _mend_xml(data: bytes) -> tuple[bytes, int]:
    """Replace what is no character of XML by U+FFFD; return also how many there were."""
    if data.startswith(_UTF16_STARTS) or not _is_declared_utf8(data):
        return data, 0
    lost = 0
    try:
        data.decode()
    except UnicodeDecodeError:
        text = data.decode(errors="replace")
        lost += text.count("\ufffd") - data.count(_REPLACEMENT)
        data = text.encode()
    data, replaced = _CONTROL_CHARACTERS.subn(_REPLACEMENT, data)
    lost += replaced

    def mend_reference(match: re.Match[bytes]) -> bytes:
        nonlocal lost
        if _is_xml_character(match):
            return match[0]
        lost += 1
        return _REPLACEMENT

    return _REFERENCE.sub(mend_reference, data), lost


def _is_declared_utf8(data: bytes) -> bool:
    declaration = re.match(rb"(?:\xef\xbb\xbf)?\s*<\?xml[^>]*encoding\s*=\s*['\"]([^'\"]*)", data)
    return declaration is None or declaration[1].lower() in (b"utf-8", b"utf8", b"us-ascii")


def _is_xml_character(reference: re.Match[bytes]) -> bool:
    """Tell whether a reference such as `&#x41;` names a character that XML may hold."""
    digits = reference[1] or reference[2]
    significant = digits.lstrip(b"0")
    if len(significant) > 7:  # beyond Unicode, and maybe beyond what int() takes
        return False
    number = int(significant or b"0", 16 if reference[1] else 10)
    return (
        number in (0x9, 0xA, 0xD)
        or 0x20 <= number < 0xD800
        or 0xE000 <= number < 0xFFFE
        or 0x10000 <= number < 0x110000
    )


def parse_xml(data: bytes, target: XmlTarget, name: str) -> None:
    """Send the events of an XML document to a target.

    Raises:
        InputError: If it is not valid XML, or declares a document type, which could define
            entities that grow without bound.
    """
    try:
        # A target of one's own is fed event by event: no tree is built, and nothing recurses.
        parser = ElementTree.XMLParser(target=_LocalNames(target, name))  # noqa: S314 — see above
        parser.feed(data)
        parser.close()
    except (ElementTree.ParseError, ValueError, LookupError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"its part {name} is not valid XML: {error}") from error


class _LocalNames:
    """Drops the namespaces of names and refuses document types."""

    def __init__(self, target: XmlTarget, name: str) -> None:
        self._target = target
        self._name = name
        self.data = target.data

    def start(self, tag: str, attributes: dict[str, str]) -> None:
        local: dict[str, str] = {}
        for key, value in attributes.items():
            namespace, _, name = key.rpartition("}")
            if namespace:
                local[f":{name}"] = value
                local.setdefault(name, value)
            else:
                local[name] = value
        self._target.start(tag.rpartition("}")[2], local)

    def end(self, tag: str) -> None:
        self._target.end(tag.rpartition("}")[2])

    def doctype(self, name: str, public_id: str | None, system_id: str | None) -> None:  # noqa: ARG002
        raise InputError(f"its part {self._name} declares a document type, which is not read")

    def close(self) -> None:
        pass


class _Relations:
    def __init__(self, folder: str) -> None:
        self.relations: dict[str, tuple[str, str]] = {}
        self._folder = folder

    def start(self, name: str, attributes: dict[str, str]) -> None:
        if name != "Relationship" or attributes.get("TargetMode") == "External":
            return
        target = attributes.get("Target", "")
        # A target that begins with a slash counts from the root of the archive.
        path = posixpath.normpath(posixpath.join("/", self._folder, target)).lstrip("/")
        kind = attributes.get("Type", "").rpartition("/")[2]
        self.relations[attributes.get("Id", "")] = (kind, path)

    def end(self, name: str) -> None:
        pass

    def data(self, text: str) -> None:
        pass
