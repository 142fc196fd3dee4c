"""From a model's name or folder to local files and a resolved revision.

What lives here: deciding where a model's files come from, and consent to remote code. What does
not: the hub's client (`hub`), what the files say (`checkpoint`).
"""

from __future__ import annotations

import difflib
import os
from pathlib import Path

from unified_embeddings.errors import ModelLoadError
from unified_embeddings.models.catalogue import MINI_CLIP, MINI_M3, MODELS, spec_for
from unified_embeddings.models.checkpoint import COMMIT_HASH, Checkpoint
from unified_embeddings.models.completeness import NEEDS_SPEC, check_files
from unified_embeddings.models.mini_clip import mini_clip_folder
from unified_embeddings.models.mini_m3 import mini_m3_folder
from unified_embeddings.models.naming import is_hub_id
from unified_embeddings.models.spec import ModelSpec


def require_consent(spec: ModelSpec, revision: str | None, *, given: bool) -> None:
    """Refuse a model with remote code, unless the user trusts the code and it is pinned.

    A branch or tag is not a pin: it may hold other code tomorrow. The code in a local folder needs
    none.

    Args:
        spec: The model's spec.
        revision: The commit asked for. None takes the spec's.
        given: Whether the caller trusts the code.

    Raises:
        ModelLoadError: If the code is not trusted, or the revision is not a commit.
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
    pinned_commit = revision or spec.revision or ""
    if not COMMIT_HASH.fullmatch(pinned_commit) and _find_folder(spec.model_id) is None:
        raise ModelLoadError(
            spec.model_id,
            "it runs code from its repository, which has to be pinned: name the commit you have "
            f"read (40 hex digits, shown at https://huggingface.co/{spec.model_id}) as revision in "
            "its spec, with code_revision for code in another repository, or as revision=",
            revision=pinned_commit or None,
        )


def resolve(
    name: str | os.PathLike[str] | ModelSpec,
    *,
    revision: str | None = None,
    local_files_only: bool = False,
) -> Checkpoint:
    """Find a model's files: in a folder, in the hub's local cache, or else on the hub.

    A complete cached snapshot is used without asking the hub, so that an upgrade there never
    changes vectors under an existing index. Name a `revision` to move to another one.
    `HF_HUB_OFFLINE` is honoured as huggingface_hub reads it. Weights are fetched in one form only,
    as safetensors if the repository has them.

    Args:
        name: A choice, a folder, a hub id such as "BAAI/bge-m3", a TOML file or a spec. A str of
            the form owner/name is a hub id, whatever folders there are.
        revision: Branch, tag or commit on the hub. Folders have none.
        local_files_only: Never ask the hub.

    Raises:
        ModelLoadError: If the model is not found, a needed file is missing, or the hub cannot be
            reached.
        InputError: If a TOML file holds an invalid spec.
    """
    spec = spec_for(name)
    model_id = spec.model_id
    if spec.pooling == "bm25":
        raise ModelLoadError(model_id, "it counts words: there is no model, and no file to find")
    folder = _find_folder(model_id)
    # The pin is the hub's.
    if revision is None and folder is None:
        revision = spec.revision
    if model_id == MINI_M3:
        return _open_folder(spec, mini_m3_folder())
    if model_id == MINI_CLIP:
        return _open_folder(spec, mini_clip_folder())
    if folder is not None:
        if revision is not None:
            raise ModelLoadError(
                model_id, "a folder has no revisions; leave revision out", revision=revision
            )
        return _open_folder(spec, folder.resolve())
    _refuse_paths(model_id)
    return _resolve_hub_id(spec, revision, local_files_only=local_files_only)


def _find_folder(name: str) -> Path | None:
    """Return the folder that a model's name means; None if there is none, or it is a hub id."""
    if not name.strip() or is_hub_id(name):
        return None
    try:
        path = Path(name).expanduser()
        return path if path.is_dir() else None
    except (OSError, ValueError, RuntimeError):
        return None


def _refuse_paths(name: str) -> None:
    """Refuse a name that cannot be a hub id, before the hub's client is asked for it."""
    if name.count("/") > 1 or name.startswith((".", "~", os.sep)) or not name.strip():
        raise ModelLoadError(name, "there is no such folder")
    if "/" in name:
        return
    hint = ""
    if close_names := difflib.get_close_matches(name, MODELS, n=1):
        hint = f"; did you mean {close_names[0]!r}?"
    raise ModelLoadError(
        name,
        "there is no such folder, and no model of that name is known. There are "
        f"{', '.join(MODELS)}, hub ids of the form owner/name, and folders{hint}",
    )


def _open_folder(spec: ModelSpec, folder: Path, *, revision: str = "") -> Checkpoint:
    """Return the checkpoint in a folder, after its files were checked."""
    checkpoint = Checkpoint(spec.model_id, folder, revision, spec)
    check_files(checkpoint)
    checkpoint.identify()
    return checkpoint


def _resolve_hub_id(spec: ModelSpec, revision: str | None, *, local_files_only: bool) -> Checkpoint:
    """Return a complete snapshot from the hub's cache, or fetch one."""
    # Imported here because folders do not need it, and it imports the hub's client.
    from unified_embeddings.models import hub

    problem = None
    snapshot = hub.find_cached_snapshot(spec.model_id, revision)
    if snapshot is not None:
        try:
            # The folder of a snapshot is named after its commit.
            return _open_folder(spec, snapshot, revision=snapshot.name)
        except ModelLoadError as error:
            problem = error.problem
    namesake = _folder_hint(spec.model_id)
    if local_files_only or hub.is_offline():
        raise _offline_error(spec.model_id, revision, problem, namesake)
    if namesake and revision is None and spec.choice not in MODELS:
        # Most likely the folder is meant. Fetching a stranger's model of that name would be worse
        # than asking.
        raise ModelLoadError(
            spec.model_id,
            f"it is the name of a model on the hub, which is not in the local cache{namesake}. For "
            "the hub's, name its revision",
        )
    checkpoint = hub.fetch_snapshot(spec, revision)
    check_files(checkpoint)
    return checkpoint


def _folder_hint(name: str) -> str:
    """Return how to name the folder that has the name of a hub id; "" if there is none."""
    try:
        is_folder = Path(name).is_dir()
    except (OSError, ValueError):
        return ""
    return f"; for the folder of that name write ./{name}" if is_folder else ""


def _offline_error(
    name: str, revision: str | None, problem: str | None, namesake: str
) -> ModelLoadError:
    """Return the error for a model that would have to be downloaded.

    Args:
        name: The hub id.
        revision: The revision asked for.
        problem: What is wrong with the snapshot in the cache; None if there is none.
        namesake: How to name a folder of the same name instead; "" if there is none.
    """
    if problem is None:
        state = "it is not in the local cache"
    elif NEEDS_SPEC in problem:  # the snapshot may well be complete: a download would not help
        return ModelLoadError(name, problem, revision=revision)
    else:
        state = f"its snapshot is incomplete ({problem})"
    command = f"hf download {name}"
    if revision:
        command += f" --revision {revision}"
    return ModelLoadError(
        name,
        f"{state}, and downloads are off (local_files_only or HF_HUB_OFFLINE). Fetch it once with: "
        f"{command}; or give the folder that has it{namesake}",
        revision=revision,
    )
