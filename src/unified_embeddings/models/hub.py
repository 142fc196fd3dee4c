"""The Hugging Face hub and its cache on this machine.

What lives here: all use of huggingface_hub. What does not: deciding whether a snapshot is complete
(`completeness`) and what to do if it is not (`resolve`).
"""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import HfApi, constants, snapshot_download
from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

from unified_embeddings.errors import ModelLoadError
from unified_embeddings.models.checkpoint import Checkpoint
from unified_embeddings.models.files import (
    COLBERT_HEAD,
    PICKLED_WEIGHTS,
    SPARSE_HEAD,
    WEIGHTS,
)
from unified_embeddings.models.sentence_files import SENTENCE_SETTINGS
from unified_embeddings.models.spec import ModelSpec

_SMALL_FILES = (
    "config.json",
    "tokenizer.json",
    SPARSE_HEAD,
    COLBERT_HEAD,
    "1_Pooling/config.json",
    *SENTENCE_SETTINGS,
    "tokenizer_config.json",
    "special_tokens_map.json",
    "modules.json",
    "config_sentence_transformers.json",
    "preprocessor_config.json",
    "processor_config.json",
    "vocab.json",
    "merges.txt",
    "spiece.model",
    "[1-9]_*/*",
)
"""Files that are fetched of every model, if the repository has them."""

_HUB_TIMEOUT = 10.0
"""Seconds the hub may take to list a repository's files."""


def is_offline() -> bool:
    """Tell whether HF_HUB_OFFLINE forbids downloads."""
    return constants.is_offline_mode()


def find_cached_snapshot(name: str, revision: str | None) -> Path | None:
    """Return the folder of a model in the local cache, complete or not; None if there is none.

    Raises:
        ModelLoadError: If the name cannot be a hub id.
    """
    try:
        return Path(snapshot_download(name, revision=revision, local_files_only=True)).absolute()
    except HFValidationError as error:
        raise ModelLoadError(
            name, f"there is no such folder, and it is not a hub id: {error}"
        ) from error
    except LocalEntryNotFoundError as error:
        # The hub client calls a snapshot incomplete if it lacks any file of the repository, even
        # one that is never fetched here. The caller checks for the files that are needed.
        partial_snapshot = getattr(error, "snapshot_path", None)
        return Path(partial_snapshot).absolute() if partial_snapshot else None


def fetch_snapshot(spec: ModelSpec, revision: str | None) -> Checkpoint:
    """Download a model's files, and its code from another repository if the spec pins it.

    Raises:
        ModelLoadError: If the hub cannot be reached, or does not know the model.
    """
    name = spec.model_id
    try:
        patterns = _needed_files(spec, revision)
        folder = Path(
            snapshot_download(name, revision=revision, allow_patterns=patterns)
        ).absolute()
        checkpoint = Checkpoint(name, folder, folder.name, spec)
        # Transformers loads the code offline later, so that it must be in the cache by then.
        if spec.remote_code and spec.code_revision and checkpoint.code_repository:
            snapshot_download(
                checkpoint.code_repository, revision=spec.code_revision, allow_patterns="*.py"
            )
    except ModelLoadError:
        raise
    except Exception as error:  # the hub client's HTTP library, and its errors, change by version
        raise ModelLoadError(
            name,
            f"it is not in the local cache and could not be fetched from the hub: {error}. Copy "
            f"the model's folder to this machine and give its path, or use {_offline_model(spec)}",
            revision=revision,
        ) from error
    return checkpoint


def _offline_model(spec: ModelSpec) -> str:
    """Return, in words, the model that needs no download in place of this one."""
    if spec.images:
        return "the small offline model 'mini-clip', which knows drawn shapes only"
    return "the small offline model 'mini-m3'"


def _needed_files(spec: ModelSpec, revision: str | None) -> list[str]:
    """Return the patterns of the files to fetch, with the weights in one form only."""
    siblings = HfApi().model_info(spec.model_id, revision=revision, timeout=_HUB_TIMEOUT).siblings
    available = {file.rfilename for file in siblings or ()}
    patterns = [*_SMALL_FILES]
    if available.isdisjoint(WEIGHTS):
        patterns += [*PICKLED_WEIGHTS, "pytorch_model-*.bin"]
    else:
        patterns += [*WEIGHTS, "model-*.safetensors"]
    patterns += [f"{adapter}/*" for adapter in spec.adapters]
    if spec.remote_code:
        patterns.append("*.py")
    return patterns


def require_cached_code(checkpoint: Checkpoint, repository: str) -> None:
    """Refuse a model whose code in another repository is not in the local cache.

    Raises:
        ModelLoadError: If the code is not there, or no commit of it is pinned.
    """
    commit = str(checkpoint.code_options["code_revision"])
    try:
        snapshot_download(repository, revision=commit, local_files_only=True)
    except (HFValidationError, LocalEntryNotFoundError) as error:
        # Only the repository's Python files are fetched, which the client calls incomplete.
        if getattr(error, "snapshot_path", None):
            return
        raise checkpoint.problem(
            f"its code, in {repository}, is not in the local cache. Fetch it once with: hf "
            f"download {repository} --revision {commit}"
        ) from error
