"""One model of a bulk job, from its first row to its outputs.

What lives here: planning the parts, having those computed that are missing, and putting them
together. What does not: each of these steps, and the job as a whole (`run`).
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from unified_embeddings.bulk.batch_output import LayoutCheck
from unified_embeddings.bulk.completion import (
    ModelPlan,
    RunFacts,
    digest_source,
    find_finished,
    other_outputs,
    write_description,
    write_model,
)
from unified_embeddings.bulk.destination import has_output
from unified_embeddings.bulk.file_names import safe_file_name
from unified_embeddings.bulk.job import JobFolder, Journal, OtherJobError, PartLine
from unified_embeddings.bulk.layout_choice import LAYOUT_NAMES, is_layout
from unified_embeddings.bulk.options import (
    InterruptedJobError,
    ModelReport,
    Progress,
    RowFailedError,
)
from unified_embeddings.bulk.planning import (
    FirstOccurrences,
    PartTask,
    UniqueIds,
    plan_parts,
)
from unified_embeddings.bulk.pools import Pool, open_pool
from unified_embeddings.bulk.reader import CheckedInput, RowReader, read_rows
from unified_embeddings.bulk.rows import Row
from unified_embeddings.bulk.worker import Finished, MakeEmbedder
from unified_embeddings.system.signals import hold_interrupts

if TYPE_CHECKING:
    from unified_embeddings.bulk.collection import CollectionWriter


class ModelRun:
    """One model of a job.

    Args:
        plan: What is to be computed.
        output: The folder of the outputs, or its URL.
        on_progress: Called after each part, and when outputs are written.
        make: Makes the embedder of each worker.
    """

    def __init__(
        self,
        plan: ModelPlan,
        output: str | os.PathLike[str],
        on_progress: Callable[[Progress], None],
        make: MakeEmbedder,
    ) -> None:
        self._plan = plan
        self._output = output
        self._on_progress = on_progress
        self._make = make
        self._began = time.perf_counter()
        self._resumed = self._tokens = 0
        self._deaths = 0
        self._runtime: Mapping[str, str] = {}
        self._writer: CollectionWriter | None = None
        self._reader: RowReader | None = None
        self._total_bytes: int | None = None
        self._id_field: str | None = None

    def run(self, job: JobFolder, checked: CheckedInput) -> ModelReport:
        """Compute what is missing, and write the outputs.

        Raises:
            OtherJobError: If the folder holds another job, or the input has changed.
            InterruptedJobError: After Ctrl-C.
            OSError: If the disk is full.
        """
        self._began = time.perf_counter()
        self._id_field = checked.options.id_field
        name = safe_file_name(self._plan.model)
        if not job.has_parts(name):
            finished = self._find_finished(job.folder, checked)
            if finished is not None:
                return finished
        with job.open_model(name, self._plan.description) as journal:
            if self._plan.options.retry_failed:
                journal.forget([line.part for line in journal.lines if line.failed])
            self._total_bytes = checked.description.total_bytes
            self._check_rows_first(journal, checked)
            self._reader = read_rows(checked)
            with self._open_collection(journal):
                self._compute(journal, self._reader)
            return self._write(journal, job.folder)

    def _find_finished(self, folder: Path, checked: CheckedInput) -> ModelReport | None:
        """Return the report of outputs that an earlier run has finished; None if there are none.

        Raises:
            OtherJobError: If there are outputs of another input, or made otherwise.
        """
        options, model = self._plan.options, self._plan.model

        def has_file(name: str, size: int) -> bool:
            return has_output(self._output, folder, name, size)

        finished = find_finished(folder, self._plan, has_file)
        # What a collection holds by now, and an input that can be read once, cannot be compared.
        if finished is None or options.collection is not None or not checked.is_repeatable:
            return None
        if digest_source(checked, self._plan, folder) != finished.input_digest:
            raise other_outputs(folder, model, "its input was another, or has changed")
        return ModelReport(
            model=model,
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

    # --- computing ------------------------------------------------------------------------------

    def _compute(self, journal: Journal, rows: Iterable[Row]) -> None:
        """Compute the parts that the journal does not have."""
        options = self._plan.options
        with contextlib.ExitStack() as stack:
            tasks = plan_parts(
                self._check_rows(rows, stack, journal.folder),
                options.checkpoint_interval,
                self._open_occurrences(stack, journal.folder),
                keep_texts=options.keeps_texts,
            )
            pending: dict[int, PartTask] = {}
            missing = self._skip_finished(journal, tasks, pending)
            first = next(missing, None)
            if first is None:
                return
            pool = stack.enter_context(open_pool(self._plan, journal.folder, self._make))
            self._compute_missing(journal, pool, _chain(first, missing), pending)
            self._runtime, self._deaths = pool.runtime, pool.deaths

    def _check_rows_first(self, journal: Journal, checked: CheckedInput) -> None:
        """Read all rows once if a later one may be refused, so that hours are not lost by it."""
        if not checked.is_repeatable or not self._has_checks:
            return
        with contextlib.ExitStack() as stack:
            reader = stack.enter_context(read_rows(checked))
            for _ in self._check_rows(reader, stack, journal.folder):
                pass

    @property
    def _has_checks(self) -> bool:
        options = self._plan.options
        return options.unique_ids or any(is_layout(name) for name in options.formats)

    def _check_rows(
        self, rows: Iterable[Row], stack: contextlib.ExitStack, folder: Path
    ) -> Iterable[Row]:
        """Yield the rows; refuse those that cannot go where their vectors go."""
        options, id_field = self._plan.options, self._id_field
        if id_field is not None and (options.unique_ids or options.collection is not None):
            rows = stack.enter_context(UniqueIds(folder, id_field)).check(rows)
        for name in LAYOUT_NAMES:
            if name in options.formats:
                rows = stack.enter_context(
                    LayoutCheck(folder, name, id_field, with_texts=options.with_texts)
                ).check(rows)
        return rows

    def _compute_missing(
        self, journal: Journal, pool: Pool, tasks: Iterator[PartTask], pending: dict[int, PartTask]
    ) -> None:
        """Have parts computed, and write down each that is finished.

        Raises:
            InterruptedJobError: After Ctrl-C, which never comes between a part that is published
                and its line in the manifest.
        """
        with hold_interrupts() as interrupts:
            try:
                for finished in pool.compute(interrupts.let_through(tasks), interrupts.check):
                    self._note(journal, pending.pop(finished.part), finished)
                    interrupts.check()
                interrupts.check()
            except KeyboardInterrupt:
                for finished in pool.stop_after_parts_in_hand():
                    self._note(journal, pending.pop(finished.part), finished)
                raise InterruptedJobError(
                    f"interrupted; {journal.totals.rows} rows of {self._plan.model} are finished "
                    "and kept. To resume, run the same command again"
                ) from None

    def _open_occurrences(
        self, stack: contextlib.ExitStack, folder: Path
    ) -> FirstOccurrences | None:
        """Open what finds repeated texts; None if they are not looked for."""
        if not self._plan.options.dedupe:
            return None
        return stack.enter_context(FirstOccurrences(folder, self._plan.embedder.normal_form))

    @contextlib.contextmanager
    def _open_collection(self, journal: Journal) -> Iterator[None]:
        """Open the collection that the rows go into, if there is one."""
        options = self._plan.options
        if options.collection is None:
            yield
            return
        from unified_embeddings.bulk.collection import open_collection

        with open_collection(options.collection, self._plan.embedder, journal, options) as writer:
            self._writer = writer
            yield

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
        if finished.failed and self._plan.options.fail_fast:
            raise RowFailedError(
                f"a row among {task.first_row} to {task.first_row + len(task.records) - 1} failed; "
                f"{journal.part_path(task.number)} holds the reason. Without --fail-fast the job "
                "goes on and lists such rows in failed.jsonl"
            )

    def _tell(self, journal: Journal, phase: Literal["computing", "writing"]) -> None:
        totals = journal.totals
        self._on_progress(
            Progress(
                model=self._plan.model,
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
        totals = journal.totals
        files = write_model(journal, folder, self._plan, self._id_field)
        facts = RunFacts(
            seconds=time.perf_counter() - self._began,
            resumed=self._resumed,
            deaths=self._deaths,
            runtime=self._runtime,
            id_field=self._id_field,
        )
        metadata = write_description(journal, folder, files, self._plan, facts)
        return ModelReport(
            model=self._plan.model,
            rows=totals.rows,
            computed=totals.computed,
            resumed=self._resumed,
            repeated=totals.repeated,
            failed=totals.failed,
            tokens=totals.tokens,
            seconds=time.perf_counter() - self._began,
            files=(*files, metadata),
        )


def _chain(first: PartTask, others: Iterator[PartTask]) -> Iterator[PartTask]:
    yield first
    yield from others
