"""The known models by name, and the spec of any model that a user names.

What lives here: `MODELS`, the data of each choice, and the way from a name, folder or TOML file to
a `ModelSpec`. What does not: finding the model's files (`resolve`) and running them (`engines`).

Each figure is from the model's card on the Hugging Face hub, as of November 2026.
"""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Mapping
from pathlib import Path

from unified_embeddings.errors import InputError
from unified_embeddings.models.bm25 import BM25, bm25_spec, is_bm25
from unified_embeddings.models.calibration import Calibration
from unified_embeddings.models.exported import read_exported_spec
from unified_embeddings.models.fusion import Fusion
from unified_embeddings.models.naming import is_hub_id, model_name
from unified_embeddings.models.spec import EngineName, ModelSpec
from unified_embeddings.types import HEAD_NAMES

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

MINI_M3 = "mini-m3"
"""The small offline model."""

MINI_CLIP = "mini-clip"
"""The small offline model of images: coloured shapes, and nothing else."""

CLIP = "openai/clip-vit-base-patch32"
"""The default image model."""

_BGE_M3_FUSION = Fusion(
    weights=(1.0, 0.3),
    candidates=50,
    source="BGE-M3's paper (Chen et al. 2024) weighs dense and sparse scores so; not measured here",
)

# Weights from 0.4 to 1 and k from 10 to 60 do nearly as well on these sets (ADR 20).
_MINI_M3_FUSION = Fusion(
    weights=(1.0, 0.6),
    k=20,
    candidates=50,
    source="measured on MED, CACM and XQuAD-R English by benchmarks/retrieval.py (ADR 20)",
)

# Judged by the other sets, a set of answers (XQuAD-R) has an error of 0.003 to 0.021; where many
# documents are about a question's topic (MED, CACM), far more of the hits are relevant (ADR 32).
_MINI_M3_CALIBRATION = Calibration(
    intercept=-7.585,
    dense_gap=3.054,
    sparse_share=0.2345,
    sparse_lead=1.481,
    agreement=5.803,
    background=0.208,
    weak_below=0.146,
    source="MED, CACM and XQuAD-R in four languages by tools/fit_calibration.py; error and AUC of "
    "each set judged without it, over all hits (ADR 32)",
    ece=0.008,
    weak_auc=0.908,
)

_NOT_INHERITED = (
    *("choice", "licence", "parameters", "revision", "code_revision"),
    "calibration",
)
"""Fields that belong to one model only; a spec that is `like` another does not inherit them."""


def _bge_spec(size: str, *, dimension: int, parameters: int) -> ModelSpec:
    name = f"bge-{size}-en-v1.5"
    return ModelSpec(
        choice=name,
        model_id=f"BAAI/{name}",
        dimension=dimension,
        max_length=512,
        licence="MIT",
        parameters=parameters,
        pooling="cls",
        query_prefix="Represent this sentence for searching relevant passages: ",
        engine="torch",
    )


def _e5_spec(size: str, *, dimension: int, parameters: int) -> ModelSpec:
    name = f"e5-{size}-v2"
    return ModelSpec(
        choice=name,
        model_id=f"intfloat/{name}",
        dimension=dimension,
        max_length=512,
        licence="MIT",
        parameters=parameters,
        pooling="mean",
        query_prefix="query: ",
        document_prefix="passage: ",
        engine="torch",
    )


def _sentence_transformers_spec(
    name: str,
    *,
    dimension: int,
    max_length: int,
    parameters: int,
    engine: EngineName,
    normalise: bool = True,
) -> ModelSpec:
    return ModelSpec(
        choice=name,
        model_id=f"sentence-transformers/{name}",
        dimension=dimension,
        max_length=max_length,
        licence="Apache-2.0",
        parameters=parameters,
        pooling="mean",
        normalise=normalise,
        engine=engine,
    )


_BGE_LARGE = _bge_spec("large", dimension=1024, parameters=335_141_888)

_SPLADE = ModelSpec(
    choice="Splade_PP_en_v1",
    model_id="prithivida/Splade_PP_en_v1",
    max_length=512,
    licence="Apache-2.0",
    parameters=109_514_298,
    heads=("sparse",),
    pooling="splade",
    engine="sentence",
)

_KNOWN_SPECS = (
    ModelSpec(
        choice="bge-m3",
        model_id="BAAI/bge-m3",
        dimension=1024,
        max_length=8192,
        licence="MIT",
        parameters=568_805_377,
        heads=HEAD_NAMES,
        engine="torch",
        fusion=_BGE_M3_FUSION,
    ),
    # all-MiniLM-L6-v2 (Apache-2.0) with a fitted sparse head; see mini_m3.py.
    ModelSpec(
        choice=MINI_M3,
        model_id=MINI_M3,
        dimension=384,
        max_length=256,
        licence="Apache-2.0",
        parameters=22_861_441,
        heads=HEAD_NAMES,
        engine="torch",
        fusion=_MINI_M3_FUSION,
        calibration=_MINI_M3_CALIBRATION,
        sparse_idf=True,
        sum_query_repeats=True,
    ),
    # The code is in another repository, nomic-ai/nomic-bert-2048, and has a pin of its own.
    ModelSpec(
        choice="nomic",
        model_id="nomic-ai/nomic-embed-text-v2-moe",
        dimension=768,
        max_length=512,
        licence="Apache-2.0",
        parameters=475_292_928,
        pooling="mean",
        query_prefix="search_query: ",
        document_prefix="search_document: ",
        engine="sentence",
        remote_code=True,
        revision="1066b6599d099fbb93dfcb64f9c37a7c9e503e85",
        code_revision="7710840340a098cfb869c4f65e87cf2b1b70caca",
    ),
    ModelSpec(
        choice="arctic",
        model_id="Snowflake/snowflake-arctic-embed-l-v2.0",
        dimension=1024,
        max_length=8192,
        licence="Apache-2.0",
        parameters=567_754_752,
        pooling="cls",
        query_prefix="query: ",
        engine="torch",
    ),
    # This checkpoint runs in transformers itself. The older jinaai/jina-embeddings-v3 needs remote
    # code that transformers 5 cannot load. Commercial use needs Jina's consent.
    ModelSpec(
        choice="jina-v3",
        model_id="jinaai/jina-embeddings-v3-hf",
        dimension=1024,
        max_length=8192,
        licence="CC-BY-NC-4.0",
        parameters=572_310_396,
        pooling="mean",
        query_prefix="Represent the query for retrieving evidence documents: ",
        document_prefix="Represent the document for retrieval: ",
        query_adapter="retrieval_query",
        document_adapter="retrieval_passage",
        engine="sentence",
    ),
    ModelSpec(
        choice="clip",
        model_id=CLIP,
        dimension=512,
        max_length=77,
        licence="MIT",
        parameters=151_277_313,
        images=True,
    ),
    # Trained on drawn shapes by tools/train_mini_clip.py; see mini_clip.py.
    ModelSpec(
        choice=MINI_CLIP,
        model_id=MINI_CLIP,
        dimension=96,
        max_length=48,
        licence="Apache-2.0",
        parameters=653_089,
        images=True,
    ),
    # No commit of its code (jinaai/jina-clip-implementation) is pinned here: users name one.
    ModelSpec(
        choice="jina-clip",
        model_id="jinaai/jina-clip-v1",
        dimension=768,
        max_length=8192,
        licence="Apache-2.0",
        parameters=222_651_649,
        pooling="mean",
        images=True,
        remote_code=True,
    ),
    # Two models: the sparse vectors come from Splade_PP_en_v1.
    dataclasses.replace(
        _BGE_LARGE,
        choice="bge-large-splade",
        sparse_model=_SPLADE.choice,
        parameters=335_141_888 + 109_514_298,
    ),
    _SPLADE,
    bm25_spec(BM25),
    _BGE_LARGE,
    _bge_spec("base", dimension=768, parameters=109_482_240),
    _bge_spec("small", dimension=384, parameters=33_360_000),
    _e5_spec("large", dimension=1024, parameters=335_141_888),
    _e5_spec("base", dimension=768, parameters=109_482_240),
    _e5_spec("small", dimension=384, parameters=33_360_000),
    _sentence_transformers_spec(
        "all-MiniLM-L6-v2", dimension=384, max_length=256, parameters=22_713_216, engine="torch"
    ),
    _sentence_transformers_spec(
        "all-mpnet-base-v2",
        dimension=768,
        max_length=384,
        parameters=109_486_464,
        engine="sentence",
    ),
    # Its model card has no normalisation step.
    _sentence_transformers_spec(
        "paraphrase-multilingual-MiniLM-L12-v2",
        dimension=384,
        max_length=128,
        parameters=117_653_760,
        engine="torch",
        normalise=False,
    ),
)

MODELS: dict[str, ModelSpec] = {spec.choice: spec for spec in _KNOWN_SPECS}
"""Choice → its spec, in the order in which they are listed to users."""


def spec_for(model: str | os.PathLike[str] | ModelSpec) -> ModelSpec:
    """Return the spec of a model.

    A name that is none of the below is taken to be a checkpoint in BGE-M3's layout, with all three
    heads. A str of the form owner/name is a hub id, also where a folder has that name: write
    "./owner/name", or give a Path, for the folder.

    Args:
        model: A choice, the hub id of a choice, a TOML file, the folder of an exported model, or a
            ModelSpec, which is returned unchanged. "bm25:german" and so on are choices too.

    Raises:
        InputError: If a TOML file cannot be read or holds an invalid spec, or BM25 has no such
            language.
    """
    if isinstance(model, ModelSpec):
        return model
    if not isinstance(model, str | os.PathLike):
        raise InputError(
            f"a model is a name, a folder, a TOML file or a ModelSpec, not {type(model).__name__}"
        )
    name = model_name(model)
    if name in MODELS:
        return MODELS[name]
    if is_bm25(name):
        return bm25_spec(name)
    for spec in MODELS.values():
        # A hub id means the model alone, not the pair of models that it is part of.
        if name == spec.model_id and spec.sparse_model is None:
            return spec
    if name.endswith(".toml"):
        return _read_toml(Path(name))
    exported_spec = None if is_hub_id(name) else read_exported_spec(name)
    if exported_spec is not None:
        return exported_spec
    return guess_spec(name)


def guess_spec(name: str) -> ModelSpec:
    """Return the spec of a name that nothing is known of: a checkpoint in BGE-M3's layout."""
    return ModelSpec(name, name, heads=HEAD_NAMES, fusion=_BGE_M3_FUSION)


def image_spec_for(model: str | os.PathLike[str] | ModelSpec) -> ModelSpec:
    """Return the spec of an image model.

    Like `spec_for`, but any other name is taken to be a CLIP or SigLIP checkpoint.

    Raises:
        InputError: If the choice does not embed images, or a TOML file cannot be read.
    """
    spec = spec_for(model)
    is_guess = spec.heads == HEAD_NAMES and spec.choice not in MODELS
    if is_guess and not isinstance(model, ModelSpec):
        return ModelSpec(spec.choice, spec.model_id, images=True)
    if not spec.images:
        image_choices = [name for name, known_spec in MODELS.items() if known_spec.images]
        raise InputError(
            f"{spec.choice!r} embeds no images; {', '.join(image_choices)} do, and so does any "
            "CLIP or SigLIP checkpoint, by its hub id, its folder or a spec with images = true"
        )
    return spec


def spec_from_dict(fields: Mapping[str, object], *, where: str = "the spec") -> ModelSpec:
    """Build a spec from its fields; the choice named by `like` supplies those that are not given.

    If `model_id` differs from that choice's, then its name, licence, size and pinned commits are
    not inherited.

    Args:
        fields: Values by field name, and optionally `like`.
        where: Where the fields come from, for error messages.

    Raises:
        InputError: If `like` is not a choice, a field is unknown or has the wrong type, or
            `model_id` is missing.
    """
    if not isinstance(fields, Mapping) or "like" not in fields:
        return ModelSpec.from_dict(fields, where=where)
    given = dict(fields)
    like = given.pop("like")
    if not isinstance(like, str) or like not in MODELS:
        raise InputError(f"{where}: like must be one of {', '.join(MODELS)}, got {like!r}")
    inherited: dict[str, object] = dataclasses.asdict(MODELS[like])
    if given.get("model_id", inherited["model_id"]) != inherited["model_id"]:
        for name in _NOT_INHERITED:
            del inherited[name]
    return ModelSpec.from_dict({**inherited, **given}, where=where)


def _read_toml(path: Path) -> ModelSpec:
    try:
        with path.expanduser().open("rb") as file:
            fields: dict[str, object] = tomllib.load(file)
    except FileNotFoundError:
        raise InputError(f"there is no file {path.absolute()}") from None
    except (OSError, ValueError, RuntimeError) as error:
        raise InputError(f"{path} is not a readable TOML file: {error}") from error
    for name in ("model_id", "sparse_model"):
        # A relative path is relative to the TOML file, whatever the working folder is.
        model = str(fields.get(name) or "")
        model_path = path.expanduser().parent / model
        if model and not is_hub_id(model) and _exists(model_path):
            fields[name] = str(model_path.resolve())
    return spec_from_dict(fields, where=str(path))


def _exists(path: Path) -> bool:
    """Tell whether a path exists, also for a hub id that cannot be a path on this system."""
    try:
        return path.exists()
    except (OSError, ValueError):
        return False
