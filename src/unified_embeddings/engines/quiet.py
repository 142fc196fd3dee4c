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

_NOISY_LOGGERS = ("transformers.modeling_utils", "transformers.integrations.peft")


@contextlib.contextmanager
def quiet_loading() -> Iterator[None]:
    """Keep off the terminal what the libraries report while they load a model.

    The libraries' settings are process-wide; they are restored afterwards.
    """
    noisy_loggers = [logging.getLogger(name) for name in _NOISY_LOGGERS]
    sentence_logger = logging.getLogger("sentence_transformers")
    previous_level = sentence_logger.level
    had_progress_bar = is_progress_bar_enabled()
    for logger in noisy_loggers:
        logger.addFilter(_drop_record)
    sentence_logger.setLevel(logging.ERROR)
    disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        sentence_logger.setLevel(previous_level)
        for logger in noisy_loggers:
            logger.removeFilter(_drop_record)
        if had_progress_bar:
            enable_progress_bar()  # type: ignore[no-untyped-call]


def _drop_record(_: logging.LogRecord) -> bool:
    return False
