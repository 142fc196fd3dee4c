"""`python -m unified_embeddings`: the command `unified-embeddings` of this very interpreter."""

from __future__ import annotations

from unified_embeddings.cli.app import main

if __name__ == "__main__":
    main()
