"""Tenant buckets: few names for many tenants.

Either an allow-list, or the heaviest found at run time by Space-Saving, which never
misses a tenant that makes up more than 1/counters of the samples. Everybody else is
`other` and appears nowhere.

Source: Metwally, Agrawal, El Abbadi, "Efficient Computation of Frequent and Top-k
Elements in Data Streams", 2005.
"""

from __future__ import annotations

import hashlib
import heapq
from collections import OrderedDict

from stroboscope._threads import Lock
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

    Keys of equal count share a level; one more sighting moves a key one level up, so
    the lowest level is known and every `add` costs the same, whatever the capacity.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.counts: dict[str, int] = {}
        self.errors: dict[str, int] = {}
        # Ordered: among equals the one seen longest ago makes room.
        self._levels: dict[int, OrderedDict[str, None]] = {}
        self._lowest = 1

    def add(self, key: str) -> int:
        """Count one sighting; returns the key's count."""
        before = self.counts.get(key)
        if before is not None:
            self._take(key, before)
        elif len(self.counts) < self.capacity:
            before = self.errors[key] = 0
            self._lowest = 1
        else:
            before = self._lowest
            lightest = next(iter(self._levels[before]))
            self._take(lightest, before)
            del self.counts[lightest], self.errors[lightest]
            self.errors[key] = before
        count = self.counts[key] = before + 1
        self._levels.setdefault(count, OrderedDict())[key] = None
        return count

    def at_most(self, key: str) -> int:
        """No key was seen more often: one without a counter, at most as the lightest."""
        return self.counts.get(key, self._lowest)

    def _take(self, key: str, count: int) -> None:
        level = self._levels[count]
        del level[key]
        if not level:
            del self._levels[count]
            if count == self._lowest:
                # Its key, or the one in its place, goes one level up.
                self._lowest = count + 1


class TenantBuckets:
    """Names a bucket for a tenant id. Never raises; safe from any thread."""

    def __init__(self, settings: Settings) -> None:
        self._allowed = frozenset(settings.tenants)
        self._top = settings.tenant_top
        self._shown: set[str] = set()
        # (count when last looked at, name) of all that are shown, lightest first
        self._by_weight: list[tuple[int, str]] = []
        self._sketch = SpaceSaving(max(1, self._top * _COUNTERS_PER_BUCKET))
        self._lock = Lock()
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
                heapq.heappush(self._by_weight, (count, name))
                return name
            weight, lightest = self._lightest_shown()
            if count - self._sketch.errors[name] > weight * _HYSTERESIS:
                self._shown.remove(lightest)
                self._shown.add(name)
                heapq.heapreplace(self._by_weight, (count, name))
                return name
        return OTHER

    def _lightest_shown(self) -> tuple[int, str]:
        # Each outdated count is corrected once per change, not once per question.
        while True:
            weight, name = self._by_weight[0]
            # One that lost its counter is no lighter for it: strangers that never come
            # back would take its place one after the other.
            now = self._sketch.at_most(name)
            if now == weight:
                return weight, name
            heapq.heapreplace(self._by_weight, (now, name))
