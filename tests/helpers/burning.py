"""Work that says in its stack whose it is, and a profile of it under the real sampler."""

import asyncio
import time
from collections import Counter
from collections.abc import Callable

from stroboscope._core import engine
from stroboscope.formats.profile import Profile
from stroboscope.profiles.cpu import to_profile

STEPS, STEP_S = 12, 0.01
NAMES = "ab"


def burn_a(seconds: float) -> None:
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        sum(range(100))


def burn_b(seconds: float) -> None:
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        sum(range(100))


BURN = {"a": burn_a, "b": burn_b}


def burn(name: str) -> None:
    for _ in range(STEPS):
        BURN[name](STEP_S)


async def burn_async(name: str) -> None:
    for _ in range(STEPS):
        BURN[name](STEP_S)
        await asyncio.sleep(0)


def sampled(work: Callable[[], object]) -> Profile:
    window = engine.open_window(250)
    try:
        work()
    finally:
        capture = window.close()
    return to_profile(capture)


def seen(profile: Profile, key: str) -> dict[str, Counter[str]]:
    """Samples of each burning function by the value of the label."""
    found = {name: Counter[str]() for name in NAMES}
    for stack, values, labels in profile.samples:
        for name in {frame.function for frame in stack} & {"burn_a", "burn_b"}:
            found[name[-1]][dict(labels).get(key, "")] += values[0]
    return found


def assert_labels(profile: Profile, key: str, right: dict[str, str]) -> None:
    found = seen(profile, key)
    for name in NAMES:
        assert set(found[name]) == {right[name]}, found
        assert found[name].total() >= 5, found
