"""The mutex and block profiles: waits for locks, by who held them and by who waited."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence

from stroboscope._core.contention import contention
from stroboscope.formats.profile import Profile, Sample, ValueType
from stroboscope.profiles.ledgers import to_columns

SAMPLE_TYPES = (ValueType("contentions", "count"), ValueType("delay", "nanoseconds"))


def to_profile(name: str) -> Profile:
    """`mutex` or `block` as it stands now: totals since the process began.

    Blocks for some milliseconds per thousand rows; belongs on a thread of ours.
    """
    copy = contention.copy(name)
    samples: Sequence[Sample] = []
    if copy is not None:
        samples = to_columns(copy, len(SAMPLE_TYPES), growing=(0, 1))
    return Profile(
        sample_types=SAMPLE_TYPES,
        samples=samples,
        period_type=SAMPLE_TYPES[0],
        period=1,
        time_ns=time.time_ns(),
        comments=(_setting(name), *contention.unseen()),
        mapping=f"python{sys.version_info.major}.{sys.version_info.minor}",
    )


def period(name: str) -> int:
    """What the text form calls the sampling period: the value in force."""
    return contention.mutex_fraction if name == "mutex" else contention.block_rate_ns


def _setting(name: str) -> str:
    value = period(name)
    knob = "mutex_fraction" if name == "mutex" else "block_rate_ns"
    return f"{knob} is {value}" + ("" if value else ": nothing is counted now")
