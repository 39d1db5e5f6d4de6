"""How fast one token may ask: a bucket for each, so that a loop gone wild is slowed.

Far above what scrapers and people need: a page of them asks a few times a second.
"""

from __future__ import annotations

import math
from collections import OrderedDict

from stroboscope._clock import SYSTEM, Clock
from stroboscope._threads import Lock
from stroboscope.errors import Throttled

#: Requests that may come at once, and how many a second come back.
BURST, PER_SECOND = 200, 20.0
#: Tokens remembered; the one silent longest is forgotten, and starts anew.
TOKENS_CAP = 1024


class Pace:
    """Token buckets by token id. Safe from any thread."""

    def __init__(self, clock: Clock = SYSTEM) -> None:
        self._clock = clock
        self._lock = Lock()
        #: token id: (requests left, when that was so in s)
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()
        self.refused = 0

    def check(self, token_id: str) -> None:
        """Count a request. Raises: Throttled when its bucket is empty."""
        with self._lock:
            now_s = self._clock.monotonic_ns() / 1e9
            left, at_s = self._buckets.pop(token_id, (BURST, now_s))
            left = min(BURST, left + (now_s - at_s) * PER_SECOND)
            is_taken = left >= 1
            self._buckets[token_id] = (left - is_taken, now_s)
            if len(self._buckets) > TOKENS_CAP:
                self._buckets.popitem(last=False)
            if not is_taken:
                self.refused += 1
                wait_s = math.ceil((1 - left) / PER_SECOND)
                raise Throttled("too many requests", max(1, wait_s))

    def __len__(self) -> int:
        return len(self._buckets)

    def after_fork(self) -> None:
        """The child counts for itself."""
        self._lock = Lock()
        self._buckets.clear()
