"""The CPU profile whose stacks go on into C, with the labels of any other.

The samples, their labels and their sums are those of the plain profile. Beside each
the engine copies the C stack above the evaluation loop; what is found on it goes on top
of the sample's Python frames. Blocks for as long as it collects; belongs on a thread of
ours.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace

from stroboscope._core import Capture, Window, engine
from stroboscope._core.capture import Row
from stroboscope._core.flat import FlatStacks
from stroboscope.formats.profile import Mapping, Profile
from stroboscope.profiles.breath import Breath
from stroboscope.profiles.cpu import collected, to_profile
from stroboscope.profiles.native_frames import ANSWER_S_CAP, Unwinding
from stroboscope.unwinding.messages import Answer

#: Samples of one capture that may have native frames: those of ten busy threads for a
#: minute. Later ones have their Python frames.
SAMPLES_CAP = 60_000


def collect_native_cpu(
    seconds: float,
    on_window: Callable[[Window], object],
    *,
    hz: int = 100,
    windows: int = 4,
    each: Callable[[], object] = lambda: None,
    start_ns: int = 0,
) -> Profile:
    """As `collect_cpu`, with native frames as far as they can be proven.

    Raises: WindowsExhausted, EngineUnavailable; also while another such capture runs.
    """
    unwinding = Unwinding()
    try:
        window = engine.open_window(
            hz,
            seconds=seconds,
            limit=windows,
            moments=SAMPLES_CAP,
            start_ns=start_ns,
            copies=True,
        )

        def look() -> None:
            unwinding.feed(window.copies())
            each()

        capture, notes = collected(window, seconds, on_window, look)
        unwinding.feed(capture.copies)
        found = unwinding.finish(ANSWER_S_CAP)
    finally:
        unwinding.close()
    return continued(capture, found, notes)


def continued(
    capture: Capture, found: Answer | str, notes: tuple[str, ...] = ()
) -> Profile:
    """The profile of a capture, with the frames that were found for its samples."""
    if isinstance(found, str):
        return to_profile(capture, (*notes, f"native frames: none, {found}"))
    profile = to_profile(_joined(capture, found), (*notes, *_said(capture, found)))
    return replace(
        profile, mappings=tuple(Mapping(*thing) for thing in sorted(found.things))
    )


def _said(capture: Capture, found: Answer) -> list[str]:
    """What a reader must know of what is missing."""
    samples = sum(1 for _ in capture.moments)
    unknown = samples + capture.late - found.whole - found.cut - found.unloaded
    notes = [f"native frames: followed to Python in {found.whole} of {samples} samples"]
    for count, text in (
        (found.cut, f"followed in part, then [not followed]: {found.cut}"),
        (found.unloaded, f"of a library unloaded meanwhile: {found.unloaded}"),
        (unknown, f"not copied or not followed in time: {unknown}"),
    ):
        if count > 0:
            notes.append(f"native frames: {text}")
    return notes


def _joined(capture: Capture, found: Answer) -> Capture:
    """With the samples of a row that have native frames as rows of their own."""
    breathe = Breath()
    pairs = iter(found.chain_of)
    chain_of = {
        number: chain
        for number, chain in zip(pairs, pairs, strict=True)
        if found.chains[chain]
    }
    moved: dict[tuple[int, int], Counter[int]] = {}
    for moment in capture.moments:
        chain = chain_of.get(moment.copy)
        if chain is not None:
            counts = moved.setdefault((moment.stack, moment.serial), Counter())
            counts[chain] += moment.weight
        breathe()
    frames = [
        *capture.frames,
        *((path, name, 0, 0, at) for path, name, at in found.frames),
    ]
    stacks = _Stacks(capture, found)
    rows: list[Row] = []
    for stack, serial, count, ns in capture.rows:
        for chain, weight, share_ns in _shares(
            moved.get((stack, serial), Counter()), count, ns
        ):
            rows.append((stacks.number(chain, stack), serial, weight, share_ns))
        breathe()
    return replace(capture, frames=frames, stacks=stacks.made, rows=rows)


def _shares(
    chains: Counter[int], count: int, ns: int
) -> list[tuple[int | None, int, int]]:
    """A row's samples and time by chain, None for those without; the sums stay."""
    left, left_ns = count, ns
    shares: list[tuple[int | None, int, int]] = []
    for chain, weight in chains.items():
        weight = min(weight, left)
        share_ns = left_ns * weight // left if left else 0
        shares.append((chain, weight, share_ns))
        left, left_ns = left - weight, left_ns - share_ns
    if left or left_ns:
        shares.append((None, left, left_ns))
    return shares


class _Stacks:
    """Stacks of native frames on Python's, each once."""

    def __init__(self, capture: Capture, found: Answer) -> None:
        self.made = FlatStacks()
        self._numbers: dict[tuple[int | None, int], int] = {}
        self._capture = capture
        self._found = found

    def number(self, chain: int | None, stack: int) -> int:
        known = self._numbers.get((chain, stack))
        if known is not None:
            return known
        first = len(self._capture.frames)
        on_top = (
            [first + at for at in self._found.chains[chain]]
            if chain is not None
            else []
        )
        self.made.append([*on_top, *self._capture.stacks[stack]])
        self._numbers[chain, stack] = len(self.made) - 1
        return len(self.made) - 1
