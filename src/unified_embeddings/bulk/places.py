"""Where the input is and where the outputs go: the two must not meet.

What lives here: refusing an output that would be read as input or replace it. What does not:
reading (`reader`) and writing (`output`).
"""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

from unified_embeddings.bulk.file_names import safe_file_name
from unified_embeddings.bulk.input_files import Source, is_pipe
from unified_embeddings.bulk.object_store import StoredFile, is_url
from unified_embeddings.bulk.options import BulkOptions
from unified_embeddings.bulk.output import FAILED_FILE
from unified_embeddings.bulk.reader import CheckedInput, check_input
from unified_embeddings.errors import InputError


def check_places(
    source: Source, output: str | os.PathLike[str], folder: Path, options: BulkOptions
) -> CheckedInput:
    """Look at an input, and at where its outputs go, before anything expensive begins.

    Args:
        source: The input.
        output: A folder, or a URL on an object store.
        folder: Where the job works: `output` itself if it is a folder.
        options: Of the job.

    Raises:
        InputError: As `check_input`; also if the outputs would be read as input or replace it, or
            an input that can be read only once is to be read for several models.
    """
    left_out = [*options.input.leave_out, folder]
    if options.collection is not None and options.collection.path is not None:
        left_out.append(Path(options.collection.path))
    if isinstance(output, str) and is_url(output):
        left_out.append(output)
    if _is_same_folder(source, output):
        raise InputError(
            f"{output} is the folder of the input; outputs in it would be read as input the next "
            "time. Give another folder as --output, which may be inside it"
        )
    input_options = dataclasses.replace(options.input, leave_out=tuple(left_out))
    checked = check_input(source, input_options)
    _require_other_files(checked, folder, options)
    if len(options.models) > 1 and not checked.is_repeatable:
        name = checked.parts[0].name or "an iterator"
        raise InputError(
            f"{name} can be read once, and there are {len(options.models)} models; save the rows "
            "to a file first, or give one model"
        )
    return checked


def _is_same_folder(source: Source, output: str | os.PathLike[str]) -> bool:
    """Tell whether the outputs would go into the input's folder itself."""
    if not isinstance(source, str | Path) or is_pipe(source):
        return False
    if is_url(source) or is_url(output):
        return str(source).rstrip("/") == str(output).rstrip("/")
    folder = Path(output)
    return folder.is_dir() and Path(source).resolve() == folder.resolve()


def _require_other_files(checked: CheckedInput, folder: Path, options: BulkOptions) -> None:
    """Refuse an input file that an output would replace."""
    beginnings = tuple(f"{safe_file_name(model)}." for model in options.models)
    for file in checked.description.files:
        if isinstance(file.path, StoredFile):
            continue
        path = file.path.resolve()
        if path.parent != folder.resolve():
            continue
        if path.name == FAILED_FILE or path.name.startswith(beginnings):
            raise InputError(
                f"{file.path} is input, and the job would replace it with its own "
                f"{path.name}; give another --output"
            )
