"""Vectors that were computed before, in memory and on disk."""
