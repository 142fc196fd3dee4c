"""Refusing sizes in a model's files that no model has, before anything is allocated by them.

What lives here: upper bounds on the numbers in configuration files, and on the files themselves.
What does not: whether the numbers fit each other and the weights (`weights`, the engines).

A folder may come from anybody. Libraries allocate and loop by what its files say, so a number that
is a thousand times too large costs hours or all memory before an error comes.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TypeGuard

from unified_embeddings.models.checkpoint import Checkpoint
from unified_embeddings.models.files import IMAGE_SETTINGS

_MOST_PARTS = 1024
"""The most layers, or experts of a layer."""
_MOST_BY_WORD = (
    # A number of parts, not the size of one: `shared_expert_intermediate_size`.
    (
        re.compile("^(?!.*(size|dim)).*(layer|depth|expert|n_block|num_block|num_stage)"),
        _MOST_PARTS,
    ),
    (re.compile("channel"), 2**14),
    (re.compile("head"), 2**14),
    (re.compile("hidden|dim|width|inner|intermediate|embd|d_model|d_ff|image|patch"), 2**18),
    (re.compile("vocab|position|length|len$|window|bucket|token_types"), 2**24),
)
"""Words in a setting's name → the largest value taken; the first that matches counts. All are tens
of times the largest known."""
_MOST = 2**40
"""The largest value of any other setting."""
_NO_SIZE = re.compile("id$|ids$|index$|theta|scal|factor|eps|std|prob|dropout|rate|version")
"""Names of numbers that nothing is allocated by."""
_MOST_DIGITS = 20
"""Digits of a number that an error shows."""
_MOST_MODULES = 20_000
"""Layers times experts: parts that are made one by one."""
_MOST_IMAGE_SIDE = 4096
"""Pixels that an image may be scaled to."""
_MOST_TOKENIZER_BYTES = 256 * 2**20
"""Bytes of `tokenizer.json`; seven times the largest known."""
_MOST_HEAD_BYTES = 2**30
_MOST_WEIGHT_BYTES = 2**37
"""128 GiB."""
_MOST_HEADER_BYTES = 100_000_000
"""Bytes of a header that safetensors reads."""
_PICKLE_STARTS = (b"PK", b"\x80")
"""How torch's zip format and its former one begin."""
_BLOCK = 512
"""Bytes of a block, as `stat` counts them."""
_SAMPLES = 64
_SAMPLE_BYTES = 4096
_MOSTLY_EMPTY = 16
"""A weight file of which less than one part in so many is on disk was never written in full."""


def check_bounds(checkpoint: Checkpoint) -> None:
    """Refuse a model whose files name, or have, a size that no model has.

    Raises:
        ModelLoadError: If one is out of bounds.
    """
    check_settings(checkpoint)
    _check_size(checkpoint, "tokenizer.json", _MOST_TOKENIZER_BYTES)
    if checkpoint.is_exported:
        return
    for name in ("sparse_linear.pt", "colbert_linear.pt"):
        _check_size(checkpoint, name, _MOST_HEAD_BYTES)
    for path in checkpoint.weight_files:
        if not path.stat().st_size:  # as an interrupted download may leave it
            raise checkpoint.problem(f"{path} is empty")
        _check_written(checkpoint, path)
        if problem := _format_problem(path):
            raise checkpoint.problem(
                f"{path.name} is truncated or not a weight file: {problem}; fetch it again"
            )
    folders = [module.folder for module in checkpoint.modules or () if module.folder]
    for folder in [*folders, *checkpoint.spec.adapters]:
        for path in (checkpoint.folder / folder).rglob("*"):
            if path.is_file():
                _check_written(checkpoint, path)


def check_settings(checkpoint: Checkpoint) -> None:
    """Refuse a number in the configuration that is out of bounds.

    Raises:
        ModelLoadError: If there is one.
    """
    layers = experts = 1
    with checkpoint.explain("config.json cannot be used"):
        numbers = list(_numbers(checkpoint.config))
    for name, value in numbers:
        most = _most_for(name)
        if not -most <= value <= most:
            raise checkpoint.problem(
                f"config.json has {name} = {_short(value)}, which is beyond any model (at most "
                f"{most:,})"
            )
        if most != _MOST_PARTS:
            continue
        if "expert" in name:
            experts = max(experts, int(value))
        else:
            layers = max(layers, int(value))
    if layers * experts > _MOST_MODULES:
        raise checkpoint.problem(
            f"config.json asks for {layers} layers of {experts} experts, which is beyond any model"
        )
    if checkpoint.spec.images:
        _check_image_settings(checkpoint)


def _check_image_settings(checkpoint: Checkpoint) -> None:
    for file_name in IMAGE_SETTINGS:
        if not checkpoint.has(file_name):
            continue
        with checkpoint.explain(f"{file_name} cannot be used"):
            numbers = list(_numbers(checkpoint.read_json(file_name)))
        for name, value in numbers:
            is_side = re.search("size|edge|height|width", name)
            if is_side and not 0 < value <= _MOST_IMAGE_SIDE:
                raise checkpoint.problem(
                    f"{file_name} has {name} = {_short(value)}, where a side of 1 to "
                    f"{_MOST_IMAGE_SIDE} pixels is needed"
                )


def _numbers(settings: object, name: str = "") -> Iterator[tuple[str, float]]:
    """Yield every number in nested settings, with the name of the setting that it is in."""
    if isinstance(settings, dict):
        for key, value in settings.items():
            if key == "label2id":  # names of a task's labels, which may be any word
                continue
            # In the name of a group the sizes of what it describes: {"size": {"height": 224}}.
            yield from _numbers(value, f"{name}.{key}" if name else str(key))
    elif isinstance(settings, list):
        for value in settings:
            yield from _numbers(value, name)
    elif _is_number(settings):
        yield name, settings


def _is_number(value: object) -> TypeGuard[int | float]:
    # NaN and infinity are no sizes: they are refused where a whole number is read.
    if isinstance(value, float):
        return math.isfinite(value)
    return isinstance(value, int) and not isinstance(value, bool)


def _short(value: float) -> str:
    text = str(value)
    return text if len(text) <= _MOST_DIGITS else f"{text[:_MOST_DIGITS]}... ({len(text)} digits)"


def _most_for(name: str) -> float:
    last_word = name.rpartition(".")[2]
    if _NO_SIZE.search(last_word):
        return float("inf")
    for word, most in _MOST_BY_WORD:
        if word.search(last_word):
            return most
    return _MOST


def _check_size(checkpoint: Checkpoint, name: str, most: int) -> None:
    if not checkpoint.has(name):
        return
    size = (checkpoint.folder / name).stat().st_size
    if size > most:
        raise checkpoint.problem(f"{name} has {size:,} bytes, which is beyond any model")


def _check_written(checkpoint: Checkpoint, path: Path) -> None:
    """Refuse a large file that was never written in full.

    An interrupted download can leave it behind: some tools reserve the whole file first.
    """
    stat = path.stat()
    if stat.st_size > _MOST_WEIGHT_BYTES:
        raise checkpoint.problem(f"{path} has {stat.st_size:,} bytes, which is beyond any model")
    blocks = getattr(stat, "st_blocks", 0)  # Windows and some network file systems count none
    few_blocks = blocks and blocks * _BLOCK * _MOSTLY_EMPTY < stat.st_size - 2**20
    # A file system that compresses, or counts some seconds later as ZFS does, may count few.
    if few_blocks and _holds_zeros(path, stat.st_size):
        raise checkpoint.problem(
            f"{path} is mostly empty: {blocks * _BLOCK:,} of its {stat.st_size:,} bytes are on "
            "disk; fetch it again"
        )


def _holds_zeros(path: Path, size: int) -> bool:
    """Tell whether most of a file is zeros, by samples."""
    empty = 0
    with path.open("rb") as file:
        for number in range(_SAMPLES):
            file.seek(number * size // _SAMPLES)
            empty += not file.read(_SAMPLE_BYTES).strip(b"\0")
    return 2 * empty > _SAMPLES


def _format_problem(path: Path) -> str | None:
    """Return what the first bytes of a weight file say against it, before all of it is read."""
    with path.open("rb") as file:
        start = file.read(9)
    if path.suffix != ".safetensors":
        return None if start.startswith(_PICKLE_STARTS) else "it does not begin like one"
    header_length = int.from_bytes(start[:8], "little")
    if not 2 <= header_length <= min(_MOST_HEADER_BYTES, path.stat().st_size - 8):
        return f"its header would have {header_length:,} bytes"
    return None if start[8:] == b"{" else "its header does not begin like one"
