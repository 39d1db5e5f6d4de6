"""One answer for all who ask the same at the same time."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable

from stroboscope._core import engine
from stroboscope._http.messages import Response
from stroboscope._threads import Lock

#: How much older than its asker an answer may be in its making, in seconds.
SHARED_S = 0.5
_STEP_S = 0.005


class _Flight:
    def __init__(self) -> None:
        self.began_s = time.monotonic()
        self.answer: Response | None = None
        self.is_over = False


class Flights:
    """Answers in the making. Who joins one waits for it: our threads do, no loop does."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._flights: dict[Hashable, _Flight] = {}

    def share(
        self,
        key: Hashable,
        act: Callable[[], Response],
        is_lost: Callable[[], bool] = lambda: False,
    ) -> Response:
        """What `act` returns, here or for somebody who asked the same just before.

        An answer that `is_lost`, because its asker went away, is for nobody else, and
        neither is what `act` raises.
        """
        while True:
            with self._lock:
                flight = self._flights.get(key)
                oldest_s = time.monotonic() - SHARED_S
                is_ours = flight is None or flight.began_s < oldest_s
                if flight is None or is_ours:
                    flight = self._flights[key] = _Flight()
            if is_ours:
                return self._act(key, flight, act, is_lost)
            while not flight.is_over:
                engine.sleep(_STEP_S)
            if flight.answer is not None:
                return flight.answer

    def after_fork(self) -> None:
        """The child makes none of its parent's."""
        self._lock = Lock()
        self._flights = {}

    def _act(
        self,
        key: Hashable,
        flight: _Flight,
        act: Callable[[], Response],
        is_lost: Callable[[], bool],
    ) -> Response:
        try:
            answer = act()
            flight.answer = None if is_lost() else answer
        finally:
            flight.is_over = True
            with self._lock:
                if self._flights.get(key) is flight:
                    del self._flights[key]
        return answer
