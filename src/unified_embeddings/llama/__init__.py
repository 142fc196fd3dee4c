"""The LlamaIndex side: our vectors behind its embedding and vector-store classes."""
