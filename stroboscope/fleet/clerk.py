"""The one thread of a process that speaks with Redis; all others ask it, and not for long.

Whatever happens on the way there, a name that is not resolved or a server that stands
still: whoever asks has an answer or a FleetError in time. After a failure all are told at
once, until the thread itself has found Redis again.
"""

from __future__ import annotations

import _socket
import os
import random
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Generic, TypeVar

from stroboscope._core import engine
from stroboscope._greenlets import Log
from stroboscope.errors import FleetError
from stroboscope.fleet.link import Link

_log = Log("stroboscope")
#: How long a request may wait for Redis at one place, and one command may take.
BUDGET_S = 0.3
#: What it waits longer for the thread itself, which shares the interpreter.
SLACK_S = 0.1
#: Between two attempts to find a Redis that is gone; a little more, each its own.
RETRY_S = 3.0
#: How often the thread looks whether there is something to do by itself.
TURN_S = 0.5
_STEP_S = 0.002
_T = TypeVar("_T")

#: Carries out a command by a moment of the monotonic clock.
Call = Callable[..., Any]


class _Question(Generic[_T]):
    def __init__(self, job: Callable[[Call], _T]) -> None:
        self.job = job
        self.ends_s = time.monotonic() + BUDGET_S
        self.answer: _T | None = None
        self.failure: BaseException | None = None
        self.is_answered = False


class Clerk:
    """One for each surface. `each` is called in every turn, on the thread.

    Raises: SettingsError for what `Link` refuses.
    """

    def __init__(self, url: str, each: Callable[[], object]) -> None:
        self._link = Link(url)
        self._each = each
        self._process = 0
        self._questions: deque[_Question[Any]] = deque()
        self._bell: tuple[_socket.socket, _socket.socket] | None = None
        self._retry_s = 0.0
        #: Why Redis cannot be used now; empty while it can.
        self.failure = ""
        self.failures = 0
        #: When it was last found to be so, on the monotonic clock.
        self.failed_s = 0.0

    @property
    def calls(self) -> int:
        """Commands sent since the process began."""
        return self._link.calls

    def start(self) -> None:
        """Run in this process; cheap when it does. Raises nothing."""
        process = os.getpid()
        if self._process == process:
            return
        self._process = process
        try:
            self._bell = bell = _socket.socketpair()
            bell[0].settimeout(TURN_S)
            bell[1].setblocking(False)
            engine.start_thread(lambda: self._run(process, bell))
        except (RuntimeError, OSError) as error:  # the next call tries again
            self._process, self.failure = 0, str(error)

    def stop(self) -> None:
        """End the thread soon, and its connection."""
        self._process = 0
        self._ring()

    def after_fork(self) -> None:
        """The child has no such thread; its parent's connection is not its own."""
        self._link.close()
        for end in self._bell or ():
            end.close()
        self._process, self._bell = 0, None
        self._questions = deque()

    def ask(self, job: Callable[[Call], _T]) -> _T:
        """What `job` returns, on the thread. Raises: FleetError, within the budget."""
        self.start()
        if self.failure:
            raise FleetError(self.failure)
        question = _Question(job)
        self._questions.append(question)
        self._ring()
        while not question.is_answered:
            if time.monotonic() > question.ends_s + SLACK_S:
                self._failed("it does not answer in time")
                raise FleetError(self.failure)
            engine.sleep(_STEP_S)
        if question.failure is not None:
            raise question.failure
        return question.answer  # type: ignore[return-value]

    def ask_here(self, job: Callable[[Call], _T]) -> _T:
        """The same for the thread itself, also to see whether Redis is back."""
        question = _Question(job)
        self._carry_out(question)
        if question.failure is not None:
            raise question.failure
        return question.answer  # type: ignore[return-value]

    def is_due(self) -> bool:
        """Whether another attempt may be made after a failure."""
        return not self.failure or time.monotonic() >= self._retry_s

    def tell(self, failure: str) -> None:
        """What another worker of the host has found, just now."""
        if failure:
            self._failed(failure)
        else:
            self._found()

    def _run(self, process: int, bell: tuple[_socket.socket, _socket.socket]) -> None:
        try:
            while self._process == process:
                try:
                    while self._questions:
                        self._carry_out(self._questions.popleft())
                    self._each()
                except Exception as error:  # the next turn may go better
                    _log.error("stroboscope: fleet", exc_info=error)
                try:
                    bell[0].recv(4096)
                except TimeoutError:
                    pass
        finally:
            self._link.close()
            for end in bell:
                end.close()

    def _carry_out(self, question: _Question[_T]) -> None:
        def call(*command: str | int | float) -> Any:
            return self._link.call(command, question.ends_s)

        if time.monotonic() >= question.ends_s:
            return  # nobody waits for it any more
        try:
            question.answer = question.job(call)
            self._found()
        except FleetError as error:
            self._failed(str(error))
            question.failure = error
        except BaseException as error:  # whoever asked sees it
            question.failure = error
        question.is_answered = True

    def _found(self) -> None:
        if self.failure:
            self.failure = ""
            _log.warning("stroboscope: Redis is there again")

    def _failed(self, failure: str) -> None:
        self.failures += 1
        self.failed_s = time.monotonic()
        self._retry_s = self.failed_s + RETRY_S * random.uniform(1.0, 1.3)  # noqa: S311
        if not self.failure:
            _log.warning("stroboscope: settings and leases hold by host: %s", failure)
        self.failure = failure

    def _ring(self) -> None:
        bell = self._bell
        if bell is not None:
            try:
                bell[1].send(b"!")
            except OSError:  # it has rung often enough, or has ended
                pass
