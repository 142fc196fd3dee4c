"""Where the command `unified-embeddings` begins.

What lives here: the one subcommand that starts without Typer. What does not: the others (`app`).
"""

from __future__ import annotations

import importlib.util
import sys


def main() -> None:
    """Run the command line and exit."""
    if sys.argv[1:2] == ["serve-query"]:
        from unified_embeddings.cli import serve_query

        sys.exit(serve_query.main(sys.argv[2:]))
    if importlib.util.find_spec("typer") is None:
        # Installed with requirements/query.txt.
        sys.exit("error: only `unified-embeddings serve-query` runs here: Typer is not installed")
    try:
        from unified_embeddings.cli import app
    except KeyboardInterrupt:  # Ctrl-C while libraries are imported, which takes a second
        sys.exit(130)
    app.main()
