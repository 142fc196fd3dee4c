"""The model choices: what is known of each model before its files are opened.

What lives here: data about models, and reading a spec of one's own from TOML. What does not:
finding their files (`checkpoints`) and running them (`engines`).

Each figure is from the model's card on the Hugging Face hub, as of November 2026.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from unified_embeddings.errors import InputError
from unified_embeddings.types import HEAD_NAMES, HeadName, Role

if sys.version_info >= (3, 11):
    pass
else:
    pass

Pooling = Literal["cls", "mean", "splade"]
EngineName = Literal["torch", "sentence", "onnx"]


@dataclass(frozen=True)
class ModelSpec:
    """What is known of a model before its files are opened; one of your own, or one of `MODELS`.

    Attributes:
        choice: The short name.
        model_id: Its hub id, or a folder.
        dimension: Width of the dense vector; None takes the backbone's.
        max_length: Most tokens of a text, special tokens included; None takes the backbone's.
        licence: SPDX identifier.
        parameters: How many its published weights have.
        heads: What it can produce.
        pooling: "cls" or "mean" make the dense vector, "splade" the sparse one (the largest
            log(1 + relu(logit)) over a text's tokens); None takes what its files say.
        normalise: Whether dense vectors are scaled to unit length, as its card has it.
        query_prefix: Put before every query.
        document_prefix: Put before every document.
        query_adapter: Folder, within the model's, of the LoRA weights that queries go through.
        document_adapter: The same for documents.
        engine: The engine "auto" takes for it; None lets the architecture decide.
        sparse_model: A choice that gives the sparse vectors beside it.
        images: Whether it embeds images into the same space; see `images.ClipEmbedder`.
        remote_code: Whether it runs code from its repository: only with trust_remote_code=True,
            and pinned to a commit.
        revision: Commit of the hub repository that remote code is pinned to.
        code_revision: Commit of the repository that holds the code, where that is another one.

    Raises:
        InputError: If a field is of another type, or a value none of those above.
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

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            allowed = _TYPES[field.name]
            if not isinstance(value, allowed) or (isinstance(value, bool) and bool not in allowed):
                names = " or ".join(
                    "none" if kind is type(None) else kind.__name__ for kind in allowed
                )
                raise InputError(f"{self.choice}: {field.name} must be {names}, got {value!r}")
        object.__setattr__(self, "heads", tuple(dict.fromkeys(self.heads)))
        for adapter in self.adapters:
            if Path(adapter).is_absolute() or ".." in Path(adapter).parts:
                raise InputError(
                    f"{self.choice}: an adapter is a folder within the model's, got {adapter!r}"
                )
        for name, given, known in (
            ("heads", self.heads, HEAD_NAMES),
            ("pooling", filter(None, [self.pooling]), get_args(Pooling)),
            ("engine", filter(None, [self.engine]), get_args(EngineName)),
        ):
            if unknown := [value for value in given if value not in known]:
                raise InputError(f"{self.choice}: {name} can be {', '.join(known)}, not {unknown}")
        if not self.heads:
            raise InputError(f"{self.choice}: a model must give at least one of {HEAD_NAMES}")
        if (self.pooling == "splade") != (self.heads == ("sparse",)):
            raise InputError(
                f"{self.choice}: pooling 'splade' and heads ['sparse'] go together, got "
                f"{self.pooling!r} and {list(self.heads)}"
            )
        for name in ("dimension", "max_length", "parameters"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"{self.choice}: {name} must be above 0, got {value}")

    def prefix(self, role: Role) -> str:
        """What is put before a text of this role."""
        return self.query_prefix if role == "query" else self.document_prefix

    def adapter(self, role: Role) -> str:
        """The folder of the LoRA weights a text of this role goes through; "" for none."""
        return self.query_adapter if role == "query" else self.document_adapter

    @property
    def adapters(self) -> tuple[str, ...]:
        """The folders of LoRA weights named, each once."""
        named = (self.query_adapter, self.document_adapter)
        return tuple(name for name in dict.fromkeys(named) if name)

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain values, fit for JSON; `from_dict` reads them."""
        return {**dataclasses.asdict(self), "heads": list(self.heads)}

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any], *, where: str = "the spec") -> ModelSpec:
        """Build from the names above; `choice` is `model_id` if it is not given.

        Raises:
            InputError: If a field is unknown, of a wrong type, or `model_id` is missing.
        """
        if not isinstance(fields, Mapping):
            raise InputError(f"{where} must be a mapping of fields, got {type(fields).__name__}")
        if unknown := sorted(fields.keys() - _TYPES.keys()):
            raise InputError(f"{where}: unknown {unknown}; there are like, {', '.join(_TYPES)}")
        if "model_id" not in fields:
            raise InputError(f"{where} needs model_id, a hub id or a folder")
        try:
            return cls(**{"choice": fields["model_id"], **fields})
        except InputError as error:
            raise InputError(f"{where}: {error}") from error


_TYPES: dict[str, tuple[type, ...]] = {
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
}
