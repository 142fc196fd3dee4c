"""Qdrant's core in this process, behind qdrant-client's interface."""
