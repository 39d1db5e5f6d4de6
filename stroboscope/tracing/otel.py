"""OpenTelemetry and tasks, each known to the other.

The only file of this floor that knows OpenTelemetry, and its API alone: processors are
what they do. Whatever is in here costs nothing while nothing is recorded.
"""

from __future__ import annotations

import contextvars
import os
from collections.abc import Callable, Mapping
from typing import Any, Protocol
from weakref import WeakSet

from opentelemetry import context, trace

from stroboscope._core import LABELS, LabelCell, recording
from stroboscope.labels import TABLE

TASK, ENDPOINT, URL = "stroboscope.task.id", "stroboscope.endpoint", "stroboscope.url"
#: What Pyroscope finds a span's profile by. Source: grafana/otel-profiling-go.
PROFILE = "pyroscope.profile.id"
_ROUTE = "http.route"


class Linked(Protocol):
    """The owner of a task, which has one span: the first of its own in this process."""

    def take_span(self, span: Any) -> None:
        """A span was begun that has no parent in this process."""

    def tell_span(self) -> None:
        """It will end, or may: this is the time for its attributes."""


def _ask_for_span() -> Any | None:
    """OpenTelemetry's current span, or None. Its parent may be in another process."""
    span = trace.get_current_span()
    return span if span is not trace.INVALID_SPAN else None


def _place_of_span() -> tuple[object, object]:
    """The ContextVar and the key that the API keeps it under; None, None if unlike that.

    Told by what the API does with a span, for neither has a public name.
    """
    held = trace.set_span_in_context(trace.INVALID_SPAN, context.Context())
    inside = contextvars.Context()
    inside.run(context.attach, held)
    variables = [var for var, value in inside.items() if value is held]
    keys = list(held)
    is_known = len(variables) == len(keys) == 1
    return (variables[0], keys[0]) if is_known else (None, None)


#: The same as `_ask_for_span`, which a request without a span does not come to.
current_span = recording.current_span
recording.set_span_place(_ask_for_span, *_place_of_span())


def link_of(span: Any | None) -> bytes | None:
    """Trace id and span id in 24 bytes; None where there are none."""
    if span is None:
        return None
    context = span.get_span_context()
    if not context.is_valid:
        return None
    return bytes(context.trace_id.to_bytes(16) + context.span_id.to_bytes(8))


def span_id_of(span: Any) -> str:
    """Its id in 16 digits."""
    return trace.format_span_id(span.get_span_context().span_id)


def is_local(span: Any) -> bool:
    """Whether a span is one of this process, and not what a request came with."""
    context = span.get_span_context()
    return bool(context.is_valid) and not context.is_remote


def name_task(span: Any, cell: LabelCell) -> None:
    """Write the task's number on a span, if it is recorded."""
    if span.is_recording():
        span.set_attribute(TASK, f"{os.getpid()}-{cell.task}")


def tell(span: Any, attributes: Mapping[str, str]) -> None:
    """Write these on a span, if it is recorded and not over."""
    if span.is_recording():
        for name, value in attributes.items():
            span.set_attribute(name, value)


def route_of(span: Any) -> str | None:
    """`http.route` of a span, as its instrumentation found it."""
    attributes = getattr(span, "attributes", None)
    route = attributes.get(_ROUTE) if isinstance(attributes, Mapping) else None
    return route if isinstance(route, str) and route else None


class SpanLinks:
    """A span processor: links a task with the span that begins inside of it.

        provider.add_span_processor(stroboscope.tracing.SpanLinks())

    The global provider gets one by itself, in each process that records. Others, given
    to an instrumentation as `tracer_provider`, need it where the instrumentation is
    inside of our middleware. May be added twice. Never raises, never blocks.
    """

    def on_start(self, span: Any, parent_context: Any = None) -> None:
        """A span begins: the task's own, if its parent is in no span of this process."""
        if not recording.trace_wanted():
            return
        try:
            parent = span.parent
            if parent is None or parent.is_remote:
                _take(span)
        except Exception:  # ours, and the application must not see it
            TABLE.count_failure()

    def _on_ending(self, span: Any) -> None:
        """A span will end: the last time for its attributes. Of SDKs that say so."""
        if not recording.trace_wanted():
            return
        try:
            owner = _owner(LABELS.get())
            if owner is not None and getattr(owner, "span", None) is span:
                owner.tell_span()
        except Exception:  # as above
            TABLE.count_failure()

    def on_end(self, span: Any) -> None:
        """Nothing is to be done by now."""

    def shutdown(self) -> None:
        """Nothing is held."""

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        """Nothing waits."""
        return True


_installed: WeakSet[Any] = WeakSet()


def install() -> bool:
    """Link the spans of the global provider from now on; whether there is one.

    Cheap, and may be called again: a provider gets one processor.
    """
    provider = trace.get_tracer_provider()
    if provider in _installed:
        return True
    add = getattr(provider, "add_span_processor", None)
    if add is None:
        return False
    _installed.add(provider)
    add(SpanLinks())
    return True


def export_regions(is_on: bool, provider: Any = None) -> None:
    """Make a span of each recorded region from now on, or of none any more.

    Of `provider`, or the global one. A region's span is the child of the span that is
    current as it begins, if that is recorded, and the current one until it ends.
    """
    if not is_on:
        recording.set_region_spans(None)
        return
    tracer = trace.get_tracer("stroboscope", tracer_provider=provider)

    def begin(name: str) -> Callable[[type[BaseException] | None], None] | None:
        if not trace.get_current_span().is_recording():
            return None
        before = context.get_current()
        span = tracer.start_span(name)
        context.attach(trace.set_span_in_context(span))

        def end(failure: type[BaseException] | None) -> None:
            # In another context, where it is not current, nothing is to be put back.
            if trace.get_current_span() is span:
                context.attach(before)
            if failure is not None and issubclass(failure, Exception):
                span.set_status(trace.Status(trace.StatusCode.ERROR, failure.__name__))
            span.end()

        return end

    recording.set_region_spans(begin)


def _take(span: Any) -> None:
    cell = _task_cell(LABELS.get())
    if cell is None or not cell.recorded:
        return
    owner = _owner(cell)
    if owner is not None:
        owner.take_span(span)
    elif cell.trace_id is None:
        cell.link_task(link_of(span))
        name_task(span, cell)


def _task_cell(cell: LabelCell | None) -> LabelCell | None:
    """The cell that is the task which this one belongs to."""
    while cell is not None and cell.serial != cell.task:
        cell = cell.parent
    return cell


def _owner(cell: LabelCell | None) -> Linked | None:
    found = _task_cell(cell)
    owner = getattr(found.source if found is not None else None, "__self__", None)
    return owner if hasattr(owner, "take_span") else None
