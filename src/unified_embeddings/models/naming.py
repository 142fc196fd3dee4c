"""What a model is called: a name on the hub, or a folder on this machine.

What lives here: telling the two apart by the name alone. What does not: the names that are known
(`catalogue`), finding the files (`resolve`).

A name that can be a hub id never means a folder, whatever the working directory holds: otherwise a
folder `BAAI/bge-m3` in a project that somebody else wrote would take the place of the hub's model,
and its code would run under the consent that was given to the hub's.
"""

from __future__ import annotations

import os
import re

_HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")


def is_hub_id(name: str) -> bool:
    """Tell whether a name has the form of a hub id, owner/name.

    Example:
        >>> is_hub_id("BAAI/bge-m3"), is_hub_id("./BAAI/bge-m3"), is_hub_id("models/m3/")
        (True, False, False)
    """
    return _HUB_ID.fullmatch(name) is not None


def model_name(model: str | os.PathLike[str]) -> str:
    """Return a model's name as a str. A path object stays a path, whatever it looks like.

    Example:
        >>> from pathlib import PurePosixPath
        >>> model_name("BAAI/bge-m3")
        'BAAI/bge-m3'
        >>> model_name(PurePosixPath("BAAI/bge-m3"))
        './BAAI/bge-m3'
    """
    name = os.fsdecode(model)
    if not isinstance(model, str) and is_hub_id(name):
        return f".{os.sep}{name}"
    return name
