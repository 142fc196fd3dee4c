"""What indexing did.

What lives here: the report. What does not: indexing (`indexing`, `indexing_input`, `following`).
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class IndexReport:
    """What a run did, or with `dry_run` what it would do.

    Attributes:
        unchanged: Files whose chunks were all stored already.
        indexed: Files read and stored.
        moved: Files stored before under another path, whose chunks have the new one now.
        removed: Files whose chunks were removed because the file is gone.
        chunks_added: Chunks stored.
        chunks_removed: Chunks removed, those of changed files included.
        skipped: Files without text, each with the reason: empty, or of a type that holds none.
        failed: Files and folders that could not be read, each with the reason. What was stored of
            them before stays.
        notes: What the user should know about files that were read, such as characters that were
            not valid.
        left_out: Links that were not followed and folders of stores, each with the reason. What is
            stored of a link that leads to nothing now stays, unless pruning is allowed.
    """

    unchanged: int = 0
    indexed: int = 0
    moved: int = 0
    removed: int = 0
    chunks_added: int = 0
    chunks_removed: int = 0
    skipped: dict[str, str] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)
    # Two runs that did the same are equal, whatever links they passed by.
    left_out: dict[str, str] = field(default_factory=dict, compare=False)
