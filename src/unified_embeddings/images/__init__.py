"""Anything a caller calls an image, as RGB pixels."""
