"""The model choices: what is known of each model before its files are opened.

What lives here: data about models, and reading a spec of one's own from TOML. What does not:
finding their files (`checkpoints`) and running them (`engines`).

Each figure is from the model's card on the Hugging Face hub, as of November 2026.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from unified_embeddings.errors import InputError
from unified_embeddings.types import HEAD_NAMES, HeadName, Role

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

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
        """Build from the names above; `like` names a choice whose fields are taken where unsaid.

        Of another model_id's choice, name, licence, size and pinned commits are not taken.

        Raises:
            InputError: If a field is unknown, of a wrong type, or `model_id` is missing.
        """
        if not isinstance(fields, Mapping):
            raise InputError(f"{where} must be a mapping of fields, got {type(fields).__name__}")
        given = dict(fields)
        like = given.pop("like", None)
        if unknown := sorted(given.keys() - _TYPES.keys()):
            raise InputError(f"{where}: unknown {unknown}; there are like, {', '.join(_TYPES)}")
        if like is not None:
            if not isinstance(like, str) or like not in MODELS:
                raise InputError(f"{where}: like must be one of {', '.join(MODELS)}, got {like!r}")
            if given.get("model_id", MODELS[like].model_id) != MODELS[like].model_id:
                own = {"choice": given["model_id"], "licence": "unknown", "parameters": None}
                given = {**own, "revision": None, "code_revision": None, **given}
            given = {**dataclasses.asdict(MODELS[like]), **given}
        if "model_id" not in given:
            raise InputError(f"{where} needs model_id, a hub id or a folder")
        try:
            return cls(**{"choice": given["model_id"], **given})
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

EXPORT = "export.json"
"""What an exported model's folder says of itself; see `export`."""
EXPORT_FORMAT = 2
"""Of these notes and of the graph: raised with every change that makes older ones stale."""
MINI_M3 = "mini-m3"
CLIP = "openai/clip-vit-base-patch32"
"""The image model taken where none is named."""

_BGE_QUERY = "Represent this sentence for searching relevant passages: "


def _bge(size: str, dimension: int, parameters: int) -> ModelSpec:
    name = f"bge-{size}-en-v1.5"
    return ModelSpec(
        name, f"BAAI/{name}", dimension, 512, "MIT", parameters,
        pooling="cls", query_prefix=_BGE_QUERY, engine="torch",
    )  # fmt: skip


def _e5(size: str, dimension: int, parameters: int) -> ModelSpec:
    name = f"e5-{size}-v2"
    return ModelSpec(
        name, f"intfloat/{name}", dimension, 512, "MIT", parameters,
        pooling="mean", query_prefix="query: ", document_prefix="passage: ", engine="torch",
    )  # fmt: skip


def _sbert(name: str, dimension: int, max_length: int, parameters: int, **more: Any) -> ModelSpec:
    return ModelSpec(
        name, f"sentence-transformers/{name}", dimension, max_length, "Apache-2.0", parameters,
        pooling="mean", **more,
    )  # fmt: skip


_BGE_LARGE = _bge("large", 1024, 335_141_888)

MODELS: dict[str, ModelSpec] = {
    spec.choice: spec
    for spec in (
        ModelSpec(
            "bge-m3", "BAAI/bge-m3", 1024, 8192, "MIT", 568_805_377,
            heads=HEAD_NAMES, engine="torch",
        ),
        # all-MiniLM-L6-v2 (Apache-2.0) with a fitted sparse head; see mini_m3.py.
        ModelSpec(
            MINI_M3, MINI_M3, 384, 256, "Apache-2.0", 22_861_441, heads=HEAD_NAMES, engine="torch"
        ),
        # Its code lies in nomic-ai/nomic-bert-2048.
        ModelSpec(
            "nomic", "nomic-ai/nomic-embed-text-v2-moe", 768, 512, "Apache-2.0", 475_292_928,
            pooling="mean", query_prefix="search_query: ", document_prefix="search_document: ",
            engine="sentence", remote_code=True,
            revision="1066b6599d099fbb93dfcb64f9c37a7c9e503e85",
            code_revision="7710840340a098cfb869c4f65e87cf2b1b70caca",
        ),
        ModelSpec(
            "arctic", "Snowflake/snowflake-arctic-embed-l-v2.0", 1024, 8192, "Apache-2.0",
            567_754_752, pooling="cls", query_prefix="query: ", engine="torch",
        ),
        # The checkpoint that transformers runs itself; the older jinaai/jina-embeddings-v3 needs
        # remote code that transformers 5 cannot load. No commercial use without Jina's consent.
        ModelSpec(
            "jina-v3", "jinaai/jina-embeddings-v3-hf", 1024, 8192, "CC-BY-NC-4.0", 572_310_396,
            pooling="mean", engine="sentence",
            query_prefix="Represent the query for retrieving evidence documents: ",
            document_prefix="Represent the document for retrieval: ",
            query_adapter="retrieval_query", document_adapter="retrieval_passage",
        ),
        ModelSpec(
            "clip", CLIP, 512, 77, "MIT", 151_277_313, images=True
        ),
        # No commit of its code (jinaai/jina-clip-implementation) is pinned here: name one.
        ModelSpec(
            "jina-clip", "jinaai/jina-clip-v1", 768, 8192, "Apache-2.0", 222_651_649,
            pooling="mean", images=True, remote_code=True,
        ),
        dataclasses.replace(
            _BGE_LARGE, choice="bge-large-splade", sparse_model="Splade_PP_en_v1",
            parameters=335_141_888 + 109_514_298,
        ),
        ModelSpec(
            "Splade_PP_en_v1", "prithivida/Splade_PP_en_v1", None, 512, "Apache-2.0", 109_514_298,
            heads=("sparse",), pooling="splade", engine="sentence",
        ),
        _BGE_LARGE,
        _bge("base", 768, 109_482_240),
        _bge("small", 384, 33_360_000),
        _e5("large", 1024, 335_141_888),
        _e5("base", 768, 109_482_240),
        _e5("small", 384, 33_360_000),
        _sbert("all-MiniLM-L6-v2", 384, 256, 22_713_216, engine="torch"),
        _sbert("all-mpnet-base-v2", 768, 384, 109_486_464, engine="sentence"),
        # Its card has no normalisation.
        _sbert(
            "paraphrase-multilingual-MiniLM-L12-v2", 384, 128, 117_653_760,
            engine="torch", normalise=False,
        ),
    )
}  # fmt: skip


def spec_for(model: str | os.PathLike[str] | ModelSpec) -> ModelSpec:
    """The spec of a choice, a known hub id, a TOML file, or one of your own as it is.

    Any other name is taken for a checkpoint in BGE-M3's layout, with all three heads.

    Raises:
        InputError: If a TOML file cannot be read, or says what no spec can.
    """
    if isinstance(model, ModelSpec):
        return model
    if not isinstance(model, str | os.PathLike):
        raise InputError(
            f"a model is a name, a folder, a TOML file or a ModelSpec, not {type(model).__name__}"
        )
    name = os.fsdecode(model)
    if name in MODELS:
        return MODELS[name]
    for spec in MODELS.values():
        if name == spec.model_id and spec.sparse_model is None:
            return spec
    if name.endswith(".toml"):
        return _read_toml(Path(name))
    if (exported := _exported(name)) is not None:
        return exported
    return ModelSpec(name, name, heads=HEAD_NAMES)


def _exported(folder: str) -> ModelSpec | None:
    """The spec that an exported model's folder carries; None for any other name or folder."""
    try:
        notes = json.loads((Path(folder).expanduser() / EXPORT).read_bytes())
        return ModelSpec.from_dict({**notes["spec"], "model_id": folder})
    except (OSError, ValueError, RuntimeError, KeyError, TypeError):
        return None  # no export, or a broken one, of which `checkpoints` says what is wrong


def image_spec_for(model: str | os.PathLike[str] | ModelSpec) -> ModelSpec:
    """As `spec_for`, for image models: any other name is taken for a CLIP or SigLIP checkpoint.

    Raises:
        InputError: If the choice embeds no images, or a TOML file cannot be read.
    """
    spec = spec_for(model)
    if not isinstance(model, ModelSpec) and spec.heads == HEAD_NAMES and spec.choice not in MODELS:
        return ModelSpec(spec.choice, spec.model_id, images=True)
    if not spec.images:
        able = [name for name, known in MODELS.items() if known.images]
        raise InputError(
            f"{spec.choice!r} embeds no images; {', '.join(able)} do, and any CLIP or SigLIP "
            "checkpoint by its hub id, its folder or a spec with images = true"
        )
    return spec


def _read_toml(path: Path) -> ModelSpec:
    try:
        with path.expanduser().open("rb") as file:
            fields = tomllib.load(file)
    except FileNotFoundError:
        raise InputError(f"there is no file {path.absolute()}") from None
    except (OSError, ValueError, RuntimeError) as error:
        raise InputError(f"{path} is no readable TOML file: {error}") from error
    for name in ("model_id", "sparse_model"):
        beside = path.expanduser().parent / str(fields.get(name, "") or "\0")
        with contextlib.suppress(OSError, ValueError):
            if beside.exists():  # as the file means it, wherever the program runs
                fields[name] = str(beside.resolve())
    return ModelSpec.from_dict(fields, where=str(path))
