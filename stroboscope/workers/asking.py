"""Ask other workers, all at once, and wait no longer than a budget.

No threads: an answer waits in its socket, or its sender at it, until we read it.
"""

from __future__ import annotations

import _socket
import time
from collections.abc import Iterable
from dataclasses import dataclass, field

from stroboscope._core import engine
from stroboscope.errors import FolderError
from stroboscope.workers.members import Members, peer_of

#: An answer larger than this is not read on.
ANSWER_CAP = 64 << 20
#: How often we look for answers: often at first, less after a while.
_STEPS_S = (0.002, 0.02)
_STEPS_GROW = 1.1
#: Looks in a row at which a worker was stopped: then it is not waited for.
_LOOKS = 25


@dataclass(slots=True)
class Answer:
    """What a worker answered; `failure` says why it did not."""

    process: int
    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    failure: str = ""
    #: It died before it was asked.
    is_gone: bool = False


class Question:
    """One request to several workers, sent when made. `close` it, always."""

    def __init__(
        self, members: Members, processes: Iterable[int], request: bytes
    ) -> None:
        self._pending: dict[int, _Pending] = {}
        self._is_over = False
        self.answers = [self._asked(members, one, request) for one in processes]

    def wait(self, ends_s: float) -> None:
        """Block until all have answered, or the moment of the monotonic clock.

        A worker that is stopped is not waited for.
        """
        step_s, longest_s = _STEPS_S
        while not self._is_over:
            for one in list(self._pending.values()):
                one.read()
                if one.answer.status or one.answer.failure:
                    self._drop(one)
            left_s = ends_s - time.monotonic()
            if left_s <= 0 or not self._pending:
                return
            engine.sleep(min(step_s, left_s))
            step_s = min(longest_s, step_s * _STEPS_GROW)

    def close(self) -> None:
        """Hang up: who still collects for us stops. From any thread."""
        self._is_over = True
        for one in list(self._pending.values()):
            one.answer.failure = one.answer.failure or "did not answer in time"
            self._drop(one)

    def _asked(self, members: Members, process: int, request: bytes) -> Answer:
        answer = Answer(process)
        try:
            connection = members.connect(process)
        except BlockingIOError:
            answer.failure = "takes no more connections"
        except (OSError, FolderError):
            answer.failure = "is not there"
            answer.is_gone = _is_gone(members, process)
        else:
            self._pending[process] = one = _Pending(answer, connection, request)
            one.read()
        return answer

    def _drop(self, one: _Pending) -> None:
        if self._pending.pop(one.answer.process, None) is not None:
            one.connection.close()


class _Pending:
    """A connection and what came of its answer until now."""

    def __init__(
        self, answer: Answer, connection: _socket.socket, request: bytes
    ) -> None:
        self.answer = answer
        self.connection = connection
        self._process_seen = peer_of(connection)[0]
        self._unsent = request
        self._chunks: list[bytes] = []
        self._length = 0
        self._looks = 0

    def read(self) -> None:
        """Take what there is, without waiting."""
        try:
            if self._unsent:
                self._unsent = self._unsent[self.connection.send(self._unsent) :]
            while chunk := self.connection.recv(1 << 16):
                self._chunks.append(chunk)
                self._length += len(chunk)
                if self._length > ANSWER_CAP:
                    raise ValueError("more than we take")
            _parse(b"".join(self._chunks), self.answer)
        except BlockingIOError:
            self._looks = self._looks + 1 if _is_stopped(self._process_seen) else 0
            if self._looks == _LOOKS:
                self.answer.failure = "is stopped"
        except (OSError, ValueError) as error:
            self.answer.failure = f"did not answer: {error}"


def _parse(raw: bytes, answer: Answer) -> None:
    head, separator, body = raw.partition(b"\r\n\r\n")
    lines = head.decode("latin-1").split("\r\n")
    if not separator:
        raise ValueError("it hung up")
    for line in lines[1:]:
        name, _, value = line.partition(":")
        answer.headers[name.strip().lower()] = value.strip()
    if len(body) != int(answer.headers.get("content-length", "-1")):
        raise ValueError("it was cut off")
    answer.status = int(lines[0].split(" ")[1])
    answer.body = body


def _is_gone(members: Members, process: int) -> bool:
    try:
        return not members.is_alive(process)
    except FolderError:
        return True


def _is_stopped(process: int) -> bool:
    """By a signal or a debugger. Source: proc(5), field 3 of `stat`."""
    try:
        with open(f"/proc/{process}/stat", encoding="ascii", errors="replace") as file:
            return file.read().rpartition(")")[2].split()[0] in "Tt"
    except (OSError, IndexError):
        return False
