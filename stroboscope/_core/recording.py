"""The recorder: what is recorded where, and copies of it. C only.

Without the C engine there is none: `AVAILABLE` is false, regions and tasks cost next to
nothing and record nothing. The functions say what they do in `_native.pyi`.
"""

from __future__ import annotations

from typing import Any

from stroboscope.errors import EngineUnavailable

AVAILABLE = True
try:
    from stroboscope._core._native import (
        current_span,
        log,
        may_have_span,
        perfetto_write,
        region,
        route_template,
        set_region_decorator,
        set_region_spans,
        set_span_place,
        timeline_read,
        timeline_text,
        trace_after_fork,
        trace_capture_begin,
        trace_capture_drain,
        trace_capture_end,
        trace_close,
        trace_count,
        trace_fraction,
        trace_gc,
        trace_info,
        trace_open,
        trace_prefault,
        trace_snapshot,
        trace_stack,
        trace_stamps_clear,
        trace_want,
        trace_wanted,
        trace_watched,
    )
except ImportError:
    from stroboscope._core._pure import log, region, set_region_decorator  # type: ignore[assignment]

    AVAILABLE = False

    def _missing(*args: Any) -> Any:
        raise EngineUnavailable("the recorder is part of the C engine")

    def trace_wanted() -> int:
        """Nobody wants what cannot be had."""
        return 0

    def _nothing(*args: Any) -> Any:
        return None

    set_region_spans = set_span_place = current_span = _nothing
    may_have_span = route_template = _nothing
    perfetto_write = timeline_read = timeline_text = _missing
    trace_after_fork = trace_capture_begin = trace_capture_drain = _missing
    trace_capture_end = trace_close = trace_fraction = trace_info = _missing
    trace_open = trace_prefault = trace_snapshot = trace_stack = trace_want = _missing
    trace_count = trace_gc = trace_stamps_clear = trace_watched = _missing

#: Who wants events: the bits of `trace_want` and `trace_wanted`.
FLIGHT, CAPTURE = 1, 2
#: Bytes of an event, and how many a ring may have; always a power of two.
EVENT_BYTES = 32
EVENTS_MIN, EVENTS_MAX = 1024, 1 << 24

__all__ = [
    "AVAILABLE",
    "CAPTURE",
    "EVENTS_MAX",
    "EVENTS_MIN",
    "EVENT_BYTES",
    "FLIGHT",
    "current_span",
    "log",
    "may_have_span",
    "perfetto_write",
    "region",
    "route_template",
    "set_region_decorator",
    "set_region_spans",
    "set_span_place",
    "timeline_read",
    "timeline_text",
    "trace_after_fork",
    "trace_capture_begin",
    "trace_capture_drain",
    "trace_capture_end",
    "trace_close",
    "trace_count",
    "trace_fraction",
    "trace_gc",
    "trace_info",
    "trace_open",
    "trace_prefault",
    "trace_snapshot",
    "trace_stack",
    "trace_stamps_clear",
    "trace_want",
    "trace_wanted",
    "trace_watched",
]
