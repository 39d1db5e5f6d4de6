"""Clients of a worker's own doors that send nothing, or read nothing of their answer."""

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import trustme
from counting import nothing_leaks, resident_bytes
from redis_servers import free_port
from workers import Worker, wait_until, worker

from stroboscope._http import tls
from stroboscope._http.listener import CONNECTIONS_CAP
from stroboscope.auth.tokens import Tokens
from stroboscope.settings import Settings

#: Some hundred threads deep in a recursion: an answer that no socket's buffer takes.
_DEEP = """
from stroboscope._http import wire
wire.SEND_SECONDS_CAP = 2.0
def down_and_down_and_down_and_down_and_down_and_down_and_down_and_down_and_down_and_down_and_down_and_down(depth):
    if depth:
        return down_and_down_and_down_and_down_and_down_and_down_and_down_and_down_and_down_and_down_and_down_and_down(depth - 1)
    threading.Event().wait()
for _ in range(150):
    threading.Thread(target=down_and_down_and_down_and_down_and_down_and_down_and_down_and_down_and_down_and_down_and_down_and_down, args=(90,), daemon=True).start()
"""


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Worker, int]]:
    """A worker with a long answer, and its admin port."""
    port = free_port()
    base = tmp_path_factory.mktemp("stalled")
    with worker(base, _DEEP, admin_bind=f"127.0.0.1:{port}") as made:
        wait_until(lambda: can_connect(port), 5)
        yield made, port


def can_connect(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port)).close()
    except OSError:
        return False
    return True


def by_socket(one: Worker, port: int) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(str(one.socket))
    return connection


def by_port(one: Worker, port: int) -> socket.socket:
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.connect(("127.0.0.1", port))
    return connection


def request(one: Worker, path: str) -> bytes:
    text = Tokens(Settings(keys=(one.key,), service="shop")).mint(
        ("profile", "metrics"), 60
    )
    head = f"GET /debug{path} HTTP/1.1\r\nHost: localhost\r\n"
    return f"{head}Authorization: Bearer {text}\r\n\r\n".encode()


def answer(connection: socket.socket, asked: bytes) -> bytes:
    with connection:
        connection.settimeout(10)
        connection.sendall(asked)
        return b"".join(iter(lambda: connection.recv(1 << 16), b""))


@pytest.mark.slow
@pytest.mark.parametrize("door", [by_socket, by_port])
@pytest.mark.parametrize("path", ["/stacks", ""], ids=["reads nothing", "says nothing"])
def test_h25_others_are_served_beside_those_that_stall(
    one: tuple[Worker, int], door: Callable[[Worker, int], socket.socket], path: str
) -> None:
    """More of them than a door has room for: the next one gets its answer, memory is
    bounded, and when their time is over nothing of them is left."""
    made, port = one
    asked = request(made, f"{path}?worker={made.pid}") if path else b"GET /debug/"
    small = request(made, f"/labels?worker={made.pid}")
    length = len(answer(door(made, port), request(made, f"/stacks?worker={made.pid}")))
    before = resident_bytes(made.pid)
    with ExitStack() as stack, nothing_leaks([made.pid]):
        for _ in range(CONNECTIONS_CAP + 8):
            connection = stack.enter_context(door(made, port))
            connection.sendall(asked)
            if path:  # its turn is over when its answer is on the way
                connection.recv(1, socket.MSG_PEEK)
        answers = [answer(door(made, port), small) for _ in range(3)]
        grown = resident_bytes(made.pid) - before

    print(f"{length / 1e6:.1f} MB, {grown / 1e6:.0f} MB")
    assert length > 1 << 20  # more than a socket's buffer takes
    assert [one[:13] for one in answers] == [b"HTTP/1.1 200 "] * 3
    # An answer for each, while it is made and sent, and what allocators keep.
    assert grown < 3 * CONNECTIONS_CAP * length


def test_a_client_has_one_time_for_all_its_tls_records(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not one for each byte: of its handshake, or of what it takes of an answer."""
    monkeypatch.setattr(tls, "HEAD_SECONDS_CAP", 0.5)
    authority = trustme.CA()
    pem = tmp_path / "pem"
    authority.issue_cert("localhost").private_key_and_cert_chain_pem.write_to_path(pem)
    context = tls.server_context(str(pem), str(pem))
    ours, theirs = socket.socketpair()
    ended = threading.Event()

    def dribble() -> None:
        theirs.send(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03")
        while not ended.wait(0.05):
            theirs.send(b"1")

    dribbling = threading.Thread(target=dribble)
    with ours, theirs:
        dribbling.start()
        began_s = time.monotonic()
        with pytest.raises(TimeoutError):
            tls.TLSConnection(ours, context)
        took_s = time.monotonic() - began_s
        ended.set()
        dribbling.join()

    assert 0.4 < took_s < 3
