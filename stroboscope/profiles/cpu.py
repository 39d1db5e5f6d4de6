"""The CPU profile: a window of the shared sampler, labelled.

Blocks for as long as it collects; belongs on a thread of ours.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

from stroboscope._core import TRUNCATED, Capture, Window, engine
from stroboscope.formats.profile import Frame, Labels, Profile, Sample, ValueType
from stroboscope.labels import TABLE, LabelSet
from stroboscope.settings import Settings

SAMPLE_TYPES = (ValueType("samples", "count"), ValueType("cpu", "nanoseconds"))
_CUT = Frame("", "[truncated]", 0, 0)
#: Rows between two pauses, about half a millisecond of work.
_STRIDE = 250
_BREATH_S = 0.0001


def breathe() -> None:
    """Let a waiting thread of the application have the GIL."""
    engine.sleep(_BREATH_S)


def collect_cpu(
    seconds: float, settings: Settings, on_window: Callable[[Window], object]
) -> Profile:
    """CPU time by stack and label over `seconds` from now.

    `on_window` gets the open window, to cancel it; a cancelled profile holds what was
    collected until then.
    Raises: WindowsExhausted, EngineUnavailable.
    """
    window = engine.open_window(
        settings.cpu_hz, seconds=seconds, limit=settings.windows
    )
    try:
        on_window(window)
        complete = window.wait(seconds)
    finally:
        capture = window.close()
    notes = () if complete else ("ended early",)
    return to_profile(capture, notes)


def to_profile(capture: Capture, notes: tuple[str, ...] = ()) -> Profile:
    """A capture as a profile: labels resolved, equal rows added up later."""
    frames = [Frame(*frame) for frame in capture.frames]
    stacks = [
        tuple(_CUT if at == TRUNCATED else frames[at] for at in stack)
        for stack in capture.stacks
    ]
    labels = _labels_by_serial(capture)
    samples = []
    for at, (stack, serial, count, ns) in enumerate(capture.rows):
        samples.append(Sample(stacks[stack], (count, ns), labels.get(serial, ())))
        if at % _STRIDE == 0:
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


def _labels_by_serial(capture: Capture) -> dict[int, Labels]:
    # The sets stay alive until all are known: their cap holds for the whole profile.
    resolved: dict[int, LabelSet] = {}
    for at, (serial, chain) in enumerate(capture.chains.items()):
        resolved[serial] = TABLE.merge(chain)
        if at % _STRIDE == 0:
            breathe()
    return {serial: labels.items for serial, labels in resolved.items()}
