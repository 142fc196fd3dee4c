"""`python -m unified_embeddings`: the command `unified-embeddings` of this very interpreter."""

from __future__ import annotations

from unified_embeddings.cli.entry import main

if __name__ == "__main__":
    main()
