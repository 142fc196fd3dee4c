"""Qdrant: opening it in this process or over the network, and what our collections look like.

What lives here: everything that speaks to qdrant-client without LlamaIndex.
"""
