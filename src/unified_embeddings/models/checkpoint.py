"""A model's local files, and what they say of the model.

What lives here: reading the small files, and holding them against the model's spec. What does not:
finding the files (`resolve`), refusing incomplete ones (`completeness`), and tensors (`weights`).

The layout is the Hugging Face hub's: `config.json`, `tokenizer.json`, `model.safetensors` or
`pytorch_model.bin` (one file, or shards with an index), sentence-transformers' `modules.json`,
`1_Pooling/config.json` and `sentence_bert_config.json` if present, and BGE-M3's `sparse_linear.pt`
and `colbert_linear.pt` for a model with sparse and ColBERT vectors.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from unified_embeddings.models.digests import content_digest
from unified_embeddings.models.exported import EXPORT, ExportNotes
from unified_embeddings.models.files import PICKLED_WEIGHTS, WEIGHTS, ModelFiles
from unified_embeddings.models.identity import content_identity, sampled_identity
from unified_embeddings.models.sentence_files import (
    POOLING_SETTINGS,
    STANDARD_MODULES,
    ModuleEntry,
    read_modules,
    read_pooling_modes,
    read_sentence_settings,
)
from unified_embeddings.models.spec import ModelSpec, Pooling
from unified_embeddings.types import HEAD_NAMES

COMMIT_HASH = re.compile("[0-9a-f]{40}")
_POSITIONS_FROM_ZERO = (
    "bert",
    "distilbert",
    "albert",
    "electra",
    "nomic_bert",
    "modernbert",
    "gte",
)
"""Architectures that use all their positions. Others, like RoBERTa, start after the padding's."""
_FILES_WITH_CODE = (
    "tokenizer_config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "modules.json",
)
"""Files besides `config.json` that can name code in another repository."""
_CODE_ELSEWHERE = re.compile(rb'"[^"/]+/[^"/]+--[^"]+"')
"""A class in another repository, in transformers' notation: "owner/name--module.Class"."""


@dataclass(frozen=True)
class Checkpoint(ModelFiles):
    """The local files of one model.

    Every property that reads a file raises ModelLoadError if it is missing or unreadable; the error
    names the file.

    Attributes:
        name: The name or folder that the user asked for.
        folder: Path of the folder with the files.
        revision: The hub's commit hash; the digest, if the folder is not a snapshot of the hub's.
        spec: What else is known of the model. The default is BGE-M3's layout.
    """

    spec: ModelSpec = field(default=ModelSpec("", "", heads=HEAD_NAMES))

    def identify(self) -> None:
        """Take the digest for the revision, if it has none: a folder of the user's has no commit.

        Raises:
            ModelLoadError: If a file is missing or cannot be read.
        """
        if not self.revision:
            object.__setattr__(self, "revision", self.digest)

    # --- the backbone ---------------------------------------------------------------------------

    @cached_property
    def config(self) -> dict[str, object]:
        """Return the content of `config.json`, which describes the backbone's architecture."""
        return self.read_json("config.json")

    @property
    def hidden_size(self) -> int:
        """Return the width of the backbone."""
        return self.integer("hidden_size")

    @property
    def dimension(self) -> int:
        """Return the width of the dense vector: the spec's, or else the backbone's."""
        return self.spec.dimension or self.hidden_size

    @property
    def model_type(self) -> str:
        """Return transformers' name of the architecture: "xlm-roberta", "bert", ..."""
        return str(self._setting("model_type"))

    @cached_property
    def pad_id(self) -> int:
        """Return the id of the padding token; 0 if `config.json` names none."""
        if self.config.get("pad_token_id") is None:
            return 0
        pad_id = self.integer("pad_token_id")
        if not 0 <= pad_id < self.integer("vocab_size", default=pad_id + 1):
            raise self.problem(f"config.json has pad_token_id = {pad_id}, which is no token's id")
        return pad_id

    @cached_property
    def positions_start_at_zero(self) -> bool:
        """Tell whether a text's positions start at 0, rather than after the padding's position."""
        return self.model_type in _POSITIONS_FROM_ZERO

    @cached_property
    def max_length(self) -> int:
        """Return the maximum tokens of a text, special tokens included.

        The smallest of three limits: the number of positions (less those that RoBERTa-type models
        reserve), sentence-transformers' `max_seq_length`, and the spec's.
        """
        # Some architectures compute positions and have no limit of their own; then the spec's is
        # enough.
        limits = []
        if self.spec.max_length is not None:
            limits.append(self.spec.max_length)
        if not limits or "max_position_embeddings" in self.config:
            positions = self.integer("max_position_embeddings")
            if not self.positions_start_at_zero:
                _ = self.integer("pad_token_id")  # required here
                positions -= self.pad_id + 1
            limits.append(positions)
        sentence_limit = self._sentence_settings.get("max_seq_length")
        if isinstance(sentence_limit, int) and not isinstance(sentence_limit, bool):
            limits.append(sentence_limit)
        if min(limits) < 1:
            raise self.problem(f"its files allow texts of {min(limits)} tokens")
        return min(limits)

    def integer(self, key: str, *, default: int | None = None) -> int:
        """Return a whole number from `config.json`.

        Args:
            key: Name of the setting.
            default: The value if the setting is missing; None makes it required.

        Raises:
            ModelLoadError: If a required setting is missing, or the value is not a whole number.
        """
        if default is not None and key not in self.config:
            return default
        value = self._setting(key)
        if not isinstance(value, int) or isinstance(value, bool):
            raise self.problem(f"config.json has {key} = {value!r}, where a number is needed")
        return value

    def _setting(self, key: str) -> object:
        if key not in self.config:
            raise self.problem(f"config.json in {self.folder} has no {key!r}")
        return self.config[key]

    # --- what comes before and after the backbone -----------------------------------------------

    @property
    def tokenizer_file(self) -> Path:
        """Return the path of `tokenizer.json`."""
        return self.require("tokenizer.json")

    @property
    def lower_case(self) -> bool:
        """Tell whether sentence-transformers lower-cases texts for this model's tokenizer."""
        return self._sentence_settings.get("do_lower_case") is True

    @cached_property
    def modules(self) -> list[ModuleEntry] | None:
        """Return sentence-transformers' modules; None without `modules.json`."""
        return read_modules(self, allow_own_code=self.spec.remote_code)

    @property
    def further_modules(self) -> list[str]:
        """Return the names of the modules that only the engine 'sentence' runs, sorted."""
        return sorted({module.name for module in self.modules or ()} - STANDARD_MODULES)

    @property
    def has_sentence_files(self) -> bool:
        """Tell whether sentence-transformers may run it, and reads its own files then."""
        return self.spec.heads != HEAD_NAMES and self.modules is not None

    @cached_property
    def pooling(self) -> Pooling:
        """Return how hidden states become the dense vector, or logits the sparse one.

        The spec's pooling, or else the one in `1_Pooling/config.json`; the two must not differ.
        Without either it is "cls", which is BGE-M3's.
        """
        expected = self.spec.pooling
        if expected == "splade":
            return expected
        if not self.has(POOLING_SETTINGS):
            if expected is None and self.spec.heads != HEAD_NAMES:
                raise self.problem(
                    f"it has no {POOLING_SETTINGS}; name its pooling, cls or mean, in its spec"
                )
            return expected or "cls"
        modes = read_pooling_modes(self)
        if expected is not None and modes != {expected}:
            raise self.problem(
                f"{POOLING_SETTINGS} asks for pooling {sorted(modes)}, but its spec for {expected}"
            )
        if modes == {"cls"}:
            return "cls"
        if modes == {"mean"}:
            return "mean"
        raise self.problem(
            f"{POOLING_SETTINGS} asks for pooling {sorted(modes)}, but only cls or mean pooling, "
            "one at a time, can be computed"
        )

    @cached_property
    def _sentence_settings(self) -> dict[str, object]:
        return read_sentence_settings(self)

    # --- code of the model's own ----------------------------------------------------------------

    @property
    def code_options(self) -> dict[str, bool | str]:
        """Return transformers' keyword arguments about remote code.

        Raises:
            ModelLoadError: If the code is in another repository and no commit of it is named.
        """
        if not self.spec.remote_code:
            return {"trust_remote_code": False}
        repository = self.code_repository
        if repository is None:
            return {"trust_remote_code": True}
        pinned_commit = self.spec.code_revision or ""
        if not COMMIT_HASH.fullmatch(pinned_commit):
            raise self.problem(
                f"its code is in {repository}, which has to be pinned: name the commit you have "
                "read (40 hex digits) as code_revision in its spec"
            )
        # Transformers takes a folder of this name in the working directory for the repository.
        if os.path.lexists(repository):
            raise self.problem(
                f"its code is in {repository}, and the working directory has a folder of that "
                "name, whose code would be run instead; rename it, or start elsewhere"
            )
        return {"trust_remote_code": True, "code_revision": pinned_commit}

    @property
    def code_repository(self) -> str | None:
        """Return the other repository that has the model's code; None if the code is in its own.

        Raises:
            ModelLoadError: If the files ask for code of several repositories, or for another
                repository's code in anything but the model itself. Only one can be pinned.
        """
        # Transformers would run code from each repository named here, whatever is pinned.
        repositories = set()
        auto_map = self.config.get("auto_map")
        if isinstance(auto_map, dict):
            for class_path in map(str, auto_map.values()):
                repository, separator, _ = class_path.partition("--")
                if separator:
                    repositories.add(repository)
        for name in _FILES_WITH_CODE:
            path = self.folder / name
            if self.has(name) and _CODE_ELSEWHERE.search(path.read_bytes()):
                raise self.problem(
                    f"{name} asks for code from another repository, which is not run here"
                )
        if len(repositories) > 1:
            raise self.problem(
                f"its code is in several repositories: {', '.join(sorted(repositories))}"
            )
        return repositories.pop() if repositories else None

    # --- weights --------------------------------------------------------------------------------

    @cached_property
    def weight_files(self) -> list[Path]:
        """Return the files with the backbone's tensors, the shards in order."""
        # Every safetensors file can be mapped; a pickle may have to be read whole.
        for name in (*WEIGHTS, *PICKLED_WEIGHTS):
            if not self.has(name):
                continue
            if name.endswith(".index.json"):
                return self._find_shards(name)
            return [self.folder / name]
        raise self.problem(
            f"no weights in {self.folder}: expected model.safetensors or pytorch_model.bin"
        )

    def _find_shards(self, index_name: str) -> list[Path]:
        """Return the weight files that an index lists, each once."""
        weight_map = self.read_json(index_name).get("weight_map")
        shard_names: set[str] = set()
        if isinstance(weight_map, dict) and all(isinstance(n, str) for n in weight_map.values()):
            shard_names.update(weight_map.values())
        if not shard_names:
            raise self.problem(f"{index_name} in {self.folder} lists no shards")
        return [self.require(name) for name in sorted(shard_names)]

    @property
    def is_exported(self) -> bool:
        """Tell whether the folder holds an ONNX file made by `export`, in place of weights."""
        return self.has(EXPORT)

    @cached_property
    def export_notes(self) -> ExportNotes:
        """Return what an exported model says of itself, after checking that its files are whole.

        Raises:
            ModelLoadError: If the model was not exported, its notes are of another version, or its
                files are not those that were exported.
        """
        if not self.is_exported:
            raise self.problem(
                "the engine 'onnx' runs exported models. Export it once with: unified-embeddings "
                f"export-onnx {self.name} FOLDER; then use that folder as the model"
            )
        notes = ExportNotes.from_json(self.read_json(EXPORT))
        if notes is None:
            raise self.problem(
                f"this version does not read the format of {EXPORT}; export the model again"
            )
        # A graph with the weights of another model of its architecture would load without an error,
        # and give wrong vectors.
        files = [self.require(notes.graph_file), self.require(notes.weights_file)]
        if content_digest(files) != notes.content:
            raise self.problem(
                f"{notes.graph_file} is not the file that was exported with {EXPORT}; export the "
                "model again"
            )
        return notes

    # --- identity -------------------------------------------------------------------------------

    @cached_property
    def digest(self) -> str:
        """Return 24 hex digits that tell this model's content from any other's.

        Two models that differ in one bit have different digests; a copy in another place has the
        same. An exported model has its source's digest, because its vectors compare with the
        source's.
        """
        return self.export_notes.digest if self.is_exported else content_identity(self)

    @cached_property
    def sampled_digest(self) -> str:
        """Return the digest that earlier versions gave this model, to recognise it in collections.

        It covers samples of the weights only, so that two models may share it.
        """
        return self.export_notes.sampled_digest if self.is_exported else sampled_identity(self)
