"""A bulk job in a process of its own, to be killed."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import poisoned

from unified_embeddings.bulk.options import BulkOptions, InterruptedJobError
from unified_embeddings.bulk.run import embed_rows


def main() -> None:
    """Run the job that the arguments name: input, output, rows of a part, "ray" or nothing."""
    source, output, part_rows, *runner = sys.argv[1:]
    options = BulkOptions(
        models=["fake"],
        heads=("dense", "sparse", "colbert"),
        checkpoint_interval=int(part_rows),
        formats=("npy", "jsonl"),
        keep_parts=True,
        max_workers=2,
        runner="ray" if runner else "local",
    )
    try:
        (report,) = embed_rows(source, output, options, make=poisoned.make_slow)
    except InterruptedJobError as error:
        print("interrupted:", error, flush=True)
        sys.exit(130)
    print(report.rows, report.computed, report.resumed, report.tokens, flush=True)


if __name__ == "__main__":
    main()
