"""What stops a migration: a condition that its user has to mend before it can go on."""

from __future__ import annotations

from unified_embeddings.errors import UnifiedEmbeddingsError


class MigrationError(UnifiedEmbeddingsError):
    """A migration cannot go on as things are; what it did so far is kept."""
