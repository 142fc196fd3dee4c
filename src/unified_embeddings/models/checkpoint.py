"""From a model's name or folder to local files and a resolved revision.

What lives here: finding the files, in the Hugging Face cache or a folder, and reading the small
ones. What does not: tensors; weights and heads are read by the engines.

The layout is the Hugging Face hub's: `config.json`, `tokenizer.json`, `model.safetensors` or
`pytorch_model.bin` (one file or shards with an index), sentence-transformers' `modules.json`,
`1_Pooling/config.json` and `sentence_bert_config.json` where present, and BGE-M3's
`sparse_linear.pt` and `colbert_linear.pt` for a model that gives sparse and ColBERT vectors.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from unified_embeddings.errors import ModelLoadError
from unified_embeddings.models.exported import EXPORT, EXPORT_FORMAT
from unified_embeddings.models.spec import ModelSpec, Pooling
from unified_embeddings.types import HEAD_NAMES

SPARSE_HEAD = "sparse_linear.pt"
COLBERT_HEAD = "colbert_linear.pt"
WEIGHTS = ("model.safetensors", "model.safetensors.index.json")
PICKLED_WEIGHTS = ("pytorch_model.bin", "pytorch_model.bin.index.json")
IMAGE_SETTINGS = ("preprocessor_config.json", "processor_config.json")
IMAGE_TOKENIZERS = [("tokenizer.json",), ("vocab.json", "merges.txt"), ("spiece.model",)]
_POSITIONS_FROM_ZERO = (
    "bert",
    "distilbert",
    "albert",
    "electra",
    "nomic_bert",
    "modernbert",
    "gte",
)
"""Architectures that use all their positions; others, like RoBERTa, start after the padding's."""
_MORE_CODE = (
    "tokenizer_config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "modules.json",
)
_NOT_READ = ("model_args", "model_kwargs", "config_args", "config_kwargs", "tokenizer_args")
"""What sentence-transformers lets a file change about how the model is loaded."""
COMMIT_HASH = re.compile("[0-9a-f]{40}")
_SAMPLES = 256
_SAMPLE_BYTES = 4096


@dataclass(frozen=True)
class Checkpoint:
    """The local files of one model.

    Attributes:
        name: The name or folder it was asked for by.
        folder: Where the files lie.
        revision: The hub's commit hash, or `digest` for a folder that is no hub snapshot.
        spec: What is known of the model besides; BGE-M3's layout where nothing else is said.

    Every property that reads a file raises ModelLoadError naming it if it is missing or unreadable.
    """

    name: str
    folder: Path
    revision: str = field(default="")
    spec: ModelSpec = field(default=ModelSpec("", "", heads=HEAD_NAMES))

    def __post_init__(self) -> None:
        if not self.revision:
            object.__setattr__(self, "revision", self.digest)

    @cached_property
    def config(self) -> dict[str, Any]:
        """`config.json`, the backbone's architecture."""
        return self.json("config.json")

    @property
    def hidden_size(self) -> int:
        """Width of the backbone."""
        return self.integer("hidden_size")

    @property
    def dimension(self) -> int:
        """Width of the dense vector: what the spec says, else the backbone's."""
        return self.spec.dimension or self.hidden_size

    @property
    def model_type(self) -> str:
        """Transformers' name of the architecture: "xlm-roberta", "bert", ..."""
        return str(self._setting("model_type"))

    @cached_property
    def modules(self) -> list[str] | None:
        """Class names of the parts sentence-transformers puts together; None where it is not said.

        From `modules.json`: ["Transformer", "Pooling", "Normalize"] for most.
        """
        path = self.folder / "modules.json"
        if not path.is_file():
            return None
        try:
            parts = json.loads(path.read_bytes())
            types = [str(part["type"]) for part in parts]
            places = [str(part.get("path", "")) for part in parts]
        except (ValueError, OSError, TypeError, KeyError, AttributeError) as error:
            raise self.problem(f"{path} is no list of modules: {error!r}") from error
        if not types:
            raise self.problem(f"{path} lists no modules")
        for kind, place in zip(types, places, strict=True):
            if not kind.startswith("sentence_transformers.") and not self.spec.remote_code:
                raise self.problem(
                    f"modules.json asks for {kind}, code of the model's own; set remote_code in "
                    "its spec if you trust it"
                )
            name = kind.rpartition(".")[2]
            if place != {"Transformer": "", "Pooling": "1_Pooling"}.get(name, place):
                raise self.problem(
                    f"modules.json has {name} in {place!r}, which is not read; put it where "
                    "sentence-transformers puts it"
                )
        return [kind.rpartition(".")[2] for kind in types]

    @cached_property
    def pooling(self) -> Pooling:
        """How the dense vector is taken from the hidden states, or the sparse one from the logits.

        What the spec says; else what sentence-transformers' `1_Pooling/config.json` says (both its
        older flags and its newer `pooling_mode`); without that file "cls", which is BGE-M3's.
        """
        said = self.spec.pooling
        if said == "splade" or not (self.folder / "1_Pooling/config.json").is_file():
            if said is None and self.spec.heads != HEAD_NAMES:
                raise self.problem(
                    "it has no 1_Pooling/config.json; name its pooling, cls or mean, in its spec"
                )
            return said or "cls"
        settings = self.json("1_Pooling/config.json")
        if settings.get("include_prompt", True) is not True:
            raise self.problem("1_Pooling/config.json leaves prompts out of pooling: not done here")
        chosen = {
            key.removeprefix("pooling_mode_").removesuffix("_token").removesuffix("_tokens")
            for key, on in settings.items()
            if key.startswith("pooling_mode_") and on is True
        }
        named = settings.get("pooling_mode")
        chosen |= (
            set(map(str, named)) if isinstance(named, list) else {str(named)} if named else set()
        )
        if said is not None and chosen != {said}:
            raise self.problem(
                f"1_Pooling/config.json asks for pooling {sorted(chosen)}, but its spec for {said}"
            )
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

        The smallest of the number of positions (less those that RoBERTa-type models reserve),
        sentence-transformers' `max_seq_length`, and what the spec says.
        """
        limits = [] if self.spec.max_length is None else [self.spec.max_length]
        if not limits or "max_position_embeddings" in self.config:
            positions = self.integer("max_position_embeddings")
            if self.model_type not in _POSITIONS_FROM_ZERO:
                positions -= self.integer("pad_token_id") + 1
            limits.append(positions)
        limit = self._sentence_settings.get("max_seq_length")
        if isinstance(limit, int):
            limits.append(limit)
        if min(limits) < 1:
            raise self.problem(f"its files allow texts of {min(limits)} tokens")
        return min(limits)

    @property
    def code_options(self) -> dict[str, Any]:
        """What transformers has to be told about remote code, for models and configurations.

        Raises:
            ModelLoadError: If the code lies in another repository and no commit of it is named.
        """
        if not self.spec.remote_code:
            return {"trust_remote_code": False}
        repository = self.code_repository
        pinned = self.spec.code_revision or ""
        if repository and not COMMIT_HASH.fullmatch(pinned):
            raise self.problem(
                f"its code lies in {repository}, which has to be pinned: name the commit you have "
                "read (40 hex digits) as code_revision in its spec"
            )
        return {"trust_remote_code": True, **({"code_revision": pinned} if repository else {})}

    @property
    def code_repository(self) -> str | None:
        """The other repository that the model's code lies in; None where it is in its own.

        Raises:
            ModelLoadError: If code of several, or of another for anything but the model itself, is
                asked for: only one can be pinned.
        """
        auto_map = self.config.get("auto_map") or {}
        named = [str(name) for name in auto_map.values()] if isinstance(auto_map, dict) else []
        found = {name.partition("--")[0] for name in named if "--" in name}
        for name in _MORE_CODE:
            path = self.folder / name
            if path.is_file() and re.search(rb'"[^"/]+/[^"/]+--[^"]+"', path.read_bytes()):
                raise self.problem(f"{name} asks for code of another repository: not run here")
        if len(found) > 1:
            raise self.problem(f"its code lies in several repositories: {', '.join(sorted(found))}")
        return found.pop() if found else None

    @property
    def lower_case(self) -> bool:
        """Whether sentence-transformers lowers the case of texts for this model's tokenizer."""
        return self._sentence_settings.get("do_lower_case") is True

    @cached_property
    def _sentence_settings(self) -> dict[str, Any]:
        name = "sentence_bert_config.json"
        settings = self.json(name) if (self.folder / name).is_file() else {}
        if unread := [key for key in _NOT_READ if settings.get(key)]:
            raise self.problem(f"{name} sets {', '.join(unread)}, which are not read here")
        return settings

    @property
    def tokenizer_file(self) -> Path:
        """`tokenizer.json`."""
        return self.require("tokenizer.json")

    @property
    def is_exported(self) -> bool:
        """Whether the folder holds an ONNX file made by `export`, in place of weights."""
        return (self.folder / EXPORT).is_file()

    @cached_property
    def exported(self) -> dict[str, Any]:
        """What an export says of itself: file, precision, digest of its source, ...

        Raises:
            ModelLoadError: If the model was not exported, or the notes or files are not whole.
        """
        if not self.is_exported:
            raise self.problem(
                "the engine 'onnx' runs exported models. Export it once with: unified-embeddings "
                f"export-onnx {self.name} FOLDER; then use that folder as the model"
            )
        notes = self.json(EXPORT)
        if (
            notes.get("format") != EXPORT_FORMAT
            or {"file", "precision", "digest", "content"} - notes.keys()
        ):
            raise self.problem(f"{EXPORT} is not one this version reads; export the model again")
        files = [self.require(str(notes["file"])), self.require(f"{notes['file']}.data")]
        if content_digest(files) != notes["content"]:
            raise self.problem(
                f"{files[0].name} is not the file that was exported with {EXPORT}; export the "
                "model again"
            )
        return notes

    def export_folder(self, precision: str) -> Path:
        """Where in the user's cache folder this model's export in a precision belongs."""
        import platformdirs

        heads = "-".join(self.spec.heads)
        name = f"onnx-{EXPORT_FORMAT}-{self.digest}-{self.pooling}-{heads}-{precision}"
        return platformdirs.user_cache_path("unified-embeddings") / name

    @cached_property
    def weight_files(self) -> list[Path]:
        """The files of the backbone's tensors: safetensors before pickles, shards in order."""
        for name in (*WEIGHTS, *PICKLED_WEIGHTS):
            if not (self.folder / name).is_file():
                continue
            if not name.endswith(".index.json"):
                return [self.folder / name]
            shards = self.json(name).get("weight_map")
            named = shards.values() if isinstance(shards, dict) else ()
            if not shards or not named or not all(isinstance(shard, str) for shard in named):
                raise self.problem(f"{name} in {self.folder} lists no shards")
            return [self.require(shard) for shard in sorted(set(named))]
        raise self.problem(
            f"no weights in {self.folder}: expected model.safetensors or pytorch_model.bin"
        )

    @cached_property
    def digest(self) -> str:
        """24 hex digits that tell this model's content from any other's.

        A BLAKE2b digest over the configuration, tokenizer and head files whole and over 256 blocks
        of 4 KiB spread evenly through each weight file: two fine-tunings of one architecture
        differ in it, a copy in another place does not, and 2 GB of weights cost milliseconds. An
        exported model has its source's, since its vectors compare with the source's.
        """
        if self.is_exported:
            return str(self.exported["digest"])
        digest = hashlib.blake2b(digest_size=12)
        for name in ("config.json", "tokenizer.json", SPARSE_HEAD, COLBERT_HEAD):
            digest.update(_whole(self.folder / name))
        if self.spec.images:
            for name in (*IMAGE_SETTINGS, *sum(IMAGE_TOKENIZERS, ()), "tokenizer_config.json"):
                digest.update(_whole(self.folder / name))
        else:
            digest.update(self.pooling.encode())
        for path in [*self.weight_files, *self._other_weights]:
            digest.update(_sampled(path))
        # Only for models that have these, so that BGE-M3's digest stays what it was.
        for path in self._other_settings:
            digest.update(_whole(path))
        if self.lower_case:
            digest.update(b"lower case")
        if self.spec.remote_code:
            digest.update((self.spec.code_revision or "").encode())
        return digest.hexdigest()

    @property
    def _other_weights(self) -> list[Path]:
        """Weights beside the backbone's: sentence-transformers' dense layers, LoRA adapters."""
        folders = [
            *sorted(self.folder.glob("[1-9]_*")),
            *map(self.folder.joinpath, self.spec.adapters),
        ]
        return [
            path
            for folder in folders
            for path in sorted(folder.glob("*"))
            if path.suffix in (".safetensors", ".bin")
        ]

    @property
    def _other_settings(self) -> list[Path]:
        """Files beside the weights that change vectors: of adapters, more modules, remote code."""
        spec = self.spec
        files = [self.folder / adapter / "adapter_config.json" for adapter in spec.adapters]
        more = set(self.modules or ()) - {"Transformer", "Pooling", "Normalize"}
        if more:
            files += sorted(self.folder.glob("[1-9]_*/config.json"))
        if spec.remote_code:
            files += sorted(self.folder.glob("*.py"))
        return files

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

    def json(self, name: str) -> dict[str, Any]:
        """A JSON object of the folder's.

        Raises:
            ModelLoadError: If the file is missing, unreadable or something else.
        """
        path = self.require(name)
        try:
            content = json.loads(path.read_text("utf-8"))
        except (ValueError, OSError) as error:
            raise self.problem(f"{path} is not readable JSON: {error}") from error
        if not isinstance(content, dict):
            raise self.problem(f"{path} should hold a JSON object, not {type(content).__name__}")
        return content

    def integer(self, key: str) -> int:
        """A whole number of `config.json`.

        Raises:
            ModelLoadError: If it is missing, or something else.
        """
        value = self._setting(key)
        if not isinstance(value, int):
            raise self.problem(f"config.json has {key} = {value!r}, where a number is needed")
        return value

    def _setting(self, key: str) -> Any:
        if key not in self.config:
            raise self.problem(f"config.json in {self.folder} has no {key!r}")
        return self.config[key]


def content_digest(files: Sequence[Path]) -> str:
    """24 hex digits that tell the content of large files from any other, by sampling them."""
    digest = hashlib.blake2b(digest_size=12)
    for path in files:
        digest.update(_sampled(path))
    return digest.hexdigest()


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
