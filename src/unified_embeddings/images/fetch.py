"""One image over HTTP(S), for documents nobody vouches for.

What lives here: which addresses may be asked, how long and how much. What does not: decoding the
image, and files and data URLs.

An address in an untrusted document must not make this machine ask its own network (server-side
request forgery). So a host name is resolved once, every address it has is checked, and the
connection goes to a checked address rather than to the name, which could resolve otherwise the
second time (DNS rebinding). A redirect is a new URL and is checked like the first. No proxy is
used: it would resolve the name by itself.
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
from typing import Any, TypeAlias

import httpx

from unified_embeddings.errors import InputError

IPAddress: TypeAlias = "ipaddress.IPv4Address | ipaddress.IPv6Address"

_MAX_REDIRECTS = 3
_SHOWN_URL = 200
"""Characters of a URL that a message repeats."""
_HEADERS = {
    "Accept": "image/*",
    "Accept-Encoding": "identity",
    "User-Agent": "unified-embeddings",
}
_REFUSED_IPV4 = (
    # Protocol assignments: Oracle Cloud's metadata lies here, older Pythons call most of it global.
    ipaddress.IPv4Network("192.0.0.0/24"),
    # Azure's platform address: public by its number, reachable only from inside.
    ipaddress.IPv4Network("168.63.129.16/32"),
)
_GLOBAL_IPV6 = ipaddress.IPv6Network("2000::/3")
"""All global unicast there is; older Pythons call more global, site-local fec0:: among it."""
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")


def fetch_image(url: str, *, max_bytes: int = 20 * 2**20, timeout: float = 10.0) -> bytes:
    """The bytes of the image at a public http or https address, undecoded.

    Args:
        url: Where it is. At most 3 redirects are followed.
        max_bytes: Most bytes to accept.
        timeout: Seconds for everything together, redirects and body included. Only a look-up of
            the host's name, which cannot be interrupted, may take longer: the system's resolver
            has its own limit.

    Raises:
        InputError: If the URL is not one of a bitmap image that this machine may fetch and can,
            within these bounds; or if a bound makes no sense.
    """
    if max_bytes < 1:
        raise InputError(f"max_bytes must be >= 1, got {max_bytes}")
    if not 0 < timeout <= threading.TIMEOUT_MAX:
        raise InputError(f"timeout must be a positive number of seconds, got {timeout}")
    deadline = _Deadline(timeout)
    cause: Exception | None = None
    try:
        with deadline:
            return _follow(url, max_bytes, deadline)
    except _Refused as refusal:
        problem = str(refusal)
    except (httpx.HTTPError, httpx.InvalidURL, OSError, ValueError) as error:
        # ValueError includes the UnicodeError of a name that IDNA cannot express.
        problem, cause = _explain(error), error
        if deadline.passed or isinstance(error, (TimeoutError, httpx.TimeoutException)):
            problem = (
                f"it did not arrive within {timeout:g} s. Raise the timeout, or save the image and "
                "pass the file"
            )
    raise InputError(f"Cannot fetch the image {shown_url(url)!r}: {problem}") from cause


def shown_url(url: str) -> str:
    """A URL for a message: keys and passwords stand in the parts left out, and messages in logs."""
    bare = re.sub(r"//[^/?#]*@", "//", re.split(r"[?#]", url, maxsplit=1)[0])
    return bare if len(bare) <= _SHOWN_URL else f"{bare[:_SHOWN_URL]}..."


def is_public(address: IPAddress) -> bool:
    """Whether an address is globally routable, and so is the IPv4 address it may embed."""
    if isinstance(address, ipaddress.IPv6Address):
        embedded = _embedded_ipv4(address)
        if embedded is not None:
            return is_public(embedded)
        if address not in _GLOBAL_IPV6:
            return False
    elif any(address in network for network in _REFUSED_IPV4):
        return False
    return address.is_global and not (address.is_multicast or address.is_reserved)


def _embedded_ipv4(address: ipaddress.IPv6Address) -> ipaddress.IPv4Address | None:
    """The address a packet ends up at, where IPv6 is only the way there."""
    if address in _NAT64:
        return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    return address.ipv4_mapped or address.sixtofour


class _Refused(Exception):  # noqa: N818 — not an error that leaves this module
    """Why an image is not fetched and what to do; the URL is added where it is caught."""


class _Deadline:
    """Shuts the connection down when the time is up, whatever it is waiting for.

    httpx's timeouts bound every read by itself: a server that drips its headers or the sizes of
    its chunks never runs into them, and nothing of ours runs between those reads.
    """

    def __init__(self, seconds: float) -> None:
        self._end = time.monotonic() + seconds
        self._timer = threading.Timer(seconds, self._cut)
        self._timer.daemon = True
        self._lock = threading.Lock()
        self._socket: socket.socket | None = None
        self._cut_off = False

    def __enter__(self) -> None:
        self._timer.start()

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()
        with self._lock:
            if self._socket is not None:
                self._socket.close()
                self._socket = None

    @property
    def passed(self) -> bool:
        return self._cut_off or time.monotonic() >= self._end

    def left(self) -> float:
        """Seconds that remain.

        Raises:
            TimeoutError: If none do.
        """
        left = self._end - time.monotonic()
        if self._cut_off or left <= 0:
            raise TimeoutError
        return left

    def watch(self, event: str, info: Mapping[str, Any]) -> None:
        """Take note of a new connection; a `trace` extension of httpx."""
        if event != "connection.connect_tcp.complete":
            return
        # A handle of our own: the original moves into the TLS socket, and must not be touched from
        # another thread.
        handle = info["return_value"].get_extra_info("socket").dup()
        with self._lock:
            if self._socket is not None:
                self._socket.close()
            self._socket = handle
            if self._cut_off:
                self._shut_down()

    def _cut(self) -> None:
        with self._lock:
            self._cut_off = True
            self._shut_down()

    def _shut_down(self) -> None:
        if self._socket is not None:
            with suppress(OSError):  # the server was quicker
                self._socket.shutdown(socket.SHUT_RDWR)


def _follow(url: str, max_bytes: int, deadline: _Deadline) -> bytes:
    target = httpx.URL(url)
    for _ in range(_MAX_REDIRECTS + 1):
        with _get(target, deadline) as response:
            if not response.has_redirect_location:
                return _body(response, max_bytes, deadline)
            # Against the named URL: the response's own has the address in place of the name.
            target = target.join(response.headers["location"])
    raise _Refused(
        f"it is redirected more than {_MAX_REDIRECTS} times. Give the URL of the image itself"
    )


@contextmanager
def _get(url: httpx.URL, deadline: _Deadline) -> Iterator[httpx.Response]:
    """The response to one request, its body unread."""
    addresses = _addresses(url)
    # A client for each request: connections are pooled by address, and one that was verified for
    # another name at the same address must not serve this one. Nor must its cookies.
    with httpx.Client(verify=_tls(), trust_env=False, follow_redirects=False) as client:
        response = _connect(client, url, addresses, deadline)
        try:
            yield response
        finally:
            response.close()


def _connect(
    client: httpx.Client, url: httpx.URL, addresses: list[IPAddress], deadline: _Deadline
) -> httpx.Response:
    """Ask the first address that can be connected to; the name goes into Host and SNI."""
    while True:
        address = addresses.pop(0)
        request = client.build_request(
            "GET",
            url.copy_with(host=str(address)),
            headers={**_HEADERS, "Host": url.netloc.decode("ascii")},
            timeout=deadline.left(),
            extensions={
                "sni_hostname": url.raw_host.decode("ascii"),
                "trace": deadline.watch,
            },
        )
        try:
            return client.send(request, stream=True)
        except httpx.ConnectError:
            if not addresses:
                raise


def _addresses(url: httpx.URL) -> list[IPAddress]:
    """The addresses of a URL's host, all of them public.

    Raises:
        _Refused: If one is not, or the URL is not of a kind that is fetched.
        OSError: If the name does not resolve.
    """
    if url.scheme not in ("http", "https"):
        raise _Refused(f"expected an http or https URL, got the scheme {url.scheme[:20]!r}")
    if url.userinfo:
        raise _Refused("it holds a user name or password. Save the image and pass the file")
    if not url.raw_host:
        raise _Refused("it names no host. Write it as https://host/path")
    if url.port is not None and not 0 < url.port < 2**16:
        raise _Refused(f"the port must be between 1 and 65535, got {url.port}")
    host = url.raw_host.decode("ascii")
    found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    addresses = list(dict.fromkeys(ipaddress.ip_address(entry[4][0]) for entry in found))
    for address in addresses:
        if not is_public(address):
            raise _Refused(
                f"its host {host[:_SHOWN_URL]!r} has the address {address}, which is not a public "
                "one; addresses of this machine or its network are never asked. Save the image "
                "and pass the file"
            )
    return addresses


@functools.cache
def _tls() -> ssl.SSLContext:
    """Made once: it reads some hundred certificates."""
    return httpx.create_ssl_context(trust_env=False)


def _body(response: httpx.Response, max_bytes: int, deadline: _Deadline) -> bytes:
    if response.status_code != 200:
        raise _Refused(
            f"expected status 200, the server answered {response.status_code}. Check the URL"
        )
    kind = response.headers.get("content-type", "").split(";")[0].strip().lower()
    if not kind.startswith("image/") or kind.startswith("image/svg"):
        raise _Refused(
            f"expected a bitmap image, its Content-Type is {kind[:80]!r}. Give the URL of a JPEG, "
            "PNG or WebP file"
        )
    encoding = response.headers.get("content-encoding", "").strip().lower()
    if encoding not in ("", "identity"):
        # Decoding inflates what was received a thousandfold before its size can be checked.
        raise _Refused(
            f"the server sent it with Content-Encoding {encoding[:80]!r} although asked not to. "
            "Save the image and pass the file"
        )
    too_large = f"it is larger than {max_bytes} bytes. Raise max_bytes, or give a smaller image"
    if int(response.headers.get("content-length", "0")) > max_bytes:
        raise _Refused(too_large)
    body = bytearray()
    for chunk in response.iter_raw():
        deadline.left()
        if len(body) + len(chunk) > max_bytes:
            raise _Refused(too_large)
        body += chunk
    # A connection that was shut down reads like the end of a body of unknown length.
    deadline.left()
    return bytes(body)


def _explain(error: Exception) -> str:
    return (
        f"{type(error).__name__}: {str(error)[:_SHOWN_URL]}. Check the URL and that its server "
        "can be reached from here without a proxy, or save the image and pass the file"
    )
