"""Names of models as names of files.

What lives here: the one rule. What does not: the files (`output`).
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable

from unified_embeddings.errors import InputError

_SEPARATORS = re.compile(r"[/\\]+")
_OTHERS = re.compile(r"[^\w.+-]+")
_LONGEST = 120
_RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)
"""Names that Windows keeps for devices."""


def safe_file_name(model: str) -> str:
    """Return a model's name as the beginning of file names, on any system.

    A slash becomes "--", any other character that is not a letter, a digit or one of "._+-" becomes
    "_". A name of more than 120 characters keeps its end, after a digest of the whole.

    Raises:
        InputError: If nothing is left of it.

    Example:
        >>> safe_file_name("BAAI/bge-m3"), safe_file_name("bge-large-en-v1.5")
        ('BAAI--bge-m3', 'bge-large-en-v1.5')
    """
    name = _SEPARATORS.sub("--", model.strip().strip("/\\"))
    name = _OTHERS.sub("_", name).lstrip(".-").rstrip(".")
    if not name:
        raise InputError(f"the model's name {model!r} leaves nothing for a file's name")
    if _RESERVED.fullmatch(name):
        name = f"_{name}"
    if len(name) > _LONGEST:
        digest = hashlib.sha256(model.encode("utf-8", "surrogatepass")).hexdigest()[:12]
        name = f"{digest}-{name[-(_LONGEST - 13) :]}"
    return name


def require_different_names(models: Iterable[str]) -> None:
    """Refuse models whose files would have the same names, also where case does not matter.

    Raises:
        InputError: If two of them would; the message names them.
    """
    taken: dict[str, str] = {}
    for model in models:
        name = safe_file_name(model).casefold()
        if name in taken:
            raise InputError(
                f"the models {taken[name]!r} and {model!r} would write the same files, "
                f"{safe_file_name(model)}.*; name each model once"
            )
        taken[name] = model
