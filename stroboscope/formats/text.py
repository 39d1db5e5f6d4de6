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
    "mutex": "--- mutex:\ncycles/second=1000000000\nsampling period=0\n",
    "block": "--- contention:\ncycles/second=1000000000\n",
}


def counts(name: str, profile: Profile) -> str:
    """`debug=1`: counts, addresses, labels and places, heaviest first."""
    table = columns(profile.samples, len(profile.sample_types))
    totals = tuple(sum(column) for column in table.values)
    # Go prints twice the rate, which old readers of this form expect.
    out = [_HEADS.get(name, "").format(_amount(totals), 2 * profile.period)]
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
    """Of memory what is in use and, in brackets, all there was; else the last value."""
    if len(values) < 4:
        return str(values[-1])
    alloc_objects, alloc_bytes, inuse_objects, inuse_bytes = values
    return f"{inuse_objects}: {inuse_bytes} [{alloc_objects}: {alloc_bytes}]"


def _labels(labels: Labels) -> str:
    return f"# labels: {json.dumps(dict(labels))}\n" if labels else ""


def _place(frame: Frame) -> str:
    return f"{frame.function}+0x0\t{frame.file}:{frame.line}"
