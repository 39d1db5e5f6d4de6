"""Labels known only when a request ends: its status class and latency bucket."""

from __future__ import annotations

import bisect
import functools
from collections.abc import Sequence


@functools.lru_cache(512)
def status_class(status: int) -> str:
    """`2xx`, `5xx`, …; `other` for what is no HTTP status."""
    return f"{status // 100}xx" if 100 <= status <= 599 else "other"


def latency_bucket(seconds: float, bounds_s: Sequence[float]) -> str:
    """`<=100ms`, `<=1s`, or `>1s` beyond the last of the ascending bounds."""
    return _names(tuple(bounds_s))[bisect.bisect_left(bounds_s, seconds)]


@functools.lru_cache(64)
def _names(bounds_s: tuple[float, ...]) -> tuple[str, ...]:
    """The buckets of these bounds, the one beyond the last included."""
    beyond = f">{_spelled(bounds_s[-1])}" if bounds_s else "any"
    return (*(f"<={_spelled(bound_s)}" for bound_s in bounds_s), beyond)


def _spelled(seconds: float) -> str:
    return f"{seconds:g}s" if seconds >= 1 else f"{seconds * 1000:g}ms"
