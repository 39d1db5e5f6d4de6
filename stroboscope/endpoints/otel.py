"""The audit record in OpenTelemetry: a log event, where the process collects logs.

The only file of this floor that knows OpenTelemetry. Without a provider it costs one
call that does nothing.
"""

from __future__ import annotations

import time
from typing import Any

from opentelemetry._logs import LogRecord, SeverityNumber, get_logger

EVENT = "stroboscope.audit"


def emit(fields: dict[str, Any]) -> None:
    """Send one record; values become strings, numbers stay."""
    attributes = {
        f"stroboscope.{name}": value
        if isinstance(value, (int, float, str))
        else str(value)
        for name, value in fields.items()
    }
    now = time.time_ns()
    record = LogRecord(
        timestamp=now,
        observed_timestamp=now,
        severity_number=SeverityNumber.INFO,
        severity_text="INFO",
        body=EVENT,
        attributes=attributes,
    )
    get_logger("stroboscope").emit(record)
