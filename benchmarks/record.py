"""What a run on a machine is sent in as: one JSON file, its schema, and checking it.

    python benchmarks/record.py machine.json     check a file, and say what is in it

`run.py` writes the file next to its parts, and again after each part. It names no user, no host and
no folder.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeAlias

FORMAT = 1
"""Goes up when a field changes its meaning or goes away."""
FILE = "machine.json"

Shape: TypeAlias = "type | tuple[type, ...] | dict[str, Shape] | list[Shape]"
"""A type, several, an object with these keys and perhaps others, or a list of one shape."""

_NOTHING = type(None)
SCHEMA: dict[str, Shape] = {
    "format": int,
    "about": {
        "machine": {
            "cpu": str,
            "flags": [str],
            "cores": int,
            "memory": int,
            "system": str,
        },
        "versions": dict,
        "threads": int,
        "date": str,
        "commit": (str, _NOTHING),
        "weights": str,
        "command": str,
    },
    "kernels": {
        "torch": {
            "cpu_capability": str,
            "libraries": [str],
            "has_onednn_fp32": bool,
            "has_onednn_bf16": bool,
            "onednn_isa": (str, _NOTHING),
            "onednn_fp32_kernels": dict,
        },
        "onnxruntime": (dict, _NOTHING),
        "variables": [str],
    },
    "auto": {
        "processor": str,
        "basis": str,
        "engine": str,
        "precision": str,
        "device": str,
        "reason": str,
    },
    "parts": dict,
}
"""What a file must hold. Each part has the content of the part's own JSON file."""
_PART: dict[str, Shape] = {"title": str, "bounds": [dict], "results": {"rows": dict}}


def write(
    out: Path, about: Mapping[str, Any], kernels: Mapping[str, Any], parts: Mapping[str, Any]
) -> None:
    """Write the file of a run.

    Args:
        out: The folder of the run's results.
        about: What `machine.about` returned.
        kernels: What `kernels.describe` returned.
        parts: Name → content of the part's JSON file. Only those of this machine are taken.
    """
    told = dict(kernels)
    auto = told.pop("auto")
    here = {
        name: part for name, part in parts.items() if part["about"]["machine"] == about["machine"]
    }
    content = {"format": FORMAT, "about": about, "kernels": told, "auto": auto, "parts": here}
    text = json.dumps(content, indent=1, ensure_ascii=False) + "\n"
    (out / FILE).write_text(text, "utf-8")


def problems(record: object) -> list[str]:
    """Return what is wrong with a file's content, one line each; none if it can be sent in."""
    found = list(_differences(record, SCHEMA, "the file"))
    if found or not isinstance(record, dict):
        return found
    if record["format"] != FORMAT:
        return [f"format is {record['format']}, where {FORMAT} is read; measure with this version"]
    if record["auto"]["basis"] not in ("measured", "expected"):
        found.append(f"auto.basis is {record['auto']['basis']!r}, not measured or expected")
    if not record["parts"]:
        found.append("parts is empty: nothing was measured")
    for name, part in record["parts"].items():
        found += _differences(part, _PART, f"parts.{name}")
    return found


def _differences(value: object, shape: Shape, place: str) -> Iterator[str]:
    """Yield where a value does not have its shape."""
    if isinstance(shape, dict):
        if not isinstance(value, dict):
            yield f"{place} is {_kind(value)}, where an object is expected"
            return
        for key, inner in shape.items():
            if key in value:
                yield from _differences(value[key], inner, f"{place}.{key}")
            else:
                yield f"{place} has no {key!r}"
    elif isinstance(shape, list):
        if not isinstance(value, list):
            yield f"{place} is {_kind(value)}, where a list is expected"
            return
        for number, element in enumerate(value):
            yield from _differences(element, shape[0], f"{place}[{number}]")
    # In Python True is a whole number, in JSON it is not.
    elif not isinstance(value, shape) or (isinstance(value, bool) and shape is int):
        yield f"{place} is {_kind(value)}, where {_names(shape)} is expected"


def _kind(value: object) -> str:
    return "null" if value is None else type(value).__name__


def _names(shape: type | tuple[type, ...]) -> str:
    types = shape if isinstance(shape, tuple) else (shape,)
    return " or ".join("null" if kind is _NOTHING else kind.__name__ for kind in types)


def main(arguments: list[str] | None = None) -> None:
    """Check the file that the command line names, and say what is in it.

    Raises:
        SystemExit: If it cannot be read or something is wrong with it.
    """
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("file", type=Path, help=f"a {FILE} that run.py has written")
    path = parser.parse_args(arguments).file
    try:
        record = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise SystemExit(f"{path} is not a readable JSON file: {error}") from error
    if found := problems(record):
        raise SystemExit("\n".join([f"{path} cannot be used:", *found]))
    about, auto = record["about"], record["auto"]
    print(f"{about['machine']['cpu']}: {auto['processor']}, {auto['basis']} until now")
    print(f"auto takes {auto['engine']} {auto['precision']}; parts: {', '.join(record['parts'])}")


if __name__ == "__main__":
    main()
