"""What child processes do in the tests of `system`."""

from __future__ import annotations

import itertools
import sys
import time
from pathlib import Path

from unified_embeddings.system.files import publish_folder, replace_file, scratch_folder

FILES = 5
SIZE = 200_000


def content(generation: int) -> bytes:
    return f"{generation:9d}\n".encode() * (SIZE // 10)


def publish_generations(folder: str, first: int) -> None:
    """Publish and replace without end; print each number that is there for good."""
    parent = Path(folder)
    for generation in itertools.count(first):
        replace_file(parent / "file", content(generation))
        with scratch_folder(parent) as scratch:
            (scratch / "new" / "inner").mkdir(parents=True)
            for number in range(FILES):
                (scratch / "new" / "inner" / str(number)).write_bytes(content(generation))
            publish_folder(scratch / "new", parent / f"folder {generation}")
        print(generation, flush=True)


def hold_scratch(folder: str) -> None:
    """Hold a scratch folder until killed."""
    with scratch_folder(Path(folder)) as scratch:
        (scratch / "half").write_text("written")
        print(scratch.parent.name, flush=True)
        time.sleep(600)


if __name__ == "__main__":
    name, *arguments = sys.argv[1:]
    if name == "publish_generations":
        publish_generations(arguments[0], int(arguments[1]))
    else:
        hold_scratch(arguments[0])
