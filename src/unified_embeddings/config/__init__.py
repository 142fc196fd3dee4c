"""A pipeline's choices, and where they can come from."""
