"""Where a job works, and where its outputs go.

What lives here: the job's folder, and bringing outputs to an object store at the end. What does
not: the store itself (`object_store`), and writing outputs (`output`).
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path

from unified_embeddings.bulk.input_files import Source
from unified_embeddings.bulk.object_store import (
    default_work_folder,
    is_url,
    require_writable,
    stored_size,
    upload_files,
)
from unified_embeddings.bulk.options import ModelReport
from unified_embeddings.bulk.output import FAILED_FILE
from unified_embeddings.errors import InputError


def choose_folder(source: Source, output: str | os.PathLike[str], work_dir: Path | None) -> Path:
    """Return the folder that the job works in, on this machine.

    Args:
        source: The input.
        output: A folder, which is the job's own too, or a URL on an object store.
        work_dir: The folder if `output` is a URL; None takes one in the user's cache.

    Raises:
        InputError: If there is a `work_dir` and `output` is no URL, or neither it nor the input
            tells this job from others.
    """
    if isinstance(output, str) and is_url(output):
        return work_dir or default_work_folder(source, output)
    if work_dir is not None:
        raise InputError("--work-dir goes with an --output on an object store; leave it out")
    return Path(output)


def require_destination(output: str | os.PathLike[str]) -> None:
    """Refuse outputs on an object store that cannot be written to, or in a file.

    Raises:
        InputError: If it is one of them.
    """
    if isinstance(output, str) and is_url(output):
        require_writable(output)
        return
    folder = Path(output)
    for place in (folder, *folder.parents):
        if place.is_dir():
            return
        if place.exists():
            raise InputError(
                f"{place} is a file, and the outputs go into a folder; give another --output"
            )


def has_output(output: str | os.PathLike[str], folder: Path, name: str, size: int) -> bool:
    """Tell whether an output is where it belongs, with a size in bytes.

    Args:
        output: A folder, or a URL on an object store.
        folder: The job's own: `output` itself if it is a folder.
        name: Of the output.
        size: What it must have.
    """
    if isinstance(output, str) and is_url(output):
        return stored_size(output, name) == size
    try:
        return (folder / name).stat().st_size == size
    except OSError:
        return False


def upload_reports(reports: Sequence[ModelReport], url: str, folder: Path) -> list[ModelReport]:
    """Upload the outputs, and remove them here once all of them are on the store.

    The metadata stay here too: they tell the next run what is finished.

    Args:
        reports: Of all models, with the paths of their files, metadata last.
        url: The folder on the store.
        folder: The job's own.

    Returns:
        The reports, with the files' URLs.

    Raises:
        UploadError: If one cannot be uploaded.
    """
    uploaded = []
    for report in reports:
        files = [Path(file) for file in report.files]
        if report.was_finished:
            urls = [f"{url.rstrip('/')}/{file.name}" for file in files]
        else:
            urls = upload_files(files, url, folder)
        uploaded.append(dataclasses.replace(report, files=tuple(urls)))
    upload_files([folder / FAILED_FILE], url, folder)
    for report in reports:
        for file in report.files[:-1]:
            Path(file).unlink(missing_ok=True)
    return uploaded
