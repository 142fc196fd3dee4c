"""From a model's name or folder to local files and a resolved revision.

What lives here: finding the files, in the Hugging Face cache or a folder, and reading the small
ones. What does not: tensors; weights and heads are read by the engines.

The layout is BGE-M3's: `config.json`, `tokenizer.json`, `model.safetensors` or
`pytorch_model.bin` (one file or shards with an index), `sparse_linear.pt`, `colbert_linear.pt`, and
sentence-transformers' `1_Pooling/config.json` and `sentence_bert_config.json` where present.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import os
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from unified_embeddings.errors import ModelLoadError
from unified_embeddings.mini_m3 import mini_m3_folder
from unified_embeddings.models import MINI_M3, MODELS

Pooling = Literal["cls", "mean"]

SPARSE_HEAD = "sparse_linear.pt"
COLBERT_HEAD = "colbert_linear.pt"
_WEIGHTS = ("model.safetensors", "model.safetensors.index.json")
_PICKLED_WEIGHTS = ("pytorch_model.bin", "pytorch_model.bin.index.json")
_SMALL_FILES = [
    "config.json",
    "tokenizer.json",
    SPARSE_HEAD,
    COLBERT_HEAD,
    "1_Pooling/config.json",
    "sentence_bert_config.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
]
_HUB_TIMEOUT = 10.0
"""Seconds the hub may take to say what a repository holds."""
_SAMPLES = 256
_SAMPLE_BYTES = 4096


@dataclass(frozen=True)
class Checkpoint:
    """The local files of one model.

    Attributes:
        name: The name or folder it was asked for by.
        folder: Where the files lie.
        revision: The hub's commit hash, or `digest` for a folder that is no hub snapshot.

    Every property that reads a file raises ModelLoadError naming it if it is missing or unreadable.
    """

    name: str
    folder: Path
    revision: str = field(default="")

    def __post_init__(self) -> None:
        if not self.revision:
            object.__setattr__(self, "revision", self.digest)

    @cached_property
    def config(self) -> dict[str, Any]:
        """`config.json`, the backbone's architecture."""
        return self._json("config.json")

    @property
    def hidden_size(self) -> int:
        """Width of the backbone, which is the dense dimension."""
        return self._integer("hidden_size")

    @property
    def model_type(self) -> str:
        """Transformers' name of the architecture: "xlm-roberta", "bert", ..."""
        return str(self._setting("model_type"))

    @cached_property
    def pooling(self) -> Pooling:
        """How the dense vector is taken from the hidden states.

        From sentence-transformers' `1_Pooling/config.json` (both its older flags and its newer
        `pooling_mode`); without that file "cls", which is BGE-M3's.
        """
        if not (self.folder / "1_Pooling/config.json").is_file():
            return "cls"
        settings = self._json("1_Pooling/config.json")
        chosen = {
            key.removeprefix("pooling_mode_").removesuffix("_token").removesuffix("_tokens")
            for key, on in settings.items()
            if key.startswith("pooling_mode_") and on is True
        }
        named = settings.get("pooling_mode")
        chosen |= set(named) if isinstance(named, list) else {str(named)} if named else set()
        if chosen == {"cls"}:
            return "cls"
        if chosen == {"mean"}:
            return "mean"
        raise self.problem(
            f"1_Pooling/config.json asks for pooling {sorted(chosen)}, but only cls or mean "
            "pooling, one at a time, can be computed"
        )

    @cached_property
    def max_length(self) -> int:
        """The most tokens a text may have, special tokens included.

        The smaller of the number of positions (less the two that RoBERTa-type models reserve) and
        sentence-transformers' `max_seq_length`.
        """
        positions = self._integer("max_position_embeddings")
        if self.model_type != "bert":
            positions -= self._integer("pad_token_id") + 1
        if (self.folder / "sentence_bert_config.json").is_file():
            limit = self._json("sentence_bert_config.json").get("max_seq_length")
            if isinstance(limit, int):
                positions = min(positions, limit)
        return positions

    @property
    def tokenizer_file(self) -> Path:
        """`tokenizer.json`."""
        return self.require("tokenizer.json")

    @cached_property
    def weight_files(self) -> list[Path]:
        """The files of the backbone's tensors: safetensors before pickles, shards in order."""
        for name in (*_WEIGHTS, *_PICKLED_WEIGHTS):
            if not (self.folder / name).is_file():
                continue
            if not name.endswith(".index.json"):
                return [self.folder / name]
            shards = self._json(name).get("weight_map")
            if not isinstance(shards, dict) or not shards:
                raise self.problem(f"{name} in {self.folder} lists no shards")
            return [self.require(shard) for shard in sorted(set(shards.values()))]
        raise self.problem(
            f"no weights in {self.folder}: expected model.safetensors or pytorch_model.bin"
        )

    @cached_property
    def digest(self) -> str:
        """24 hex digits that tell this model's content from any other's.

        A BLAKE2b digest over the configuration, tokenizer and head files whole and over 256 blocks
        of 4 KiB spread evenly through each weight file: two fine-tunings of one architecture
        differ in it, a copy in another place does not, and 2 GB of weights cost milliseconds.
        """
        digest = hashlib.blake2b(digest_size=12)
        for name in ("config.json", "tokenizer.json", SPARSE_HEAD, COLBERT_HEAD):
            digest.update(_whole(self.folder / name))
        digest.update(self.pooling.encode())
        for path in self.weight_files:
            digest.update(_sampled(path))
        return digest.hexdigest()

    def require(self, name: str) -> Path:
        """The path of a file that has to be there.

        Raises:
            ModelLoadError: If it is not.
        """
        path = self.folder / name
        if not path.is_file():
            raise self.problem(f"{name} is missing in {self.folder}")
        return path

    def problem(self, text: str) -> ModelLoadError:
        """The error that says `text` of this checkpoint."""
        return ModelLoadError(self.name, text, revision=self.__dict__.get("revision") or None)

    def _json(self, name: str) -> dict[str, Any]:
        path = self.require(name)
        try:
            content = json.loads(path.read_text("utf-8"))
        except (ValueError, OSError) as error:
            raise self.problem(f"{path} is not readable JSON: {error}") from error
        if not isinstance(content, dict):
            raise self.problem(f"{path} should hold a JSON object, not {type(content).__name__}")
        return content

    def _integer(self, key: str) -> int:
        value = self._setting(key)
        if not isinstance(value, int):
            raise self.problem(f"config.json has {key} = {value!r}, where a number is needed")
        return value

    def _setting(self, key: str) -> Any:
        if key not in self.config:
            raise self.problem(f"config.json in {self.folder} has no {key!r}")
        return self.config[key]


def resolve(
    name: str | os.PathLike[str], *, revision: str | None = None, local_files_only: bool = False
) -> Checkpoint:
    """Find a model's files: a folder as it is, a hub name in the local cache, else on the hub.

    A complete cached snapshot is used without asking the hub, so that an upgrade there never
    changes vectors under an existing index; name a `revision` to move. `HF_HUB_OFFLINE` is honoured
    as huggingface_hub reads it. Of the weights only one form is fetched, safetensors
    where there is one.

    Args:
        name: A folder, or a hub id such as "BAAI/bge-m3".
        revision: Branch, tag or commit on the hub; folders have none.
        local_files_only: Never ask the hub.

    Raises:
        ModelLoadError: If neither is found, a needed file is missing, or the hub cannot be reached.
    """
    text = os.fspath(name)
    if text == MINI_M3:
        return _checked(Checkpoint(text, mini_m3_folder()))
    folder = Path(text).expanduser()
    if text.strip() and folder.is_dir():
        if revision is not None:
            raise ModelLoadError(
                text, "a folder has no revisions; leave revision out", revision=revision
            )
        return _checked(Checkpoint(text, folder.resolve()))
    if text.count("/") > 1 or text.startswith((".", "~", os.sep)) or not text.strip():
        raise ModelLoadError(text, "there is no such folder")
    if "/" not in text:
        raise ModelLoadError(
            text,
            "there is no such folder, and no model of that name is known. There are "
            f"{', '.join(MODELS)}, hub ids of the form owner/name, and folders{_nearest(text)}",
        )
    snapshot = _snapshot(text, revision, local_files_only)
    return _checked(Checkpoint(text, snapshot, revision=snapshot.name))


def _nearest(name: str) -> str:
    close = difflib.get_close_matches(name, MODELS, n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


def _snapshot(name: str, revision: str | None, local_files_only: bool) -> Path:
    from huggingface_hub import HfApi, constants, snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    cached: Path | None = None
    try:
        cached = Path(snapshot_download(name, revision=revision, local_files_only=True))
        if _is_complete(cached):
            return cached
    except HFValidationError as error:
        raise ModelLoadError(
            name, f"there is no such folder, and it is no hub id: {error}"
        ) from error
    except LocalEntryNotFoundError as error:
        # The hub client calls a snapshot incomplete if it lacks any file of the repository, also
        # those we never fetch; what we need is for us to say.
        partial = getattr(error, "snapshot_path", None)
        cached = Path(partial) if partial else None
        if cached is not None and _is_complete(cached):
            return cached
    if local_files_only or constants.is_offline_mode():
        found = "it is not in the local cache"
        if cached is not None:
            found = f"its snapshot is incomplete ({_lacks(cached)})"
        raise ModelLoadError(
            name,
            f"{found}, and downloads are off (local_files_only or HF_HUB_OFFLINE). Fetch it once "
            f"with: hf download {name}; or give the folder it lies in",
            revision=revision,
        )
    try:
        siblings = HfApi().model_info(name, revision=revision, timeout=_HUB_TIMEOUT).siblings
        names = [file.rfilename for file in siblings or []]
        forms = _WEIGHTS if any(n in names for n in _WEIGHTS) else _PICKLED_WEIGHTS
        wanted = [*_SMALL_FILES, *forms]
        wanted += ["model-*.safetensors"] if forms is _WEIGHTS else ["pytorch_model-*.bin"]
        return Path(snapshot_download(name, revision=revision, allow_patterns=wanted))
    except Exception as error:  # the hub client's HTTP library, and its errors, change by version
        raise ModelLoadError(
            name,
            f"it is not in the local cache and could not be fetched from the hub: {error}. Copy "
            "the model's folder to this machine and give its path, or use the small offline model "
            "'mini-m3'",
            revision=revision,
        ) from error


def _is_complete(folder: Path) -> bool:
    return _lacks(folder) is None


def _lacks(folder: Path) -> str | None:
    """What keeps a snapshot from being used; None if nothing does."""
    try:
        _checked(Checkpoint(str(folder), folder, revision="?"))
    except ModelLoadError as error:
        return error.problem
    return None


def _checked(checkpoint: Checkpoint) -> Checkpoint:
    """Raise for what is missing before anything heavy is loaded."""
    for name in ("config.json", "tokenizer.json", SPARSE_HEAD, COLBERT_HEAD):
        checkpoint.require(name)
    for path in checkpoint.weight_files:
        if not path.stat().st_size:
            raise checkpoint.problem(f"{path} is empty")
    return checkpoint


def _whole(path: Path) -> bytes:
    content = path.read_bytes() if path.is_file() else b""
    return len(content).to_bytes(8, "little") + content


def _sampled(path: Path) -> bytes:
    size = path.stat().st_size
    parts = [size.to_bytes(8, "little")]
    with path.open("rb") as file:
        for i in range(_SAMPLES):
            file.seek(i * size // _SAMPLES)
            parts.append(file.read(_SAMPLE_BYTES))
    return b"".join(parts)
