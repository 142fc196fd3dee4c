"""From a model's name or folder to local files and a resolved revision."""

from __future__ import annotations

import difflib
import os
from collections.abc import Sequence
from pathlib import Path

from unified_embeddings.errors import ModelLoadError
from unified_embeddings.models.catalogue import MINI_M3, MODELS, spec_for
from unified_embeddings.models.checkpoint import (
    COLBERT_HEAD,
    COMMIT_HASH,
    IMAGE_SETTINGS,
    IMAGE_TOKENIZERS,
    PICKLED_WEIGHTS,
    SPARSE_HEAD,
    WEIGHTS,
    Checkpoint,
)
from unified_embeddings.models.mini_m3 import mini_m3_folder
from unified_embeddings.models.spec import ModelSpec

_SMALL_FILES = [
    "config.json",
    "tokenizer.json",
    SPARSE_HEAD,
    COLBERT_HEAD,
    "1_Pooling/config.json",
    "sentence_bert_config.json",
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
]


_NEEDS_SPEC = "A model without BGE-M3's heads needs a spec"


_HUB_TIMEOUT = 10.0
"""Seconds the hub may take to say what a repository holds."""


def require_consent(spec: ModelSpec, revision: str | None, *, given: bool) -> None:
    """Let a model that runs code from a repository pass only if that is agreed to, and pinned.

    Args:
        spec: The model's.
        revision: The commit asked for; None takes the spec's.
        given: Whether the caller trusts the code.

    Raises:
        ModelLoadError: If it is not trusted, or the revision is no commit: a branch may hold other
            code tomorrow. A folder's code is the folder's.
    """
    if not spec.remote_code:
        return
    if not given:
        raise ModelLoadError(
            spec.model_id,
            "it runs Python code from its repository. Read that code, then allow it with "
            "trust_remote_code=True",
            revision=revision or spec.revision,
        )
    pinned = revision or spec.revision or ""
    if not COMMIT_HASH.fullmatch(pinned) and _folder(spec.model_id) is None:
        raise ModelLoadError(
            spec.model_id,
            "it runs code from its repository, which has to be pinned: name the commit you have "
            f"read (40 hex digits, shown at https://huggingface.co/{spec.model_id}) as revision in "
            "its spec, with code_revision for code that lies elsewhere, or as revision=",
            revision=pinned or None,
        )


def resolve(
    name: str | os.PathLike[str] | ModelSpec,
    *,
    revision: str | None = None,
    local_files_only: bool = False,
) -> Checkpoint:
    """Find a model's files: a folder as it is, a hub name in the local cache, else on the hub.

    A complete cached snapshot is used without asking the hub, so that an upgrade there never
    changes vectors under an existing index; name a `revision` to move. `HF_HUB_OFFLINE` is honoured
    as huggingface_hub reads it. Of the weights only one form is fetched, safetensors
    where there is one.

    Args:
        name: A choice, a folder, a hub id such as "BAAI/bge-m3", a TOML file or a spec.
        revision: Branch, tag or commit on the hub; folders have none.
        local_files_only: Never ask the hub.

    Raises:
        ModelLoadError: If neither is found, a needed file is missing, or the hub cannot be reached.
        InputError: If a TOML file says what no spec can.
    """
    spec = spec_for(name)
    text = spec.model_id
    folder = _folder(text)
    if revision is None and folder is None:
        revision = spec.revision
    if text == MINI_M3:
        return _checked(Checkpoint(text, mini_m3_folder(), spec=spec))
    if folder is not None:
        if revision is not None:
            raise ModelLoadError(
                text, "a folder has no revisions; leave revision out", revision=revision
            )
        return _checked(Checkpoint(text, folder.resolve(), spec=spec))
    if text.count("/") > 1 or text.startswith((".", "~", os.sep)) or not text.strip():
        raise ModelLoadError(text, "there is no such folder")
    if "/" not in text:
        raise ModelLoadError(
            text,
            "there is no such folder, and no model of that name is known. There are "
            f"{', '.join(MODELS)}, hub ids of the form owner/name, and folders{_nearest(text)}",
        )
    return _snapshot(spec, revision, local_files_only)


def _folder(name: str) -> Path | None:
    """The folder of this name; None if there is none, or no folder could be called so."""
    try:
        path = Path(name).expanduser()
        return path if name.strip() and path.is_dir() else None
    except (OSError, ValueError, RuntimeError):
        return None


def _nearest(name: str) -> str:
    close = difflib.get_close_matches(name, MODELS, n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


def _snapshot(spec: ModelSpec, revision: str | None, local_files_only: bool) -> Checkpoint:
    from huggingface_hub import HfApi, constants, snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    name = spec.model_id
    cached: Path | None = None
    problem: str | None = None
    try:
        cached = Path(snapshot_download(name, revision=revision, local_files_only=True))
    except HFValidationError as error:
        raise ModelLoadError(
            name, f"there is no such folder, and it is no hub id: {error}"
        ) from error
    except LocalEntryNotFoundError as error:
        # The hub client calls a snapshot incomplete if it lacks any file of the repository, also
        # those we never fetch; what we need is for us to say.
        partial = getattr(error, "snapshot_path", None)
        cached = Path(partial) if partial else None
    if cached is not None:
        try:
            return _checked(Checkpoint(name, cached, cached.name, spec))
        except ModelLoadError as error:
            problem = error.problem
    if local_files_only or constants.is_offline_mode():
        if problem is not None and _NEEDS_SPEC in problem:
            raise ModelLoadError(name, problem, revision=revision)
        found = "it is not in the local cache"
        if problem is not None:
            found = f"its snapshot is incomplete ({problem})"
        command = f"hf download {name}" + (f" --revision {revision}" if revision else "")
        raise ModelLoadError(
            name,
            f"{found}, and downloads are off (local_files_only or HF_HUB_OFFLINE). Fetch it once "
            f"with: {command}; or give the folder it lies in",
            revision=revision,
        )
    try:
        siblings = HfApi().model_info(name, revision=revision, timeout=_HUB_TIMEOUT).siblings
        names = [file.rfilename for file in siblings or []]
        forms = WEIGHTS if any(n in names for n in WEIGHTS) else PICKLED_WEIGHTS
        wanted = [*_SMALL_FILES, *forms]
        wanted += ["model-*.safetensors"] if forms is WEIGHTS else ["pytorch_model-*.bin"]
        wanted += [f"{adapter}/*" for adapter in spec.adapters]
        wanted += ["*.py"] if spec.remote_code else []
        fetched = Path(snapshot_download(name, revision=revision, allow_patterns=wanted))
        checkpoint = Checkpoint(name, fetched, fetched.name, spec)
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
            "the model's folder to this machine and give its path, or use the small offline model "
            "'mini-m3'",
            revision=revision,
        ) from error
    return _checked(checkpoint)


def _checked(checkpoint: Checkpoint) -> Checkpoint:
    """Raise for what is missing before anything heavy is loaded."""
    if checkpoint.is_exported:
        _ = checkpoint.exported, checkpoint.require("config.json"), checkpoint.tokenizer_file
        return checkpoint
    needed = ["config.json"]
    # Transformers builds a CLIP's tokenizer from whatever files it finds.
    needed += [] if checkpoint.spec.images else ["tokenizer.json"]
    if checkpoint.spec.pooling != "splade" and "sparse" in checkpoint.spec.heads:
        needed.append(SPARSE_HEAD)
    if "colbert" in checkpoint.spec.heads:
        needed.append(COLBERT_HEAD)
    if checkpoint.spec.images:
        _require_any(checkpoint, [(name,) for name in IMAGE_SETTINGS])
        _require_any(checkpoint, IMAGE_TOKENIZERS)
    needed += [f"{adapter}/adapter_config.json" for adapter in checkpoint.spec.adapters]
    if (checkpoint.folder / "adapter_config.json").is_file():
        raise checkpoint.problem(
            "adapter_config.json in its folder makes it an adapter of another model; merge the "
            "two, or name adapters of its own in its spec"
        )
    if checkpoint.spec.remote_code and checkpoint.code_repository:
        _require_code(checkpoint)
    if not checkpoint.spec.normalise and "Normalize" in (checkpoint.modules or ()):
        raise checkpoint.problem("modules.json normalises its vectors, but its spec does not")
    _check_sentence_files(checkpoint)
    for name in needed:
        try:
            checkpoint.require(name)
        except ModelLoadError as error:
            if name not in (SPARSE_HEAD, COLBERT_HEAD) or checkpoint.spec.choice in MODELS:
                raise
            raise checkpoint.problem(
                f"{error.problem}. {_NEEDS_SPEC} that says what it gives: a ModelSpec, or a TOML "
                "file; for a copy of a known one with like = 'arctic' (README, 'Choosing a model')"
            ) from None
    for path in checkpoint.weight_files:
        if not path.stat().st_size:
            raise checkpoint.problem(f"{path} is empty")
    return checkpoint


def _check_sentence_files(checkpoint: Checkpoint) -> None:
    """Refuse what sentence-transformers would do for these files and nobody does here."""
    for path in checkpoint.folder.glob("[1-9]_Dense*/config.json"):
        name = f"{path.parent.name}/{path.name}"
        activation = str(checkpoint.json(name).get("activation_function", "torch."))
        if not activation.startswith("torch."):
            raise checkpoint.problem(f"{name} has the activation {activation}, not one of torch's")
    prompts = "config_sentence_transformers.json"
    if (checkpoint.folder / prompts).is_file():
        settings = checkpoint.json(prompts)
        named = (settings.get("prompts") or {}).get(settings.get("default_prompt_name"))
        if named and not (checkpoint.spec.query_prefix or checkpoint.spec.document_prefix):
            raise checkpoint.problem(
                f"{prompts} puts {named!r} before every text by default; name it as query_prefix "
                "and document_prefix in its spec"
            )


def _require_code(checkpoint: Checkpoint) -> None:
    """Raise unless code that lies in another repository is in the hub's cache."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    repository, revision = checkpoint.code_repository, checkpoint.code_options["code_revision"]
    try:
        snapshot_download(str(repository), revision=revision, local_files_only=True)
    except (HFValidationError, LocalEntryNotFoundError) as error:
        if getattr(error, "snapshot_path", None):  # its Python files alone were fetched
            return
        raise checkpoint.problem(
            f"its code, in {repository}, is not in the local cache. Fetch it once with: hf "
            f"download {repository} --revision {revision}"
        ) from error


def _require_any(checkpoint: Checkpoint, choices: Sequence[tuple[str, ...]]) -> None:
    """Raise unless all files of one of the choices are there."""
    if not any(all((checkpoint.folder / name).is_file() for name in files) for files in choices):
        wanted = ", or ".join(" and ".join(files) for files in choices)
        raise checkpoint.problem(f"{checkpoint.folder} has not what it needs: {wanted}")
