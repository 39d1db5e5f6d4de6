"""A capture, taken and encoded: what `/debug/trace` answers."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from stroboscope.formats import chrome, perfetto
from stroboscope.formats.timeline import Timeline
from stroboscope.tracing.kept import KEPT
from stroboscope.tracing.recorder import recorder

Facts = Sequence[tuple[str, str | int]]

FORMATS = ("perfetto", "json")


def record(
    seconds: float,
    is_cancelled: Callable[[], bool],
    form: str,
    facts: Facts = (),
    breathe: Callable[[], object] = lambda: None,
) -> bytes:
    """An execution trace of so many seconds from now, in one of `FORMATS`.

    `facts` stand on its first slice; `breathe` is called often while Python encodes.
    Blocks; belongs on a thread of ours. Raises: EngineUnavailable.
    """
    before_ns = time.thread_time_ns()
    taken = recorder.capture(seconds, is_cancelled)
    cpu_us = (time.thread_time_ns() - before_ns) // 1000
    said = (*facts, ("seconds", f"{seconds:g}"), ("ended", taken.ended))
    said = (*said, ("own_cpu_us", cpu_us))
    timeline = Timeline.read(taken.block)
    KEPT.keep(timeline)
    return encode(timeline, form, said, breathe)


def encode(
    timeline: Timeline,
    form: str,
    facts: Facts = (),
    breathe: Callable[[], object] = lambda: None,
) -> bytes:
    """A timeline in one of `FORMATS`."""
    if form == "json":
        return chrome.encode(timeline, facts, breathe)
    return perfetto.encode(timeline, facts)
