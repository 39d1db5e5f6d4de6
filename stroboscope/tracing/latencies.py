"""How long requests of an endpoint take: a histogram of fixed size, and its p99.

Buckets are an eighth of a power of two wide, so a percentile is at most 12.5 % too high.
Old requests fade: the counts are halved again and again.
"""

from __future__ import annotations

import math
from collections import deque

#: Below it nobody waits, whatever an endpoint is used to.
FLOOR_NS = 10_000_000
#: Before so many requests an endpoint is not known.
KNOWN_AFTER = 200
#: Between two turns of our thread; of more the last are enough.
RECENT_CAP = 256
#: Counts are halved when there are so many.
_FADE_AT = 20_000
#: Up to 2**42 ns, over an hour; in units of 2**10 ns.
_UNIT_BITS, _OCTAVES = 10, 32
_BUCKETS = 8 * (_OCTAVES + 1)


class Latencies:
    """Of one endpoint. Requests append to `recent`; the rest is for a thread of ours."""

    __slots__ = ("counts", "limit_ns", "recent")

    def __init__(self) -> None:
        self.counts = [0] * _BUCKETS
        #: Nanoseconds that are not counted yet; the last of many.
        self.recent: deque[int] = deque(maxlen=RECENT_CAP)
        #: Times as long as that are worth evidence; infinite while too little is known.
        self.limit_ns: float = math.inf

    def add(self, took_ns: int) -> None:
        """Count one request."""
        units = took_ns >> _UNIT_BITS
        octave = units.bit_length() - 4
        place = (octave << 3) + (units >> octave) if octave > 0 else units
        self.counts[place if place < _BUCKETS else -1] += 1

    def renew(self, factor: float) -> None:
        """Count the recent ones, work the limit out anew, and let what is old fade.

        The limit is `factor` times the p99.
        """
        if not self.recent:
            return
        while self.recent:
            self.add(self.recent.popleft())
        p99_ns = self.percentile_ns(0.99)
        if p99_ns is not None:
            self.limit_ns = max(FLOOR_NS, factor * p99_ns)
        if sum(self.counts) > _FADE_AT:
            self.counts[:] = [count >> 1 for count in self.counts]

    def percentile_ns(self, share: float) -> int | None:
        """The upper bound of the bucket it is in; None before enough is known."""
        counts = list(self.counts)
        total = sum(counts)
        if total < KNOWN_AFTER:
            return None
        left = total * (1 - share)
        for place in range(_BUCKETS - 1, -1, -1):
            left -= counts[place]
            if left < 0:
                return _upper_ns(place)
        return None


def _upper_ns(place: int) -> int:
    if place < 16:
        return (place + 1) << _UNIT_BITS
    octave = (place >> 3) - 1
    return ((place & 7) + 9) << octave << _UNIT_BITS
