"""The HTTP service: one batcher, the contracts of many clients."""
