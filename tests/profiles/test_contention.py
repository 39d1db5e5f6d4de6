"""The mutex and block profiles: whose labels, how sampled, in what form."""

import functools
import itertools
import math
import threading
import time

import pytest
from contending import (
    Clock,
    count,
    counting,
    delay_s,
    delays_by,
    once_in_three,
    together,
)

from stroboscope import do
from stroboscope._core.contention import contention
from stroboscope.formats.profile import Profile
from stroboscope.formats.text import counts
from stroboscope.profiles.contention import to_profile

pytestmark = pytest.mark.native


@once_in_three
def test_waiter_and_holder_carry_their_own_labels() -> None:
    """Two endpoints that hold, two that wait: each sum within 5 % of the truth."""
    lock, clock = threading.Lock(), Clock()

    def request(endpoint: str, seconds: float) -> None:
        with do(endpoint=endpoint):
            with clock(f"{endpoint} waits"):
                lock.acquire()
            with clock(f"{endpoint} holds"):
                time.sleep(seconds)
                lock.release()

    with counting() as counted:
        first = threading.Thread(target=request, args=("/slow", 0.2))
        first.start()
        time.sleep(0.02)
        others = [("/a", 0.1), ("/b", 0.05), ("/b2", 0.0)]
        threads = [first]
        for one in others:
            threads.append(threading.Thread(target=request, args=one))
            threads[-1].start()
            time.sleep(0.01)
        for thread in threads:
            thread.join()

    waits = {e: clock.took[f"{e} waits"] for e, _ in others}
    holds = {e: clock.took[f"{e} holds"] for e, _ in others}
    blocked = delays_by(counted.block, "endpoint")
    for endpoint, truth in waits.items():
        assert blocked[endpoint] == pytest.approx(truth, rel=0.05)
    held = delays_by(counted.mutex, "endpoint")
    # The lock is handed on in the order they came: all three wait for /slow.
    slow = sum(waits.values()) - 2 * holds["/a"] - holds["/b"]
    assert held["/slow"] == pytest.approx(slow, rel=0.05)
    assert held["/a"] == pytest.approx(2 * holds["/a"], rel=0.05)
    assert held["/b"] == pytest.approx(holds["/b"], rel=0.05)


def contend(times: int) -> list[float]:
    """So many contentions of about a millisecond; how long each took, in seconds."""
    took = []
    lock = threading.Lock()
    turn, go_on = threading.Semaphore(0), threading.Semaphore(0)

    def holds() -> None:
        for _ in range(times):
            with lock:
                turn.release()
                time.sleep(0.001)
            go_on.acquire()

    def waits() -> None:
        for _ in range(times):
            turn.acquire()
            begin = time.perf_counter()
            lock.acquire()
            took.append(time.perf_counter() - begin)
            lock.release()
            go_on.release()

    together(holds, waits)
    return took


#: (contentions, how many of them one stands for)
EVENTS, FRACTION = 3000, 100


@pytest.mark.slow
def test_one_in_hundred_estimates_the_whole() -> None:
    """Count and delay at 1/100 against every wait's own clock, within 3 sigma."""
    with counting(mutex=1, block=0) as full:
        truth = contend(EVENTS // 10)
    # On a busy machine now and then one comes too late to have to wait.
    assert 0.9 * len(truth) < count(full.mutex) <= len(truth)

    with counting(mutex=FRACTION, block=0) as sampled:
        truth = contend(EVENTS)

    # Each event is counted with probability 1/100, and then a hundred times.
    sigma = math.sqrt((FRACTION - 1) * EVENTS)
    sigma_s = math.sqrt((FRACTION - 1) * sum(one**2 for one in truth))
    assert abs(count(sampled.mutex) - EVENTS) < 3 * sigma
    assert abs(delay_s(sampled.mutex) - sum(truth)) < 3 * sigma_s
    assert count(sampled.mutex) % FRACTION == 0


@pytest.mark.slow
def test_short_waits_are_scaled_long_ones_count_for_themselves() -> None:
    """A rate far above the waits: their sum and number are right within 3 sigma."""
    rate_s = 0.02
    with counting(mutex=0, block=int(rate_s * 1e9)) as sampled:
        truth = [one for one in contend(EVENTS // 2) if one < rate_s]
        together(functools.partial(held_for, 0.05))

    short = [s for s in sampled.block if s.stack[0].function.endswith(".waits")]
    # Counted with probability wait/rate, and then for the rate.
    sigma = math.sqrt(sum(rate_s / one - 1 for one in truth))
    sigma_s = math.sqrt(sum(one * (rate_s - one) for one in truth))
    assert abs(count(short) - len(truth)) < 3 * sigma
    assert abs(delay_s(short) - sum(truth)) < 3 * sigma_s + 0.01 * sum(truth)
    long = [s for s in sampled.block if s.stack[0].function == "held_for"]
    assert count(long) == 1
    assert 0.03 < delay_s(long) < 0.3


def held_for(seconds: float) -> None:
    lock, held = threading.Lock(), threading.Semaphore(0)

    def holds() -> None:
        with lock:
            held.release()
            time.sleep(seconds)

    holder = threading.Thread(target=holds)
    holder.start()
    held.acquire()
    lock.acquire()
    holder.join()


def test_totals_never_fall() -> None:
    """Over switches and rates: no stack and label set loses anything."""
    seen: list[dict[tuple[object, ...], tuple[int, ...]]] = []
    for rate in (1, 0, 10, 1):
        with counting(mutex=rate, block=rate):
            contend(10)
        seen.append(rows(to_profile("block")))

    for before, after in itertools.pairwise(seen):
        for key, values in before.items():
            assert all(b <= a for b, a in zip(values, after[key], strict=True))


def rows(profile: Profile) -> dict[tuple[object, ...], tuple[int, ...]]:
    return {(s.stack, tuple(s.labels)): s.values for s in profile.samples}


def test_profiles_say_what_is_counted() -> None:
    """The rate in force, or that nothing is counted now."""
    off = to_profile("mutex")
    contention.set_mutex_fraction(7)
    on = to_profile("mutex")
    contention.set_mutex_fraction(0)

    assert off.comments == ("mutex_fraction is 0: nothing is counted now",)
    assert on.comments == ("mutex_fraction is 7",)
    assert [t.type for t in on.sample_types] == ["contentions", "delay"]
    assert (on.period_type.type, on.period, on.duration_ns) == ("contentions", 1, 0)


def test_the_text_form_is_gos() -> None:
    """`debug=1`: delay, then number, then addresses; the fraction in the head."""
    with counting():
        contend(3)
    shown = counts("mutex", to_profile("mutex"), 5)
    lines = shown.splitlines()

    assert lines[:3] == [
        "--- mutex:",
        "cycles/second=1000000000",
        "sampling period=5",
    ]
    delay, number, at, address = lines[3].split()[:4]
    assert int(delay) > int(number) > 0
    assert at == "@"
    assert address.startswith("0x")
