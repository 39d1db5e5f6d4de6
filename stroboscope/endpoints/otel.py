"""The audit record in OpenTelemetry: a log event, and an event of the request's span.

The only file of this floor that knows OpenTelemetry. Without a provider it costs one
call that does nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from opentelemetry import trace
from opentelemetry._logs import LogRecord, SeverityNumber, get_logger

EVENT = "stroboscope.audit"


def emit(fields: dict[str, Any]) -> None:
    """Send one record; values become strings, numbers stay."""
    now = time.time_ns()
    record = LogRecord(
        timestamp=now,
        observed_timestamp=now,
        severity_number=SeverityNumber.INFO,
        severity_text="INFO",
        body=EVENT,
        attributes=_attributes(fields),
    )
    get_logger("stroboscope").emit(record)


def current_span() -> Any:
    """The span of the request that the calling thread or task is in."""
    return trace.get_current_span()


def note(span: Any, fields: Callable[[], dict[str, Any]]) -> None:
    """Add the record to a span; nothing when it is not recorded, or over. No I/O."""
    if span is not None and span.is_recording():
        span.add_event(EVENT, _attributes(fields()))


def _attributes(fields: dict[str, Any]) -> dict[str, Any]:
    return {
        f"stroboscope.{name}": value
        if isinstance(value, (int, float, str))
        else str(value)
        for name, value in fields.items()
    }
