"""Counts failures, so that guessing is slow and says so.

Failing is answered 429 once a peer, or everybody together, failed too often in a
minute. A valid signed token is not guessable and always passes: otherwise a stranger
behind the same proxy could lock the operator out.
"""

from __future__ import annotations

import ipaddress
import math
from collections import OrderedDict

from stroboscope._clock import SYSTEM, Clock
from stroboscope._threads import Lock
from stroboscope.errors import Throttled

WINDOW_S = 60.0
PEER_FAILURES_CAP = 10
ALL_FAILURES_CAP = 200
#: Peers remembered; beyond it the one silent longest is forgotten.
PEERS_CAP = 4096
_EVERYBODY = ""


class Throttle:
    """Fixed windows of a minute per peer and in all. Safe from any thread."""

    def __init__(self, clock: Clock = SYSTEM) -> None:
        self._clock = clock
        self._lock = Lock()
        #: peer: (window's end in s, failures)
        self._failures: OrderedDict[str, tuple[float, int]] = OrderedDict()
        self.refused = 0

    def check(self, peer: str) -> None:
        """Raises: Throttled while the peer, or everybody, has failed too often."""
        with self._lock:
            for name, cap in self._buckets(peer):
                ends_s, count = self._failures.get(name, (0.0, 0))
                left_s = ends_s - self._now_s()
                if count >= cap and left_s > 0:
                    self.refused += 1
                    raise Throttled("too many failures", math.ceil(left_s))

    def failed(self, peer: str) -> None:
        """Count a failure."""
        with self._lock:
            for name, _ in self._buckets(peer):
                ends_s, count = self._failures.pop(name, (0.0, 0))
                if ends_s <= self._now_s():
                    ends_s, count = self._now_s() + WINDOW_S, 0
                self._failures[name] = (ends_s, count + 1)
            while len(self._failures) > PEERS_CAP:
                self._failures.popitem(last=False)

    def after_fork(self) -> None:
        """The child counts for itself."""
        self._lock = Lock()
        self._failures.clear()

    def __len__(self) -> int:
        return len(self._failures)

    def _buckets(self, peer: str) -> tuple[tuple[str, int], ...]:
        return ((network(peer), PEER_FAILURES_CAP), (_EVERYBODY, ALL_FAILURES_CAP))

    def _now_s(self) -> float:
        return self._clock.monotonic_ns() / 1e9


def network(peer: str) -> str:
    """An IPv4 address, the /64 an IPv6 address is in, or the text as it is."""
    try:
        address = ipaddress.ip_address(peer)
    except ValueError:
        return f"peer {peer:.64}"
    if address.version == 4:
        return str(address)
    return str(ipaddress.ip_network((int(address) >> 64 << 64, 64)))
