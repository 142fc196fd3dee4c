"""Keeping transformers and sentence-transformers silent while they load a model."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator

from transformers.utils.logging import (
    disable_progress_bar,
    enable_progress_bar,
    is_progress_bar_enabled,
)


@contextlib.contextmanager
def quiet_loading() -> Iterator[None]:
    """Keep what the libraries show and report while they load a model off the terminal."""
    logs = [
        logging.getLogger(f"transformers.{name}")
        for name in ("modeling_utils", "integrations.peft")
    ]
    library = logging.getLogger("sentence_transformers")
    level = library.level
    had_bar = is_progress_bar_enabled()
    for log in logs:
        log.addFilter(_nothing)
    library.setLevel(logging.ERROR)
    disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        library.setLevel(level)
        for log in logs:
            log.removeFilter(_nothing)
        if had_bar:
            enable_progress_bar()  # type: ignore[no-untyped-call]


def _nothing(_: logging.LogRecord) -> bool:
    return False
