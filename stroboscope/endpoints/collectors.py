"""What collects each of Go's snapshot profiles. One row a profile, used by all URLs."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from stroboscope.endpoints.desk import Desk
from stroboscope.formats.profile import Profile, ValueType
from stroboscope.profiles import births, contention, heap, stacks

_COUNT, _NS = "count", "nanoseconds"
_THREADS = ValueType("threadcreate", _COUNT)

#: The profile as it stands now; the flag asks for one taken after the call. Blocks.
Collector = Callable[[Desk, bool], Profile]


def _goroutine(desk: Desk, is_fresh: bool) -> Profile:
    taken = desk.snapshots.get(is_fresh=is_fresh)
    return stacks.to_profile(taken, time.time_ns())


def _not_built(
    name: str,
    types: tuple[ValueType, ...],
    period_type: ValueType,
    period: int,
) -> Collector:
    """A valid profile of nothing: scrapers take a 404 for a dead target."""

    def collect(desk: Desk, is_fresh: bool) -> Profile:
        note = f"{name}: nothing collects it yet, so it is empty"
        return Profile(
            sample_types=types,
            samples=[],
            period_type=period_type,
            period=period,
            time_ns=time.time_ns(),
            comments=(note,),
        )

    return collect


COLLECTORS: Mapping[str, Collector] = {
    "allocs": lambda desk, is_fresh: heap.collect_heap("alloc_space"),
    "block": lambda desk, is_fresh: contention.to_profile("block"),
    "goroutine": _goroutine,
    "heap": lambda desk, is_fresh: heap.collect_heap(),
    "mutex": lambda desk, is_fresh: contention.to_profile("mutex"),
    "threadcreate": lambda desk, is_fresh: births.collect_births(),
}
