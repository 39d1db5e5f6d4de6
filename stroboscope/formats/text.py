"""Go's text forms of profiles, for people: `debug=1` and `debug=2`."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from typing import NamedTuple

from stroboscope.formats.pprof import stable_address
from stroboscope.formats.profile import Frame, Labels, Profile, columns

#: What Go prints above the samples; `{}` is the sum of the values.
_HEADS = {
    "goroutine": "goroutine profile: total {}\n",
    "threadcreate": "threadcreate profile: total {}\n",
    "heap": "heap profile: {} @ heap/{}\n",
    "allocs": "heap profile: {} @ heap/{}\n",
    "mutex": "--- mutex:\ncycles/second=1000000000\nsampling period={fraction}\n",
    "block": "--- contention:\ncycles/second=1000000000\n",
}


def counts(name: str, profile: Profile, mutex_fraction: int = 0) -> str:
    """`debug=1`: counts, addresses, labels and places, heaviest first.

    `mutex_fraction` stands in the head of the mutex profile.
    """
    table = columns(profile.samples, len(profile.sample_types))
    totals = tuple(sum(column) for column in table.values)
    # Go prints twice the rate, which old readers of this form expect.
    out = [
        _HEADS.get(name, "").format(
            _amount(totals), 2 * profile.period, fraction=mutex_fraction
        )
    ]
    order = sorted(range(len(table)), key=lambda at: -table.values[-1][at])
    for at in order:
        stack, values, labels = table[at]
        addresses = " ".join(f"{stable_address(frame):#x}" for frame in stack)
        out.append(f"{_amount(values)} @ {addresses}\n{_labels(labels)}")
        out += [f"#\t{stable_address(frame):#x}\t{_place(frame)}\n" for frame in stack]
        out.append("\n")
    return "".join(out)


class Block(NamedTuple):
    """What `blocks` prints of one thread, task or greenlet; frames leaf first."""

    kind: str
    name: str
    state: str
    age_s: float | None
    labels: Labels
    frames: tuple[Frame, ...]


def blocks(
    stacks: Iterable[Block], breathe: Callable[[], object] = lambda: None
) -> str:
    """`debug=2`: a block for each, as a Go panic prints goroutines.

    Where Go has `goroutine 7 [select, 3 minutes]:` there is the kind, the name, what it
    waits for and its age. `breathe` is called for each.
    """
    out = []
    # Equal stacks are one object, and most of a text of thousands of blocks.
    written: dict[int, str] = {}
    for kind, name, state, age_s, labels, frames in stacks:
        about = ", ".join(filter(None, (state, _age(age_s))))
        out.append(f'{kind} "{name}" [{about or "unknown"}]:\n{_labels(labels)}')
        known = written.get(id(frames))
        if known is None:
            known = written[id(frames)] = "".join(
                f"{f.function}()\n\t{f.file}:{f.line}\n" for f in frames
            )
        out.append(known + "\n")
        breathe()
    return "".join(out)


def _amount(values: tuple[int, ...]) -> str:
    """As Go prints them: delay and number; of memory what is in use, in brackets all."""
    if len(values) < 4:
        return " ".join(map(str, reversed(values)))
    alloc_objects, alloc_bytes, inuse_objects, inuse_bytes = values
    return f"{inuse_objects}: {inuse_bytes} [{alloc_objects}: {alloc_bytes}]"


def _age(age_s: float | None) -> str:
    """Whole minutes, as Go says it; seconds below one."""
    if age_s is None or age_s < 1:
        return ""
    if age_s < 60:
        return f"{age_s:.0f} seconds"
    return f"{age_s // 60:.0f} minutes"


def _labels(labels: Labels) -> str:
    return f"# labels: {json.dumps(dict(labels))}\n" if labels else ""


def _place(frame: Frame) -> str:
    return f"{frame.function}+0x0\t{frame.file}:{frame.line}"
