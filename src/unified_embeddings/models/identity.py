"""What tells a model's content from any other's.

What lives here: which files go into a model's digest, now and in earlier versions. What does not:
reading them (`digests`), and what else belongs to a fingerprint (`embedders`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from unified_embeddings.models.digests import (
    DIGEST_BYTES,
    file_digest,
    read_content,
    sample_content,
)
from unified_embeddings.models.files import (
    COLBERT_HEAD,
    IMAGE_SETTINGS,
    IMAGE_TOKENIZERS,
    SPARSE_HEAD,
)
from unified_embeddings.models.sentence_files import MODULES, PROMPTS, SENTENCE_SETTINGS

if TYPE_CHECKING:
    from unified_embeddings.models.checkpoint import Checkpoint

_ALWAYS = ("config.json", "tokenizer.json", SPARSE_HEAD, COLBERT_HEAD)
_SENTENCE_FILES = (MODULES, PROMPTS, *SENTENCE_SETTINGS)
"""Files besides those of its modules that sentence-transformers reads."""


def content_identity(checkpoint: Checkpoint) -> str:
    """Return 24 hex digits that tell a model's content from any other's.

    A digest over the whole content of every file that its vectors depend on, and what its spec says
    of them. A copy in another place has the same.

    Raises:
        ModelLoadError: If a file is missing or cannot be read.
    """
    digest = hashlib.blake2b(b"model 2", digest_size=DIGEST_BYTES)
    with checkpoint.explain("its files cannot be read"):
        for name, path in _named_files(checkpoint):
            digest.update(f"{name}\0{file_digest(path)}\0".encode())
    if not checkpoint.spec.images:
        digest.update(f"pooling {checkpoint.pooling}\0".encode())
    if checkpoint.lower_case:
        digest.update(b"lower case\0")
    if checkpoint.spec.remote_code:
        digest.update(f"code {checkpoint.spec.code_revision}\0".encode())
    return digest.hexdigest()


def _named_files(checkpoint: Checkpoint) -> Iterator[tuple[str, Path]]:
    """Yield each file with its name within the model, once. Those that are missing are left out."""
    names = [*_ALWAYS]
    if checkpoint.spec.images:
        names += _image_files()
    if checkpoint.has_sentence_files:
        names += _SENTENCE_FILES
        for module in checkpoint.modules or ():
            if module.folder:  # the backbone is in the model's own folder
                names += _files_within(checkpoint, module.folder)
    for adapter in checkpoint.spec.adapters:
        names += _files_within(checkpoint, adapter)
    if checkpoint.spec.remote_code:
        names += sorted(path.name for path in checkpoint.folder.glob("*.py"))
    for name in dict.fromkeys(names):
        if checkpoint.has(name):
            yield name, checkpoint.folder / name
    # Shards under other names are the same weights.
    for number, path in enumerate(checkpoint.weight_files):
        yield f"weights {number}", path


def _files_within(checkpoint: Checkpoint, name: str) -> list[str]:
    """Return the files in a subfolder, and in folders within it, in a fixed order."""
    folder = checkpoint.folder / name
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return [path.relative_to(checkpoint.folder).as_posix() for path in paths]


def _image_files() -> list[str]:
    """Return the names of the small files that an image model's vectors depend on."""
    names = [*IMAGE_SETTINGS]
    for tokenizer_files in IMAGE_TOKENIZERS:
        names += tokenizer_files
    return [*names, "tokenizer_config.json"]


# --- as earlier versions did it -------------------------------------------------------------------


def sampled_identity(checkpoint: Checkpoint) -> str:
    """Return the digest that earlier versions gave a model, over samples of its weights.

    It serves to recognise collections that carry it. Not a byte of what it digests may change.

    Raises:
        ModelLoadError: If a file is missing or cannot be read.
    """
    digest = hashlib.blake2b(digest_size=DIGEST_BYTES)
    with checkpoint.explain("its files cannot be read"):
        for name in _ALWAYS:
            digest.update(read_content(checkpoint.folder / name))
        if checkpoint.spec.images:
            for name in _image_files():
                digest.update(read_content(checkpoint.folder / name))
        else:
            digest.update(checkpoint.pooling.encode())
        for path in [*checkpoint.weight_files, *_sampled_weights(checkpoint)]:
            digest.update(sample_content(path))
        for path in _sampled_settings(checkpoint):
            digest.update(read_content(path))
    if checkpoint.lower_case:
        digest.update(b"lower case")
    if checkpoint.spec.remote_code:
        digest.update((checkpoint.spec.code_revision or "").encode())
    return digest.hexdigest()


def _sampled_weights(checkpoint: Checkpoint) -> list[Path]:
    folders = sorted(checkpoint.folder.glob("[1-9]_*"))
    folders += [checkpoint.folder / adapter for adapter in checkpoint.spec.adapters]
    paths = []
    for folder in folders:
        for path in sorted(folder.glob("*")):
            if path.suffix in (".safetensors", ".bin"):
                paths.append(path)
    return paths


def _sampled_settings(checkpoint: Checkpoint) -> list[Path]:
    files = [checkpoint.folder / name / "adapter_config.json" for name in checkpoint.spec.adapters]
    if checkpoint.further_modules:
        files += sorted(checkpoint.folder.glob("[1-9]_*/config.json"))
    if checkpoint.spec.remote_code:
        files += sorted(checkpoint.folder.glob("*.py"))
    return files
