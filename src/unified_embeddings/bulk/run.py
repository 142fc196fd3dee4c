"""A bulk job from its first row to its outputs.

What lives here: `embed_rows`, which goes through the models one after the other: plan the parts,
compute those that are missing, put them together. What does not: each of these steps.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

from unified_embeddings.bulk.completion import (
    RunFacts,
    explain_os_error,
    find_finished,
    other_outputs,
    write_description,
    write_model,
)
from unified_embeddings.bulk.destination import (
    choose_folder,
    require_destination,
    upload_reports,
)
from unified_embeddings.bulk.estimate import Estimate, estimate_model
from unified_embeddings.bulk.file_names import safe_file_name
from unified_embeddings.bulk.input_files import Source
from unified_embeddings.bulk.job import JobFolder, Journal, OtherJobError, PartLine
from unified_embeddings.bulk.object_store import is_url
from unified_embeddings.bulk.options import (
    DEFAULT_SLICE_ROWS,
    BulkOptions,
    CollectionTarget,
    InterruptedJobError,
    ModelReport,
    Progress,
    RowFailedError,
    choose_heads,
    embedder_options,
)
from unified_embeddings.bulk.output import write_failures
from unified_embeddings.bulk.places import check_places
from unified_embeddings.bulk.planning import (
    FirstOccurrences,
    PartTask,
    UniqueIds,
    digest_input,
    plan_parts,
)
from unified_embeddings.bulk.pool import WorkerPool
from unified_embeddings.bulk.reader import CheckedInput, RowReader, read_rows
from unified_embeddings.bulk.rows import Row
from unified_embeddings.bulk.worker import Finished, MakeEmbedder, WorkerSettings
from unified_embeddings.embedders.base import TextEmbedder
from unified_embeddings.embedders.factory import make_embedder
from unified_embeddings.errors import StoreError
from unified_embeddings.types import HeadName

if TYPE_CHECKING:
    from unified_embeddings.bulk.collection import CollectionWriter


class Pool(Protocol):
    """What computes parts: child processes here, or a Ray cluster."""

    runtime: Mapping[str, str]
    deaths: int

    def compute(self, tasks: Iterable[PartTask]) -> Iterator[Finished]:
        """Compute parts, and yield them as they are published."""
        ...

    def stop_after_parts_in_hand(self) -> Iterator[Finished]:
        """Finish what is under way, and yield it."""
        ...


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
        output: The folder of the outputs, or its URL on an object store.
        options: How it is done.
        on_progress: Called after each part, and when outputs are written.
        make: Makes the embedder in the child process: a function of an importable module that
            takes `model` and the options as keyword arguments.

    Returns:
        A report for each model, in the order of the models.

    Raises:
        InputError: If the input cannot be read, has no text, or an option is wrong.
        OtherJobError: If the folder holds another job, or the input has changed.
        MissingExtraError: If a format needs a library that is not installed.
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
    folder = choose_folder(source, output, options.work_dir)
    checked = check_places(source, output, folder, options)
    require_destination(output)
    with contextlib.ExitStack() as stack:
        runs = []
        for model in options.models:  # All of them, before the first one's hours of work begin.
            embedder = make(**embedder_options(model, options, options.devices[0]))
            stack.callback(embedder.close)
            runs.append(_ModelRun(model, embedder, options, on_progress or _ignore, make))
        job = stack.enter_context(JobFolder(folder))
        try:
            reports = [run.run(job, checked) for run in runs]
            write_failures(job.find_failures(), folder)
            if is_url(output):
                reports = upload_reports(reports, str(output), folder)
            for report in reports:
                name = safe_file_name(report.model)
                # Rows that failed may be tried again, for which their parts are needed.
                if not report.failed and not options.keep_parts and job.has_parts(name):
                    job.drop_parts(name)
        except KeyboardInterrupt:
            raise InterruptedJobError(
                "interrupted; what is finished is kept. To resume, run the same command again"
            ) from None
        except OSError as error:
            raise explain_os_error(error, folder) from None
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
    folder = choose_folder(source, output, options.work_dir)
    checked = check_places(source, output, folder, options)
    for model in options.models:
        with make(**embedder_options(model, options, options.devices[0])) as embedder:
            yield estimate_model(
                checked,
                folder,
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
        model: str,
        embedder: TextEmbedder,
        options: BulkOptions,
        on_progress: Callable[[Progress], None],
        make: MakeEmbedder,
    ) -> None:
        self._model = model
        self._embedder = embedder
        self._options = options
        self._on_progress = on_progress
        self._make = make
        self._heads = choose_heads(embedder, options.heads)
        self._description = self._describe(embedder, self._heads)
        self._began = time.perf_counter()
        self._resumed = self._tokens = 0
        self._deaths = 0
        self._runtime: Mapping[str, str] = {}
        self._writer: CollectionWriter | None = None
        self._reader: RowReader | None = None
        self._total_bytes: int | None = None

    def run(self, job: JobFolder, checked: CheckedInput) -> ModelReport:
        """Compute what is missing, and write the outputs."""
        self._began = time.perf_counter()
        name = safe_file_name(self._model)
        if not job.has_parts(name):
            finished = self._find_finished(job.folder, checked)
            if finished is not None:
                return finished
        with job.open_model(name, self._description) as journal:
            if self._options.retry_failed:
                journal.forget([line.part for line in journal.lines if line.failed])
            self._total_bytes = checked.description.total_bytes
            self._reader = read_rows(checked)
            with self._open_collection(journal, self._embedder):
                self._compute(journal, self._embedder, self._heads, self._reader)
            return self._write(journal, job.folder)

    def _find_finished(self, folder: Path, checked: CheckedInput) -> ModelReport | None:
        """Return the report of outputs that an earlier run has finished; None if there are none.

        Raises:
            OtherJobError: If there are outputs of another input, or made otherwise.
        """
        options = self._options
        finished = find_finished(folder, self._model, self._description, options.formats)
        # What a collection holds by now, and an input that can be read once, cannot be compared.
        if finished is None or options.collection is not None or not checked.is_repeatable:
            return None
        with contextlib.ExitStack() as stack:
            occurrences = None
            if options.dedupe:
                occurrences = stack.enter_context(
                    FirstOccurrences(folder, self._embedder.normal_form)
                )
            reader = stack.enter_context(read_rows(checked))
            tasks = plan_parts(reader, options.checkpoint_interval, occurrences, keep_texts=False)
            digest = digest_input(task.rows_digest for task in tasks)
        if digest != finished.input_digest:
            raise other_outputs(folder, self._model, "its input was another, or has changed")
        return ModelReport(
            model=self._model,
            rows=finished.rows,
            computed=finished.computed,
            resumed=finished.rows,
            repeated=finished.repeated,
            failed=0,
            tokens=finished.tokens,
            seconds=time.perf_counter() - self._began,
            files=finished.files,
            was_finished=True,
        )

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
            "keep_texts": options.collection is not None,
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
            id_field = self._options.input.id_field
            if self._options.collection is not None and id_field is not None:
                unique = stack.enter_context(UniqueIds(journal.folder, id_field))
                rows = unique.check(rows)
            tasks = plan_parts(
                rows,
                self._options.checkpoint_interval,
                occurrences,
                keep_texts=self._options.collection is not None,
            )
            pending: dict[int, PartTask] = {}
            missing = self._skip_finished(journal, tasks, pending)
            first = next(missing, None)
            if first is None:
                return
            pool = stack.enter_context(self._open_pool(self._settings(journal, heads)))
            try:
                for finished in pool.compute(_chain(first, missing)):
                    self._note(journal, pending.pop(finished.part), finished)
            except KeyboardInterrupt:
                for finished in pool.stop_after_parts_in_hand():
                    self._note(journal, pending.pop(finished.part), finished)
                raise InterruptedJobError(
                    f"interrupted; {journal.totals.rows} rows of {self._model} are finished and "
                    "kept. To resume, run the same command again"
                ) from None
            self._runtime, self._deaths = pool.runtime, pool.deaths

    def _open_pool(self, settings: list[WorkerSettings]) -> contextlib.AbstractContextManager[Pool]:
        options = self._options
        if options.runner == "ray":
            from unified_embeddings.bulk.ray_pool import RayPool

            return RayPool(
                settings,
                address=options.ray_address,
                gpus=sum(device.startswith("cuda") for device in options.devices[:1]),
                hang_seconds=options.hang_seconds,
            )
        return WorkerPool(settings, hang_seconds=options.hang_seconds)

    @contextlib.contextmanager
    def _open_collection(self, journal: Journal, embedder: TextEmbedder) -> Iterator[None]:
        """Open the collection that the rows go into, if there is one, and write what is missing.

        It is indexed again at the end, however the job ends.
        """
        target = self._options.collection
        if target is None:
            yield
            return
        self._writer = make_writer(target, embedder, journal, self._options)
        self._writer.defer_indexing()
        try:
            for line in journal.lines:
                self._writer.write(line)
            yield
        except BaseException:
            with contextlib.suppress(StoreError):  # The first error is the one to tell.
                self._writer.restore_indexing()
            raise
        self._writer.finish()

    def _skip_finished(
        self, journal: Journal, tasks: Iterable[PartTask], pending: dict[int, PartTask]
    ) -> Iterator[PartTask]:
        """Yield the parts that are not finished, and count those that are.

        Raises:
            OtherJobError: If the journal has parts of other rows, or of more rows than there are.
        """
        count = 0
        for task in tasks:
            count += 1
            if journal.is_done(task.number, task.rows_digest):
                self._resumed += len(task.records)
                self._tell(journal, "computing")
            else:
                pending[task.number] = task
                yield task
        if journal.lines and journal.lines[-1].part >= count:
            last = journal.lines[-1]
            raise OtherJobError(
                f"the input has changed since {journal.folder} was begun: it had at least "
                f"{last.first_row + last.rows} rows, and has fewer now. Give another --output, or "
                "delete that folder to begin anew"
            )

    def _settings(self, journal: Journal, heads: tuple[HeadName, ...]) -> list[WorkerSettings]:
        options = self._options
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
                    processes=options.max_workers,
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
        if self._writer is not None:
            self._writer.write(journal.line(task.number))
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
                fraction=self._fraction(totals.rows),
                phase=phase,
            )
        )

    def _fraction(self, rows: int) -> float | None:
        """Return how much of the input is done; reading is ahead of that by some parts."""
        reader, total = self._reader, self._total_bytes
        if total is None or reader is None or not reader.rows_read:
            return None
        done_bytes = reader.bytes_read * rows / reader.rows_read
        return min(1.0, done_bytes / max(total, 1))

    # --- writing --------------------------------------------------------------------------------

    def _write(self, journal: Journal, folder: Path) -> ModelReport:
        """Put the parts together as the outputs."""
        self._tell(journal, "writing")
        options, totals = self._options, journal.totals
        files = write_model(journal, folder, self._embedder, self._model, self._heads, options)
        facts = RunFacts(
            seconds=time.perf_counter() - self._began,
            resumed=self._resumed,
            deaths=self._deaths,
            runtime=self._runtime,
        )
        metadata = write_description(
            journal,
            folder,
            files,
            self._embedder,
            self._model,
            self._description,
            options,
            facts,
        )
        return ModelReport(
            model=self._model,
            rows=totals.rows,
            computed=totals.computed,
            resumed=self._resumed,
            repeated=totals.repeated,
            failed=totals.failed,
            tokens=totals.tokens,
            seconds=time.perf_counter() - self._began,
            files=(*files, metadata),
        )


def make_writer(
    target: CollectionTarget, embedder: TextEmbedder, journal: Journal, options: BulkOptions
) -> CollectionWriter:
    """Open the collection that a job's rows go into."""
    from unified_embeddings.bulk.collection import CollectionWriter
    from unified_embeddings.llama.vector_store import build_vector_store

    store = build_vector_store(
        embedder,
        target.name,
        path=target.path,
        url=target.url,
        client=target.client,
        api_key=target.api_key,
    )
    return CollectionWriter(
        store, journal, part_rows=options.checkpoint_interval, id_field=options.input.id_field
    )


def _chain(first: PartTask, others: Iterator[PartTask]) -> Iterator[PartTask]:
    yield first
    yield from others


def _ignore(_: Progress) -> None:
    pass
