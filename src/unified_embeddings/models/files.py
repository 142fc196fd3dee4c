"""A model's folder: its files by name, and errors that name the model.

What lives here: opening files and reading JSON. What does not: what the settings in them mean
(`checkpoint`, `sentence_files`).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from unified_embeddings.errors import ModelLoadError


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
        return (self.folder / name).is_file()

    def require(self, name: str) -> Path:
        """Return the path of a file that must exist.

        Raises:
            ModelLoadError: If the file is missing.
        """
        path = self.folder / name
        if not path.is_file():
            raise self.problem(f"{name} is missing in {self.folder}")
        return path

    def read_json(self, name: str) -> dict[str, object]:
        """Return the JSON object in a file.

        Raises:
            ModelLoadError: If the file is missing or unreadable, or holds something else.
        """
        path = self.require(name)
        try:
            content = json.loads(path.read_text("utf-8"))
        except (ValueError, OSError) as error:
            raise self.problem(f"{path} is not readable JSON: {error}") from error
        if not isinstance(content, dict):
            raise self.problem(f"{path} should hold a JSON object, not {type(content).__name__}")
        return content

    def problem(self, text: str) -> ModelLoadError:
        """Return the error that says what is wrong with this model."""
        return ModelLoadError(self.name, text, revision=self.revision or None)
