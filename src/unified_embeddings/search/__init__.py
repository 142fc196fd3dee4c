"""One search of a collection: its lists, their order, and how they are fused; Qdrant's types."""
