"""Running the applications in the folder examples as their users do."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from command import environment
from unified_embeddings.models.mini_m3 import mini_m3_folder

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


def run_app(
    script: str, cwd: Path, *arguments: str | Path, **variables: str
) -> subprocess.CompletedProcess[str]:
    """Run a script of the examples in a folder."""
    mini_m3_folder()  # Laid out before, so that the cache folder of this machine is used.
    return subprocess.run(
        [sys.executable, EXAMPLES / script, *arguments],
        cwd=cwd,
        env=environment(**variables),
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=300,
        check=False,
    )
