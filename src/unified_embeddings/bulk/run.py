"""A bulk job from its first row to its outputs.

What lives here: `embed_rows`, which goes through the models one after the other: plan the parts,
compute those that are missing, put them together. What does not: each of these steps.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from unified_embeddings.bulk.estimate import Estimate, estimate_model
from unified_embeddings.bulk.job import JobFolder, Journal, PartLine
from unified_embeddings.bulk.output import safe_name
from unified_embeddings.bulk.planning import FirstOccurrences, PartTask, plan_parts
from unified_embeddings.bulk.pool import WorkerPool, share_cores
from unified_embeddings.bulk.reader import CheckedInput, RowReader, Source, check_input, read_rows
from unified_embeddings.bulk.rows import InputOptions, Row
from unified_embeddings.bulk.worker import Finished, MakeEmbedder, WorkerSettings
from unified_embeddings.embedders.base import TextEmbedder
from unified_embeddings.embedders.factory import make_embedder
from unified_embeddings.errors import InputError, UnifiedEmbeddingsError
from unified_embeddings.models.catalogue import spec_for
from unified_embeddings.models.spec import ModelSpec
from unified_embeddings.system.files import NoSpaceError
from unified_embeddings.types import HeadName, Role
from unified_embeddings.validation import require_whole_number

def embed_rows(
    source: Source,
    output: str | os.PathLike[str],
    options: BulkOptions,
    *,
    on_progress: Callable[[Progress], None] | None = None,
    make: MakeEmbedder = make_embedder,
) -> list[ModelReport]:
    """Embed many rows with one model or several, in parts that survive a crash.

    To resume a job that was interrupted or killed, make the same call again: parts that are
    finished are kept, and the outputs are the same as without the interruption.

    Args:
        source: A file, a folder of files, "-" for standard input, or rows as dicts or texts. An
            iterable is read once for each model, so several models need a list or files.
        output: The folder of the outputs.
        options: How it is done.
        on_progress: Called after each part, and when outputs are written.
        make: Makes the embedder in the child process: a function of an importable module that
            takes `model` and the options as keyword arguments.

    Returns:
        A report for each model, in the order of the models.

    Raises:
        InputError: If the input cannot be read, has no text, or an option is wrong.
        OtherJobError: If the folder holds another job, or the input has changed.
        ModelLoadError: If a model cannot be loaded.
        InterruptedJobError: After Ctrl-C; the parts in hand are finished first.
        StoreError, UnifiedEmbeddingsError: If the disk is full, or workers cannot be started.

    Example:
        >>> from unified_embeddings.bulk.run import BulkOptions, embed_rows
        >>> rows = [{"id": 1, "text": "Foxes jump."}, {"id": 2, "text": "Dogs sleep."}]
        >>> (report,) = embed_rows(rows, "vectors", BulkOptions(models=["mini-m3"]))
        >>> report.rows, report.failed
        (2, 0)
        >>> import numpy as np
        >>> np.load("vectors/mini-m3.npy").shape
        (2, 384)
    """
    checked = check_input(source, options.input)
    reports = []
    with JobFolder(Path(output)) as job:
        for model in options.models:
            run = _ModelRun(job, model, options, on_progress or _ignore, make)
            reports.append(run.run(checked))
    return reports


def estimate(
    source: Source,
    output: str | os.PathLike[str],
    options: BulkOptions,
    *,
    make: MakeEmbedder = make_embedder,
) -> Iterator[Estimate]:
    """Estimate what `embed_rows` with the same arguments would cost; nothing is written.

    Yields:
        An estimate for each model, which is loaded for it.

    Raises:
        InputError, ModelLoadError: As `embed_rows`.
    """
    checked = check_input(source, options.input)
    for model in options.models:
        with make(**embedder_options(model, options, options.devices[0])) as embedder:
            yield estimate_model(
                checked,
                Path(output),
                embedder,
                model=model,
                heads=choose_heads(embedder, options.heads),
                role=options.role,
                dtype=options.dtype,
            )


class _ModelRun:
    """One model of a job."""

    def __init__(
        self,
        job: JobFolder,
        model: str,
        options: BulkOptions,
        on_progress: Callable[[Progress], None],
        make: MakeEmbedder,
    ) -> None:
        self._job = job
        self._model = model
        self._options = options
        self._on_progress = on_progress
        self._make = make
        self._began = time.perf_counter()
        self._resumed = self._tokens = 0
        self._runtime: dict[str, str] = {}
        self._reader: RowReader | None = None
        self._total_bytes: int | None = None

    def run(self, checked: CheckedInput) -> ModelReport:
        """Compute what is missing, and write the outputs."""
        options = self._options
        embedder = self._make(**embedder_options(self._model, options, options.devices[0]))
        heads = choose_heads(embedder, options.heads)
        description = self._describe(embedder, heads)
        with self._job.open_model(safe_name(self._model), description) as journal:
            if options.retry_failed:
                for line in journal.lines:
                    if line.failed:
                        journal.forget(line.part)
            self._total_bytes = checked.description.total_bytes
            self._reader = read_rows(checked)
            self._compute(journal, embedder, heads, self._reader)
            return self._write(journal, embedder, heads)

    def _describe(self, embedder: TextEmbedder, heads: Sequence[HeadName]) -> dict[str, object]:
        """Return all that decides what the parts hold."""
        options = self._options
        return {
            "model": self._model,
            "fingerprint": embedder.fingerprint,
            "max_length": embedder.max_length,
            "heads": list(heads),
            "role": options.role,
            "prefix": options.prefix,
            "dtype": options.dtype,
            "part_rows": options.checkpoint_interval,
            "slice_rows": options.batch_size or DEFAULT_SLICE_ROWS,
            "batch_tokens": options.batch_tokens,
            "dedupe": options.dedupe,
            "model_options": {key: str(value) for key, value in options.model_options.items()},
        }

    # --- computing ------------------------------------------------------------------------------

    def _compute(
        self,
        journal: Journal,
        embedder: TextEmbedder,
        heads: tuple[HeadName, ...],
        rows: Iterable[Row],
    ) -> None:
        """Compute the parts that the journal does not have."""
        with contextlib.ExitStack() as stack:
            occurrences = None
            if self._options.dedupe:
                occurrences = stack.enter_context(
                    FirstOccurrences(journal.folder, embedder.normal_form)
                )
            tasks = plan_parts(rows, self._options.checkpoint_interval, occurrences)
            pending: dict[int, PartTask] = {}
            missing = self._skip_finished(journal, tasks, pending)
            first = next(missing, None)
            if first is None:
                return
            pool = stack.enter_context(
                WorkerPool(self._settings(journal, heads), hang_seconds=self._options.hang_seconds)
            )
            try:
                for finished in pool.compute(_chain(first, missing)):
                    self._note(journal, pending.pop(finished.part), finished)
            except KeyboardInterrupt:
                for finished in pool.stop_after_parts_in_hand():
                    self._note(journal, pending.pop(finished.part), finished)
                raise InterruptedJobError(
                    f"interrupted; {journal.totals.rows} rows of {self._model} are finished and kept. To resume, "
                    "run the same command again"
                ) from None
            except OSError as error:
                raise _explain_disk(error, journal.folder) from None
            self._runtime = pool.runtime

    def _skip_finished(
        self, journal: Journal, tasks: Iterable[PartTask], pending: dict[int, PartTask]
    ) -> Iterator[PartTask]:
        """Yield the parts that are not finished, and count those that are."""
        for task in tasks:
            if journal.is_done(task.number, task.rows_digest):
                self._resumed += len(task.records)
                self._tell(journal, "computing")
            else:
                pending[task.number] = task
                yield task

    def _settings(self, journal: Journal, heads: tuple[HeadName, ...]) -> list[WorkerSettings]:
        options = self._options
        cores = share_cores(options.max_workers)
        settings = []
        for number in range(options.max_workers):
            device = options.devices[number % len(options.devices)]
            settings.append(
                WorkerSettings(
                    make_embedder=self._make,
                    options=embedder_options(self._model, options, device),
                    heads=heads,
                    role=options.role,
                    dtype=options.dtype,
                    folder=journal.folder,
                    slice_rows=options.batch_size or DEFAULT_SLICE_ROWS,
                    cores=cores[number],
                )
            )
        return settings

    def _note(self, journal: Journal, task: PartTask, finished: Finished) -> None:
        """Write down that a part is finished."""
        self._tokens += finished.tokens
        journal.add(
            PartLine(
                part=task.number,
                first_row=task.first_row,
                rows=len(task.records),
                rows_digest=task.rows_digest,
                sha256=finished.sha256,
                bytes=finished.bytes,
                computed=finished.computed,
                failed=finished.failed,
                tokens=finished.tokens,
                truncated=finished.truncated,
                seconds=finished.seconds,
            )
        )
        self._tell(journal, "computing")
        if finished.failed and self._options.fail_fast:
            raise RowFailedError(
                f"a row among {task.first_row} to {task.first_row + len(task.records) - 1} failed; "
                f"{journal.part_path(task.number)} holds the reason. Without --fail-fast the job "
                "goes on and lists such rows in failed.jsonl"
            )

    def _tell(self, journal: Journal, phase: Literal["computing", "writing"]) -> None:
        totals = journal.totals
        self._on_progress(
            Progress(
                model=self._model,
                rows=totals.rows,
                resumed=self._resumed,
                repeated=totals.repeated,
                failed=totals.failed,
                tokens=self._tokens,
                seconds=time.perf_counter() - self._began,
                fraction=self._fraction(),
                phase=phase,
            )
        )

    def _fraction(self) -> float | None:
        total = None if self._total_bytes is None else max(self._total_bytes, 1)
        if total is None or self._reader is None:
            return None
        return min(1.0, self._reader.bytes_read / total)

    # --- writing --------------------------------------------------------------------------------

    def _write(
        self, journal: Journal, embedder: TextEmbedder, heads: tuple[HeadName, ...]
    ) -> ModelReport:
        """Put the parts together as the outputs, and drop them."""
        self._tell(journal, "writing")
        totals = journal.totals
        raise NotImplementedError


def _chain(first: PartTask, others: Iterator[PartTask]) -> Iterator[PartTask]:
    yield first
    yield from others


def _explain_disk(error: OSError, folder: Path) -> Exception:
    """Return a full disk as an error that says what to do; other errors stay."""
    if isinstance(error, NoSpaceError) or error.errno == errno.ENOSPC:
        return UnifiedEmbeddingsError(
            f"the disk of {folder} is full; what is finished is kept. Make room, and run the same "
            "command again to resume"
        )
    return error


def _ignore(_: Progress) -> None:
    pass
