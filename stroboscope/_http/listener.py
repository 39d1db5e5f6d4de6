"""A worker's own door: a unix socket served by threads of ours.

It answers while the application's loop, its threads or its thread pool are stuck; only
who holds the interpreter for good keeps it silent. Sockets are the interpreter's own,
which gevent does not patch. One request a connection.
"""

from __future__ import annotations

import _socket
import atexit
import io
import logging
import os
import time
from collections.abc import Callable
from http.client import responses
from http.server import BaseHTTPRequestHandler
from urllib.parse import unquote

from stroboscope._core import engine
from stroboscope._http.messages import (
    BODY_CAP,
    BODY_SECONDS_CAP,
    BodyTooLarge,
    Request,
    Response,
)
from stroboscope.errors import FolderError
from stroboscope.workers.members import Members, peer_of

_log = logging.getLogger("stroboscope")
CONNECTIONS_CAP = 32
HEAD_CAP = 16_384
HEAD_SECONDS_CAP = 5.0
#: How long a reader may take for a whole answer.
SEND_SECONDS_CAP = 60.0
#: How often the listener looks after itself.
TURN_S = 0.5
#: Turns between two attempts to open what could not be opened.
_TURNS_APART = 4

#: Answers a request; gets the connection, to see its end, and the body's reader.
Answering = Callable[[Request, _socket.socket, Callable[[], bytes]], Response]


class Listener:
    """One per process and folder. `start` is safe to call often, also after a fork.

    `each` is called in every turn, about twice a second, with or without a socket; `end`
    when the process ends.
    """

    def __init__(
        self,
        members: Members,
        answer: Answering,
        each: Callable[[], object] = lambda: None,
        end: Callable[[], object] = lambda: None,
    ) -> None:
        self._members = members
        self._answer = answer
        self._each = each
        self._end = end
        self._process = 0
        self._turns = 0
        self._listening: _socket.socket | None = None
        self._connections: set[_socket.socket] = set()
        self._is_registered = False
        #: What other surfaces of this process want called in each turn.
        self.followers: list[Callable[[], object]] = []
        #: Why there is no socket; empty while there is.
        self.failure = "not started"

    def start(self) -> None:
        """Listen from now on, in this process: a thread of ours opens the socket."""
        process = os.getpid()
        if self._process == process:
            return
        self._process = process
        owner = _OWNERS.setdefault(self._members.folder.path, self)
        if owner is not self:
            owner.followers.append(self._each)
            self.failure = "another surface of this process has it"
            return
        if not self._is_registered:
            self._is_registered = True
            os.register_at_fork(after_in_child=self._after_fork)
            atexit.register(self.stop)
        try:
            engine.start_thread(self._run)
        except RuntimeError as error:  # no thread to be had; the next call tries again
            self._process, self.failure = 0, str(error)

    def stop(self) -> None:
        """Take the socket away and end the thread soon."""
        self._process = 0
        self.failure = "stopped"
        if _OWNERS.get(self._members.folder.path) is self:
            del _OWNERS[self._members.folder.path]
        listening, self._listening = self._listening, None
        if listening is not None:
            self._end()
            self._members.leave()
            listening.close()

    def _after_fork(self) -> None:
        # The parent's socket must die with the parent.
        self._members.after_fork()
        if self._listening is not None:
            self._listening.close()
        for connection in self._connections:
            connection.close()
        self._listening, self._connections, self.followers = None, set(), []
        self._process = 0
        self.failure = "not started"
        _OWNERS.pop(self._members.folder.path, None)

    def _run(self) -> None:
        process = self._process
        while self._process == process:
            try:
                self._turn()
                for each in (self._each, *self.followers):
                    each()
            except Exception as error:  # the next turn may go better
                _log.error("stroboscope: listener", exc_info=error)
                engine.sleep(TURN_S)

    def _turn(self) -> None:
        if self._listening is None:
            if self._turns % _TURNS_APART == 0:
                self._open()
            self._turns += 1
            if self._listening is None:
                engine.sleep(TURN_S)
                return
        self._accept(self._listening)

    def _open(self) -> None:
        try:
            listening = self._members.enter()
        except FolderError as error:
            if self.failure != str(error):
                _log.warning("stroboscope: workers cannot meet: %s", error)
            self.failure = str(error)
            return
        listening.settimeout(TURN_S)
        self._listening, self.failure = listening, ""
        if not self._process:  # stopped meanwhile
            self.stop()

    def _accept(self, listening: _socket.socket) -> None:
        try:
            descriptor, _ = listening._accept()  # type: ignore[attr-defined]
        except TimeoutError:
            if not self._members.is_in():
                listening.close()  # the folder was deleted: make it anew
                self._listening, self._turns = None, 0
            return
        except OSError:
            return  # closed by `stop`
        connection = _socket.socket(fileno=descriptor)
        is_ours = peer_of(connection)[1] in (os.geteuid(), 0)
        if not is_ours or len(self._connections) >= CONNECTIONS_CAP:
            connection.close()
            return
        self._connections.add(connection)
        try:
            engine.start_thread(lambda: self._serve(connection))
        except RuntimeError:  # no thread to be had
            self._connections.discard(connection)
            connection.close()

    def _serve(self, connection: _socket.socket) -> None:
        try:
            request, rest = read(connection)
            # Blocking from here on: a look for its end must not wait for data.
            connection.settimeout(None)
            answer = self._answer(
                request, connection, lambda: read_body(connection, request, rest)
            )
            send(connection, answer)
        except (OSError, ValueError):  # no HTTP, too slow, or gone
            pass
        except Exception as error:  # a thread of ours: nobody else would see it
            _log.error("stroboscope: listener", exc_info=error)
        finally:
            self._connections.discard(connection)
            connection.close()


#: One socket for each folder in a process, whatever number of surfaces it has.
_OWNERS: dict[str, Listener] = {}


class _Head(BaseHTTPRequestHandler):
    """The standard library's parser, without its socket."""

    def __init__(self, head: bytes) -> None:
        self.rfile = io.BytesIO(head)
        self.wfile = io.BytesIO()
        self.raw_requestline = self.rfile.readline(HEAD_CAP)
        self.client_address = ("unix", 0)
        self.is_parsed = self.parse_request()

    def log_message(self, *arguments: object) -> None:
        """Nothing: the audit log has it."""


def read(connection: _socket.socket) -> tuple[Request, bytes]:
    """The request without its body, and what came of that. Raises: ValueError, OSError."""
    ends_s = time.monotonic() + HEAD_SECONDS_CAP
    raw = b""
    while b"\r\n\r\n" not in raw:
        raw += _receive(connection, ends_s)
        if len(raw) > HEAD_CAP:
            raise ValueError("head too long")
    head, _, rest = raw.partition(b"\r\n\r\n")
    parsed = _Head(head + b"\r\n\r\n")
    if not parsed.is_parsed:
        raise ValueError("no HTTP")
    path, _, query = parsed.path.partition("?")
    process, user = peer_of(connection)
    request = Request(
        method=parsed.command,
        path=unquote(path),
        query=query,
        headers=tuple((key.lower(), value) for key, value in parsed.headers.items()),
        peer=f"unix:pid={process},uid={user}",
        is_local=True,
    )
    return request, rest


def read_body(connection: _socket.socket, request: Request, rest: bytes) -> bytes:
    """The body. Raises: BodyTooLarge, TimeoutError."""
    text = request.header("content-length") or "0"
    length = int(text) if text.isascii() and text.isdigit() else 0
    if length > BODY_CAP:
        raise BodyTooLarge
    ends_s = time.monotonic() + BODY_SECONDS_CAP
    while len(rest) < length:
        rest += _receive(connection, ends_s)
    connection.settimeout(None)
    return rest[:length]


def _receive(connection: _socket.socket, ends_s: float) -> bytes:
    left_s = ends_s - time.monotonic()
    if left_s <= 0:
        raise TimeoutError
    connection.settimeout(left_s)
    chunk = connection.recv(65536)
    if not chunk:
        raise TimeoutError  # gone
    return chunk


def send(connection: _socket.socket, response: Response) -> None:
    """Send it whole, with its length. Raises: OSError for a reader that is too slow."""
    lines = [f"HTTP/1.1 {response.status} {responses.get(response.status, '')}"]
    lines += [f"{key}: {value}" for key, value in response.all_headers()]
    head = "\r\n".join([*lines, "Connection: close", "", ""]).encode("latin-1")
    connection.settimeout(SEND_SECONDS_CAP)
    connection.sendall(head + response.body)
