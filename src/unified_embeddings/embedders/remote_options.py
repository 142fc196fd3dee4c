"""What a caller says about a service, checked: its address, a key, and how long to wait for it."""

from __future__ import annotations

import re
import threading
from dataclasses import dataclass
from urllib.parse import urlsplit

from unified_embeddings.errors import InputError

RUNPOD_URL = "https://api.runpod.ai/v2"
"""The address of RunPod's API, unless another is named."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """How long to wait for a service, and how often to ask again.

    Attributes:
        timeout: Seconds that one request may take.
        connect_timeout: Seconds of these for connecting.
        retries: How often a request is repeated.
        max_retry_wait: Most seconds to wait between the tries of one request, all together.
        max_connections: Most requests at a time.
        ca_file: A file with the certificates to trust in place of the public ones.
    """

    timeout: float = 60.0
    connect_timeout: float = 5.0
    retries: int = 3
    max_retry_wait: float = 30.0
    max_connections: int = 16
    ca_file: str | None = None


def require_url(url: object, *, name: str = "url") -> str:
    """Return a service's address without a slash at its end.

    Raises:
        InputError: If it is no http or https address of a service, or holds a user or password
            (which the message does not show).
    """
    if not isinstance(url, str):
        raise InputError(f"{name} must be a str such as http://127.0.0.1:8000, got {url!r:.80}")
    if re.search(r"[\s\x00-\x1f\x7f]", url.strip()):
        raise InputError(f"{name} must not hold spaces or control characters")
    try:
        parsed = urlsplit(url.strip())
        is_usable = parsed.port != 0 and bool(parsed.hostname)
    except ValueError:
        # Not shown: it may hold a password, wherever that begins.
        raise InputError(f"{name} is no address; expected one as http://127.0.0.1:8000") from None
    if "@" in parsed.netloc:
        raise InputError(f"{name} must not hold a user name or password; give the key as api_key")
    if parsed.scheme not in ("http", "https") or not is_usable:
        raise InputError(
            f"{name} must begin with http:// or https:// and name a host, got {url!r:.80}"
        )
    if parsed.query or parsed.fragment:
        raise InputError(
            f"{name} must end before '?' and '#': the address of the service itself, as in "
            "http://127.0.0.1:8000"
        )
    return parsed.geturl().rstrip("/")


def require_key(key: object, *, name: str = "api_key") -> str | None:
    """Return a key that fits into a header; None stays None. No message shows it.

    Raises:
        InputError: If it is not a text of printable ASCII characters.
    """
    if key is None:
        return None
    if not isinstance(key, str) or not re.fullmatch(r"[\x21-\x7e]+", key):
        raise InputError(
            f"{name} must be a text of printable ASCII characters without spaces or line ends"
        )
    return key


def require_seconds(name: str, value: object) -> float:
    """Return a positive, finite number of seconds.

    Raises:
        InputError: If it is something else.
    """
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if is_number and 0 < value <= threading.TIMEOUT_MAX:  # type: ignore[operator]  # a number
        return float(value)  # type: ignore[arg-type]
    raise InputError(f"{name} must be a positive number of seconds, got {value!r:.80}")
