"""A model's folder: its files by name, and errors that name the model.

What lives here: the names of the files, opening them within bounds, and reading JSON. What does
not: what the settings in them mean (`checkpoint`, `sentence_files`).
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath

from unified_embeddings.errors import ModelLoadError, UnifiedEmbeddingsError

SPARSE_HEAD = "sparse_linear.pt"
COLBERT_HEAD = "colbert_linear.pt"
WEIGHTS = ("model.safetensors", "model.safetensors.index.json")
PICKLED_WEIGHTS = ("pytorch_model.bin", "pytorch_model.bin.index.json")
IMAGE_SETTINGS = ("preprocessor_config.json", "processor_config.json")
IMAGE_TOKENIZERS = (("tokenizer.json",), ("vocab.json", "merges.txt"), ("spiece.model",))
"""The sets of files that transformers can build an image model's tokenizer from."""

_MOST_JSON_BYTES = 8 * 2**20
"""Bytes of a settings file; ten times the largest known. In Python it takes 40 times as many."""
_RUST_PANIC = "PanicException"
"""Name of the exception that a failure within a library in Rust becomes. It is no Exception."""


@dataclass(frozen=True)
class ModelFiles:
    """A folder with a model's files.

    Attributes:
        name: The name or folder that the user asked for; errors carry it.
        folder: Path of the folder.
        revision: The hub's commit hash, or another id of the content; "" if it is not known yet.
    """

    name: str
    folder: Path
    revision: str = ""

    def has(self, name: str) -> bool:
        """Tell whether the folder has a file of this name."""
        try:
            return (self.folder / name).is_file()
        except (OSError, ValueError):  # a folder that cannot be entered, a name with a NUL
            return False

    def require(self, name: str) -> Path:
        """Return the path of a file that must exist.

        Raises:
            ModelLoadError: If the file is missing, or its name leads out of the folder. Names come
                from other files of the model, which may be anybody's.
        """
        if not is_inside(name):
            raise self.problem(f"its files name {name!r}, which is not inside its folder")
        if not self.has(name):
            raise self.problem(f"{name} is missing in {self.folder}")
        return self.folder / name

    def read_json(self, name: str) -> dict[str, object]:
        """Return the JSON object in a file.

        Raises:
            ModelLoadError: If the file is missing or unreadable, or holds something else.
        """
        content = self.read_any_json(name)
        if not isinstance(content, dict):
            path = self.folder / name
            raise self.problem(f"{path} should hold a JSON object, not {type(content).__name__}")
        return content

    def read_any_json(self, name: str) -> object:
        """Return what a JSON file holds.

        Raises:
            ModelLoadError: If the file is missing, unreadable, or too large to be settings.
        """
        path = self.require(name)
        try:
            size = path.stat().st_size
            if size > _MOST_JSON_BYTES:
                raise self.problem(
                    f"{path} has {size:,} bytes, of at most {_MOST_JSON_BYTES:,} that settings take"
                )
            return json.loads(path.read_text("utf-8"))
        except RecursionError as error:
            raise self.problem(f"{path} is not readable JSON: it is nested too deep") from error
        except (ValueError, OSError) as error:
            raise self.problem(f"{path} is not readable JSON: {error}") from error

    def problem(self, text: str) -> ModelLoadError:
        """Return the error that says what is wrong with this model."""
        return ModelLoadError(self.name, text, revision=self.revision or None)

    @contextlib.contextmanager
    def explain(self, problem: str) -> Iterator[None]:
        """Turn whatever a library raises about the model's files into an error about the model.

        Args:
            problem: What it means for the user, put before the library's message.

        Raises:
            ModelLoadError: If something in the `with` statement raised. Errors of this package and
                interrupts pass unchanged.
        """
        try:
            yield
        except UnifiedEmbeddingsError:
            raise
        except Exception as error:  # of whatever type the libraries, or remote code, raise
            message = str(error) or type(error).__name__
            raise self.problem(f"{problem}: {message}") from error
        except BaseException as error:
            if type(error).__name__ != _RUST_PANIC:
                raise
            raise self.problem(f"{problem}: {error}") from error


def is_inside(name: str) -> bool:
    """Tell whether a relative path stays inside the folder that it is relative to."""
    for path in (PurePosixPath(name), PureWindowsPath(name)):
        if path.is_absolute() or path.anchor or ".." in path.parts:
            return False
    return bool(name) and "\0" not in name
