"""A bulk job into an embedded collection, in a process of its own, to be killed."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import poisoned

from unified_embeddings.bulk.options import BulkOptions, CollectionTarget
from unified_embeddings.bulk.rows import InputOptions
from unified_embeddings.bulk.run import embed_rows


def main() -> None:
    """Run the job that the arguments name: input, output, folder of the store."""
    source, output, store = sys.argv[1:]
    options = BulkOptions(
        models=["fake"],
        heads=("dense", "sparse"),
        checkpoint_interval=20,
        formats=("npy",),
        max_workers=2,
        collection=CollectionTarget(name="notes", path=store),
        input=InputOptions(id_field="id"),
    )
    (report,) = embed_rows(source, output, options, make=poisoned.make_slow)
    print(report.rows, report.resumed, flush=True)


if __name__ == "__main__":
    main()
