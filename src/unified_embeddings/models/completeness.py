"""Refusing a model's files that lack something, before anything heavy is loaded.

What lives here: which files each kind of model needs, and what its files may not ask for. What does
not: tensors missing from the weights, which the engines find when they read them.
"""

from __future__ import annotations

from collections.abc import Iterator

from unified_embeddings.models.bounds import check_bounds
from unified_embeddings.models.catalogue import MODELS
from unified_embeddings.models.checkpoint import Checkpoint
from unified_embeddings.models.files import (
    COLBERT_HEAD,
    IMAGE_SETTINGS,
    IMAGE_TOKENIZERS,
    SPARSE_HEAD,
)
from unified_embeddings.models.sentence_files import check_default_prompt, check_dense_layers

NEEDS_SPEC = "A model without BGE-M3's heads needs a spec"
"""Part of the message for a checkpoint that is complete, but not in BGE-M3's layout."""


def check_files(checkpoint: Checkpoint) -> None:
    """Refuse a checkpoint that is incomplete, or whose files contradict its spec.

    Raises:
        ModelLoadError: If a file is missing or empty, or asks for what is not done here.
    """
    if checkpoint.is_exported:
        _ = checkpoint.export_notes  # raises if the export is damaged
        checkpoint.require("config.json")
        checkpoint.require("tokenizer.json")
        check_bounds(checkpoint)
        return
    if checkpoint.spec.images:
        _require_one_of(checkpoint, tuple((name,) for name in IMAGE_SETTINGS))
        _require_one_of(checkpoint, IMAGE_TOKENIZERS)
    _check_contradictions(checkpoint)
    _require_files(checkpoint)
    check_bounds(checkpoint)


def _check_contradictions(checkpoint: Checkpoint) -> None:
    """Refuse files that ask for other vectors than would be computed here."""
    spec = checkpoint.spec
    if checkpoint.has("adapter_config.json"):
        raise checkpoint.problem(
            "adapter_config.json in its folder makes it an adapter of another model; merge the "
            "two, or name adapters of its own in its spec"
        )
    if spec.remote_code and checkpoint.code_repository is not None:
        # Imported here because most models do not need it, and it imports the hub's client.
        from unified_embeddings.models.hub import require_cached_code

        require_cached_code(checkpoint, checkpoint.code_repository)
    _check_loading(checkpoint)
    modules = checkpoint.modules or []
    if not spec.normalise and any(module.name == "Normalize" for module in modules):
        raise checkpoint.problem("modules.json normalises its vectors, but its spec does not")
    check_dense_layers(checkpoint, modules)
    has_prefixes = bool(spec.query_prefix or spec.document_prefix)
    check_default_prompt(checkpoint, has_prefixes=has_prefixes)


def _check_loading(checkpoint: Checkpoint) -> None:
    """Refuse a configuration that makes transformers read other weights, or fetch other code.

    A class for attention may be named by a repository on the hub, whose compiled code would be run.
    """
    weights = checkpoint.config.get("transformers_weights")
    if weights is not None and weights not in [path.name for path in checkpoint.weight_files]:
        raise checkpoint.problem(
            f"config.json names {weights!r} as its weights, which are not those that are read here"
        )
    with checkpoint.explain("config.json cannot be used"):
        for name, value in _texts(checkpoint.config):
            if "implementation" in name and "/" in value:
                raise checkpoint.problem(
                    f"config.json asks for code from {value!r} ({name}), which is not run here"
                )


def _texts(settings: object, name: str = "") -> Iterator[tuple[str, str]]:
    """Yield every text in nested settings, with the names of the settings that it is in."""
    if isinstance(settings, dict):
        for key, value in settings.items():
            yield from _texts(value, f"{name}.{key}" if name else str(key))
    elif isinstance(settings, list):
        for value in settings:
            yield from _texts(value, name)
    elif isinstance(settings, str):
        yield name, settings


def _require_files(checkpoint: Checkpoint) -> None:
    spec = checkpoint.spec
    checkpoint.require("config.json")
    if not spec.images:  # transformers builds an image model's tokenizer from whatever it finds
        checkpoint.require("tokenizer.json")
    if "sparse" in spec.heads and spec.pooling != "splade":
        _require_head(checkpoint, SPARSE_HEAD)
    if "colbert" in spec.heads:
        _require_head(checkpoint, COLBERT_HEAD)
    for adapter in spec.adapters:
        checkpoint.require(f"{adapter}/adapter_config.json")


def _require_head(checkpoint: Checkpoint, name: str) -> None:
    """Refuse a model without one of BGE-M3's heads.

    For a model of the user's own the message explains specs: without one, a checkpoint is taken to
    be in BGE-M3's layout.
    """
    if checkpoint.has(name):
        return
    problem = f"{name} is missing in {checkpoint.folder}"
    if checkpoint.spec.choice not in MODELS:
        problem += (
            f". {NEEDS_SPEC} that says what it gives: a ModelSpec, or a TOML file; for a copy of a "
            "known one with like = 'arctic' (README, 'Choosing a model')"
        )
    raise checkpoint.problem(problem)


def _require_one_of(checkpoint: Checkpoint, choices: tuple[tuple[str, ...], ...]) -> None:
    """Refuse a model unless it has all files of one of the choices."""
    for names in choices:
        if all(checkpoint.has(name) for name in names):
            return
    alternatives = ", or ".join(" and ".join(names) for names in choices)
    raise checkpoint.problem(f"{checkpoint.folder} is missing files: it needs {alternatives}")
