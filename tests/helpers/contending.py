"""Count contention for a while, and read what was added meanwhile."""

import functools
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, ParamSpec

from stroboscope._core.contention import contention
from stroboscope.formats.profile import Labels, Profile, Sample, subtract
from stroboscope.profiles.contention import to_profile
from stroboscope.profiles.ledgers import keep_labels

P = ParamSpec("P")
#: Made before anything is watched.
EARLY = {"Lock": threading.Lock(), "RLock": threading.RLock()}


@dataclass
class Counted:
    """What was added to both profiles, once the block is over."""

    mutex: list[Sample] = field(default_factory=list)
    block: list[Sample] = field(default_factory=list)


@contextmanager
def counting(mutex: int = 1, block: int = 1) -> Iterator[Counted]:
    """Count in the block, at these rates; off again after it."""
    keep_labels(512)
    contention.set_mutex_fraction(mutex)
    contention.set_block_rate(block)
    before = to_profile("mutex"), to_profile("block")
    counted = Counted()
    try:
        yield counted
    finally:
        contention.set_mutex_fraction(0)
        contention.set_block_rate(0)
        counted.mutex = _added("mutex", before[0])
        counted.block = _added("block", before[1])


def _added(name: str, before: Profile) -> list[Sample]:
    return list(subtract(to_profile(name), before).samples)


def delay_s(samples: list[Sample], function: str = "") -> float:
    """Seconds of delay in the stacks that have a function of this name."""
    return sum(s.values[1] for s in samples if not function or _has(s, function)) / 1e9


def count(samples: list[Sample], function: str = "") -> int:
    """Contentions in the stacks that have a function of this name."""
    return sum(s.values[0] for s in samples if not function or _has(s, function))


def delays_by(samples: list[Sample], key: str) -> dict[str, float]:
    """Seconds of delay by the value of a label; "" for none."""
    found: Counter[str] = Counter()
    for sample in samples:
        found[dict(sample.labels).get(key, "")] += sample.values[1]  # type: ignore[assignment]
    return {value: ns / 1e9 for value, ns in found.items()}


def labels_of(samples: list[Sample], function: str) -> set[Labels]:
    """The label sets of stacks that have a function of this name."""
    return {tuple(s.labels) for s in samples if _has(s, function)}


def functions(samples: list[Sample]) -> set[str]:
    """The names of all functions in these stacks."""
    return {frame.function for sample in samples for frame in sample.stack}


class Clock:
    """How long named blocks took, by a clock that is not the engine's."""

    def __init__(self) -> None:
        self.took: dict[str, float] = {}

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        begin = time.perf_counter()
        try:
            yield
        finally:
            self.took[name] = time.perf_counter() - begin


def once_in_three(test: Callable[P, None]) -> Callable[P, None]:
    """Judge timings where others use the machine: one run of three has to hold.

    What is counted wrongly is wrong in each of them.
    """

    @functools.wraps(test)
    def judged(*args: P.args, **kwargs: P.kwargs) -> None:
        for _ in range(2):
            try:
                return test(*args, **kwargs)
            except AssertionError:
                time.sleep(0.2)
        return test(*args, **kwargs)

    return judged


def together(*work: Callable[[], object]) -> None:
    """Run all at once, each on its own thread, and wait for them."""
    threads = [threading.Thread(target=one) for one in work]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def _has(sample: Sample, function: str) -> bool:
    names = (frame.function.rpartition(".")[2] for frame in sample.stack)
    return function in names


def hold(lock: Any, seconds: float, held: threading.Event) -> None:
    with lock:
        held.set()
        time.sleep(seconds)


def wait_with_statement(lock: Any) -> None:
    with lock:
        pass


def wait_by_acquire(lock: Any) -> None:
    lock.acquire()
    lock.release()
