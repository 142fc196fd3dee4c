"""This machine: its hardware, its memory, its files and processes."""
