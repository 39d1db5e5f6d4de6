"""Tenant buckets: few names for many tenants.

Either an allow-list, or the heaviest found at run time by Space-Saving, which never
misses a tenant that makes up more than 1/counters of the samples. Everybody else is
`other` and appears nowhere.

Source: Metwally, Agrawal, El Abbadi, "Efficient Computation of Frequent and Top-k
Elements in Data Streams", 2005.
"""

from __future__ import annotations

import hashlib
import threading

from stroboscope.settings import Settings

OTHER = "other"
#: Counters per shown bucket: with 8, a true top-N tenant is found at 1/(8N) of load.
_COUNTERS_PER_BUCKET = 8
#: A challenger must be this much heavier than the lightest shown tenant, or buckets
#: of near equals would flap.
_HYSTERESIS = 1.25
#: Characters of an id that are looked at.
_VALUE_CAP = 256


class SpaceSaving:
    """The `capacity` heaviest keys of a stream, each count too high by its error.

    `add` returns the key's count. Memory is bounded by `capacity`.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.counts: dict[str, int] = {}
        self.errors: dict[str, int] = {}

    def add(self, key: str) -> int:
        """Count one sighting."""
        if key in self.counts:
            self.counts[key] += 1
        elif len(self.counts) < self.capacity:
            self.counts[key] = 1
            self.errors[key] = 0
        else:
            lightest = min(self.counts, key=self.counts.__getitem__)
            floor = self.counts.pop(lightest)
            del self.errors[lightest]
            self.counts[key] = floor + 1
            self.errors[key] = floor
        return self.counts[key]


class TenantBuckets:
    """Names a bucket for a tenant id. Never raises; safe from any thread."""

    def __init__(self, settings: Settings) -> None:
        self._allowed = frozenset(settings.tenants)
        self._top = settings.tenant_top
        self._shown: set[str] = set()
        self._sketch = SpaceSaving(max(1, self._top * _COUNTERS_PER_BUCKET))
        self._lock = threading.Lock()
        self._hash_key = settings.keys[0].encode() if settings.hash_tenants else None
        self.unusable = 0

    def bucket(self, tenant: object) -> str | None:
        """The bucket of a tenant id; None for no tenant or one that is no string."""
        if tenant is None:
            return None
        if not isinstance(tenant, str) or not tenant:
            self.unusable += 1
            return None
        name = self._name(tenant[:_VALUE_CAP])
        if self._allowed:
            return name if tenant in self._allowed else OTHER
        return self._ranked(name)

    def shown(self) -> list[str]:
        """The names that have a bucket of their own now."""
        with self._lock:
            return sorted(self._shown)

    def _name(self, tenant: str) -> str:
        if self._hash_key is None:
            return tenant
        # keyed: the same bucket in every worker, unreadable without the key
        digest = hashlib.blake2b(
            tenant.encode("utf-8", "replace"),
            digest_size=6,
            key=hashlib.sha256(self._hash_key).digest(),
            person=b"strobe-tenant",
        )
        return f"t_{digest.hexdigest()}"

    def _ranked(self, name: str) -> str:
        if self._top == 0:
            return OTHER
        with self._lock:
            count = self._sketch.add(name)
            if name in self._shown:
                return name
            if len(self._shown) < self._top:
                self._shown.add(name)
                return name
            counts = self._sketch.counts
            lightest = min(self._shown, key=lambda key: counts.get(key, 0))
            sure = count - self._sketch.errors[name]
            if sure > counts.get(lightest, 0) * _HYSTERESIS:
                self._shown.remove(lightest)
                self._shown.add(name)
                return name
        return OTHER
