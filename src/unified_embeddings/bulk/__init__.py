"""Embedding many rows in parts that survive a crash."""
