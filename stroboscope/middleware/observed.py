"""What every protocol shares: one observed request and the labels it ends with.

At rest a request costs a cell, a small object and two ContextVar writes. Labels are
only worked out for a request under which a sample was taken, or that a closing window
asks for while it runs.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from stroboscope._core import LABELS, LabelCell
from stroboscope._core.recording import CAPTURE, current_span, trace_wanted
from stroboscope._greenlets import Log
from stroboscope.errors import LabelError
from stroboscope.labels import TABLE, LabelSet
from stroboscope.labels.outcome import latency_bucket, status_class
from stroboscope.labels.sets import SpannedLabels
from stroboscope.labels.tenants import TenantBuckets
from stroboscope.middleware.routes import starlette_template
from stroboscope.settings import Settings
from stroboscope.tracing import otel
from stroboscope.tracing.triggers import TRIGGERS

UNMATCHED = "(unmatched)"
_UNNAMED = f"http:{UNMATCHED}"
METHODS = frozenset(
    {"GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "CONNECT"}
)
_log = Log("stroboscope")
R = TypeVar("R")


class Labeller:
    """Turns an ended or running request into a label set. Never raises.

    `template` gets the carrier (scope, environ, request) and returns its route
    template or None. `failures` counts what went wrong in here; the first of each kind
    is logged. The table's bounds are those of the latest `Labeller` made.
    """

    def __init__(
        self, settings: Settings, template: Callable[[Any], str | None]
    ) -> None:
        self._template = template
        #: Whether C may read the template of a plain route by itself.
        self.reads_scope = template is starlette_template
        self._tenant = settings.tenant
        self._buckets = TenantBuckets(settings)
        self._bounds = settings.latency_buckets
        public_url = settings.public_url.rstrip("/")
        #: Before an id: where a request's timeline is.
        self.tasks_url = f"{public_url}{settings.prefix}/tasks/"
        self._constant = TABLE.intern(dict(settings.labels)).items
        prefix = settings.label_prefix
        TABLE.configure(settings.label_sets, prefix)
        names = ("endpoint", "method", "tenant", "status", "latency")
        self._keys = tuple(prefix + name for name in names)
        #: For the table, which keeps recent sets by facts that only a labeller knows.
        self._name = object()
        # Atomic, which `+= 1` is not; and a request nobody ends leaks no memory.
        self.begin, self.end = itertools.count().__next__, itertools.count().__next__
        self._logged: set[str] = set()
        self.has_span_ids = False
        self.failures = 0

    def labels(self, request: Observed) -> LabelSet | None:
        """What is known of the request now; ours win over constant labels."""
        try:
            labels = self._interned(self._facts(request))
            if self.has_span_ids and (span_id := request.span_id()):
                return SpannedLabels(labels, span_id)
            return labels
        except Exception as error:  # a label may be missing, nothing may break
            self.failed(error)
            return None

    def _facts(self, request: Observed) -> tuple[str | None, ...]:
        """What the request adds to the constant labels, as far as known; by `_keys`."""
        method = request.method
        if not isinstance(method, str) or method not in METHODS:
            method = "OTHER"
        status = latency = None
        if request.ended_ns:
            seconds = (request.ended_ns - request.began_ns) / 1e9
            latency = latency_bucket(seconds, self._bounds)
            status = status_class(request.status) if request.status else None
        endpoint = self._endpoint_label(request)
        tenant = None if self._tenant is None else self._tenant_label(request)
        return endpoint, method, tenant, status, latency

    def _interned(self, facts: tuple[str | None, ...]) -> LabelSet:
        """The set of these and the constant labels; the recent ones are at hand.

        To make a set anew for every request took longer than all else a sampled
        request costs. What was cut, left out or overflown is worked out each time,
        for it is counted, and there may be room the next time.
        """
        name = self._name, facts
        known = TABLE.recall(name)
        if known is not None:
            return known
        known_facts = zip(self._keys, facts, strict=True)
        found = {key: value for key, value in known_facts if value is not None}
        all_labels = {**dict(self._constant), **found}
        made = TABLE.intern_leniently(all_labels)
        if made.items == tuple(sorted(all_labels.items())):
            TABLE.remember(name, made)
        return made

    def endpoint(self, request: Observed) -> str | None:
        """The route template as far as it is known now."""
        try:
            template = self._template(request.carrier)
        except Exception as error:  # the user's function, or a framework we misread
            self.failed(error, "the template function")
            return None
        return template if isinstance(template, str) else request.route_of_span()

    def tenants(self) -> list[str]:
        """The tenants that are shown by name now."""
        return self._buckets.shown()

    def running(self) -> int:
        """Requests that have begun and not ended."""
        return self.begin() - self.end()

    def set_span_ids(self, is_on: bool) -> None:
        """Whether samples say which span they are of, from now on."""
        self.has_span_ids = is_on

    def set_bounds(self, bounds_s: Iterable[float]) -> None:
        """Other bounds for the latency label, from now on."""
        self._bounds = tuple(bounds_s)

    def failed(self, error: BaseException, what: str = "labelling a request") -> None:
        """Count a failure of ours or of the user's functions; log the first of each."""
        self.failures += 1
        TABLE.count_failure()
        if what not in self._logged:
            self._logged.add(what)
            _log.error(
                "stroboscope: %s failed; a label is missing", what, exc_info=error
            )

    def _endpoint_label(self, request: Observed) -> str | None:
        try:
            template = self._template(request.carrier)
            if template is not None and not isinstance(template, str):
                raise LabelError(f"it returned {type(template).__name__}, not str")
            template = template or request.route_of_span()
            if template and request.cell is not None:
                request.cell.shown = template
            return template or UNMATCHED
        except Exception as error:  # the user's function, or a framework we misread
            self.failed(error, "the template function")
            return None

    def _tenant_label(self, request: Observed) -> str | None:
        if not request.tenant_known and self._tenant is not None:
            request.tenant_known = True
            try:
                tenant = self._tenant(request.carrier)
                request.tenant = self._buckets.bucket(tenant)
                if tenant is not None and not isinstance(tenant, str):
                    raise LabelError(f"it returned {type(tenant).__name__}, not str")
            except Exception as error:  # the user's function, on the user's data
                self.failed(error, "the tenant function")
        return request.tenant


class Observed:
    """One request: carries the cell, remembers what labels need."""

    __slots__ = (
        "before",
        "began_ns",
        "carrier",
        "cell",
        "ended_ns",
        "inside",
        "is_judged",
        "is_recorded",
        "labeller",
        "method",
        "span",
        "span_is_inside",
        "status",
        "tenant",
        "tenant_known",
    )

    #: Whether it keeps a server's thread while it runs.
    holds_thread = False

    def __init__(
        self, labeller: Labeller, carrier: Any, method: object, link: object = None
    ) -> None:
        self.labeller = labeller
        self.carrier = carrier
        self.method = method
        self.status = 0
        self.ended_ns = 0
        self.tenant: str | None = None
        self.tenant_known = False
        self.cell: LabelCell | None = LabelCell()
        self.cell.source = self.labels
        #: What holds inside: the cell, or a block a streamed body is suspended in.
        self.inside: LabelCell | None = self.cell
        self.began_ns = time.monotonic_ns()
        self.before: LabelCell | None = None
        #: OpenTelemetry's span of the request, once it is known, until the end.
        self.span: Any = None
        #: Whether that span ends before we do.
        self.span_is_inside = False
        #: Whether its task was recorded when it began.
        self.is_recorded = False
        #: Whether a rule was met, before the end.
        self.is_judged = False
        labeller.begin()
        if trace_wanted():
            kind = method if isinstance(method, str) and method in METHODS else "OTHER"
            span = current_span()
            if span is not None:
                link = otel.link_of(span) or link
            self.is_recorded = self.cell.begin_task(kind, None, link)
            if self.is_recorded:
                if labeller.reads_scope:
                    self.cell.scope = carrier
                if span is not None and otel.is_local(span):
                    self.span = span
                    otel.name_task(span, self.cell)

    def take_span(self, span: Any) -> None:
        """A span of its own began: the first is the request's, and the task's ids."""
        cell = self.cell
        if self.span is None and cell is not None and cell.recorded:
            self.span, self.span_is_inside = span, True
            cell.link_task(otel.link_of(span))
            otel.name_task(span, cell)

    def tell_span(self) -> None:
        """Write on the request's span what is known by now. Never raises."""
        cell = self.cell
        try:
            span = current_span() if self.span is None else self.span
            if span is None or cell is None or not cell.recorded:
                return
            if self.span is None:
                # No processor of ours has seen it begin: it is not sampled, or of
                # another provider.
                if not otel.is_local(span):
                    return
                otel.install()
                self.take_span(span)
            told = {}
            if endpoint := self.labeller.endpoint(self):
                told[otel.ENDPOINT] = endpoint
            if trace_wanted() & CAPTURE:
                told[otel.URL] = f"{self.labeller.tasks_url}{cell.span_id}"
            if self.labeller.has_span_ids:
                told[otel.PROFILE] = self.span_id()
            otel.tell(self.span, told)
        except Exception as error:  # the response must not see it
            self.labeller.failed(error, "linking a span")

    def judge(self) -> None:
        """The response all but is over: the last time that a span inside can be told."""
        if self.span_is_inside and TRIGGERS.are_on and not self.is_judged:
            self.ended_ns = time.monotonic_ns()  # its labels are those of its end
            took_ns = self.ended_ns - self.began_ns
            self.is_judged = TRIGGERS.judged(self, took_ns, self.status)
            self.ended_ns = 0

    def route_of_span(self) -> str | None:
        """The route that OpenTelemetry's instrumentation knows, where it is a template.

        Where it knows none, some write the path there: that is no name of anything.
        """
        route = None if self.span is None else otel.route_of(self.span)
        return None if route is None or route == self.path() else route

    def span_id(self) -> str:
        """Of its own span, 16 digits; empty as long as there is none."""
        return "" if self.span is None else otel.span_id_of(self.span)

    def path(self) -> object:
        """The path as it was asked for, or None."""
        return None

    def task_name(self) -> str | None:
        """The name of the request's task, once its route is known; C asks for it."""
        endpoint = self.labeller.endpoint(self)
        return None if endpoint is None else f"http:{endpoint}"

    def labels(self) -> LabelSet | None:
        """The cell's source: called by closing windows and at the end."""
        return self.labeller.labels(self)

    def enter(self) -> None:
        """Label what runs in this context from here on."""
        self.before = LABELS.get()
        LABELS.set(self.inside)

    def leave(self) -> None:
        """Stop labelling this context; what it started stays labelled."""
        self.inside = LABELS.get()
        LABELS.set(self.before)
        self.before = None

    def end(self) -> None:
        """The response is over: a sampled request hands over its final labels.

        The source stays: background work may be sampled later under this cell. The
        cell goes from here, or the two would wait for the garbage collector. Once.
        """
        cell = self.cell
        if cell is None:
            return
        self.ended_ns = time.monotonic_ns()
        self.labeller.end()
        if cell.sampled:
            cell.labels = self.labeller.labels(self)
            cell.publish()
        if self.is_recorded and (wanted := cell.wanted):
            if self.span is not None:
                self.tell_span()
            if wanted & CAPTURE:
                self._label_task(cell)
            cell.end_request(_UNNAMED, self.status)
        if TRIGGERS.are_on:
            took_ns = self.ended_ns - self.began_ns
            TRIGGERS.ended(self, took_ns, self.status, is_judged=self.is_judged)
        self.cell = self.inside = self.span = None

    def _label_task(self, cell: LabelCell) -> None:
        for key, value in self.labeller.labels(self) or ():
            cell.label_task(f"{key}={value}")


def running(kind: type[R]) -> R | None:
    """The request of this kind that runs here, or None."""
    cell = LABELS.get()
    while cell is not None:
        request = getattr(cell.source, "__self__", None)
        if isinstance(request, kind):
            return request
        cell = cell.parent
    return None


class ThreadObserved(Observed):
    """A request that keeps a server's thread while it runs."""

    __slots__ = ()
    holds_thread = True
