"""What a bulk job is asked to do, and what it tells.

What lives here: the options, progress and reports of a job, and how it can end early. What does
not: doing it (`run`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

from unified_embeddings.bulk.file_names import require_different_names
from unified_embeddings.bulk.layout_choice import is_layout
from unified_embeddings.bulk.parquet_output import import_pyarrow
from unified_embeddings.bulk.rows import InputOptions
from unified_embeddings.embedders.base import TextEmbedder
from unified_embeddings.errors import InputError, UnifiedEmbeddingsError
from unified_embeddings.models.catalogue import spec_for
from unified_embeddings.models.spec import ModelSpec
from unified_embeddings.types import HEAD_NAMES, HeadName, Role
from unified_embeddings.validation import require_whole_number

Format: TypeAlias = Literal[
    "npy", "jsonl", "parquet", "rows", "chroma", "pinecone", "pinecone-documents", "qdrant"
]
FORMATS: tuple[Format, ...] = get_args(Format)
_KNOWN: dict[str, tuple[str, ...]] = {
    "heads": HEAD_NAMES,
    "formats": FORMATS,
    "role": ("document", "query"),
    "dtype": ("float32", "float16"),
    "runner": ("local", "ray"),
}
"""Options that name some of a few things."""

DEFAULT_SLICE_ROWS = 64
"""Rows of one call of the embedder, if `batch_size` does not say: enough to fill its passes."""


@dataclass(frozen=True, kw_only=True)
class CollectionTarget:
    """A Qdrant collection that rows go into.

    Attributes:
        name: The collection's.
        path: Folder of an embedded store; exactly one of these three is given.
        url: A server's address.
        client: A client of your own.
        api_key: For `url`.
    """

    name: str
    path: str | Path | None = None
    url: str | None = None
    client: Any = None
    api_key: str | None = field(default=None, repr=False)


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
        with_texts: Whether the outputs for other stores (`upsert_layouts`) hold the texts.
        unique_ids: Whether rows with the id of an earlier row are refused. Outputs for other
            stores and collections refuse them in any case.
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
        collection: Where the rows go besides the files; None for nowhere.
        runner: "local" for child processes, "ray" for a Ray cluster.
        ray_address: Of a running cluster; None starts one on this machine.
        work_dir: Where parts are kept if the outputs go to an object store; None takes a folder in
            the user's cache.
    """

    models: Sequence[str]
    heads: tuple[HeadName, ...] | None = None
    role: Role = "document"
    prefix: str | None = None
    dtype: Literal["float32", "float16"] = "float32"
    formats: tuple[Format, ...] = ("npy", "jsonl")
    with_texts: bool = True
    unique_ids: bool = False
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
    collection: CollectionTarget | None = None
    runner: Literal["local", "ray"] = "local"
    ray_address: str | None = None
    work_dir: Path | None = None

    def __post_init__(self) -> None:
        if not self.models:
            raise InputError("name at least one model")
        if isinstance(self.models, str):
            raise InputError(f"models is a list of names; write [{self.models!r}]")
        require_different_names(self.models)
        if self.collection is not None and len(self.models) > 1:
            raise InputError("a collection holds the vectors of one model; name one model")
        for name in ("checkpoint_interval", "batch_tokens", "max_workers"):
            require_whole_number(name, getattr(self, name))
        if self.batch_size is not None:
            require_whole_number("batch_size", self.batch_size)
        if not self.devices:
            raise InputError("name at least one device")
        for name, known in _KNOWN.items():
            given = getattr(self, name)
            for value in (given,) if isinstance(given, str) else given or ():
                if value not in known:
                    raise InputError(f"{name}: expected {', '.join(known)}, got {value!r}")
        if not self.formats:
            raise InputError(f"formats: name some of {', '.join(FORMATS)}")
        if "parquet" in self.formats:
            import_pyarrow()  # Raises now if it is missing, and not once the work is done.

    @property
    def keeps_texts(self) -> bool:
        """Return whether the parts hold the texts besides the vectors."""
        has_layouts = any(is_layout(name) for name in self.formats)
        return self.collection is not None or (has_layouts and self.with_texts)


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
        files: What was written: paths, or URLs on an object store.
        was_finished: Whether an earlier run had finished all of it, and this one did nothing.
    """

    model: str
    rows: int
    computed: int
    resumed: int
    repeated: int
    failed: int
    tokens: int
    seconds: float
    files: tuple[Path | str, ...]
    was_finished: bool = False


class InterruptedJobError(UnifiedEmbeddingsError):
    """A job was interrupted; what is finished is kept."""


class RowFailedError(UnifiedEmbeddingsError):
    """A row failed, and the job was to end at the first that does."""


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
