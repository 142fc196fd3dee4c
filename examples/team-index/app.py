"""Serve the search over a folder of documents to a team.

    python examples/team-index/app.py docs                   # on this machine
    python examples/team-index/app.py docs --host 0.0.0.0    # to the network

It indexes what changed in the folder, makes an API key at the first start, and serves: the search
for `ask.py`, the inspector's pages in the browser, and the vectors for other applications. Start
it again to take in new documents, from a timer for example.
"""

from __future__ import annotations

import argparse
import os
import secrets
import sys
from collections.abc import Sequence
from pathlib import Path

from unified_embeddings import UnifiedEmbeddingConfig, UnifiedEmbeddingsError
from unified_embeddings.llama.indexing import index_paths

COLLECTION = "team"


def index_documents(documents: Path, store_folder: Path, model: str) -> int:
    """Bring the team's collection in line with a folder; return the number of files that changed.

    The folder of the store is released afterwards, for the service.
    """
    config = UnifiedEmbeddingConfig(model)
    store = config.vector_store(COLLECTION, path=store_folder)
    try:
        return index_paths([documents], store, config.embedder).indexed
    finally:
        store.client.close()


def find_key(folder: Path) -> Path:
    """Return the file with the team's API key, which only its owner can read."""
    file = folder / "api-keys.txt"
    if not file.exists():
        descriptor = os.open(file, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as written:
            written.write(secrets.token_urlsafe(24) + "\n")
    return file


def service_command(folder: Path, model: str, options: Sequence[str]) -> list[str]:
    """Return the command that serves the collection, its pages and the model."""
    return [
        sys.executable, "-m", "unified_embeddings", "serve",
        "--model", model,
        "--collection", COLLECTION,
        "--path", str(folder / "store"),
        "--api-key-file", str(find_key(folder)),
        *options,
    ]  # fmt: skip


def main() -> None:
    """Index, and become the service."""
    parser = argparse.ArgumentParser(description="Serve the search over a folder to a team.")
    parser.add_argument("documents", type=Path)
    parser.add_argument("--folder", type=Path, default=Path("team-index-data"))
    parser.add_argument("--model", default="mini-m3")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    try:
        changed = index_documents(arguments.documents, arguments.folder / "store", arguments.model)
    except UnifiedEmbeddingsError as error:
        raise SystemExit(f"error: {error}") from None
    print(f"{changed} files indexed; the key is in {find_key(arguments.folder)}", flush=True)
    options = ["--host", arguments.host, "--port", str(arguments.port)]
    command = service_command(arguments.folder, arguments.model, options)
    os.execv(command[0], command)  # noqa: S606 - no shell is wanted


if __name__ == "__main__":
    main()
