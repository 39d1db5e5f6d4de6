"""In OpenTelemetry: the audit record, as log and on its span, and stalls on theirs.

The only file of this floor that knows OpenTelemetry. Without a provider it costs one
call that does nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextvars import Context
from typing import Any

from opentelemetry import trace
from opentelemetry._logs import LogRecord, SeverityNumber, get_logger

EVENT = "stroboscope.audit"
STALL = "stroboscope.stall"
EVIDENCE = "stroboscope.evidence"


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


def span_of(context: Context) -> tuple[Any, dict[str, str]]:
    """The recorded span of a context, or None, and its ids in hexadecimal. No I/O."""
    span = context.run(trace.get_current_span)
    found = span.get_span_context()
    if not found.is_valid:
        return None, {}
    ids = {
        "trace_id": trace.format_trace_id(found.trace_id),
        "span_id": trace.format_span_id(found.span_id),
    }
    return (span if span.is_recording() else None), ids


def note_stall(span: Any, fields: Mapping[str, Any]) -> None:
    """Add a stall to the span of the request that caused it."""
    span.add_event(STALL, _attributes(fields))


def note_evidence(span: Any, name: str, rule: str, url: str) -> None:
    """Add where evidence is to be found to a span, or the current one, if recorded."""
    span = trace.get_current_span() if span is None else span
    if span.is_recording():
        fields = {"evidence.id": name, "evidence.rule": rule, "url": url}
        span.add_event(EVIDENCE, _attributes(fields))
        span.set_attribute("stroboscope.url", url)


def _attributes(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {
        f"stroboscope.{name}": value
        if isinstance(value, (int, float, str))
        else str(value)
        for name, value in fields.items()
    }
