"""From a question to ranked nodes."""
