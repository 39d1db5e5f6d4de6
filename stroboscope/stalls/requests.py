"""Requests that keep a thread of the server for too long: gunicorn's sync and gthread.

Nothing is done per request: now and then the threads' own label cells say which requests
they are in, and since when.
"""

from __future__ import annotations

import time
from collections import deque
from dataclasses import replace
from typing import Any

from stroboscope._core import LabelCell, engine
from stroboscope.labels import labels_of
from stroboscope.stalls.looks import Looks, look_at, root_of
from stroboscope.stalls.loops import Note, SpanOf, thread_name
from stroboscope.stalls.records import Book, Stall
from stroboscope.stalls.telling import Teller

#: How often threads are asked, in shares of the threshold and at most.
_SHARE, _EVERY_CAP_S = 0.1, 2.0
#: Requests that were recorded and may come again: a stream between two of its steps.
_DONE_CAP = 256


class SlowRequest:
    """One request that has had half its time."""

    def __init__(self, request: Any, cell: LabelCell) -> None:
        self.request = request
        self.cell = cell
        self.looks = Looks()
        self.number = 0
        self.stall: Stall | None = None


class SlowRequests:
    """Finds them and writes each down once."""

    def __init__(self, book: Book, teller: Teller) -> None:
        self._book = book
        self._teller = teller
        self._slow: dict[int, SlowRequest] = {}
        self._done: deque[int] = deque(maxlen=_DONE_CAP)

    @staticmethod
    def every_s(threshold_s: float) -> float:
        """How long to rest between two turns."""
        return min(threshold_s * _SHARE, _EVERY_CAP_S)

    def turn(self, threshold_s: float, span_of: SpanOf, note: Note) -> None:
        """Look at the requests in flight."""
        now_ns, here = time.monotonic_ns(), set()
        for ident, cell in engine.contexts().items():
            root = root_of(cell) if cell is not None else None
            request = getattr(getattr(root, "source", None), "__self__", None)
            if (
                root is None
                or request is None
                or not getattr(request, "holds_thread", 0)
            ):
                continue
            here.add(root.serial)
            taken_s = (now_ns - request.began_ns) / 1e9
            if taken_s >= threshold_s / 2 and root.serial not in self._done:
                slow = self._slow.get(root.serial)
                if slow is None:
                    slow = self._slow[root.serial] = SlowRequest(request, root)
                self._watch(slow, ident, taken_s, threshold_s, span_of, note)
        for serial in self._slow.keys() - here:
            self._end(serial, self._slow.pop(serial))

    def _watch(
        self,
        slow: SlowRequest,
        ident: int,
        taken_s: float,
        threshold_s: float,
        span_of: SpanOf,
        note: Note,
    ) -> None:
        wanted = 1 if taken_s < threshold_s else 2
        if slow.looks.count < wanted:
            look = look_at(ident)
            if look is None or look.cell is None or root_of(look.cell) is not slow.cell:
                return  # it is at its next request by now
            slow.looks.add(look, threshold_s / 2)
        if taken_s < threshold_s:
            return
        if slow.stall is None:
            slow.number = self._book.number()
            slow.stall = self._stall(slow, ident, taken_s, span_of, note)
            self._teller.log(slow.stall)
        self._book.show(slow.stall)

    def _stall(
        self, slow: SlowRequest, ident: int, taken_s: float, span_of: SpanOf, note: Note
    ) -> Stall:
        guilty = slow.looks.guilty()
        frame, stack = guilty.place() if guilty is not None else (None, ())
        labels = labels_of(slow.cell).items
        context = guilty.first.context if guilty is not None else None
        span, ids = span_of(context) if context is not None else (None, {})
        if span is not None:
            fields = {"number": slow.number, "late_ms": round(taken_s * 1000, 1)}
            place = {"function": frame.function, "line": frame.line} if frame else {}
            self._teller.tell(lambda: note(span, {**fields, **place, **dict(labels)}))
        return Stall(
            number=slow.number,
            kind="request",
            cause="code",
            began_s=round(time.time() - taken_s, 3),
            duration_ms=round(taken_s * 1000, 1),
            gc_ms=0.0,
            is_over=False,
            thread=thread_name(ident),
            labels=labels,
            frame=frame,
            stack=stack,
            looks=slow.looks.count,
            seen=guilty.looks if guilty is not None else 0,
            ids=ids,
        )

    def _end(self, serial: int, slow: SlowRequest) -> None:
        if slow.stall is None:
            return
        self._done.append(serial)
        request = slow.request
        ended_ns = request.ended_ns or time.monotonic_ns()
        taken_ms = round((ended_ns - request.began_ns) / 1e6, 1)
        self._book.close(replace(slow.stall, duration_ms=taken_ms, is_over=True))
