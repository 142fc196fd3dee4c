"""A bulk job from its first row to its outputs.

What lives here: `embed_rows`, which checks everything first and then goes through the models one
after the other, and `estimate`. What does not: one model's way (`model_run`).
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator

from unified_embeddings.bulk.completion import explain_os_error, plan_model
from unified_embeddings.bulk.destination import (
    choose_folder,
    require_destination,
    upload_reports,
)
from unified_embeddings.bulk.estimate import Estimate, estimate_model
from unified_embeddings.bulk.file_names import safe_file_name
from unified_embeddings.bulk.input_files import Source
from unified_embeddings.bulk.job import JobFolder
from unified_embeddings.bulk.model_run import ModelRun
from unified_embeddings.bulk.object_store import is_url
from unified_embeddings.bulk.options import (
    BulkOptions,
    InterruptedJobError,
    ModelReport,
    Progress,
    embedder_options,
)
from unified_embeddings.bulk.output import write_failures
from unified_embeddings.bulk.places import check_places
from unified_embeddings.bulk.worker import MakeEmbedder
from unified_embeddings.embedders.factory import make_embedder


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
            plan = plan_model(model, embedder, options)
            runs.append(ModelRun(plan, output, on_progress or _ignore, make))
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
            yield estimate_model(checked, folder, plan_model(model, embedder, options))


def _ignore(_: Progress) -> None:
    pass
