"""What every protocol shares: one observed request and the labels it ends with.

At rest a request costs a cell, a small object and two ContextVar writes. Labels are
only worked out for a request under which a sample was taken, or that a closing window
asks for while it runs.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from typing import Any

from stroboscope._core import LABELS, LabelCell
from stroboscope.labels import TABLE, LabelSet
from stroboscope.labels.outcome import latency_bucket, status_class
from stroboscope.labels.tenants import TenantBuckets
from stroboscope.settings import Settings

UNMATCHED = "(unmatched)"
METHODS = frozenset(
    {"GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "CONNECT"}
)
_log = logging.getLogger("stroboscope")


class Labeller:
    """Turns an ended or running request into a label set. Never raises.

    `template` gets the carrier (scope, environ, request) and returns its route
    template or None. `failures` counts what went wrong in here.
    """

    def __init__(
        self, settings: Settings, template: Callable[[Any], str | None]
    ) -> None:
        self._template = template
        self._tenant = settings.tenant
        self._buckets = TenantBuckets(settings)
        self._bounds = settings.latency_buckets
        self._constant = TABLE.intern(dict(settings.labels))
        prefix = settings.label_prefix
        names = ("endpoint", "method", "tenant", "status", "latency")
        self._keys: Mapping[str, str] = {name: prefix + name for name in names}
        self.failures = 0

    def labels(self, request: Observed) -> LabelSet | None:
        """What is known of the request now."""
        try:
            found = {
                self._keys["endpoint"]: self._template(request.carrier) or UNMATCHED,
                self._keys["method"]: (
                    request.method if request.method in METHODS else "OTHER"
                ),
            }
            self._add_tenant(found, request)
            if request.ended_ns:
                seconds = (request.ended_ns - request.began_ns) / 1e9
                found[self._keys["latency"]] = latency_bucket(seconds, self._bounds)
                if request.status:
                    found[self._keys["status"]] = status_class(request.status)
            return TABLE.intern_leniently({**dict(self._constant), **found})
        except Exception as error:  # a label may be missing, nothing may break
            self.failed(error)
            return None

    def failed(self, error: BaseException) -> None:
        """Count a failure of ours; log the first."""
        self.failures += 1
        if self.failures == 1:
            _log.error("stroboscope: a request went unlabelled", exc_info=error)

    def _add_tenant(self, found: dict[str, str], request: Observed) -> None:
        if self._tenant is None:
            return
        if not request.tenant_known:
            request.tenant_known = True
            try:
                request.tenant = self._buckets.bucket(self._tenant(request.carrier))
            except Exception as error:  # the user's function, on the user's data
                self.failed(error)
        if request.tenant is not None:
            found[self._keys["tenant"]] = request.tenant


class Observed:
    """One request: carries the cell, remembers what labels need."""

    __slots__ = (
        "before",
        "began_ns",
        "carrier",
        "cell",
        "ended_ns",
        "labeller",
        "method",
        "status",
        "tenant",
        "tenant_known",
    )

    def __init__(self, labeller: Labeller, carrier: Any, method: str) -> None:
        self.labeller = labeller
        self.carrier = carrier
        self.method = method
        self.status = 0
        self.ended_ns = 0
        self.tenant: str | None = None
        self.tenant_known = False
        self.cell = LabelCell()
        self.cell.source = self.labels
        self.began_ns = time.monotonic_ns()
        self.before: LabelCell | None = None

    def labels(self) -> LabelSet | None:
        """The cell's source: called by closing windows and at the end."""
        return self.labeller.labels(self)

    def enter(self) -> None:
        """Label what runs in this context from here on."""
        self.before = LABELS.get()
        LABELS.set(self.cell)

    def leave(self) -> None:
        """Stop labelling this context; what it started stays labelled."""
        LABELS.set(self.before)

    def end(self) -> None:
        """The response is over: a sampled request hands over its final labels.

        The source stays: background work may be sampled later under this cell.
        """
        self.ended_ns = time.monotonic_ns()
        cell = self.cell
        if cell.sampled:
            cell.labels = self.labeller.labels(self)
            cell.publish()
