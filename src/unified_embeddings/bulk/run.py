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

from unified_embeddings._version import __version__
from unified_embeddings.bulk.estimate import Estimate, estimate_model
from unified_embeddings.bulk.job import JobFolder, Journal, PartLine
from unified_embeddings.bulk.output import OutputOptions, safe_name, write_outputs
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

Format = Literal["npy", "jsonl", "parquet"]

_SLICE_ROWS = 64
"""Rows of one call of the embedder, if `batch_size` does not say: enough to fill its passes."""


@dataclass(frozen=True, kw_only=True)
class BulkOptions:
    """How a bulk job is done.

    Attributes:
        models: Names, hub ids or folders, computed one after the other.
        heads: The vectors to compute; None takes dense.
        role: "document" or "query": which of the model's own prefixes is put before each text.
        prefix: Put before each text in place of the model's own; None takes the model's.
        dtype: Of dense and ColBERT vectors.
        formats: Of the outputs.
        checkpoint_interval: Rows of a part: what a crash loses at most, for each worker.
        batch_size: The most rows of one call of the model; None lets `batch_tokens` decide.
        batch_tokens: The most tokens of a forward pass.
        max_workers: Child processes. On a CPU, one with all cores is quickest.
        devices: A device for each worker, in turn; "auto" lets the model choose.
        dedupe: Whether rows with the same text are computed once.
        fail_fast: Whether the first row that fails ends the job.
        retry_failed: Whether parts with rows that failed are computed again.
        keep_parts: Whether the parts stay after the outputs are written.
        hang_seconds: After how long a silent worker is stopped; None predicts it.
        model_options: Further keyword arguments of the embedder: engine, precision, max_length.
        input: How rows are read.
    """

    models: Sequence[str]
    heads: tuple[HeadName, ...] | None = None
    role: Role = "document"
    prefix: str | None = None
    dtype: Literal["float32", "float16"] = "float32"
    formats: tuple[Format, ...] = ("npy", "jsonl")
    checkpoint_interval: int = 256
    batch_size: int | None = None
    batch_tokens: int = 4096
    max_workers: int = 1
    devices: tuple[str, ...] = ("auto",)
    dedupe: bool = True
    fail_fast: bool = False
    retry_failed: bool = False
    keep_parts: bool = False
    hang_seconds: float | None = None
    model_options: Mapping[str, object] = field(default_factory=dict)
    input: InputOptions = field(default_factory=InputOptions)

    def __post_init__(self) -> None:
        if not self.models:
            raise InputError("name at least one model")
        names = [safe_name(model) for model in self.models]
        if len(set(names)) < len(names):
            raise InputError(f"a model is named twice: {', '.join(self.models)}")
        for name in ("checkpoint_interval", "batch_tokens", "max_workers"):
            require_whole_number(name, getattr(self, name))
        if self.batch_size is not None:
            require_whole_number("batch_size", self.batch_size)
        if not self.devices:
            raise InputError("name at least one device")


@dataclass(frozen=True)
class Progress:
    """How far one model is.

    Attributes:
        model: Its name.
        rows: Rows that are done, those of an earlier run included.
        resumed: Of these, rows that an earlier run had done.
        repeated: Rows so far that repeat an earlier text.
        failed: Rows so far without vectors.
        tokens: Tokens that ran through the model in this run.
        seconds: Since this run began with the model.
        fraction: How much of the input is read, 0 to 1; None where its size is not known.
        phase: "computing" or "writing".
    """

    model: str
    rows: int
    resumed: int
    repeated: int
    failed: int
    tokens: int
    seconds: float
    fraction: float | None
    phase: Literal["computing", "writing"]

    @property
    def remaining_seconds(self) -> float | None:
        """Return how long the rest will take; None where that is not known."""
        if not self.fraction or self.rows <= self.resumed:
            return None
        remaining_rows = self.rows / self.fraction - self.rows
        return remaining_rows / self.rows_per_second

    @property
    def rows_per_second(self) -> float:
        """Return the rows of this run per second."""
        return (self.rows - self.resumed) / max(self.seconds, 1e-9)


@dataclass(frozen=True)
class ModelReport:
    """What became of one model.

    Attributes:
        model: Its name.
        rows: Rows of the input.
        computed: Rows whose vectors were computed, in all runs.
        resumed: Rows that earlier runs had done.
        repeated: Rows that share another row's vectors.
        failed: Rows without vectors.
        tokens: Tokens that ran through the model, in all runs.
        seconds: Of this run.
        files: What was written.
    """

    model: str
    rows: int
    computed: int
    resumed: int
    repeated: int
    failed: int
    tokens: int
    seconds: float
    files: tuple[Path, ...]


class InterruptedJobError(UnifiedEmbeddingsError):
    """A job was interrupted; what is finished is kept."""


class RowFailedError(UnifiedEmbeddingsError):
    """A row failed, and the job was to end at the first that does."""


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


def choose_heads(
    embedder: TextEmbedder, heads: tuple[HeadName, ...] | None
) -> tuple[HeadName, ...]:
    """Return the heads to compute.

    Raises:
        InputError: If the model does not give one of them.
    """
    chosen: tuple[HeadName, ...] = heads or ("dense",)
    for head in chosen:
        if head not in embedder.heads:
            given = ", ".join(embedder.heads)
            raise InputError(f"{embedder.model_name!r} gives {given} vectors, no {head} ones")
    return chosen


def embedder_options(model: str, options: BulkOptions, device: str) -> dict[str, object]:
    """Return what makes a model's embedder, in this process and in the workers."""
    named: str | ModelSpec = model
    if options.prefix is not None:
        named = dataclasses.replace(
            spec_for(model), query_prefix=options.prefix, document_prefix=options.prefix
        )
    return {
        "model": named,
        "cache": None,
        "batch_tokens": options.batch_tokens,
        "device": device,
        **options.model_options,
    }


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
            "slice_rows": options.batch_size or _SLICE_ROWS,
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
                    slice_rows=options.batch_size or _SLICE_ROWS,
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
