"""What is known of a model before its files are opened.

What lives here: `ModelSpec`, and the checks on its fields. What does not: the specs of the known
models (`catalogue`), finding a model's files (`resolve`) and reading them (`checkpoint`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias, get_args

import numpy as np

from unified_embeddings.errors import InputError
from unified_embeddings.models.calibration import Calibration
from unified_embeddings.models.fusion import Fusion
from unified_embeddings.types import HEAD_NAMES, HeadName, Options, Role

Pooling: TypeAlias = Literal["cls", "mean", "splade", "bm25"]
EngineName: TypeAlias = Literal["torch", "sentence", "onnx"]

_SPARSE_POOLINGS = ("splade", "bm25")

_FIELD_TYPES: dict[str, tuple[type, ...]] = {
    "choice": (str,),
    "model_id": (str,),
    "dimension": (int, type(None)),
    "max_length": (int, type(None)),
    "licence": (str,),
    "parameters": (int, type(None)),
    "heads": (tuple, list),
    "pooling": (str, type(None)),
    "normalise": (bool,),
    "query_prefix": (str,),
    "document_prefix": (str,),
    "query_adapter": (str,),
    "document_adapter": (str,),
    "engine": (str, type(None)),
    "sparse_model": (str, type(None)),
    "images": (bool,),
    "remote_code": (bool,),
    "revision": (str, type(None)),
    "code_revision": (str, type(None)),
    "fusion": (Fusion, dict, type(None)),
    "calibration": (Calibration, dict, type(None)),
    "sparse_idf": (bool,),
    "sum_query_repeats": (bool,),
}
"""Field of a spec → the types that its value may have."""


@dataclass(frozen=True)
class ModelSpec:
    """What is known of a model before its files are opened: one of `MODELS`, or one of your own.

    Attributes:
        choice: The short name.
        model_id: A hub id, or a folder.
        dimension: Width of the dense vector. None takes the backbone's.
        max_length: Maximum tokens of a text, special tokens included. None takes the backbone's.
        licence: SPDX identifier.
        parameters: Number of parameters in the published weights.
        heads: The vectors that the model can produce.
        pooling: "cls" or "mean" give the dense vector. "splade" gives the sparse one, the largest
            log(1 + relu(logit)) over a text's tokens. "bm25" is no model: words are counted. None
            takes what the model's files say.
        normalise: Whether dense vectors are scaled to unit length, as stated on the model card.
        query_prefix: Text put before every query.
        document_prefix: Text put before every document.
        query_adapter: Subfolder of the model's folder with the LoRA weights for queries.
        document_adapter: The same for documents.
        engine: The engine that "auto" chooses. None lets the architecture decide. Where it is
            "torch", "onnx" takes its place on processors on which it was measured to be faster.
        sparse_model: A choice that supplies the sparse vectors alongside this model.
        images: Whether it embeds images into the same space; see `ClipEmbedder`.
        remote_code: Whether it runs code from its repository. This needs trust_remote_code=True and
            a pinned commit.
        revision: Commit of the hub repository that remote code is pinned to.
        code_revision: Commit of the repository with the code, if that is a different one.
        fusion: How its dense and sparse rankings are fused, or the values of a Fusion by name. None
            takes `DEFAULT_FUSION`.
        calibration: How likely a hit is relevant, from its scores in both rankings, or the values
            of a Calibration by name. None: not known for this model.
        sparse_idf: Whether Qdrant multiplies each token's part of a sparse score by the token's
            inverse document frequency in the collection (its modifier "idf").
        sum_query_repeats: Whether a token that a query repeats has the sum of its weights in the
            query's sparse vector. False keeps the largest, as BGE-M3 does. Documents always keep
            the largest.

    Raises:
        InputError: If a field has the wrong type, or a value that is not listed above, or its
            `heads`, `pooling` and `sum_query_repeats` exclude each other.

    Example:
        >>> from unified_embeddings import ModelSpec
        >>> spec = ModelSpec("mine", "me/fine-tuned-e5", dimension=384, query_prefix="query: ")
        >>> spec.prefix("query")
        'query: '
        >>> spec.heads
        ('dense',)
        >>> ModelSpec("mine", "me/fine-tuned-e5", dimension=0)
        Traceback (most recent call last):
        ...
        unified_embeddings.errors.InputError: mine: dimension must be above 0, got 0
    """

    choice: str
    model_id: str
    dimension: int | None = None
    max_length: int | None = None
    licence: str = "unknown"
    parameters: int | None = None
    heads: tuple[HeadName, ...] = ("dense",)
    pooling: Pooling | None = None
    normalise: bool = True
    query_prefix: str = ""
    document_prefix: str = ""
    query_adapter: str = ""
    document_adapter: str = ""
    engine: EngineName | None = None
    sparse_model: str | None = None
    images: bool = False
    remote_code: bool = False
    revision: str | None = None
    code_revision: str | None = None
    fusion: Fusion | None = None
    calibration: Calibration | None = None
    sparse_idf: bool = False
    sum_query_repeats: bool = False

    def __post_init__(self) -> None:
        self._check_types()
        # JSON and TOML give a list, and a name twice means the same as once.
        object.__setattr__(self, "heads", tuple(dict.fromkeys(self.heads)))
        object.__setattr__(self, "fusion", self._read_fusion())
        object.__setattr__(self, "calibration", self._read_calibration())
        self._check_adapters()
        self._check_names("pooling", (self.pooling,), get_args(Pooling))
        self._check_names("engine", (self.engine,), get_args(EngineName))
        self._check_heads()
        self._check_sizes()

    def prefix(self, role: Role) -> str:
        """Return the text put before texts of this role."""
        if role == "query":
            return self.query_prefix
        return self.document_prefix

    def adapter(self, role: Role) -> str:
        """Return the subfolder of the LoRA weights for texts of this role; "" for none."""
        if role == "query":
            return self.query_adapter
        return self.document_adapter

    @property
    def adapters(self) -> tuple[str, ...]:
        """Return the subfolders of LoRA weights that are named, each once."""
        names = dict.fromkeys((self.query_adapter, self.document_adapter))
        return tuple(name for name in names if name)

    def to_dict(self) -> dict[str, object]:
        """Return the fields as plain values, fit for JSON; `from_dict` reads them."""
        values: dict[str, object] = {**dataclasses.asdict(self), "heads": list(self.heads)}
        if self.fusion is not None:
            values["fusion"] = self.fusion.to_dict()
        return values

    @classmethod
    def from_dict(cls, fields: Mapping[str, object], *, where: str = "the spec") -> ModelSpec:
        """Build a spec from its fields; `choice` defaults to `model_id`.

        Args:
            fields: Values by field name. Only `model_id` is required.
            where: Where the fields come from, for error messages.

        Raises:
            InputError: If a field is unknown or has the wrong type, or `model_id` is missing.
        """
        if not isinstance(fields, Mapping):
            raise InputError(f"{where} must be a mapping of fields, got {type(fields).__name__}")
        if unknown_names := sorted(fields.keys() - _FIELD_TYPES.keys()):
            raise InputError(
                f"{where}: unknown {unknown_names}; the fields are {', '.join(_FIELD_TYPES)}"
            )
        if "model_id" not in fields:
            raise InputError(f"{where} needs model_id, a hub id or a folder")
        # The values come from a file and may be anything: __post_init__ checks their types.
        values: Options = {"choice": fields["model_id"], **fields}
        try:
            return cls(**values)
        except InputError as error:
            raise InputError(f"{where}: {error}") from error

    def _check_types(self) -> None:
        for name, allowed_types in _FIELD_TYPES.items():
            value = getattr(self, name)
            if isinstance(value, np.generic):
                value = value.item()
                object.__setattr__(self, name, value)
            # A bool is an int in Python, but `dimension = true` is a mistake.
            is_stray_bool = isinstance(value, bool) and bool not in allowed_types
            if is_stray_bool or not isinstance(value, allowed_types):
                type_names = [allowed.__name__ for allowed in allowed_types]
                expected = " or ".join(type_names).replace("NoneType", "none")
                raise InputError(f"{self.choice}: {name} must be {expected}, got {value!r}")
        require_heads(self.choice, self.heads)

    def _read_fusion(self) -> Fusion | None:
        # JSON and TOML give a dict.
        if not isinstance(self.fusion, Mapping):
            return self.fusion
        try:
            return Fusion.from_dict(self.fusion)
        except InputError as error:
            raise InputError(f"{self.choice}: fusion: {error}") from error

    def _read_calibration(self) -> Calibration | None:
        if not isinstance(self.calibration, Mapping):
            return self.calibration
        try:
            return Calibration.from_dict(self.calibration)
        except InputError as error:
            raise InputError(f"{self.choice}: calibration: {error}") from error

    def _check_adapters(self) -> None:
        # A spec may come from a stranger's file: it must not make us read outside the model.
        for adapter in self.adapters:
            if Path(adapter).is_absolute() or ".." in Path(adapter).parts:
                raise InputError(
                    f"{self.choice}: an adapter must be a folder within the model's, got "
                    f"{adapter!r}"
                )

    def _check_names(
        self, field: str, values: Iterable[str | None], known_names: tuple[str, ...]
    ) -> None:
        unknown = [value for value in values if value is not None and value not in known_names]
        if unknown:
            raise InputError(
                f"{self.choice}: {field} can be {', '.join(known_names)}, not {unknown}"
            )

    def _check_heads(self) -> None:
        if (self.pooling in _SPARSE_POOLINGS) != (self.heads == ("sparse",)):
            raise InputError(
                f"{self.choice}: pooling 'splade' or 'bm25' and heads ['sparse'] go together, got "
                f"{self.pooling!r} and {list(self.heads)}"
            )
        if self.pooling in _SPARSE_POOLINGS and self.sum_query_repeats:
            raise InputError(
                f"{self.choice}: sum_query_repeats needs a weight for each token, which pooling "
                f"{self.pooling!r} does not give; set it to false"
            )

    def _check_sizes(self) -> None:
        for name in ("dimension", "max_length", "parameters"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"{self.choice}: {name} must be above 0, got {value}")


def require_heads(model_name: str, heads: object) -> tuple[HeadName, ...]:
    """Return the heads of a model, each once.

    Args:
        model_name: What the message calls the model.
        heads: A tuple or list of names.

    Raises:
        InputError: If it is something else, names an unknown head, or names none.
    """
    if not isinstance(heads, tuple | list):
        raise InputError(f"{model_name}: heads must be tuple or list, got {heads!r}")
    unknown = [head for head in heads if head not in HEAD_NAMES]
    if unknown:
        raise InputError(f"{model_name}: heads can be {', '.join(HEAD_NAMES)}, not {unknown}")
    if not heads:
        raise InputError(f"{model_name}: a model must give at least one of {HEAD_NAMES}")
    return tuple(dict.fromkeys(heads))
