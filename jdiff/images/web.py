"""Files from the web: bounded in bytes, time and redirects, and from public addresses only."""

import http.client
import ipaddress
import re
import socket
import ssl
import threading
from collections.abc import Sequence
from http import HTTPStatus
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote, urljoin, urlsplit

# What one file may take: bytes, seconds in all, seconds for a connection to one address, and redirects.
LARGEST, SECONDS, CONNECT, REDIRECTS = 64 * 2**20, 30, 10, 5
PORTS = {"http": 80, "https": 443}
MOVED = (301, 302, 303, 307, 308)
CHUNK = 2**16
# Networks whose addresses hold one of IPv4 in their last 32 bits (RFC 6052, and the older IPv4-compatible ones).
EMBEDDING = [ipaddress.IPv6Network(network) for network in ("64:ff9b::/96", "::/96")]
# Characters of a path and of a query that stay as they are; all others are written as %XX.
SAFE = "%/:=&?~+!$,;'@()*[]"
HOST = re.compile(r"[a-z0-9._-]+|[0-9a-f:.]+")
HEADERS = {"User-Agent": "jdiff", "Accept": "image/*, */*;q=0.5", "Accept-Encoding": "identity", "Connection": "close"}
SAVE = "save the picture and give its path"

# An entry of `socket.getaddrinfo`: family, type, protocol, canonical name, and address with its port.
Address = tuple[Any, ...]


class Place(NamedTuple):
    """What a URL names."""

    scheme: str
    host: str
    port: int
    target: str  # path and query


def is_url(place: str | Path) -> bool:
    """Returns whether a text names a scheme, such as https://, and is no path.

    Example:
        >>> is_url("https://example.org/a.png"), is_url("a.png"), is_url("file:///a.png")
        (True, False, True)
    """
    return isinstance(place, str) and re.match(r"[A-Za-z][A-Za-z0-9+.-]+://", place) is not None


def fetch(url: str) -> bytes:
    """Returns the file at a URL. Proxies are not used, since they would look up the name again.

    Each redirect is checked as the first URL is. The connection goes to an address that was checked, whatever the name
    resolves to later.

    Args:
        url: http:// or https://, of a host with public addresses only.

    Raises:
        ValueError: the URL is not such a one, the file is larger than 64 MiB or takes longer than 30 seconds, there are
            more than 5 redirects, or the server cannot be reached or has no such file. One line says which.
    """
    work = _Fetch(url)
    thread = threading.Thread(target=work.run, name="jdiff-web", daemon=True)
    thread.start()
    thread.join(SECONDS)
    if thread.is_alive():
        work.stop()
        raise ValueError(f"{work.name()}: this took longer than {SECONDS} seconds; {SAVE}")
    if work.error is not None:
        raise ValueError(f"{work.name()}: {work.error}") from work.error
    return work.data


class _Fetch:
    """One file being fetched, in a thread of its own, since no timeout bounds a resolver or a slow drip of headers."""

    def __init__(self, url: str):
        self.url = self.now = url
        self.data = b""
        self.error: Exception | None = None
        self.stopped = False
        self.socket: socket.socket | None = None

    def name(self) -> str:
        """The URL, and where it has led."""
        return _shown(self.url) + ("" if self.now == self.url else f", which leads to {_shown(self.now)}")

    def stop(self) -> None:
        """Ends the thread at its next look at the network."""
        self.stopped = True
        if self.socket is not None:
            _shut(self.socket)

    def run(self) -> None:
        try:
            self.data = self._followed()
        except Exception as error:  # whatever it is, the other thread tells it
            self.error = error

    def _followed(self) -> bytes:
        for _ in range(REDIRECTS + 1):
            place = split(self.now)
            with _connected(place, resolved(place)) as self.socket:
                if self.stopped:
                    break
                moved = self._answered(place, self.socket)
            if moved is None:
                return self.data
            self.now = _moved(self.now, moved)
        raise ValueError(f"there are more than {REDIRECTS} redirects; give the address that they lead to")

    def _answered(self, place: Place, connection: socket.socket) -> str | None:
        """Reads the file, or returns the URL of a redirect."""
        asked = http.client.HTTPConnection(place.host, place.port)
        asked.default_port = PORTS[place.scheme]
        asked.sock = connection
        try:
            asked.request("GET", place.target, headers=HEADERS)
            with asked.getresponse() as response:
                if response.status in MOVED and (moved := response.getheader("Location")):
                    return moved
                if response.status != 200:
                    raise ValueError(f"the server answers {_status(response.status)}; check the address")
                if (packed := response.getheader("Content-Encoding", "identity")) != "identity":
                    raise ValueError(f"the server sends the file packed by {packed[:20]!r}; {SAVE}")
                self.data = _body(response)
        except (OSError, http.client.HTTPException) as error:
            what = str(error) or type(error).__name__
            raise ValueError(f"the connection failed ({what[:100]!r}); try again, or {SAVE}") from error
        return None


def split(url: str) -> Place:
    """Returns the parts of a URL.

    Raises:
        ValueError: it is none of http or https, or it cannot be read.

    Example:
        >>> split("https://example.org/my photo.jpg?size=1")
        Place(scheme='https', host='example.org', port=443, target='/my%20photo.jpg?size=1')
    """
    if not url.isprintable():  # the parser drops line ends
        raise ValueError("the address has control characters; remove them")
    try:
        parts = urlsplit(url)
        host = (parts.hostname or "").encode("idna" if not (parts.hostname or "").isascii() else "ascii").decode()
        port = parts.port
        name = (parts.hostname or "").lower()
        if not name.isascii() and host.encode().decode("idna") != name:
            raise ValueError("its host has letters that are written in more than one way")
    except ValueError as error:
        raise ValueError(f"the address cannot be read ({error}); check it") from error
    if parts.scheme not in PORTS:
        raise ValueError(f"the address must start with http:// or https://, got {parts.scheme}:; {SAVE}")
    if "@" in parts.netloc:
        raise ValueError(f"the address must have no user name and password in it; {SAVE}")
    if not HOST.fullmatch(host):
        raise ValueError(f"the address must name a host, got {host!r}; check it")
    target = quote(parts.path or "/", SAFE) + (f"?{quote(parts.query, SAFE)}" if parts.query else "")
    return Place(parts.scheme, host, PORTS[parts.scheme] if port is None else port, target)


def resolved(place: Place) -> list[Address]:
    """Returns the addresses of a host, all of which are public.

    Raises:
        ValueError: there is none, or one is not public.
    """
    try:
        found = socket.getaddrinfo(place.host, place.port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise ValueError(f"there is no host {place.host}, or no network; check the address") from error
    for address in [str(entry[4][0]) for entry in found]:
        if not is_public(address):
            raise ValueError(f"{place.host} has the address {address}, which is not public; {SAVE}")
    return list(found)


def is_public(address: str) -> bool:
    """Returns whether an IP address is one of the internet: not private, local, multicast, reserved or unspecified.

    Addresses of IPv6 that hold one of IPv4 are judged by that.

    Example:
        >>> [is_public(a) for a in ("93.184.215.14", "192.168.0.1", "::ffff:127.0.0.1", "2606:2800:21f:cb07::1")]
        [True, False, False, True]
    """
    ip = ipaddress.ip_address(address)
    if isinstance(ip, ipaddress.IPv6Address):
        inner = ip.ipv4_mapped or ip.sixtofour
        if any(ip in network for network in EMBEDDING):
            inner = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
        if inner is not None:
            return is_public(str(inner))
        if ip.is_site_local:
            return False
    refused = (ip.is_private, ip.is_loopback, ip.is_link_local, ip.is_multicast, ip.is_reserved, ip.is_unspecified)
    return ip.is_global and not any(refused)


def _connected(place: Place, addresses: Sequence[Address]) -> socket.socket:
    """A connection to the first of the addresses that takes one; with https, by a certificate of the host's name."""
    why: Exception | None = None
    for family, kind, protocol, _, address in addresses:
        connection = socket.socket(family, kind, protocol)
        try:
            connection.settimeout(CONNECT)
            connection.connect(address)
            connection.settimeout(2 * SECONDS)  # `fetch` gives up before
            if place.scheme == "http":
                return connection
            return ssl.create_default_context().wrap_socket(connection, server_hostname=place.host)
        except ssl.SSLCertVerificationError as error:
            connection.close()
            what = f"the certificate of {place.host} is not valid ({error.verify_message})"
            raise ValueError(f"{what}; check the address, or {SAVE}") from error
        except OSError as error:
            connection.close()
            why = error
    what = getattr(why, "strerror", None) or why
    raise ValueError(f"no connection to {place.host}, port {place.port} ({what}); check the address") from why


def _body(response: http.client.HTTPResponse) -> bytes:
    """What a server sends, of at most `LARGEST` bytes."""
    large = f"the file has more than {LARGEST // 2**20} MiB; give a smaller picture"
    if response.length is not None and response.length > LARGEST:
        raise ValueError(large)
    data = bytearray()
    while True:
        try:
            chunk = response.read(CHUNK)
        except ValueError as error:  # such as a chunk of negative length
            raise ValueError(f"the server's answer cannot be read; {SAVE}") from error
        if not chunk:
            break
        data += chunk
        if len(data) > LARGEST:
            raise ValueError(large)
    if response.length:
        raise ValueError(f"the connection ended before the file did; try again, or {SAVE}")
    return bytes(data)


def _moved(url: str, location: str) -> str:
    """The URL of a redirect, which may not lead from https to http."""
    try:
        location = location.encode("latin-1").decode("utf-8", "replace")  # http.client reads headers as Latin-1
        new = urljoin(url, location)
    except ValueError as error:
        raise ValueError(f"the server leads to an address that cannot be read ({error}); {SAVE}") from error
    if url.lower().startswith("https:") and new.lower().startswith("http:"):
        raise ValueError(f"the server leads from https to {_shown(new)}; {SAVE}")
    return new


def _status(status: int) -> str:
    phrases = {known.value: known.phrase for known in HTTPStatus}
    return f"{status} {phrases.get(status, '')}".strip()


def _shut(connection: socket.socket) -> None:
    try:
        socket.socket.shutdown(connection, socket.SHUT_RDWR)  # of TLS too, whose own would wait for its other end
    except OSError:
        pass


def _shown(url: str) -> str:
    """A URL in a message: printable, and not endless."""
    shown = url if url.isprintable() else repr(url)[1:-1]
    return shown if len(shown) <= 200 else f"{shown[:200]}..."
