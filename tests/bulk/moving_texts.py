"""Texts on their way to a new model's vectors, and moves with the fake embedder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unified_embeddings.bulk.moving import MoveFormat, MoveReport, move_vectors
from unified_embeddings.bulk.options import BulkOptions
from unified_embeddings.bulk.rows import InputOptions
from unified_embeddings.embedders.fake import FakeEmbedder

DIMENSION = 16


def make_fake(**options: Any) -> FakeEmbedder:
    return FakeEmbedder(dimension=DIMENSION, model_name=str(options["model"]), cache=None)


def rows_of(count: int) -> list[dict[str, Any]]:
    return [
        {
            "id": f"note {number}",
            "text": f"row {number} of words about {number % 7} foxes",
            "year": 1990 + number % 30,
            "tags": ["a", f"t{number % 3}"],
            "comment": None,
        }
        for number in range(count)
    ]


def vectors_of(rows: list[dict[str, Any]]) -> NDArray[np.float32]:
    """Return the fake embedder's dense vectors, without a job."""
    dense = make_fake(model="fake").encode_documents([row["text"] for row in rows]).dense
    assert dense is not None
    return np.asarray(dense, np.float32)


def move(source: Any, output: Path, output_format: MoveFormat, **changes: Any) -> MoveReport:
    values: dict[str, Any] = {"models": ["fake"], "checkpoint_interval": 20, **changes}
    values.setdefault("input", InputOptions(find_id=True))
    return move_vectors(source, output, output_format, BulkOptions(**values), make=make_fake)


def write_json(path: Path, content: Any) -> Path:
    path.write_text(json.dumps(content), "utf-8")
    return path


def read_batches(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def names_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}
