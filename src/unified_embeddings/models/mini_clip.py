"""The small offline image model mini-clip: real weights, no download, and a very small world.

What lives here: where its files are, and what has to be said of it. What does not: loading it,
which works as for any other CLIP.

It was trained by `tools/train_mini_clip.py` on drawn pictures of coloured shapes. Its files are in
CLIP's layout and ship with this package.
"""

from __future__ import annotations

from pathlib import Path

from unified_embeddings.models.catalogue import CLIP, MINI_CLIP

MINI_CLIP_NOTE = (
    f"{MINI_CLIP} knows drawn pictures of coloured shapes (their colour, shape, number and place) "
    f"and nothing else. It is for trying and testing; for photographs take {CLIP}"
)
"""What whoever loads it is told."""


def mini_clip_folder() -> Path:
    """Return the folder that holds the model, within the installed package."""
    return Path(__file__).with_name("data") / MINI_CLIP
