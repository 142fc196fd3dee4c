"""Vectors of a former model, looked at so that nobody takes them for the new ones.

What lives here: what an old `.npy` file holds. What does not: making new ones (`moving`).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from unified_embeddings.errors import InputError


@dataclass(frozen=True)
class OldVectors:
    """What a file of old vectors holds.

    Attributes:
        rows: Its vectors.
        dimension: Numbers of each.
        model: Name of their model, if metadata beside the file tell it; None otherwise.
        fingerprint: Of that model; None if not known.
    """

    rows: int
    dimension: int
    model: str | None = None
    fingerprint: str | None = None


def read_old_vectors(file: Path, output: Path) -> OldVectors:
    """Look at old vectors; only the file's header and its metadata are read.

    Args:
        file: A `.npy` file with an array (n, d).
        output: Where the new vectors go.

    Raises:
        InputError: If the file is the output, or is not such an array.
    """
    if file.resolve() == output.resolve():
        raise InputError(
            f"{file} holds the old vectors, and the new ones cannot go into it: vectors of two "
            "models never mix. Give another --output"
        )
    try:
        array = np.load(file, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        raise InputError(f"--old: there is no file {str(file)!r}") from None
    except (OSError, ValueError, EOFError) as error:
        raise InputError(
            f"--old: {file} is not a NumPy array that can be read ({error}); give the .npy file of "
            "the old vectors, or leave --old out"
        ) from None
    if not isinstance(array, np.ndarray) or array.ndim != 2:
        shape = getattr(array, "shape", "several arrays")
        raise InputError(f"--old: expected an array (rows, dimension) in {file}, got {shape}")
    model = fingerprint = None
    try:
        metadata = json.loads(file.with_name(f"{file.name}.metadata.json").read_text("utf-8"))
        model, fingerprint = str(metadata["model_name"]), str(metadata["fingerprint"])
    except (OSError, ValueError, KeyError, TypeError):
        pass  # Vectors from elsewhere have no such file.
    return OldVectors(
        rows=array.shape[0], dimension=array.shape[1], model=model, fingerprint=fingerprint
    )


def compare_vectors(
    old_file: Path, old: OldVectors, *, rows: int, dimension: int, fingerprint: str
) -> str:
    """Return in words how old vectors and new ones differ.

    Args:
        old_file: Of the old ones.
        old: What it holds.
        rows: Of the new vectors.
        dimension: Of the new vectors.
        fingerprint: Of the new model.
    """
    made_by = f" of {old.model}" if old.model else ""
    lines = [
        f"{old_file}: {old.rows:,} vectors{made_by} with {old.dimension:,} numbers; "
        f"now {rows:,} with {dimension:,}."
    ]
    if old.fingerprint == fingerprint:
        lines.append("Both are of the same model, so that they can be compared.")
    elif old.dimension == dimension:
        lines.append("The dimension is the same, the models are not known to be: never mix them.")
    else:
        lines.append("They cannot be compared: replace all the old ones, and mix none of them in.")
    if old.rows != rows:
        lines.append("The numbers of rows differ: the old vectors are not of exactly this input.")
    return " ".join(lines)
