"""A move in a process of its own, to be killed: the arguments are input, output and format."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import get_args

sys.path.insert(0, str(Path(__file__).parent))

import poisoned

from unified_embeddings.bulk.moving import MoveFormat, move_vectors
from unified_embeddings.bulk.options import BulkOptions
from unified_embeddings.bulk.rows import InputOptions


def main() -> None:
    source, output, name = sys.argv[1:]
    (output_format,) = [known for known in get_args(MoveFormat) if known == name]
    options = BulkOptions(models=["fake"], checkpoint_interval=20, input=InputOptions(find_id=True))
    moved = move_vectors(source, Path(output), output_format, options, make=poisoned.make_slow)
    print(moved.report.rows, moved.report.resumed, flush=True)


if __name__ == "__main__":
    main()
