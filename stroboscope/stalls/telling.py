"""Saying it aloud: a log line now and then, an event on the guilty span.

On a thread of its own: what stalls may hold the lock of a log handler or of a span, and
the watcher must not wait for it.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from stroboscope._core import engine
from stroboscope._greenlets import Log, Post
from stroboscope.stalls.records import Stall

_log = Log("stroboscope")
#: At most one line in so many seconds; the next says how many were left out.
LINE_EVERY_S = 10.0
#: What waits to be said; more is dropped.
WAITING_CAP = 64


class Teller:
    """Says it, one thing after the other, without keeping whoever has found it."""

    def __init__(self) -> None:
        self._post = Post(WAITING_CAP)
        self._post.start_thread = engine.start_thread
        self.after_fork()

    def after_fork(self) -> None:
        """The child has said nothing yet."""
        self._line_s = float("-inf")
        self._left_out = 0

    def tell(self, what: Callable[[], object]) -> None:
        """Do it soon, on another thread. Never blocks long, never raises."""

        def told() -> None:
            try:
                what()
            except Exception:  # the user's handlers and span processors are not ours
                _log.debug("stroboscope: a stall could not be told", exc_info=True)

        self._post.queue(told)

    def log(self, stall: Stall) -> None:
        """A line on a stall, unless there was one just before."""
        now_s = time.monotonic()
        if now_s - self._line_s < LINE_EVERY_S:
            self._left_out += 1
            return
        self._line_s, left_out, self._left_out = now_s, self._left_out, 0
        text = described(stall)
        more = f"; {left_out} more since the last line" if left_out else ""
        self.tell(lambda: _log.warning("stroboscope: %s%s", text, more))


def described(stall: Stall) -> str:
    """A stall in one line."""
    whose = " ".join(f"{key}={value}" for key, value in stall.labels)
    frame = stall.frame
    place = f"{frame.function} {frame.file}:{frame.line}" if frame else "unknown"
    took = f"{stall.duration_ms:.0f} ms" + ("" if stall.is_over else " so far")
    if stall.kind == "request":
        return (
            f"a request keeps its thread for {took}: {whose or 'no labels'} at {place}"
        )
    if stall.cause in ("code", "held"):
        return (
            f"an event loop stood still for {took}: {whose or 'no request'} at {place}"
        )
    if stall.cause == "many":
        return f"an event loop was late by {took}: many callbacks, none for most of it"
    return f"an event loop stood still for {took}: {stall.cause}"
