"""Go's text forms of profiles, for people: `debug=1` and `debug=2`."""

from __future__ import annotations

import json

from stroboscope.formats.pprof import stable_address
from stroboscope.formats.profile import Frame, Labels, Profile, columns

#: What Go prints above the samples; `{}` is the sum of the last value.
_HEADS = {
    "goroutine": "goroutine profile: total {}\n",
    "threadcreate": "threadcreate profile: total {}\n",
    "heap": "heap profile: 0: 0 [0: 0] @ heap/1048576\n",
    "allocs": "heap profile: 0: 0 [0: 0] @ heap/1048576\n",
    "mutex": "--- mutex:\ncycles/second=1000000000\nsampling period=0\n",
    "block": "--- contention:\ncycles/second=1000000000\n",
}


def counts(name: str, profile: Profile) -> str:
    """`debug=1`: counts, addresses, labels and places, heaviest first."""
    table = columns(profile.samples, len(profile.sample_types))
    out = [_HEADS[name].format(profile.total())]
    order = sorted(range(len(table)), key=lambda at: -table.values[-1][at])
    for at in order:
        stack, values, labels = table[at]
        addresses = " ".join(f"{stable_address(frame):#x}" for frame in stack)
        out.append(f"{values[-1]} @ {addresses}\n{_labels(labels)}")
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


def _labels(labels: Labels) -> str:
    return f"# labels: {json.dumps(dict(labels))}\n" if labels else ""


def _place(frame: Frame) -> str:
    return f"{frame.function}+0x0\t{frame.file}:{frame.line}"
