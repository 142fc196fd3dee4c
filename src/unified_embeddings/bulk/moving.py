"""All texts of an input embedded anew, into one file, as a new model's vectors.

What lives here: the output file and what stands beside it, the folder of parts until then, and the
refusal to mix. What does not: the job itself (`run`).

    new.npy                     the vectors, or with the format chroma, ... batches of them
    new.npy.rows.jsonl          beside an array: each row's fields
    new.npy.collection.json     beside Qdrant's points: the collection that they go into
    new.npy.failed.jsonl        rows without vectors, if there are any
    new.npy.metadata.json       model, fingerprint, dimension and more; written last
    new.npy.work/               parts while the job is not finished; removed at the end
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias, get_args

from unified_embeddings.bulk.completion import (
    ModelPlan,
    digest_source,
    explain_os_error,
    find_differences,
    plan_model,
)
from unified_embeddings.bulk.file_names import safe_file_name
from unified_embeddings.bulk.input_files import Source, is_pipe
from unified_embeddings.bulk.object_store import is_url
from unified_embeddings.bulk.options import (
    BulkOptions,
    Format,
    ModelReport,
    Progress,
    embedder_options,
)
from unified_embeddings.bulk.output import FAILED_FILE
from unified_embeddings.bulk.reader import check_input
from unified_embeddings.bulk.run import embed_rows
from unified_embeddings.bulk.worker import MakeEmbedder
from unified_embeddings.embedders.base import TextEmbedder
from unified_embeddings.embedders.factory import make_embedder
from unified_embeddings.errors import InputError, UnifiedEmbeddingsError
from unified_embeddings.system.files import (
    FileLock,
    LockHeldError,
    make_folder,
    publish_file,
    replace_file,
    scratch_folder,
    sync_folder,
)
from unified_embeddings.types import HeadName

MoveFormat: TypeAlias = Literal[
    "npy", "jsonl", "parquet", "chroma", "pinecone", "pinecone-documents", "qdrant"
]
MOVE_FORMATS: tuple[MoveFormat, ...] = get_args(MoveFormat)
_LOCK = ".moving"
_MARK = "publishing"
"""A file in the work folder: from now on the output is this job's."""


@dataclass(frozen=True)
class MoveReport:
    """What became of a move.

    Attributes:
        report: Of the job, with the files where they are now.
        dimension: Numbers of a dense vector.
        fingerprint: Of the model.
        id_field: The field that the ids are from; None if they are the rows' numbers.
    """

    report: ModelReport
    dimension: int
    fingerprint: str
    id_field: str | None


def move_vectors(
    source: Source,
    output: Path,
    output_format: MoveFormat,
    options: BulkOptions,
    *,
    on_progress: Callable[[Progress], None] | None = None,
    make: MakeEmbedder = make_embedder,
) -> MoveReport:
    """Embed all texts of an input with one model, and write them to one new file.

    A killed job goes on with the same call. A file that exists is never added to or replaced,
    since vectors of two models cannot be compared.

    Args:
        source: As for `embed_rows`.
        output: The file; others beside it begin with its name.
        output_format: What is written into it.
        options: Of the job; its `formats` are not used, nor is its collection.
        on_progress: As for `embed_rows`.
        make: As for `embed_rows`.

    Raises:
        InputError: If the input cannot be read, the output exists, or a row cannot be held by the
            store that the format is for.
        UnifiedEmbeddingsError: As `embed_rows`.

    Example:
        >>> from unified_embeddings.bulk.moving import BulkOptions, move_vectors
        >>> texts = ["Foxes jump.", "Dogs sleep."]
        >>> move_vectors(texts, Path("new.npy"), "npy", BulkOptions(models=["mini-m3"])).dimension
        384
    """
    _require_output(source, output)
    if isinstance(source, str | Path) and not is_pipe(source):
        check_input(source, options.input)  # A wrong input is told before a model is downloaded.
    with make(**embedder_options(options.models[0], options, options.devices[0])) as embedder:
        options = _choose_options(output_format, options, embedder)
        move = _Move(
            source, output, output_format, plan_model(options.models[0], embedder, options)
        )
        finished = move.find_finished()
        if finished is not None:
            return finished
        with move.open_work_folder() as work:
            try:
                (report,) = embed_rows(source, work, options, on_progress=on_progress, make=make)
                return move.publish(work, report)
            except OSError as error:
                raise explain_os_error(error, work) from None


def find_suffix(output_format: MoveFormat) -> str:
    """Return how the name of a job's output of some format ends."""
    if output_format in ("npy", "jsonl", "parquet"):
        return f".{output_format}"
    return f".{output_format}.jsonl"


class _Move:
    """One move: where its files are, and what they must be."""

    def __init__(
        self, source: Source, output: Path, output_format: MoveFormat, plan: ModelPlan
    ) -> None:
        self._source = source
        self._output = output
        self._format = output_format
        self._plan = plan
        self._work = output.with_name(f"{output.name}.work")

    # --- an output that exists ------------------------------------------------------------------

    def find_finished(self) -> MoveReport | None:
        """Return the report of the same move, if it was finished before; None to begin or resume.

        Raises:
            InputError: If the output is another's.
        """
        if not self._output.exists() or (self._work / _MARK).exists():
            return None
        metadata = _read_metadata(self._beside("metadata.json"))
        differences = ["it is not known what is in it"]
        if metadata is not None:
            differences = self._find_differences(metadata)
        if metadata is None or differences:
            raise self._other_output(metadata, differences)
        report = ModelReport(
            model=self._plan.model,
            rows=_count(metadata, "num_paragraphs"),
            computed=_count(metadata, "computed"),
            resumed=_count(metadata, "num_paragraphs"),
            repeated=_count(metadata, "repeated"),
            failed=_count(metadata, "failed"),
            tokens=_count(metadata, "tokens"),
            seconds=0.0,
            files=(
                *[self._output.with_name(name) for name in _file_names(metadata)],
                self._beside("metadata.json"),
            ),
            was_finished=True,
        )
        return self._to_report(report, metadata)

    def _find_differences(self, metadata: Mapping[str, object]) -> list[str]:
        differences = find_differences(self._plan, metadata)
        id_field = self._plan.options.input.id_field
        if id_field is not None and metadata.get("id_field") != id_field:
            differences.append(f"id_field is {id_field!r}, was {metadata.get('id_field')!r}")
        if metadata.get("format") != self._format:
            differences.append(f"format is {self._format!r}, was {metadata.get('format')!r}")
        if differences:
            return differences
        checked = check_input(self._source, self._plan.options.input)
        if not checked.is_repeatable:
            return ["an input that can be read once cannot be compared"]
        digest = digest_source(checked, self._plan, self._output.parent)
        if digest != metadata.get("input_digest"):
            return ["its input was another, or has changed"]
        return []

    def _other_output(
        self, metadata: Mapping[str, object] | None, differences: list[str]
    ) -> InputError:
        held = ""
        if metadata is not None:
            held = (
                f" with {metadata.get('num_paragraphs')} vectors of {metadata.get('model_name')}, "
                f"{metadata.get('embedding_dim')} numbers each"
            )
        return InputError(
            f"{self._output} exists{held}, and is neither added to nor replaced, since vectors of "
            f"two models never mix ({'; '.join(differences)}). Give another --output, or delete it"
        )

    # --- the work folder ------------------------------------------------------------------------

    @contextlib.contextmanager
    def open_work_folder(self) -> Iterator[Path]:
        """Make the folder of parts, for one process at a time."""
        try:
            make_folder(self._work)
            lock = FileLock(self._work / _LOCK)
        except LockHeldError:
            raise InputError(
                f"another run is writing {self._output}; wait for it, or give another --output"
            ) from None
        except OSError as error:
            raise InputError(
                f"cannot write to {self._work}: {error.strerror or error}; give another --output"
            ) from None
        with lock:
            try:
                yield self._work
            except UnifiedEmbeddingsError:
                # Input that is refused at once shall not stand in the way of other options.
                if not any(self._work.glob("parts/*/part-*")):
                    self._remove_work_folder()
                raise

    def publish(self, work: Path, report: ModelReport) -> MoveReport:
        """Move the finished outputs to their places, metadata last, and remove the folder."""
        (work / _MARK).touch()
        sync_folder(work)
        beginning = safe_file_name(self._plan.model)
        metadata_file = work / f"{beginning}.metadata.json"
        metadata = json.loads(metadata_file.read_text("utf-8"))
        published = []
        for name in metadata["files"]:
            target = self._beside(name.removeprefix(f"{beginning}."))
            if name == f"{beginning}{find_suffix(self._format)}":
                target = self._output
            published.append(self._publish_file(work / name, target))
        if report.failed:
            published.append(self._publish_file(work / FAILED_FILE, self._beside(FAILED_FILE)))
        if self._format == "qdrant":
            published.append(self._write_collection())
        metadata["format"] = self._format
        metadata["files"] = {file.name: file.stat().st_size for file in published}
        target = self._beside("metadata.json")
        content = json.dumps(metadata, indent=2, ensure_ascii=False, allow_nan=False)
        replace_file(target, f"{content}\n".encode())
        self._remove_work_folder()
        files = (*published, target)
        return self._to_report(dataclasses.replace(report, files=files), metadata)

    def _publish_file(self, file: Path, target: Path) -> Path:
        publish_file(file, target)
        return target

    def _write_collection(self) -> Path:
        from unified_embeddings.bulk.qdrant_layout import describe_collection

        target = self._beside("collection.json")
        replace_file(target, f"{describe_collection(self._plan.embedder)}\n".encode())
        return target

    def _remove_work_folder(self) -> None:
        """Remove the folder of parts: all of it or, if the process is killed, none."""
        with scratch_folder(self._output.parent) as scratch:
            self._work.rename(scratch / "work")
            sync_folder(self._output.parent)

    def _beside(self, ending: str) -> Path:
        return self._output.with_name(f"{self._output.name}.{ending}")

    def _to_report(self, report: ModelReport, metadata: Mapping[str, object]) -> MoveReport:
        id_field = metadata.get("id_field")
        return MoveReport(
            report=report,
            dimension=self._plan.embedder.dimension,
            fingerprint=self._plan.embedder.fingerprint,
            id_field=None if id_field is None else str(id_field),
        )


def _choose_options(
    output_format: MoveFormat, options: BulkOptions, embedder: TextEmbedder
) -> BulkOptions:
    """Return the options of the job that writes a format.

    The parts are kept until all outputs are in their places. Qdrant's points have sparse vectors
    too, if the model gives them and nothing else is asked for.
    """
    formats: tuple[Format, ...] = (output_format,)
    if output_format == "npy":
        formats = ("npy", "rows")
    heads = options.heads
    if heads is None and output_format == "qdrant":
        usual: tuple[HeadName, ...] = ("dense", "sparse")
        heads = tuple(head for head in usual if head in embedder.heads)
    return dataclasses.replace(
        options,
        formats=formats,
        heads=heads,
        keep_parts=True,
        unique_ids=True,
        collection=None,
        work_dir=None,
    )


def _require_output(source: Source, output: Path) -> None:
    """Refuse an output that is a folder, or in the input's folder, where it would be read as input.

    Raises:
        InputError: If it is.
    """
    if output.is_dir():
        raise InputError(f"{output} is a folder; name the file of the vectors as --output")
    if not isinstance(source, str | Path) or is_pipe(source) or is_url(source):
        return
    folder = Path(source).resolve()
    if folder.is_dir() and folder in output.resolve().parents:
        raise InputError(
            f"{output} is in the folder of the input, and would be read as input the next time; "
            "give an --output elsewhere"
        )
    if folder == output.resolve():
        raise InputError(f"{output} is the input; give another --output")


def _read_metadata(file: Path) -> dict[str, object] | None:
    """Return the metadata of finished outputs; None if there are none."""
    try:
        metadata = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError):
        return None
    return metadata if isinstance(metadata, dict) else None


def _file_names(metadata: Mapping[str, object]) -> list[str]:
    files = metadata.get("files")
    return list(files) if isinstance(files, Mapping) else []


def _count(metadata: Mapping[str, object], name: str) -> int:
    value = metadata.get(name)
    return value if isinstance(value, int) else 0
