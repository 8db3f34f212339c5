"""Pictures from the web, from servers on this machine: what is read, what is refused and why, and for how long."""

import hashlib
import io
import shutil
import socket
import ssl
import subprocess
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import unquote

import numpy as np
import pytest
from PIL import Image
from test_cli import main

from jdiff import images
from jdiff.images import web

rng = np.random.default_rng(0)
PICTURE = images.png(rng.uniform(-1, 1, (12, 24, 3)).astype(np.float32))
MASK = images.png(np.where(np.arange(24)[None, :, None] < 12, -1.0, 1.0) * np.ones((12, 1, 3)))
PUBLIC = "93.184.215.14"
SAVE = "save the picture and give its path"


class Answers(BaseHTTPRequestHandler):
    """Answers that a path asks for."""

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.server.asked.append((self.path, dict(self.headers)))
        name, _, rest = self.path[1:].partition("?")
        getattr(self, name.partition(".")[0].replace("%20", "_"), self.missing)(unquote(rest))

    def answer(self, status, data, length=None, **headers):
        self.send_response(status)
        headers = {"Content-Length": str(len(data) if length is None else length)} | headers
        for header, value in headers.items():
            self.send_header(header.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(data)

    def missing(self, rest):
        self.answer(404, b"no such picture")

    def broken(self, rest):
        self.answer(500, b"")

    def picture(self, rest):
        self.answer(200, PICTURE)

    my_photo = picture

    def mask(self, rest):
        self.answer(200, MASK)

    def page(self, rest):
        self.answer(200, b"\n<!DOCTYPE html><p>Photo")

    def text(self, rest):
        self.answer(200, b"text")

    def empty(self, rest):
        self.answer(200, b"")

    def moved(self, rest):
        self.answer(302, b"", Location=rest)

    def round(self, rest):
        """Redirects as many times as it is told."""
        self.answer(301, b"", Location=f"/round?{int(rest) - 1}" if int(rest) > 1 else "/picture.png")

    def large(self, rest):
        self.answer(200, b"", length=web.LARGEST + 1)

    def chunked(self, rest):
        """As many bytes as it is told, of which no header tells."""
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        data = PICTURE + b"\0" * (int(rest) - len(PICTURE))
        for part in (data[:100], data[100:]):
            self.wfile.write(b"%x\r\n%s\r\n" % (len(part), part))
        self.wfile.write(b"0\r\n\r\n")

    def until_closed(self, rest):
        self.send_response(200)
        self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(PICTURE + b"\0" * (int(rest) - len(PICTURE)))
        self.close_connection = True

    def short(self, rest):
        self.answer(200, PICTURE[:100], length=len(PICTURE))
        self.close_connection = True

    def silent(self, rest):
        self.server.tested.wait(60)

    def drip(self, rest):
        """One header after another, each in time."""
        self.send_response(200)
        while not self.server.tested.wait(0.1):
            self.send_header("X-More", "slow")
            self.flush_headers()

    def log_message(self, *args):
        pass

    def handle(self):
        try:
            super().handle()
        except OSError:  # the client has left
            pass


def serving(context=None):
    """A server on this machine."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    server.daemon_threads = True
    server.asked = []
    server.tested = threading.Event()  # a slow answer lasts until then
    if context is not None:
        server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


@pytest.fixture
def served(monkeypatch):
    """A server that counts as public, its address, and what it was asked."""
    server = serving()
    monkeypatch.setattr(web, "is_public", lambda address: address == "127.0.0.1")
    yield SimpleNamespace(url=f"http://127.0.0.1:{server.server_port}", port=server.server_port, asked=server.asked)
    server.tested.set()
    server.shutdown()
    server.server_close()


def answering(monkeypatch, **names):
    """Makes the resolver answer with these addresses; returns what it was asked."""
    asked = []

    def resolve(host, port, *args, **kwargs):
        asked.append(host)
        if host not in names:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        families = [socket.AF_INET6 if ":" in address else socket.AF_INET for address in names[host]]
        return [
            (family, socket.SOCK_STREAM, 6, "", (address, port, 0, 0)[: 4 if ":" in address else 2])
            for family, address in zip(families, names[host], strict=True)
        ]

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    return asked


def error(url):
    with pytest.raises(ValueError) as caught:
        web.fetch(url)
    told = str(caught.value)
    assert "\n" not in told and "; " in told, "one line that says what to do"
    return told


# --- what is read


@pytest.mark.parametrize("path", ["picture.png", "my photo.png", "my%20photo.png", "moved?/picture.png", "round?5",
                                  "chunked?5000", "until_closed?5000", "picture.png#part"])  # fmt: skip
def test_a_picture_is_read(served, path):
    data = web.fetch(f"{served.url}/{path}")
    assert data[: len(PICTURE)] == PICTURE and set(data[len(PICTURE) :]) <= {0}
    np.testing.assert_array_equal(
        images.load(f"{served.url}/{path}"), images.on_white(images.decode(PICTURE, "picture"))
    )


def test_the_host_and_no_secret_is_sent(served):
    web.fetch(f"{served.url}/picture.png?size=1")
    ((path, headers),) = served.asked
    assert path == "/picture.png?size=1" and headers["Host"] == served.url.removeprefix("http://")
    assert set(headers) == {"Host", *web.HEADERS}


def test_the_connection_goes_to_the_address_that_was_checked(served, monkeypatch):
    """The name is resolved once for each redirect, and never after its check."""
    asked = answering(monkeypatch, **{"pictures.test": ["127.0.0.1"]})
    checked = []
    monkeypatch.setattr(web, "is_public", lambda address: checked.append((address, len(asked))) or True)
    assert web.fetch(f"http://pictures.test:{served.port}/round?2") == PICTURE
    assert asked == ["pictures.test"] * 3 and checked == [("127.0.0.1", 1), ("127.0.0.1", 2), ("127.0.0.1", 3)]
    assert {headers["Host"] for _, headers in served.asked} == {f"pictures.test:{served.port}"}


def test_the_next_address_is_taken_where_one_does_not_answer(served, monkeypatch):
    answering(monkeypatch, **{"pictures.test": ["127.0.0.2", "127.0.0.1"]})
    monkeypatch.setattr(web, "is_public", lambda address: True)
    assert web.fetch(f"http://pictures.test:{served.port}/picture.png") == PICTURE


# --- what is refused


@pytest.mark.parametrize("url, why", [
    ("file:///etc/hosts", "must start with http:// or https://, got file:"),
    ("ftp://example.org/a.png", "must start with http:// or https://, got ftp:"),
    ("gopher://127.0.0.1:70/", "must start with http:// or https://, got gopher:"),
    ("http://", "must name a host, got ''"),
    ("http:///a.png", "must name a host, got ''"),
    ("http://a b/c.png", "must name a host, got 'a b'"),
    ("http://exa%6dple.org/a.png", "must name a host, got 'exa%6dple.org'"),
    ("http://example.org:99999/a.png", "cannot be read (Port out of range 0-65535)"),
    ("http://[::1/a.png", "cannot be read (Invalid IPv6 URL)"),
    ("http://user:secret@example.org/a.png", "must have no user name and password"),
    ("http://example.org\\@127.0.0.1/a.png", "must have no user name and password"),
    ("http://example.org/a\n.png", "has control characters"),
])  # fmt: skip
def test_an_address_that_is_none_is_refused_before_any_name_is_resolved(monkeypatch, url, why):
    asked = answering(monkeypatch)
    assert why in error(url) and asked == []


@pytest.mark.parametrize("host, address", [
    ("localhost", "127.0.0.1"), ("127.0.0.1", None), ("2130706433", "127.0.0.1"), ("127.1", "127.0.0.1"),
    ("10.1.2.3", None), ("172.16.0.1", None), ("192.168.0.1", None), ("100.64.0.1", None), ("169.254.169.254", None),
    ("0.0.0.0", None), ("224.0.0.1", None), ("240.0.0.1", None), ("255.255.255.255", None), ("192.0.2.1", None),
    ("[::1]", None), ("[::]", None), ("[::ffff:127.0.0.1]", None), ("[::ffff:10.0.0.1]", None), ("[::127.0.0.1]", None),
    ("[64:ff9b::7f00:1]", None), ("[64:ff9b::a00:1]", None), ("[2002:7f00:1::]", None), ("[fe80::1]", None),
    ("[fc00::1]", None), ("[fec0::1]", None), ("[ff02::1]", None), ("[2001:db8::1]", None), ("[100::1]", None),
    ("inside.test", "192.168.0.1"), ("both.test", "10.0.0.1"), ("six.test", "fd00::1"),
])  # fmt: skip
@pytest.mark.parametrize("scheme", ["http", "https"])
def test_addresses_that_are_not_public_are_refused_before_any_connection(monkeypatch, scheme, host, address):
    bare = host.strip("[]")
    address = address or bare
    names = {bare: [PUBLIC, address] if host == "both.test" else [address]}
    answering(monkeypatch, **names)
    monkeypatch.setattr(socket, "socket", lambda *args: pytest.fail("a connection was made"))
    told = error(f"{scheme}://{host}/a.png")
    assert told.startswith(f"{scheme}://{host}/a.png: {bare} has the address ")
    assert told.endswith(f", which is not public; {SAVE}")


@pytest.mark.parametrize("address", [PUBLIC, "8.8.8.8", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808"])
def test_addresses_of_the_internet_are_public(address):
    assert web.is_public(address)


def test_the_real_resolver_knows_this_machine():
    assert ", which is not public" in error("http://localhost/a.png")


@pytest.mark.parametrize("to, why", [
    ("http://10.0.0.1/a.png", "10.0.0.1 has the address 10.0.0.1, which is not public"),
    ("http://inside.test/a.png", "inside.test has the address 10.0.0.1, which is not public"),
    ("//[::1]/a.png", "::1 has the address ::1, which is not public"),
    ("file:///etc/hosts", "must start with http:// or https://, got file:"),
    ("http://user:secret@127.0.0.1/", "must have no user name and password"),
])  # fmt: skip
def test_every_redirect_is_checked_anew(served, monkeypatch, to, why):
    answering(monkeypatch, **{
        "127.0.0.1": ["127.0.0.1"], "10.0.0.1": ["10.0.0.1"], "inside.test": ["10.0.0.1"], "::1": ["::1"],
    })  # fmt: skip
    told = error(f"{served.url}/moved?{to}")
    assert told.startswith(f"{served.url}/moved?{to}, which leads to ") and why in told


# --- how much, and for how long


@pytest.mark.parametrize("path, why", [
    ("round?6", "there are more than 5 redirects"), ("large", "the file has more than 64 MiB"),
    ("missing.png", "the server answers 404 Not Found; check the address"),
    ("broken.png", "the server answers 500 Internal Server Error"),
    ("short", "the connection ended before the file did"),
])  # fmt: skip
def test_what_a_server_may_do(served, path, why):
    assert why in error(f"{served.url}/{path}")


@pytest.mark.parametrize("path", ["chunked?20000", "until_closed?20000", "picture.png"])
def test_a_file_that_is_too_large_is_refused_whatever_its_headers_say(served, monkeypatch, path):
    most = len(PICTURE) - 1 if path == "picture.png" else 19999
    monkeypatch.setattr(web, "LARGEST", most)
    assert "the file has more than 0 MiB; give a smaller picture" in error(f"{served.url}/{path}")
    monkeypatch.setattr(web, "LARGEST", most + 1)
    assert len(web.fetch(f"{served.url}/{path}")) == most + 1


@pytest.mark.parametrize("path", ["silent", "drip"])
def test_a_file_that_takes_too_long_is_given_up(served, monkeypatch, path):
    """The bound is on the whole, so that headers that come one by one do not prolong it."""
    monkeypatch.setattr(web, "SECONDS", 0.5)
    assert f"this took longer than 0.5 seconds; {SAVE}" in error(f"{served.url}/{path}")
    for thread in threading.enumerate():
        if thread.name == "jdiff-web":
            thread.join(30)
            assert not thread.is_alive()


def test_a_resolver_that_hangs_is_given_up(monkeypatch):
    tested = threading.Event()
    monkeypatch.setattr(web, "SECONDS", 0.2)
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **kwargs: tested.wait(60) and [])
    assert "this took longer than 0.2 seconds" in error("http://slow.test/a.png")
    tested.set()


@pytest.mark.parametrize("location, leads_to", [
    ("/\xc3\xa9.png", "https://example.org/\u00e9.png"),  # UTF-8, as http.client reads it
    ("http://example.org/", "the server leads from https to http://example.org/"),
    ("http://[", "the server leads to an address that cannot be read"),
])  # fmt: skip
def test_where_a_redirect_leads(location, leads_to):
    try:
        found = web._moved("https://example.org/a.png", location)
    except ValueError as error:
        found = str(error)
    assert found.startswith(leads_to)


def test_a_name_that_means_two_hosts_is_refused():
    with pytest.raises(ValueError, match="its host has letters that are written in more than one way"):
        web.split("https://stra\u00dfe.de/a.png")
    assert web.split("https://b\u00fccher.de/a.png").host == "xn--bcher-kva.de"


def test_a_small_file_of_many_pixels_is_refused(monkeypatch):
    file = io.BytesIO()
    Image.new("1", (6000, 5000)).save(file, "PNG")
    images.decode(file.getvalue(), "a.png")
    with pytest.raises(ValueError, match="the picture has more than 24 megapixels"):
        images.decode(file.getvalue(), "https://example.org/a.png")


def test_no_host_and_no_answer(monkeypatch, served):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        told = error(f"http://127.0.0.1:{port}/a.png")
    assert f"no connection to 127.0.0.1, port {port} (Connection refused); check the address" in told
    answering(monkeypatch)
    assert "there is no host gone.test, or no network; check the address" in error("http://gone.test/a.png")


@pytest.mark.parametrize("path, why", [
    ("page.html", "this is a web page and no picture; give the address of the picture itself"),
    ("text", "this is no picture that can be read"), ("empty", "this file is empty"),
])  # fmt: skip
def test_what_is_no_picture(served, path, why):
    with pytest.raises(ValueError, match=f"^{served.url}/{path}: {why}"):
        images.load(f"{served.url}/{path}")


# --- https


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    """A certificate of pictures.test, and its key."""
    program = shutil.which("openssl")
    if program is None:
        pytest.skip("openssl, which makes a certificate, is not installed")
    folder = tmp_path_factory.mktemp("certificate")
    files = [folder / "certificate.pem", folder / "key.pem"]
    line = [program, "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days"]
    line += ["2", "-subj", "/CN=pictures.test", "-addext", "subjectAltName=DNS:pictures.test", "-out", str(files[0])]
    subprocess.run([*line, "-keyout", str(files[1])], check=True, capture_output=True)
    return files


@pytest.mark.parametrize("host, trusted, why", [
    ("pictures.test", True, ""),
    ("pictures.test", False, "the certificate of pictures.test is not valid (self"),
    ("others.test", True, "the certificate of others.test is not valid (Hostname mismatch"),
])  # fmt: skip
def test_https_asks_for_the_certificate_of_the_name(certificate, monkeypatch, host, trusted, why):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)
    named = []
    context.sni_callback = lambda connection, name, context: named.append(name)
    server = serving(context)
    if trusted:
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate[0]))
    answering(monkeypatch, **{host: ["127.0.0.1"]})
    monkeypatch.setattr(web, "is_public", lambda address: True)
    url = f"https://{host}:{server.server_port}/picture.png"
    if why:
        assert why in error(url) and server.asked == []
    else:
        assert web.fetch(url) == PICTURE
    assert named == [host]
    server.shutdown()
    server.server_close()


# --- in the commands


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.setenv("JDIFF_CACHE", "")
    monkeypatch.chdir(tmp_path)


def test_commands_take_urls_and_like_asks_again(served, here, capsys):
    words = ["a red eight", "-n", 1, "--steps", 2, "--quiet"]
    url = f"{served.url}/picture.png"
    assert main("edit", url, *words, "-o", "a.png") == 0
    assert main("inpaint", url, *words, "--mask", f"{served.url}/mask.png", "-o", "b.png") == 0
    assert main("upscale", url, *words, "-o", "c.png") == 0
    found = images.read_settings("b.png")
    assert found["source"] == url and found["source_sha256"] == hashlib.sha256(PICTURE).hexdigest()
    assert found["mask"] == f"{served.url}/mask.png" and [path for path, _ in served.asked].count("/mask.png") == 1
    assert main("inpaint", "--like", "b.png", "--quiet") == 0
    assert Path("b-again.png").read_bytes() == Path("b.png").read_bytes()


def test_like_takes_files_only(here, capsys):
    assert main("edit", "--like", "https://example.org/a.png") == 2
    told = capsys.readouterr().err
    assert told == "jdiff: --like must be a file on this machine, got https:/example.org/a.png; save that file first\n"


@pytest.mark.parametrize("command", ["edit", "inpaint", "upscale"])
def test_what_is_wrong_is_one_line(served, here, capsys, command):
    mask = ["--mask", "mask.png"] if command == "inpaint" else []
    url = f"{served.url}/gone.png"
    assert main(command, url, "a red eight", *mask) == 2
    assert capsys.readouterr().err == f"jdiff: IMAGE: {url}: the server answers 404 Not Found; check the address\n"
    assert list(Path().iterdir()) == []
