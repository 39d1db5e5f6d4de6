"""Doors of our own, served by threads of ours: a worker's socket, the admin port.

They answer while the application's loop, its threads or its thread pool are stuck; only
who holds the interpreter for good keeps them silent. Sockets are the interpreter's own,
which gevent does not patch. One request a connection.
"""

from __future__ import annotations

import _socket
import atexit
import contextlib
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from stroboscope._core import engine
from stroboscope._greenlets import Log
from stroboscope._http.messages import Request, Response
from stroboscope._http.wire import HEAD_SECONDS_CAP, Connection, read, read_body, send
from stroboscope.errors import FolderError, PortTaken
from stroboscope.workers.members import peer_of

_log = Log("stroboscope")
#: Connections at once, of which each has a thread. The next is let in when one ends, or at
#: the cost of the one that has kept us waiting longest, to send its request or to take
#: its answer, and for so many seconds at least.
CONNECTIONS_CAP = 32
PATIENCE_S = 1.0
#: How often the listener looks after itself: what holds for the host holds here within a
#: second, another worker has the admin port of one that died within two, and a worker
#: that rests is woken no oftener than that takes.
TURN_S = 0.75
#: How often it looks for room where there is none.
_FULL_S = 0.05

#: Answers a request; gets the connection, to see its end, and the body's reader.
Answering = Callable[[Request, _socket.socket, Callable[[], bytes]], Response]


class Door(Protocol):
    """Where connections come in. `name` is the place, one listener a process for each."""

    @property
    def name(self) -> str:
        """What tells it from other doors."""

    def enter(self) -> _socket.socket:
        """The listening socket. Raises: FolderError, PortTaken."""

    def is_in(self) -> bool:
        """Whether whoever comes to the place still comes to us."""

    def leave(self) -> None:
        """Give the place up. Raises nothing."""

    def after_fork(self) -> None:
        """The child does not have it."""


@dataclass(frozen=True, slots=True)
class Guest:
    """Who came in by what; `is_local` by a worker's own socket."""

    connection: Connection
    peer: str
    is_local: bool = False


#: Lets a connection in, or refuses it with None. May block; raises OSError.
LetIn = Callable[[_socket.socket], Guest | None]


def same_user(connection: _socket.socket) -> Guest | None:
    """By a worker's socket come this user and root, whom no file mode keeps out."""
    process, user = peer_of(connection)
    if user not in (os.geteuid(), 0):
        return None
    return Guest(connection, f"unix:pid={process},uid={user}", is_local=True)


class Listener:
    """One per process and door. `start` is safe to call often, also after a fork.

    `each` is called in every turn, every `TURN_S`, with or without a socket; `end`
    when the process ends.
    """

    def __init__(
        self,
        door: Door,
        answer: Answering,
        let_in: LetIn = same_user,
        each: Callable[[], object] = lambda: None,
        end: Callable[[], object] = lambda: None,
    ) -> None:
        self._door = door
        self._answer = answer
        self._let_in = let_in
        self._each = each
        self._end = end
        self._process = 0
        self._listening: _socket.socket | None = None
        #: Since when in s it is the client that has to do something, or None; oldest first.
        self._connections: dict[_socket.socket, float | None] = {}
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
        owner = _OWNERS.setdefault(self._door.name, self)
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
        if _OWNERS.get(self._door.name) is self:
            del _OWNERS[self._door.name]
        listening, self._listening = self._listening, None
        if listening is not None:
            self._end()
            self._door.leave()
            listening.close()

    def _after_fork(self) -> None:
        # The parent's socket must die with the parent.
        self._door.after_fork()
        if self._listening is not None:
            self._listening.close()
        for connection in list(self._connections):
            connection.close()
        self._listening, self._connections, self.followers = None, {}, []
        self._process = 0
        self.failure = "not started"
        _OWNERS.pop(self._door.name, None)

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
            self._open()
            if self._listening is None:
                engine.sleep(TURN_S)
                return
        if len(self._connections) < CONNECTIONS_CAP or self._make_room():
            self._accept(self._listening)
        else:
            engine.sleep(_FULL_S)  # they queue with the kernel

    def _open(self) -> None:
        try:
            listening = self._door.enter()
        except PortTaken as error:  # as it should be in all workers but one
            self.failure = str(error)
            return
        except FolderError as error:
            if self.failure != str(error):
                _log.warning("stroboscope: cannot listen: %s", error)
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
            if not self._door.is_in():
                listening.close()  # the folder was deleted: make it anew
                self._listening = None
            return
        except OSError:
            return  # closed by `stop`
        connection = _socket.socket(fileno=descriptor)
        self._connections[connection] = time.monotonic()
        try:
            engine.start_thread(lambda: self._serve(connection))
        except RuntimeError:  # no thread to be had
            self._connections.pop(connection, None)
            connection.close()

    def _make_room(self) -> bool:
        """Hang up on the client that keeps us waiting longest; whether there is one."""
        before_s = time.monotonic() - PATIENCE_S
        for connection, since_s in list(self._connections.items()):
            is_late = since_s is not None and since_s < before_s
            if is_late and self._connections.pop(connection, None) is not None:
                # Its thread wakes up, and closes it.
                with contextlib.suppress(OSError):
                    connection.shutdown(_socket.SHUT_RDWR)
                return True
        return False

    def _waits(self, connection: _socket.socket, since_s: float | None) -> None:
        """From now on it is the client, or are we, who has to do something."""
        if connection not in self._connections:
            raise OSError("another one needed the room")
        del self._connections[connection]
        self._connections[connection] = since_s

    def _serve(self, connection: _socket.socket) -> None:
        try:
            connection.settimeout(HEAD_SECONDS_CAP)
            guest = self._let_in(connection)
            if guest is not None:
                self._welcome(guest, connection)
        except (OSError, ValueError):  # no HTTP, too slow, or gone
            pass
        except Exception as error:  # a thread of ours: nobody else would see it
            _log.error("stroboscope: listener", exc_info=error)
        finally:
            self._connections.pop(connection, None)
            connection.close()

    def _welcome(self, guest: Guest, connection: _socket.socket) -> None:
        request, rest = read(guest.connection, guest.peer, is_local=guest.is_local)
        # Blocking from here on: a look for its end must not wait for data.
        connection.settimeout(None)
        self._waits(connection, None)
        answer = self._answer(
            request, connection, lambda: read_body(guest.connection, request, rest)
        )
        self._waits(connection, time.monotonic())
        send(guest.connection, answer, is_head=request.method == "HEAD")
        guest.connection.close()


#: One socket for each door in a process, whatever number of surfaces it has.
_OWNERS: dict[str, Listener] = {}
