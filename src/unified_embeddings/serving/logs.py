"""The service's log: one JSON object in each line, and no text of any request.

What lives here: how log records are written. What does not: what is logged.
"""

from __future__ import annotations

import json
import logging
import time
import traceback
import warnings
from typing import TextIO

LOG = logging.getLogger("unified_embeddings.serving")
_TRUSTED = ("unified_embeddings", "uvicorn", "asyncio")
"""Whose messages hold no text of a request; of other libraries nobody can know."""


class JsonFormatter(logging.Formatter):
    """Writes a record as one line of JSON.

    A record's `fields`, given as `extra={"fields": {...}}`, become fields of the line. Of an
    exception the line tells its type and where it was raised. Its message may quote the text that
    caused it, and is left out.

    Args:
        worker: Number of the process, where several serve.

    Example:
        >>> import logging
        >>> record = logging.makeLogRecord(
        ...     {"name": "unified_embeddings", "levelname": "INFO", "msg": "Started"})
        >>> JsonFormatter().format(record)
        '{"time": "...", "level": "INFO", "logger": "unified_embeddings", "message": "Started"}'
    """

    def __init__(self, worker: int | None = None) -> None:
        super().__init__()
        self._worker = worker

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as one line."""
        moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line: dict[str, object] = {
            "time": f"{moment}.{int(record.msecs):03d}Z",
            "level": record.levelname,
            "logger": record.name,
            "message": _message(record),
        }
        if self._worker is not None:
            line["worker"] = self._worker
        fields = getattr(record, "fields", None)
        if isinstance(fields, dict):
            line |= fields
        if record.exc_info is not None and record.exc_info[1] is not None:
            line["exception"] = describe_places(record.exc_info[1])
        return json.dumps(line, default=str)


def set_up_logging(stream: TextIO | None = None, *, worker: int | None = None) -> None:
    """Write the log of this process, warnings included, as lines of JSON.

    Of other libraries it tells that they had something to say, and where.

    Args:
        stream: Where to; None takes standard error.
        worker: Number of the process, where several serve.
    """
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonFormatter(worker))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.INFO)
    for name in ("uvicorn", "httpx", "httpcore", "asyncio"):
        logging.getLogger(name).setLevel(logging.WARNING)
    warnings.showwarning = _note_warning


def describe_places(error: BaseException) -> str:
    """Return an exception's type and the lines it came through, without its message.

    The message may quote the text of a request, which no log may hold.
    """
    frames = traceback.extract_tb(error.__traceback__)
    places = [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in frames]
    return f"{type(error).__name__} at {' <- '.join(reversed(places))}"


def _message(record: logging.LogRecord) -> str:
    if record.name.partition(".")[0] not in _TRUSTED:
        return f"left out, it may quote a text; from {record.pathname}:{record.lineno}"
    # In further lines asyncio adds an exception with its message.
    return record.getMessage().partition("\n")[0]


def _note_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """Log a warning's kind and place, as `warnings.showwarning`; its message may quote a text."""
    del message, file, line
    LOG.warning("%s from %s:%d", category.__name__, filename, lineno)
