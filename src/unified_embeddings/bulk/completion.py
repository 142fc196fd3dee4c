"""The end of a model's job: its outputs, what they are of, and whether they are there already.

What lives here: writing the outputs and their metadata, recognising a job that is finished, and
what an error of the disk means. What does not: a file's content (`output`).
"""

from __future__ import annotations

import contextlib
import errno
import json
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from unified_embeddings._version import __version__
from unified_embeddings.bulk.file_names import safe_file_name
from unified_embeddings.bulk.job import Journal, OtherJobError
from unified_embeddings.bulk.layout_choice import LAYOUT_NAMES, make_layout
from unified_embeddings.bulk.options import DEFAULT_SLICE_ROWS, BulkOptions, choose_heads
from unified_embeddings.bulk.output import OutputPlan, write_metadata, write_outputs
from unified_embeddings.bulk.parts import read_part
from unified_embeddings.bulk.planning import FirstOccurrences, digest_input, plan_parts
from unified_embeddings.bulk.reader import CheckedInput, read_rows
from unified_embeddings.bulk.worker import DISK_FULL
from unified_embeddings.embedders.base import TextEmbedder
from unified_embeddings.embedders.paired import PairedEmbedder
from unified_embeddings.embedders.single_model import ModelEmbedder
from unified_embeddings.errors import InputError, UnifiedEmbeddingsError
from unified_embeddings.system.hardware import cpu
from unified_embeddings.types import HeadName

_LARGEST_ID = 2**31 - 1
"""Columns of a sparse matrix where the model does not tell its vocabulary."""


@dataclass(frozen=True)
class ModelPlan:
    """What is to be computed with one model.

    Attributes:
        model: Its name.
        embedder: The model itself, in this process.
        heads: The vectors.
        options: Of the job.
        description: All that decides what the parts hold; plain JSON values.
    """

    model: str
    embedder: TextEmbedder
    heads: tuple[HeadName, ...]
    options: BulkOptions
    description: Mapping[str, object]


@dataclass(frozen=True)
class RunFacts:
    """What is worth knowing of a run besides its totals.

    Attributes:
        seconds: Since it began.
        resumed: Rows that earlier runs had done.
        deaths: Workers that died or were stopped.
        runtime: What the model ran on; empty if nothing was computed.
        id_field: The field that holds a row's id; None if rows have none.
    """

    seconds: float
    resumed: int
    deaths: int
    runtime: Mapping[str, str]
    id_field: str | None = None


@dataclass(frozen=True)
class FinishedOutputs:
    """A model's outputs that an earlier run has finished.

    Attributes:
        input_digest: Of the rows that they are of.
        rows: How many.
        computed: Rows whose vectors were computed.
        repeated: Rows that share another row's vectors.
        tokens: Tokens that ran through the model.
        files: The outputs, metadata included.
    """

    input_digest: str
    rows: int
    computed: int
    repeated: int
    tokens: int
    files: tuple[Path, ...]


def plan_model(model: str, embedder: TextEmbedder, options: BulkOptions) -> ModelPlan:
    """Return what is to be computed with a model.

    Raises:
        InputError: If the model does not give the vectors that are asked for.
    """
    heads = choose_heads(embedder, options.heads)
    _require_heads_of_layouts(heads, options)
    description = {
        "model": model,
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
        "keep_texts": options.keeps_texts,
        "model_options": {key: _to_plain(value) for key, value in options.model_options.items()},
    }
    return ModelPlan(model, embedder, heads, options, description)


def _require_heads_of_layouts(heads: Sequence[HeadName], options: BulkOptions) -> None:
    """Refuse vectors that a store, in whose layout they are to be written, cannot hold."""
    for name in LAYOUT_NAMES:
        if name not in options.formats:
            continue
        for head in heads:
            if head not in make_layout(name).heads:
                raise InputError(
                    f"the format {name} holds no {head} vectors here; leave {head} out of the heads"
                )


def find_finished(
    folder: Path, plan: ModelPlan, has_file: Callable[[str, int], bool]
) -> FinishedOutputs | None:
    """Find a model's finished outputs.

    Args:
        folder: Of the job, where the metadata are.
        plan: What is asked for.
        has_file: Tells whether there is an output with a name and a size in bytes.

    Returns:
        None if there are none, or some of what is asked for is not there as it was written.

    Raises:
        OtherJobError: If there are outputs of another job; what differs is named.
    """
    path = folder / f"{safe_file_name(plan.model)}.metadata.json"
    try:
        metadata = json.loads(path.read_text("utf-8"))
        sizes = dict(metadata["files"])
        finished = FinishedOutputs(
            input_digest=metadata["input_digest"],
            rows=metadata["num_paragraphs"],
            computed=metadata["computed"],
            repeated=metadata["repeated"],
            tokens=metadata["tokens"],
            files=(*[folder / name for name in sizes], path),
        )
        there = set(metadata["formats"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    differences = find_differences(plan, metadata)
    if differences:
        raise other_outputs(folder, plan.model, "; ".join(differences))
    if set(plan.options.formats) <= there and all(
        has_file(name, size) for name, size in sizes.items()
    ):
        return finished
    return None


def digest_source(checked: CheckedInput, plan: ModelPlan, folder: Path) -> str:
    """Return the digest of an input as a job's metadata has it; all rows are read for it.

    Args:
        checked: The input, which can be read again.
        plan: Of the job.
        folder: Where a temporary file may go.
    """
    options = plan.options
    with contextlib.ExitStack() as stack:
        occurrences = None
        if options.dedupe:
            normal_form = plan.embedder.normal_form
            occurrences = stack.enter_context(FirstOccurrences(folder, normal_form))
        reader = stack.enter_context(read_rows(checked))
        tasks = plan_parts(reader, options.checkpoint_interval, occurrences, keep_texts=False)
        return digest_input(task.rows_digest for task in tasks)


def find_differences(plan: ModelPlan, metadata: Mapping[str, object]) -> list[str]:
    """Return in words what of a job is not as in the metadata of finished outputs."""
    differences = []
    for key, wanted in json.loads(json.dumps(plan.description)).items():
        if metadata.get(key) != wanted:
            differences.append(f"{key} is {wanted!r:.60}, was {metadata.get(key)!r:.60}")
    return differences


def other_outputs(folder: Path, model: str, difference: str) -> OtherJobError:
    """Return the error for outputs in a folder that another job wrote."""
    return OtherJobError(
        f"{folder} holds the finished outputs of another job with {model}: {difference}. Give "
        f"another --output, or delete {safe_file_name(model)}.* there to begin anew"
    )


def write_model(
    journal: Journal, folder: Path, plan: ModelPlan, id_field: str | None = None
) -> list[Path]:
    """Put a model's parts together as its outputs.

    Args:
        journal: Of the parts.
        folder: Where the outputs go.
        plan: What was computed.
        id_field: The field that holds a row's id; None if rows have none.

    Raises:
        OSError: If they cannot be written.
    """
    parts = [journal.part_path(line.part) for line in journal.lines]
    return write_outputs(parts, folder, plan_outputs(plan, parts, id_field))


def plan_outputs(plan: ModelPlan, parts: Sequence[Path], id_field: str | None = None) -> OutputPlan:
    """Return what is to be written of a model's parts."""
    return OutputPlan(
        model=plan.model,
        heads=plan.heads,
        dimension=plan.embedder.dimension,
        colbert_dimension=_colbert_dimension(parts, plan.heads),
        vocabulary_size=_vocabulary_size(plan.embedder),
        dtype=plan.options.dtype,
        formats=plan.options.formats,
        id_field=id_field,
        with_texts=plan.options.with_texts,
    )


def write_description(
    journal: Journal, folder: Path, files: Sequence[Path], plan: ModelPlan, facts: RunFacts
) -> Path:
    """Write a model's metadata, the last of its outputs: they are finished if it is there.

    Raises:
        OSError: If it cannot be written.
    """
    options = plan.options
    totals = journal.totals
    more: dict[str, object] = {
        **plan.description,
        "revision": plan.embedder.revision,
        "formats": list(options.formats),
        "files": {file.name: file.stat().st_size for file in files},
        "input_digest": digest_input(line.rows_digest for line in journal.lines),
        "computed": totals.computed,
        "repeated": totals.repeated,
        "failed": totals.failed,
        "tokens": totals.tokens,
        "truncated": totals.truncated,
        "computing_seconds": totals.seconds,
        "tokens_per_second": totals.tokens / totals.seconds if totals.seconds else 0.0,
        "id_field": facts.id_field,
        "resumed_rows": facts.resumed,
        "dead_workers": facts.deaths,
        "workers": options.max_workers,
        "runtime": dict(facts.runtime),
        "hardware": {"processor": cpu().name, "cores": cpu().cores},
        "versions": {"unified-embeddings": __version__, "python": platform.python_version()},
    }
    return write_metadata(
        folder,
        plan.model,
        embedding_dim=plan.embedder.dimension,
        num_paragraphs=totals.rows,
        processing_time=facts.seconds,
        batch_size=options.batch_size or DEFAULT_SLICE_ROWS,
        more=more,
    )


def explain_os_error(error: OSError, folder: Path) -> Exception:
    """Return an error of the outputs' disk as one that says what to do; other errors stay."""
    if error.errno in DISK_FULL:
        return UnifiedEmbeddingsError(
            f"the disk of {folder} is full; what is finished is kept. Make room, and run the same "
            "command again to resume"
        )
    name = str(error.filename or "")
    is_inside = bool(name) and folder.resolve() in Path(name).resolve().parents
    if not folder.is_dir() or (is_inside and error.errno == errno.ENOENT):
        return UnifiedEmbeddingsError(
            f"{folder} was removed while the job ran, and what was finished with it; run the same "
            "command to begin anew"
        )
    if is_inside:
        return UnifiedEmbeddingsError(
            f"{name}: {error.strerror or error}; what is finished is kept. Run the same command "
            "again to resume"
        )
    return error


def _to_plain(value: object) -> object:
    """Return an option's value as JSON has it; what it has no form for, as text."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    return str(value)


def _colbert_dimension(parts: Sequence[Path], heads: Sequence[HeadName]) -> int | None:
    """Return the width of the ColBERT vectors in the parts; None if there are none."""
    if "colbert" in heads:
        for path in parts:
            rows = read_part(path).colbert_rows
            if rows is not None:
                return int(rows.shape[1])
    return None


def _vocabulary_size(embedder: TextEmbedder) -> int:
    """Return how many tokens the model of the sparse vectors knows."""
    sparse = embedder.sparse if isinstance(embedder, PairedEmbedder) else embedder
    if isinstance(sparse, ModelEmbedder):
        return sparse.checkpoint.integer("vocab_size")
    return _LARGEST_ID
