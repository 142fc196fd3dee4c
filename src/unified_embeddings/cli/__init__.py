"""The command `unified-embeddings`: one module for each subcommand."""
