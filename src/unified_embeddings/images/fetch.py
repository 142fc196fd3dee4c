"""Fetch one image over HTTP(S), for documents from untrusted sources.

What lives here: which addresses may be contacted, and the limits on time and size. What does not:
decoding the image, files and data: URIs.

A URL in an untrusted document must not make this machine send requests into its own network
(server-side request forgery). So a host name is resolved once, each of its addresses is checked,
and the connection goes to a checked address rather than to the name, which could resolve to
another address the second time (DNS rebinding). A redirect is a new URL and is checked like the
first. No proxy is used, because it would resolve the name itself.
"""

from __future__ import annotations

import functools
import ipaddress
import re
import socket
import ssl
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, TypeAlias, cast

import httpx

from unified_embeddings.errors import InputError

if TYPE_CHECKING:
    import httpcore

IPAddress: TypeAlias = "ipaddress.IPv4Address | ipaddress.IPv6Address"

_MAX_REDIRECTS = 3
_MAX_SHOWN_CHARACTERS = 200
"""Number of characters of a URL or a server's text that a message repeats."""
_HEADERS = {
    "Accept": "image/*",
    "Accept-Encoding": "identity",
    "User-Agent": "unified-embeddings",
}
_REJECTED_IPV4 = (
    # IETF protocol assignments: Oracle Cloud serves metadata there, and older Pythons call most of
    # this network global.
    ipaddress.IPv4Network("192.0.0.0/24"),
    # Azure's platform address: public by its number, but reachable only from inside Azure.
    ipaddress.IPv4Network("168.63.129.16/32"),
)
_GLOBAL_IPV6 = ipaddress.IPv6Network("2000::/3")
"""All global unicast addresses. Older Pythons call others global too, such as site-local fec0::."""
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
"""The well-known prefix of IPv4 addresses that are translated (RFC 6052)."""


def fetch_image(url: str, *, max_bytes: int = 20 * 2**20, timeout: float = 10.0) -> bytes:
    """Return the bytes of the image at a public http or https address, undecoded.

    Args:
        url: The image's address. At most 3 redirects are followed.
        max_bytes: Maximum size to accept.
        timeout: Seconds for the whole request, redirects and body included. Only looking up the
            host name may take longer, because it cannot be interrupted: the system's resolver has
            its own limit.

    Raises:
        InputError: If the URL does not lead to a bitmap image, if this machine may not or cannot
            fetch it, if it exceeds the limits, or if a limit is out of range.
    """
    if max_bytes < 1:
        raise InputError(f"max_bytes must be >= 1, got {max_bytes}")
    if not 0 < timeout <= threading.TIMEOUT_MAX:
        raise InputError(f"timeout must be a positive number of seconds, got {timeout}")
    deadline = _Deadline(timeout)
    cause: Exception | None = None
    try:
        with deadline:
            return _follow_redirects(url, max_bytes, deadline)
    except _RejectedError as error:
        problem = str(error)
    except (httpx.HTTPError, httpx.InvalidURL, OSError, ValueError) as error:
        # UnicodeError, raised for a name that IDNA cannot express, is a ValueError.
        cause = error
        problem = _describe_failure(error)
        if deadline.has_passed or isinstance(error, (TimeoutError, httpx.TimeoutException)):
            problem = (
                f"it did not arrive within {timeout:g} s. Raise the timeout, or save the image and "
                "pass the file"
            )
    raise InputError(f"Cannot fetch the image {redact_url(url)!r}: {problem}") from cause


def redact_url(url: str) -> str:
    """Return a URL as messages and logs may show it.

    User name, password, query and fragment are removed, because they may contain secrets. A long
    URL is cut.
    """
    without_query = re.split(r"[?#]", url, maxsplit=1)[0]
    redacted = re.sub(r"//[^/?#]*@", "//", without_query)
    if len(redacted) <= _MAX_SHOWN_CHARACTERS:
        return redacted
    return f"{redacted[:_MAX_SHOWN_CHARACTERS]}..."


def is_public(address: IPAddress) -> bool:
    """Tell whether an address is globally routable, and so is an IPv4 address embedded in it."""
    if isinstance(address, ipaddress.IPv6Address):
        embedded_address = _embedded_ipv4(address)
        if embedded_address is not None:
            return is_public(embedded_address)
        if address not in _GLOBAL_IPV6:
            return False
    elif any(address in network for network in _REJECTED_IPV4):
        return False
    return address.is_global and not (address.is_multicast or address.is_reserved)


def _embedded_ipv4(address: ipaddress.IPv6Address) -> ipaddress.IPv4Address | None:
    """Return the IPv4 address that packets for an IPv6 address reach, if it is a translated one."""
    if address in _NAT64:
        return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    return address.ipv4_mapped or address.sixtofour


class _RejectedError(Exception):
    """Why an image is not fetched and what to do; `fetch_image` adds the URL.

    It never leaves this module.
    """


class _Deadline:
    """A time limit that shuts down the connection when it passes, whatever it is waiting for.

    httpx's timeouts limit each read separately. A server that drips its headers or its chunk sizes
    never exceeds them, and none of our code runs between those reads. So a timer thread closes the
    socket.
    """

    def __init__(self, seconds: float) -> None:
        self._end = time.monotonic() + seconds
        self._timer = threading.Timer(seconds, self._expire)
        self._timer.daemon = True
        # Guards the two fields below, which the timer's thread shares with the caller's.
        self._lock = threading.Lock()
        self._socket: socket.socket | None = None
        self._expired = False

    def __enter__(self) -> None:
        self._timer.start()

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()
        with self._lock:
            if self._socket is not None:
                self._socket.close()
                self._socket = None

    @property
    def has_passed(self) -> bool:
        return self._expired or time.monotonic() >= self._end

    def remaining_seconds(self) -> float:
        """Return the seconds that remain.

        Raises:
            TimeoutError: If none remain.
        """
        seconds = self._end - time.monotonic()
        if self._expired or seconds <= 0:
            raise TimeoutError
        return seconds

    def watch_connection(self, event: str, info: Mapping[str, object]) -> None:
        """Take note of a new connection; httpx calls this as its `trace` extension."""
        if event != "connection.connect_tcp.complete":
            return
        stream = cast("httpcore.NetworkStream", info["return_value"])
        # Keep a duplicate: the original moves into the TLS socket, and must not be touched from
        # another thread.
        duplicate: socket.socket = stream.get_extra_info("socket").dup()
        with self._lock:
            if self._socket is not None:
                self._socket.close()
            self._socket = duplicate
            # The timer may have fired while the connection was being made.
            if self._expired:
                self._shut_down()

    def _expire(self) -> None:
        with self._lock:
            self._expired = True
            self._shut_down()

    def _shut_down(self) -> None:
        """Shut the connection down, if there is one. The caller holds the lock."""
        if self._socket is not None:
            with suppress(OSError):  # The server may have closed it already.
                self._socket.shutdown(socket.SHUT_RDWR)


def _follow_redirects(url: str, max_bytes: int, deadline: _Deadline) -> bytes:
    """Return the body at the end of at most `_MAX_REDIRECTS` redirects."""
    target = httpx.URL(url)
    for _ in range(_MAX_REDIRECTS + 1):
        with _open_response(target, deadline) as response:
            if not response.has_redirect_location:
                return _read_body(response, max_bytes, deadline)
            # Joined to the URL with the host's name; the response's own URL has its address.
            target = target.join(response.headers["location"])
    raise _RejectedError(
        f"it is redirected more than {_MAX_REDIRECTS} times. Give the URL of the image itself"
    )


@contextmanager
def _open_response(url: httpx.URL, deadline: _Deadline) -> Iterator[httpx.Response]:
    """Send one request and yield the response, its body unread."""
    addresses = _resolve_public_addresses(url)
    # Each request has a client of its own. A client pools connections by address, and one that was
    # verified for another name at the same address must not serve this one. Nor must its cookies.
    with httpx.Client(verify=_tls_context(), trust_env=False, follow_redirects=False) as client:
        response = _send_to_first_reachable(client, url, addresses, deadline)
        try:
            yield response
        finally:
            response.close()


def _send_to_first_reachable(
    client: httpx.Client, url: httpx.URL, addresses: list[IPAddress], deadline: _Deadline
) -> httpx.Response:
    """Send a request to the first address that accepts a connection.

    Raises:
        httpx.ConnectError: If none does; the last address's error.
    """
    *earlier_addresses, last_address = addresses
    for address in earlier_addresses:
        with suppress(httpx.ConnectError):
            return _send_request(client, url, address, deadline)
    return _send_request(client, url, last_address, deadline)


def _send_request(
    client: httpx.Client, url: httpx.URL, address: IPAddress, deadline: _Deadline
) -> httpx.Response:
    """Send a request to an address.

    The host's name goes into the Host header and into TLS's server name (SNI), against which the
    certificate is checked.
    """
    request = client.build_request(
        "GET",
        url.copy_with(host=str(address)),
        headers={**_HEADERS, "Host": url.netloc.decode("ascii")},
        timeout=deadline.remaining_seconds(),
        extensions={
            "sni_hostname": url.raw_host.decode("ascii"),
            "trace": deadline.watch_connection,
        },
    )
    return client.send(request, stream=True)


def _resolve_public_addresses(url: httpx.URL) -> list[IPAddress]:
    """Return the addresses of a URL's host, all of them public.

    Raises:
        _RejectedError: If one is not public, or if the URL is of a kind that is not fetched.
        OSError: If the name does not resolve.
    """
    if url.scheme not in ("http", "https"):
        raise _RejectedError(f"expected an http or https URL, got the scheme {url.scheme[:20]!r}")
    if url.userinfo:
        raise _RejectedError(
            "it contains a user name or password. Save the image and pass the file"
        )
    if not url.raw_host:
        raise _RejectedError("it names no host. Write it as https://host/path")
    if url.port is not None and not 0 < url.port < 2**16:
        raise _RejectedError(f"the port must be between 1 and 65535, got {url.port}")
    host = url.raw_host.decode("ascii")
    address_entries = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    # The socket address is the fifth item of an entry, and the IP address the first item of that.
    found_addresses = [ipaddress.ip_address(entry[4][0]) for entry in address_entries]
    unique_addresses = list(dict.fromkeys(found_addresses))
    for address in unique_addresses:
        if not is_public(address):
            raise _RejectedError(
                f"its host {host[:_MAX_SHOWN_CHARACTERS]!r} has the address {address}, which is "
                "not a public one; addresses of this machine or its network are never contacted. "
                "Save the image and pass the file"
            )
    return unique_addresses


@functools.cache
def _tls_context() -> ssl.SSLContext:
    """Return the TLS settings, made once because making them reads about a hundred certificates."""
    return httpx.create_ssl_context(trust_env=False)


def _read_body(response: httpx.Response, max_bytes: int, deadline: _Deadline) -> bytes:
    """Return the body of a response, if it is a bitmap image within the limits.

    Raises:
        _RejectedError: If it is not.
        TimeoutError: If the deadline passes.
    """
    _check_headers(response)
    too_large = f"it is larger than {max_bytes} bytes. Raise max_bytes, or give a smaller image"
    if int(response.headers.get("content-length", "0")) > max_bytes:
        raise _RejectedError(too_large)
    body = bytearray()
    for chunk in response.iter_raw():
        deadline.remaining_seconds()
        if len(body) + len(chunk) > max_bytes:
            raise _RejectedError(too_large)
        body += chunk
    # A connection that was shut down looks like the end of a body of unknown length, so the
    # deadline is checked once more.
    deadline.remaining_seconds()
    return bytes(body)


def _check_headers(response: httpx.Response) -> None:
    if response.status_code != 200:
        raise _RejectedError(
            f"expected status 200, the server answered {response.status_code}. Check the URL"
        )
    content_type = response.headers.get("content-type", "").split(";")[0].strip().lower()
    if not content_type.startswith("image/") or content_type.startswith("image/svg"):
        raise _RejectedError(
            f"expected a bitmap image, its Content-Type is {content_type[:80]!r}. Give the URL of "
            "a JPEG, PNG or WebP file"
        )
    encoding = response.headers.get("content-encoding", "").strip().lower()
    if encoding not in ("", "identity"):
        # Decompression can inflate the body a thousandfold before its size can be checked.
        raise _RejectedError(
            f"the server sent it with Content-Encoding {encoding[:80]!r}, although asked not to. "
            "Save the image and pass the file"
        )


def _describe_failure(error: Exception) -> str:
    return (
        f"{type(error).__name__}: {str(error)[:_MAX_SHOWN_CHARACTERS]}. Check the URL and that its "
        "server can be reached from here without a proxy, or save the image and pass the file"
    )
