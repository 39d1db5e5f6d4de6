"""Labels known only when a request ends: its status class and latency bucket."""

from __future__ import annotations

import functools
from collections.abc import Sequence


def status_class(status: int) -> str:
    """`2xx`, `5xx`, …; `other` for what is no HTTP status."""
    return f"{status // 100}xx" if 100 <= status <= 599 else "other"


def latency_bucket(seconds: float, bounds_s: Sequence[float]) -> str:
    """`<=100ms`, `<=1s`, or `>1s` beyond the last of the ascending bounds."""
    for bound_s in bounds_s:
        if seconds <= bound_s:
            return f"<={_spelled(bound_s)}"
    return f">{_spelled(bounds_s[-1])}" if bounds_s else "any"


@functools.lru_cache(64)
def _spelled(seconds: float) -> str:
    return f"{seconds:g}s" if seconds >= 1 else f"{seconds * 1000:g}ms"
