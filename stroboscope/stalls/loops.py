"""One stall of an event loop, from the moment it is noticed to the next beat."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Mapping
from contextvars import Context
from typing import Any
from weakref import ref

from stroboscope._core.watching import Heart
from stroboscope.formats.names import plain
from stroboscope.stalls.held import (
    LeftBehind,
    explained,
    nothing_left,
    sampled_labels,
)
from stroboscope.stalls.looks import Looks, Suspect, is_idle, look_at
from stroboscope.stalls.records import Book, Stall
from stroboscope.stalls.telling import Teller

#: Between looks: the first pause, how it grows, and the longest.
_PAUSE_S, _GROWTH, _PAUSE_CAP_S = 0.005, 1.3, 1.0
#: A stall that lasts longer is told before it is over.
_LONG_S = 2.0

#: The span of a context, or None, and its ids by name.
SpanOf = Callable[[Context], tuple[Any, Mapping[str, str]]]
#: Add an event of these fields to a span. May block.
Note = Callable[[Any, Mapping[str, Any]], object]


def no_span(context: Context) -> tuple[Any, Mapping[str, str]]:
    """Where nobody traces."""
    del context
    return None, {}


class LoopStall:
    """Looks at the loop's thread again and again, and says in the end who it was.

    `after` for one that was over before it was noticed.
    """

    def __init__(
        self,
        heart: Heart,
        loop: asyncio.AbstractEventLoop,
        book: Book,
        *,
        after: bool = False,
    ) -> None:
        self.heart = heart
        self._loop = ref(loop)
        self.pause_s = _PAUSE_S
        self._book = book
        self._number = book.number()
        self._beats = heart.beats
        self._late_beats = heart.late_beats - after
        overdue_s = (heart.late_ns if after else heart.overdue_ns) / 1e9
        self._began_s = time.time() - overdue_s
        self._since_s = time.monotonic() - overdue_s
        self._looked_s = self._since_s
        self._looks = Looks()
        self._noted: Suspect | None = None
        self._ids: Mapping[str, str] = {}
        self._is_told = False
        self._labels = sampled_labels()

    @property
    def is_over(self) -> bool:
        """Whether the loop has gone on."""
        return self.heart.beats != self._beats

    @property
    def is_void(self) -> bool:
        """Whether the loop does not run, so that it cannot be late."""
        loop = self._loop()
        return loop is None or not loop.is_running()

    def look(self, teller: Teller, span_of: SpanOf, note: Note) -> None:
        """Look once more."""
        look = look_at(self.heart.ident)
        now_s = time.monotonic()
        if look is None or self.is_over:  # it went on before we stood still
            return
        is_first = self._looks.count == 0  # before it anybody may have run
        weight_s = self.pause_s if is_first else now_s - self._looked_s
        suspect = self._looks.add(look, weight_s)
        self._looked_s = now_s
        self.pause_s = min(self.pause_s * _GROWTH, _PAUSE_CAP_S)
        if is_idle(look.stack):  # whoever holds the interpreter may end before it does
            self._labels |= sampled_labels()
        if suspect.looks == 2:  # not who only passed by
            self._note(suspect, teller, span_of, note)
        stall = self._stall(now_s - self._since_s, 0.0, is_over=False)
        self._book.show(stall)
        if now_s - self._since_s > _LONG_S and not self._is_told:
            self._is_told = True
            teller.log(stall)

    def finish(
        self,
        teller: Teller,
        span_of: SpanOf,
        note: Note,
        threshold_s: float,
        left: LeftBehind = nothing_left,
    ) -> Stall | None:
        """Write it down; None when it was a collection's pause, or no stall at all."""
        if self.heart.late_beats == self._late_beats:
            self._book.drop(self._number)
            return None
        late_s, gc_s = self.heart.late_ns / 1e9, self.heart.late_gc_ns / 1e9
        if late_s - gc_s <= threshold_s:
            self._book.drop(self._number)
            self._book.count_pause()
            return None
        guilty = self._looks.guilty()
        if guilty is not None:
            self._note(guilty, teller, span_of, note)
        stall = self._stall(late_s - gc_s, gc_s, is_over=True)
        if stall.cause in ("waiting", "unseen"):
            stall = explained(stall, left, int(self._since_s * 1e9), self._labels)
        self._book.close(stall)
        teller.log(stall)
        return stall

    def drop(self) -> None:
        """The loop does not run: it was none."""
        self._book.drop(self._number)

    def _note(
        self, suspect: Suspect, teller: Teller, span_of: SpanOf, note: Note
    ) -> None:
        """Tell the suspect's span, once in a stall, while it can still be told."""
        context = suspect.first.context
        if self._noted is not None or context is None or is_idle(suspect.first.stack):
            return
        self._noted = suspect
        span, self._ids = span_of(context)
        if span is None:
            return
        frame, _ = suspect.place()
        fields = {
            "number": self._number,
            "late_ms": round((time.monotonic() - self._since_s) * 1000, 1),
            **dict(suspect.labels),
        }
        if frame is not None:
            fields |= {"function": frame.function, "file": frame.file}
            fields["line"] = frame.line
        teller.tell(lambda: note(span, fields))

    def _stall(self, duration_s: float, gc_s: float, *, is_over: bool) -> Stall:
        guilty = self._looks.guilty()
        frame, stack = guilty.place() if guilty is not None else (None, ())
        return Stall(
            number=self._number,
            kind="loop",
            cause=self._looks.cause(),
            began_s=round(self._began_s, 3),
            duration_ms=round(duration_s * 1000, 1),
            gc_ms=round(gc_s * 1000, 1),
            is_over=is_over,
            thread=thread_name(self.heart.ident),
            labels=guilty.labels if guilty is not None else (),
            frame=frame,
            stack=stack,
            looks=self._looks.count,
            seen=guilty.looks if guilty is not None else 0,
            ids=self._ids if self._noted is guilty else {},
        )


def thread_name(ident: int) -> str:
    """A thread's name, where it is a plain one; takes no lock."""
    thread = threading._active.get(ident)  # type: ignore[attr-defined]
    name = str(getattr(thread, "name", ""))
    return plain(name, "thread")
