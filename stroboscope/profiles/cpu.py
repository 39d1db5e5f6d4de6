"""The CPU profile: a window of the shared sampler, labelled.

Blocks for as long as it collects; belongs on a thread of ours.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

from stroboscope._core import TRUNCATED, Capture, Window, engine
from stroboscope.formats.profile import (
    Columns,
    Frame,
    Labels,
    Profile,
    ValueType,
)
from stroboscope.labels import TABLE, LabelSet
from stroboscope.labels.sets import span_of
from stroboscope.profiles.breath import Breath

SAMPLE_TYPES = (ValueType("samples", "count"), ValueType("cpu", "nanoseconds"))
_CUT = Frame("", "[truncated]", 0, 0)


def collect_cpu(
    seconds: float,
    on_window: Callable[[Window], object],
    *,
    hz: int = 100,
    windows: int = 4,
    each: Callable[[], object] = lambda: None,
    start_ns: int = 0,
) -> Profile:
    """CPU time by stack and label over `seconds` from now, or from a later moment.

    `on_window` gets the open window, to cancel it; a cancelled profile holds what was
    collected until then. `each` is called about twenty times a second meanwhile;
    `start_ns` is that moment of CLOCK_MONOTONIC.
    Raises: WindowsExhausted, EngineUnavailable.
    """
    window = engine.open_window(hz, seconds=seconds, limit=windows, start_ns=start_ns)
    return to_profile(*collected(window, seconds, on_window, each))


def collected(
    window: Window,
    seconds: float,
    on_window: Callable[[Window], object],
    each: Callable[[], object],
) -> tuple[Capture, tuple[str, ...]]:
    """What an open window holds after so long, and what is to be said of that.

    Closes it, whatever is raised.
    """
    try:
        on_window(window)
        complete = window.wait(seconds, each)
    finally:
        capture = window.close()
    return capture, () if complete else ("ended early",)


def to_profile(capture: Capture, notes: tuple[str, ...] = ()) -> Profile:
    """A capture as a profile: labels resolved, equal rows added up."""
    breathe = Breath()
    frames = [Frame(*frame) for frame in capture.frames]
    stacks = _stacks(capture, len(frames), breathe)
    numbers, label_sets = _labels_by_serial(capture, breathe)
    # Numbers only, so that the garbage collector has nothing to visit.
    counts: dict[int, int] = {}
    times_ns: dict[int, int] = {}
    sets = len(label_sets)
    for stack, serial, count, ns in capture.rows:
        key = stack * sets + numbers.get(serial, 0)
        counts[key] = counts.get(key, 0) + count
        times_ns[key] = times_ns.get(key, 0) + ns
        breathe()
    samples = Columns([*frames, _CUT], stacks, label_sets, len(SAMPLE_TYPES))
    for key, count in counts.items():
        samples.add(*divmod(key, sets), (count, times_ns[key]))
        breathe()
    return Profile(
        sample_types=SAMPLE_TYPES,
        samples=samples,
        period_type=SAMPLE_TYPES[1],
        period=capture.period_ns,
        time_ns=capture.start_ns,
        duration_ns=capture.duration_ns,
        comments=(
            f"stroboscope: process {os.getpid()}, one worker of its service",
            f"engine: {engine.info().kind}",
            *capture.notes,
            *notes,
        ),
        mapping=f"python{sys.version_info.major}.{sys.version_info.minor}",
    )


def _stacks(capture: Capture, cut: int, breathe: Breath) -> list[tuple[int, ...]]:
    stacks = []
    for stack in capture.stacks:
        is_cut = bool(stack) and stack[-1] == TRUNCATED
        stacks.append((*stack[:-1], cut) if is_cut else stack)
        breathe()
    return stacks


def _labels_by_serial(
    capture: Capture, breathe: Breath
) -> tuple[dict[int, int], list[Labels]]:
    """The number of each serial's label set, and the sets; the first is empty."""
    # The sets stay alive until all are known: their cap holds for the whole profile.
    sets: dict[tuple[LabelSet, str], int] = {(TABLE.empty, ""): 0}
    numbers = {}
    for serial, chain in capture.chains.items():
        key = TABLE.merge(chain), span_of(chain)
        numbers[serial] = sets.setdefault(key, len(sets))
        breathe()
    return numbers, [_with_span(labels.items, span_id) for labels, span_id in sets]


def _with_span(labels: Labels, span_id: str) -> Labels:
    """Under the one key that profile stores keep out of their series."""
    if not span_id:
        return labels
    kept = (pair for pair in labels if pair[0] != "span_id")
    return (*kept, ("span_id", span_id))
