"""Go's text forms of profiles, for people: `debug=1` and `debug=2`."""

from __future__ import annotations

import json

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


def blocks(stacks: list[tuple[str, Labels, tuple[Frame, ...]]]) -> str:
    """`debug=2`: a block per thread and task, as a panic prints goroutines."""
    out = []
    for heading, labels, frames in stacks:
        out.append(f"{heading}:\n{_labels(labels)}")
        out += [f"{f.function}()\n\t{f.file}:{f.line}\n" for f in frames]
        out.append("\n")
    return "".join(out)


def _amount(values: tuple[int, ...]) -> str:
    """As Go prints them: delay and number; of memory what is in use, in brackets all."""
    if len(values) < 4:
        return " ".join(map(str, reversed(values)))
    alloc_objects, alloc_bytes, inuse_objects, inuse_bytes = values
    return f"{inuse_objects}: {inuse_bytes} [{alloc_objects}: {alloc_bytes}]"


def _labels(labels: Labels) -> str:
    return f"# labels: {json.dumps(dict(labels))}\n" if labels else ""


def _place(frame: Frame) -> str:
    return f"{frame.function}+0x0\t{frame.file}:{frame.line}"
