"""The model choices by name: data from each model's card."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from unified_embeddings.errors import InputError
from unified_embeddings.models.exported import read_exported_spec
from unified_embeddings.models.spec import ModelSpec
from unified_embeddings.types import HEAD_NAMES

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

MINI_M3 = "mini-m3"


CLIP = "openai/clip-vit-base-patch32"
"""The image model taken where none is named."""


_NOT_INHERITED = ("choice", "licence", "parameters", "revision", "code_revision")
"""What another model than the one inherited from has of its own."""


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
    if (exported := read_exported_spec(name)) is not None:
        return exported
    return ModelSpec(name, name, heads=HEAD_NAMES)


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
    return spec_from_dict(fields, where=str(path))


def spec_from_dict(fields: Mapping[str, Any], *, where: str = "the spec") -> ModelSpec:
    """Build a spec from its fields; those not given are inherited from the choice named `like`.

    If `model_id` is another than that choice's, its name, licence, size and pinned commits are not
    inherited.

    Raises:
        InputError: If `like` names no choice, a field is unknown or of a wrong type, or `model_id`
            is missing.
    """
    if not isinstance(fields, Mapping) or "like" not in fields:
        return ModelSpec.from_dict(fields, where=where)
    given = dict(fields)
    like = given.pop("like")
    if not isinstance(like, str) or like not in MODELS:
        raise InputError(f"{where}: like must be one of {', '.join(MODELS)}, got {like!r}")
    inherited = dataclasses.asdict(MODELS[like])
    if given.get("model_id", inherited["model_id"]) != inherited["model_id"]:
        for name in _NOT_INHERITED:
            del inherited[name]
    return ModelSpec.from_dict({**inherited, **given}, where=where)
