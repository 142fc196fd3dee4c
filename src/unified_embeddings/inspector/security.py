"""What keeps other people's pages, and hostile passages, from using this one.

What lives here: which requests are answered, and the headers of every answer. What does not: the
pages, whose templates escape all texts (`pages`).

The pages are for the browsers of this machine. Another site's page may point its own name at
127.0.0.1 and so read what is here (DNS rebinding): such a request carries that name as its host,
and is refused. And it may make a browser load addresses here without reading them, which costs
searches: a browser says so in Sec-Fetch-Site, and only links that are followed are answered.
"""

from __future__ import annotations

import re

from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_OWN_HOST = re.compile(r"(127(\.[0-9]{1,3}){3}|localhost|\[::1\])(:[0-9]{1,5})?", re.IGNORECASE)
_METHODS = ("GET", "HEAD")
_MOST_BYTES = 32_768
"""Of an address: the longest question in the longest encoding."""
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
_HEADERS = [
    (b"content-security-policy", _POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
]


class LocalOnly:
    """An ASGI middleware: see the module.

    Args:
        app: What it stands around.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, or refuse it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), *_HEADERS]
            await send(message)

        refusal = refuse(scope)
        app = self._app if refusal is None else refusal
        await app(scope, receive, send_guarded)


def refuse(scope: Scope) -> PlainTextResponse | None:
    """Return the answer to a request that is not for this page; None for one that is.

    Args:
        scope: The request, as ASGI has it.
    """
    headers = {name: value.decode("latin-1") for name, value in scope["headers"]}
    if _OWN_HOST.fullmatch(headers.get(b"host", "")) is None:
        return PlainTextResponse(
            "This page answers to 127.0.0.1 and localhost only.\n", status_code=421
        )
    if scope["method"] not in _METHODS:
        return PlainTextResponse("This page is only read.\n", 405, {"allow": ", ".join(_METHODS)})
    if len(scope.get("query_string", b"")) > _MOST_BYTES:
        return PlainTextResponse("The address is too long; ask a shorter question.\n", 414)
    is_foreign = headers.get(b"sec-fetch-site", "none") in ("cross-site", "same-site")
    if is_foreign and headers.get(b"sec-fetch-mode") != "navigate":
        return PlainTextResponse("Other sites may link to this page, not load it.\n", 403)
    return None
