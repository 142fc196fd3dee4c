"""Fetching images: what is asked, what is refused before it is asked, and what is cut off."""

from __future__ import annotations

import gzip
import ipaddress
import shlex
import shutil
import socket
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from unified_embeddings.errors import InputError
from unified_embeddings.images import fetch
from unified_embeddings.images.fetch import fetch_image, is_public, redact_url

IMAGE = b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 8
PATIENCE = 30.0
"""Seconds a dripping server goes on unless it is cut."""
Answer = Callable[["Handler"], None]


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self.server.requests.append((self.path, dict(self.headers)))
        self.server.answers[self.path.split("?")[0]](self)

    def answer(
        self, status: int = 200, body: bytes = IMAGE, *, sized: bool = True, **headers: str
    ) -> None:
        self.send_response(status)
        for name, value in ({"Content_Type": "image/png"} | headers).items():
            self.send_header(name.replace("_", "-"), value)
        if sized:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def drip(self, drop: bytes) -> None:
        """Send a drop at a time until the client hangs up or patience ends."""
        for _ in range(int(PATIENCE / 0.05)):
            self.wfile.write(drop)
            if self.server.stopping.wait(0.05):
                return
        self.server.finished.set()

    def log_message(self, *_: object) -> None:
        pass


class Server(ThreadingHTTPServer):
    """A web server on 127.0.0.1 that remembers what it was asked."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.requests: list[tuple[str, dict[str, str]]] = []
        self.answers: dict[str, Answer] = {"/image.png": Handler.answer}
        self.stopping = threading.Event()
        self.finished = threading.Event()
        self.connections = 0

    def url(self, path: str = "/image.png", host: str = "127.0.0.1") -> str:
        return f"http://{host}:{self.server_port}{path}"

    def process_request(self, request: Any, client_address: Any) -> None:
        self.connections += 1
        super().process_request(request, client_address)

    def handle_error(self, *_: object) -> None:
        """Clients that hang up are what is tested here."""


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.stopping.set()
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let 127.0.0.1 pass for a public address."""
    monkeypatch.setattr(fetch, "is_public", lambda address: str(address) == "127.0.0.1")


@pytest.fixture
def only_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the first address that is checked pass, and check the others."""
    checked: list[object] = []

    def check(address: fetch.IPAddress) -> bool:
        checked.append(address)
        return len(checked) == 1 or is_public(address)

    monkeypatch.setattr(fetch, "is_public", check)


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[str]]:
    """Host names the tests make up, with their addresses."""
    table: dict[str, list[str]] = {}
    real = socket.getaddrinfo

    def look_up(host: str, *args: Any, **kwargs: Any) -> list[Any]:
        return [
            entry
            for address in table.get(host, [host])
            for entry in real(address, *args, **{**kwargs, "flags": socket.AI_NUMERICHOST})
        ]

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    return table


@pytest.mark.usefixtures("allowed")
def test_an_image_arrives_byte_for_byte(server: Server) -> None:
    assert fetch_image(server.url("/image.png?size=2")) == IMAGE
    ((path, headers),) = server.requests
    assert path == "/image.png?size=2"
    assert headers["Accept-Encoding"] == "identity"
    assert headers["Host"] == f"127.0.0.1:{server.server_port}"


@pytest.mark.usefixtures("allowed")
def test_a_body_of_unknown_length_arrives(server: Server) -> None:
    server.answers["/image.png"] = lambda handler: handler.answer(sized=False)
    assert fetch_image(server.url(), max_bytes=len(IMAGE)) == IMAGE


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "localhost",
        "10.0.0.1",
        "169.254.169.254",
        "[::1]",
        "0.0.0.0",
        "2130706433",
        "0x7f.1",
        "017700000001",
        "127.1",
        "[::ffff:127.0.0.1]",
        "[::ffff:7f00:1]",
        "[2002:7f00:1::]",
        "[64:ff9b::127.0.0.1]",
        "[fe80::1]",
    ],
)
def test_a_private_address_is_never_asked(server: Server, host: str) -> None:
    with pytest.raises(InputError, match=r"not a public one.*pass the file"):
        fetch_image(server.url(host=host))
    assert server.connections == 0


@pytest.mark.usefixtures("allowed")
def test_one_private_address_among_public_ones_is_enough(
    server: Server, names: dict[str, list[str]]
) -> None:
    names["images.example"] = ["127.0.0.1", "10.0.0.1"]
    with pytest.raises(InputError, match=r"10\.0\.0\.1"):
        fetch_image(server.url(host="images.example"))
    assert server.connections == 0


@pytest.mark.usefixtures("allowed")
def test_the_checked_address_is_asked_under_the_name(
    server: Server, names: dict[str, list[str]]
) -> None:
    names["images.example"] = ["127.0.0.1"]
    assert fetch_image(server.url(host="images.example")) == IMAGE
    ((_, headers),) = server.requests
    assert headers["Host"] == f"images.example:{server.server_port}"


@pytest.mark.usefixtures("allowed")
def test_a_name_that_changes_its_address_is_resolved_once(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = socket.getaddrinfo
    asked: list[str] = []

    def rebind(host: str, *args: Any, **kwargs: Any) -> list[Any]:
        asked.append(host)
        return real(
            ("127.0.0.1" if asked.count(host) == 1 else "127.0.0.2")
            if host == "rebinding.example"
            else host,
            *args,
            **kwargs,
        )

    monkeypatch.setattr(socket, "getaddrinfo", rebind)
    assert fetch_image(server.url(host="rebinding.example")) == IMAGE
    assert asked.count("rebinding.example") == 1


def test_the_next_address_is_asked_where_one_is_dead(
    server: Server, names: dict[str, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetch, "is_public", lambda address: True)
    names["images.example"] = ["::1", "127.0.0.1"]  # the server listens on the second alone
    assert fetch_image(server.url(host="images.example")) == IMAGE


@pytest.mark.usefixtures("allowed")
@pytest.mark.parametrize(
    "location", ["image.png", "/image.png", "//images.example:{port}/image.png"]
)
@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_followed_from_the_named_url(
    server: Server, names: dict[str, list[str]], status: int, location: str
) -> None:
    names["images.example"] = ["127.0.0.1"]
    location = location.format(port=server.server_port)
    server.answers["/old.png"] = lambda handler: handler.answer(status, b"", Location=location)
    assert fetch_image(server.url("/old.png", host="images.example")) == IMAGE
    assert [path for path, _ in server.requests] == ["/old.png", "/image.png"]
    assert {headers["Host"] for _, headers in server.requests} == {
        f"images.example:{server.server_port}"
    }


@pytest.mark.usefixtures("only_first")
@pytest.mark.parametrize("host", ["127.0.0.1", "10.0.0.1", "localhost", "[::ffff:127.0.0.1]"])
def test_a_redirect_to_a_private_address_is_refused(server: Server, host: str) -> None:
    server.answers["/old.png"] = lambda handler: handler.answer(
        302, b"", Location=server.url(host=host)
    )
    with pytest.raises(InputError, match="not a public one"):
        fetch_image(server.url("/old.png"))
    assert [path for path, _ in server.requests] == ["/old.png"]


@pytest.mark.usefixtures("allowed")
@pytest.mark.parametrize(
    "location", ["file:///etc/passwd", "http://user:pw@127.0.0.1/", "http://", "http://[", ""]
)
def test_a_redirect_to_no_web_address_is_refused(server: Server, location: str) -> None:
    server.answers["/old.png"] = lambda handler: handler.answer(302, b"", Location=location)
    with pytest.raises(InputError, match="Cannot fetch"):
        fetch_image(server.url("/old.png"))


@pytest.mark.usefixtures("allowed")
def test_a_redirect_loop_ends(server: Server) -> None:
    server.answers["/loop"] = lambda handler: handler.answer(302, b"", Location="/loop")
    with pytest.raises(InputError, match="more than 3 times"):
        fetch_image(server.url("/loop"))
    assert len(server.requests) == 4


@pytest.mark.usefixtures("allowed")
@pytest.mark.parametrize("sized", [True, False])
def test_an_image_that_is_too_large_is_refused(server: Server, sized: bool) -> None:
    server.answers["/image.png"] = lambda handler: handler.answer(sized=sized)
    with pytest.raises(InputError, match=rf"larger than {len(IMAGE) - 1} bytes.*max_bytes"):
        fetch_image(server.url(), max_bytes=len(IMAGE) - 1)


@pytest.mark.usefixtures("allowed")
def test_the_declared_size_is_believed_before_anything_is_read(server: Server) -> None:
    def announce(handler: Handler) -> None:
        handler.answer(body=b"", sized=False, Content_Length="1025")
        handler.drip(b"")

    server.answers["/image.png"] = announce
    with pytest.raises(InputError, match="larger than 1024 bytes"):
        fetch_image(server.url(), max_bytes=1024, timeout=PATIENCE / 2)


@pytest.mark.usefixtures("allowed")
def test_an_endless_image_is_cut(server: Server) -> None:
    def flood(handler: Handler) -> None:
        handler.answer(body=b"", sized=False)
        while not server.stopping.is_set():
            handler.wfile.write(bytes(2**16))

    server.answers["/image.png"] = flood
    with pytest.raises(InputError, match="larger than"):
        fetch_image(server.url(), max_bytes=2**20)


@pytest.mark.usefixtures("allowed")
def test_a_compressed_answer_is_refused(server: Server) -> None:
    bomb = gzip.compress(bytes(2**24))
    server.answers["/image.png"] = lambda handler: handler.answer(
        body=bomb, Content_Encoding="gzip"
    )
    with pytest.raises(InputError, match="Content-Encoding 'gzip'"):
        fetch_image(server.url())


@pytest.mark.usefixtures("allowed")
def test_a_truncated_body_is_refused(server: Server) -> None:
    server.answers["/image.png"] = lambda handler: handler.answer(
        body=b"half", sized=False, Content_Length="8"
    )
    with pytest.raises(InputError, match="RemoteProtocolError"):
        fetch_image(server.url())


@pytest.mark.usefixtures("allowed")
@pytest.mark.parametrize("kind", ["text/html; charset=utf-8", "image/svg+xml", "IMAGE/SVG+XML", ""])
def test_what_is_no_bitmap_is_refused(server: Server, kind: str) -> None:
    server.answers["/image.png"] = lambda handler: handler.answer(Content_Type=kind)
    with pytest.raises(InputError, match="expected a bitmap image"):
        fetch_image(server.url())


@pytest.mark.usefixtures("allowed")
@pytest.mark.parametrize("status", [204, 300, 302, 404, 500])
def test_another_status_is_refused(server: Server, status: int) -> None:
    server.answers["/image.png"] = lambda handler: handler.answer(status, b"")
    with pytest.raises(InputError, match=f"answered {status}"):
        fetch_image(server.url())


def drip_body(handler: Handler) -> None:
    handler.answer(body=b"", sized=False, Content_Length=str(2**20))
    handler.drip(b".")


def drip_unsized_body(handler: Handler) -> None:
    handler.answer(body=b"", sized=False)
    handler.drip(b".")


def drip_chunk_size(handler: Handler) -> None:
    handler.protocol_version = "HTTP/1.1"
    handler.answer(body=b"1;", sized=False, Transfer_Encoding="chunked")
    handler.drip(b".")


def drip_headers(handler: Handler) -> None:
    handler.wfile.write(b"HTTP/1.1 200 OK\r\nX-Slow: ")
    handler.drip(b".")


def say_nothing(handler: Handler) -> None:
    handler.drip(b"")


@pytest.mark.usefixtures("allowed")
@pytest.mark.parametrize(
    "answer", [drip_body, drip_unsized_body, drip_chunk_size, drip_headers, say_nothing]
)
def test_a_dripping_server_is_cut(server: Server, answer: Answer) -> None:
    server.answers["/image.png"] = answer
    with pytest.raises(InputError, match=r"within 0\.5 s"):
        fetch_image(server.url(), timeout=0.5)
    assert len(server.requests) == 1
    assert not server.finished.is_set()


@pytest.mark.usefixtures("allowed")
def test_the_time_is_shared_by_all_redirects(server: Server) -> None:
    def slow_loop(handler: Handler) -> None:
        server.stopping.wait(0.2)
        handler.answer(302, b"", Location="/loop")

    server.answers["/loop"] = slow_loop
    with pytest.raises(InputError, match=r"within 0\.3 s"):
        fetch_image(server.url("/loop"), timeout=0.3)


@pytest.mark.usefixtures("allowed")
def test_no_socket_or_timer_is_left_behind(server: Server) -> None:
    server.answers["/old.png"] = lambda handler: handler.answer(302, b"", Location="/image.png")
    deadline = fetch._Deadline(PATIENCE)
    with deadline:
        assert fetch._follow_redirects(server.url("/old.png"), 2**20, deadline) == IMAGE
        handle = deadline._socket
        assert handle is not None
    assert handle.fileno() == -1
    deadline._timer.join(PATIENCE / 2)
    assert not deadline._timer.is_alive()


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("file:///etc/passwd", "scheme 'file'"),
        ("ftp://images.example/image.png", "scheme 'ftp'"),
        ("image.png", "scheme ''"),
        ("//images.example/image.png", "scheme ''"),
        ("", "scheme ''"),
        ("http://user:pw@images.example/", "user name or password"),
        ("http://user@images.example/", "user name or password"),
        ("http://:@images.example/", "user name or password"),
        ("http:///image.png", "names no host"),
        ("http://images.example:0/", "port"),
        ("http://images.example:99999/", "port"),
        ("http://images.example:port/", "Invalid port"),
        ("http://[::1/", "Cannot fetch"),
        ("http://images\n.example/", "Cannot fetch"),
        ("http://\ud800.example/", "Cannot fetch"),
        ("http://images.example/\ud800", "Cannot fetch"),
        ("http://" + "a" * 64 + ".example/", "Cannot fetch"),
        ("http://a..example/", "Cannot fetch"),
        ("http://" + "a" * 70_000, "Cannot fetch"),
    ],
)
def test_what_is_no_web_address_is_refused(
    names: dict[str, list[str]], url: str, problem: str
) -> None:
    with pytest.raises(InputError, match=problem) as caught:
        fetch_image(url)
    assert repr(redact_url(url)) in str(caught.value)
    assert len(str(caught.value)) < 1000


def test_an_unknown_name_is_an_input_error(names: dict[str, list[str]]) -> None:
    with pytest.raises(InputError, match="gaierror") as caught:
        fetch_image("http://unknown.invalid/image.png")
    assert isinstance(caught.value.__cause__, socket.gaierror)


@pytest.mark.usefixtures("allowed")
def test_a_closed_port_is_an_input_error() -> None:
    with socket.socket() as unheard:
        unheard.bind(("127.0.0.1", 0))
        with pytest.raises(InputError, match="ConnectError"):
            fetch_image(f"http://127.0.0.1:{unheard.getsockname()[1]}/image.png")


@pytest.mark.usefixtures("allowed")
def test_an_answer_that_is_not_http_is_an_input_error(server: Server) -> None:
    def greet(handler: Handler) -> None:
        handler.wfile.write(b"220 mail ready\r\n\r\n")

    server.answers["/image.png"] = greet
    with pytest.raises(InputError, match="RemoteProtocolError"):
        fetch_image(server.url())


@pytest.mark.parametrize("bound", [{"max_bytes": 0}, {"timeout": 0}, {"timeout": float("nan")}])
def test_a_bound_that_makes_no_sense_is_refused(bound: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=next(iter(bound))):
        fetch_image("http://images.example/image.png", **bound)


@pytest.mark.usefixtures("allowed")
def test_a_proxy_in_the_environment_is_not_used(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
        monkeypatch.setenv(name.upper(), "http://127.0.0.1:1")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    assert fetch_image(server.url()) == IMAGE


@pytest.fixture
def secure(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str | None]:
    """The server speaks TLS as images.example; gives the names it was asked for by SNI."""
    if shutil.which("openssl") is None:
        pytest.skip("no openssl to make a certificate with")
    command = (
        "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 "
        "-subj /CN=images.example -addext subjectAltName=DNS:images.example "
        "-keyout key.pem -out certificate.pem"
    )
    subprocess.run(shlex.split(command), cwd=tmp_path, check=True, capture_output=True)
    certificate = tmp_path / "certificate.pem"
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, tmp_path / "key.pem")
    asked: list[str | None] = []

    def note(_socket: object, name: str | None, _context: object) -> None:
        asked.append(name)

    context.sni_callback = note
    server.socket = context.wrap_socket(
        server.socket, server_side=True, do_handshake_on_connect=False
    )
    trusting = ssl.create_default_context(cafile=str(certificate))
    monkeypatch.setattr(fetch, "_tls_context", lambda: trusting)
    return asked


@pytest.mark.usefixtures("allowed")
def test_the_certificate_is_checked_against_the_name(
    server: Server, secure: list[str | None], names: dict[str, list[str]]
) -> None:
    names["images.example"] = names["other.example"] = ["127.0.0.1"]
    url = server.url(host="images.example").replace("http:", "https:")
    assert fetch_image(url) == IMAGE
    with pytest.raises(InputError, match="CERTIFICATE_VERIFY_FAILED"):
        fetch_image(url.replace("images.example", "other.example"))
    assert secure == ["images.example", "other.example"]
    assert len(server.requests) == 1


@pytest.mark.usefixtures("allowed")
def test_a_connection_verified_for_one_name_does_not_serve_another(
    server: Server, secure: list[str | None], names: dict[str, list[str]]
) -> None:
    names["images.example"] = names["other.example"] = ["127.0.0.1"]

    def redirect(handler: Handler) -> None:
        handler.protocol_version = "HTTP/1.1"
        handler.answer(302, b"", Location=f"https://other.example:{server.server_port}/image.png")

    server.answers["/old.png"] = redirect
    url = server.url("/old.png", host="images.example").replace("http:", "https:")
    with pytest.raises(InputError, match="CERTIFICATE_VERIFY_FAILED"):
        fetch_image(url)


@pytest.mark.usefixtures("allowed", "secure")
@pytest.mark.parametrize("answer", [drip_unsized_body, drip_headers])
def test_a_dripping_server_is_cut_under_tls_too(
    server: Server, names: dict[str, list[str]], answer: Answer
) -> None:
    names["images.example"] = ["127.0.0.1"]
    server.answers["/image.png"] = answer
    with pytest.raises(InputError, match=r"within 0\.5 s"):
        fetch_image(server.url(host="images.example").replace("http:", "https:"), timeout=0.5)
    assert len(server.requests) == 1
    assert not server.finished.is_set()


def test_certificates_are_checked_by_default() -> None:
    context = fetch._tls_context()
    assert context.verify_mode is ssl.CERT_REQUIRED
    assert context.check_hostname


@pytest.mark.parametrize(
    "address",
    [
        "8.8.8.8",
        "93.184.216.34",
        "172.32.0.1",
        "100.128.0.1",
        "2606:4700:4700::1111",
        "::ffff:8.8.8.8",
        "2002:808:808::1",
        "64:ff9b::808:808",
    ],
)
def test_public_addresses(address: str) -> None:
    assert is_public(ipaddress.ip_address(address))


@pytest.mark.parametrize(
    "address",
    [
        "0.0.0.0",
        "0.1.2.3",
        "10.0.0.1",
        "100.64.0.1",
        "100.100.100.200",
        "127.0.0.1",
        "127.255.255.254",
        "168.63.129.16",
        "169.254.169.254",
        "172.16.0.1",
        "172.31.255.255",
        "192.0.0.192",
        "192.0.2.1",
        "192.168.0.1",
        "198.18.0.1",
        "198.51.100.1",
        "203.0.113.1",
        "224.0.0.1",
        "239.255.255.250",
        "240.0.0.1",
        "255.255.255.255",
        "::",
        "::1",
        "::127.0.0.1",
        "::ffff:127.0.0.1",
        "::ffff:10.0.0.1",
        "::ffff:0:127.0.0.1",
        "64:ff9b::127.0.0.1",
        "64:ff9b::a9fe:a9fe",
        "64:ff9b:1::1",
        "100::1",
        "2001::1",
        "2001:db8::1",
        "2002:7f00:1::1",
        "2002:a00:1::1",
        "2002:e000:1::1",
        "fc00::1",
        "fd00:ec2::254",
        "fe80::1",
        "fe80::1%eth0",
        "fec0::1",
        "ff02::1",
        "ff0e::1",
    ],
)
def test_addresses_that_are_not_public(address: str) -> None:
    assert not is_public(ipaddress.ip_address(address))
