"""Execution traces: tasks, regions and logs, a recorder of them, and its captures."""

from stroboscope._core.recording import log, region
from stroboscope.tracing import regions
from stroboscope.tracing.otel import SpanLinks
from stroboscope.tracing.recorder import Capture, Recorder, recorder
from stroboscope.tracing.tasks import task

__all__ = [
    "Capture",
    "Recorder",
    "SpanLinks",
    "log",
    "recorder",
    "region",
    "regions",
    "task",
]
