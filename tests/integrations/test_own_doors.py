"""The HTTP that our own doors speak, to who speaks it oddly."""

import json
import re
import socket
from collections.abc import Iterator

import pytest
from workers import Worker, worker

from stroboscope._http.wire import HEAD_CAP
from stroboscope.auth.tokens import Tokens
from stroboscope.settings import Settings

PATH = "/debug/selfcheck"
PUT = "PUT /debug/settings HTTP/1.1\r\nContent-Type: application/json\r\n"
HOST = "Host: localhost\r\n"


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Worker]:
    with worker(tmp_path_factory.mktemp("doors")) as made:
        yield made


class Door:
    """A worker's socket, and an admin's token for it."""

    def __init__(self, one: Worker) -> None:
        self._path = str(one.socket)
        text = Tokens(Settings(keys=(one.key,), service="shop")).mint(["admin"], 60)
        self.auth = f"Authorization: Bearer {text}\r\n"

    def said(self, *parts: str) -> bytes:
        """All that is answered to these, each sent when the one before was answered."""
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(self._path)
            client.settimeout(5)
            got = b""
            for part in parts:
                client.sendall(part.encode("latin-1"))
                if part is not parts[-1]:
                    got += client.recv(65536)
            while chunk := client.recv(65536):
                got += chunk
        return got

    def status(self, *parts: str) -> int:
        """The one status of it; 0 for a connection that is closed without a word."""
        found = re.findall(rb"HTTP/1\.1 (\d{3})", self.said(*parts))
        return int(found[-1]) if found else 0


@pytest.fixture
def door(one: Worker) -> Door:
    return Door(one)


@pytest.mark.parametrize(
    ("line", "status"),
    [
        (f"GET {PATH} HTTP/1.1", 200),
        (f"GET {PATH} HTTP/1.0", 200),
        (f"GET http://localhost{PATH} HTTP/1.1", 200),
        (f"GET http://evil.test{PATH} HTTP/1.1", 200),  # the Host header is what counts
        ("GET http://localhost HTTP/1.1", 404),
        ("GET /%64ebug%2fselfcheck HTTP/1.1", 200),
        (f"GET {PATH};x HTTP/1.1", 404),
        (f"GET {PATH}#x HTTP/1.1", 404),
        ("GET /debug/../debug/selfcheck HTTP/1.1", 404),
        ("GET /debug/%ff%00 HTTP/1.1", 404),
        (f"get {PATH} HTTP/1.1", 405),
        (f"HEAD {PATH} HTTP/1.1", 405),
        (f"BREW {PATH} HTTP/1.1", 405),
        ("OPTIONS * HTTP/1.1", 404),
        ("CONNECT localhost:80 HTTP/1.1", 404),
        (f"GET {PATH} HTTP/2.0", 0),
        (f"GET {PATH} HTTP/1.99999999999", 0),
        (f"GET {PATH}", 200),  # HTTP/0.9, but with a head
        ("PRI * HTTP/2.0", 0),
        ("", 0),
    ],
)
def test_h48_request_lines(door: Door, line: str, status: int) -> None:
    """Of every form and version: answered, refused, or closed without a word."""
    assert door.status(f"{line}\r\n{HOST}{door.auth}\r\n") == status


def test_h48_a_head_is_answered_by_a_head(door: Door) -> None:
    """With the length of the body that it has not."""
    head, _, body = door.said(
        f"HEAD {PATH} HTTP/1.1\r\n{HOST}{door.auth}\r\n"
    ).partition(b"\r\n\r\n")

    assert b"Content-Length: 19" in head
    assert b"Allow: GET" in head
    assert body == b""


@pytest.mark.parametrize("end", ["\r", "\n", "\0", "\r\r\n", "\n\n"], ids=repr)
def test_h35_only_a_line_ends_a_line(door: Door, end: str) -> None:
    """What a proxy before us takes for one header is no two."""
    text = f"GET {PATH} HTTP/1.1\r\n{HOST}X-A: 1{end}{door.auth}\r\n"

    assert door.status(text) == 0


def test_h35_a_folded_header_is_refused(door: Door) -> None:
    """RFC 9112, section 5.2."""
    text = f"GET {PATH} HTTP/1.1\r\n{HOST}{door.auth}X-A: 1\r\n 2\r\n\r\n"

    assert door.status(text) == 400


def test_h24_heads_are_bounded_and_bodies_are_none(door: Door) -> None:
    """A head of 16 KiB, 100 headers; a body of 64 KiB that comes along with its head."""
    start = f"GET {PATH} HTTP/1.1\r\n{HOST}{door.auth}"
    body = "0x1+" * 16_000
    symbols = f"POST /debug/pprof/symbol HTTP/1.1\r\n{HOST}{door.auth}"

    assert door.status(f"{start}X: {'a' * HEAD_CAP}\r\n\r\n") == 0
    assert door.status(f"{start}{'x: y' * 1}\r\n" + "x: y\r\n" * 120 + "\r\n") == 0
    assert door.status(f"{symbols}Content-Length: {len(body)}\r\n\r\n{body}") == 200
    assert door.status(f"{symbols}Content-Length: 65537\r\n\r\n{body}") == 413


@pytest.mark.parametrize(
    "length",
    [
        "Transfer-Encoding: chunked",
        "Transfer-Encoding: chunked\r\nContent-Length: 2",
        "Transfer-Encoding: identity\r\nContent-Length: 2",
        "Content-Length: 2\r\nContent-Length: 2",
        "Content-Length: 2\r\nContent-Length: 3",
        *(
            f"Content-Length: {text}"
            for text in ("-2", "+2", "2,2", "0x2", "\xb2", "2 2")
        ),
        f"Content-Length: {'0' * 5000}2",
    ],
)
def test_h48_a_body_has_one_length(door: Door, length: str) -> None:
    """Or it is not read: nobody before us can have seen another end of it."""
    answer = door.said(f"{PUT}{HOST}{door.auth}{length}\r\n\r\n{{}}")

    assert answer.startswith(b"HTTP/1.1 400 ")
    assert answer.endswith(b"\r\n\r\nthe body cannot be read\n")


def test_h48_who_asks_whether_to_go_on_is_told(door: Door) -> None:
    """`Expect: 100-continue`, as curl sends it with larger bodies; not to strangers."""
    head = f"{PUT}{HOST}Expect: 100-continue\r\nContent-Length: 2\r\n"
    answer = door.said(f"{head}{door.auth}\r\n", "{}")

    assert answer.startswith(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\n")
    assert door.said(f"{head}\r\n").startswith(b"HTTP/1.1 401 ")


@pytest.mark.parametrize(
    "body",
    [
        *("[" * 60_000, '{"cpu_hz": ' + "9" * 60_000 + "}", '{"cpu_hz": NaN}', "\0{}"),
        *('{"cpu_hz": 1e999}', '{"\\ud800": 1}', '{"cpu_hz": true}', "\xff\xfe", ""),
    ],
    ids=range(9),
)
def test_h33_bodies_that_are_hard_to_read_are_400(door: Door, body: str) -> None:
    """One line says why, and nothing is switched."""
    sent = f"{PUT}{HOST}{door.auth}Content-Length: {len(body)}\r\n\r\n{body}"
    head, _, told = door.said(sent).partition(b"\r\n\r\n")
    shown = door.said(f"GET /debug/settings HTTP/1.1\r\n{HOST}{door.auth}\r\n")
    knobs = json.loads(shown.partition(b"\r\n\r\n")[2])["settings"]

    assert head.startswith(b"HTTP/1.1 400 "), head
    assert re.fullmatch(rb"[^\n]{1,310}\n", told)
    assert not any(knob["overridden"] for knob in knobs.values())
