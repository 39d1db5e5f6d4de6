"""Go's text forms of profiles, for people: `debug=1` and `debug=2`."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from typing import NamedTuple

from stroboscope.formats.pprof import stable_address
from stroboscope.formats.profile import Frame, Labels, Profile, columns

#: Of one text: what is beyond is counted in its last line.
BYTES_CAP = 32 << 20
#: What Go prints above the samples; `{}` is the sum of the values.
_HEADS = {
    "goroutine": "goroutine profile: total {}\n",
    "threadcreate": "threadcreate profile: total {}\n",
    "heap": "heap profile: {} @ heap/{}\n",
    "allocs": "heap profile: {} @ heap/{}\n",
    "mutex": "--- mutex:\ncycles/second=1000000000\nsampling period={fraction}\n",
    "block": "--- contention:\ncycles/second=1000000000\n",
}


def _no_breath() -> None:
    pass


def counts(
    name: str,
    profile: Profile,
    mutex_fraction: int = 0,
    breathe: Callable[[], object] = _no_breath,
) -> str:
    """`debug=1`: counts, addresses, labels and places, heaviest first.

    `mutex_fraction` stands in the head of the mutex profile. `breathe` is called for
    each sample; beyond `BYTES_CAP` the lightest are summed up.
    """
    table = columns(profile.samples, len(profile.sample_types))
    totals = tuple(sum(column) for column in table.values)
    # Go prints twice the rate, which old readers of this form expect.
    out = _Bounded(
        _HEADS.get(name, "").format(
            _amount(totals), 2 * profile.period, fraction=mutex_fraction
        )
    )
    rest = [0] * len(totals)
    written: dict[int, tuple[str, str]] = {}
    order = sorted(range(len(table)), key=lambda at: -table.values[-1][at])
    for at in order:
        breathe()
        values = tuple(column[at] for column in table.values)
        if out.is_full:
            rest = [a + b for a, b in zip(rest, values, strict=True)]
            out.left_out += 1
            continue
        stack = table.stack_of[at]
        known = written.get(stack)
        if known is None:
            frames = [table.frames[place] for place in table.stacks[stack]]
            known = written[stack] = _addresses(frames)
        labels = _labels(table.label_sets[table.labels_of[at]])
        out.add(f"{_amount(values)} @ {known[0]}\n{labels}{known[1]}\n")
    if out.left_out:
        out.end(f"{_amount(tuple(rest))} @\n#\t[truncated]: {out.left_out} more\n")
    return out.text()


class Block(NamedTuple):
    """What is printed of one thread, task or greenlet; frames leaf first."""

    kind: str
    name: str
    state: str
    age_s: float | None
    labels: Labels
    frames: tuple[Frame, ...]


def blocks(stacks: Iterable[Block], breathe: Callable[[], object] = _no_breath) -> str:
    """`debug=2`: a block for each, as a Go panic prints goroutines.

    Where Go has `goroutine 7 [select, 3 minutes]:` there is the kind, the name, what it
    waits for and its age. `breathe` is called for each; `BYTES_CAP` bounds it.
    """

    def head(one: Block) -> str:
        age = _age(one.age_s)
        about = f"{one.state}, {age}" if one.state and age else one.state or age
        return f'{one.kind} "{one.name}" [{about or "unknown"}]:\n'

    def body(labels: Labels, frames: tuple[Frame, ...]) -> str:
        places = (f"{f.function}()\n\t{f.file}:{f.line}\n" for f in frames)
        return f"{_labels(labels)}{''.join(places)}\n"

    return _each(stacks, head, body, breathe)


def lines(stacks: Iterable[Block], breathe: Callable[[], object] = _no_breath) -> str:
    """The same in fewer lines, a place each, for `/debug/stacks`."""

    def head(one: Block) -> str:
        age = "" if one.age_s is None else f"{one.age_s:.0f} s"
        labels = " ".join(f"{key}={value}" for key, value in one.labels)
        return " ".join(filter(None, (one.kind, one.name, one.state, age, labels)))

    def body(labels: Labels, frames: tuple[Frame, ...]) -> str:
        del labels
        places = (f"    {f.function} {f.file}:{f.line}\n" for f in frames)
        return f"\n{''.join(places)}\n"

    return _each(stacks, head, body, breathe)


def _each(
    stacks: Iterable[Block],
    head: Callable[[Block], str],
    body: Callable[[Labels, tuple[Frame, ...]], str],
    breathe: Callable[[], object],
) -> str:
    out = _Bounded()
    # Equal stacks are one object, and most of a text of thousands of blocks. What is
    # known by its address is kept.
    written: dict[tuple[int, int], tuple[str, Block]] = {}
    for one in stacks:
        breathe()
        if out.is_full:
            out.left_out += 1
            continue
        key = (id(one.labels), id(one.frames))
        known = written.get(key)
        if known is None:
            known = written[key] = body(one.labels, one.frames), one
        out.add(head(one), known[0])
    if out.left_out:
        out.end(f"[truncated]: {out.left_out} more\n")
    return out.text()


class _Bounded:
    """Text that takes no more once it has `BYTES_CAP` characters."""

    def __init__(self, head: str = "") -> None:
        self.left_out = 0
        self._parts = [head]
        self._room = BYTES_CAP

    @property
    def is_full(self) -> bool:
        return self._room < 0

    def add(self, *parts: str) -> None:
        self._parts += parts
        self._room -= sum(map(len, parts))

    def end(self, line: str) -> None:
        self._parts.append(line)

    def text(self) -> str:
        return "".join(self._parts)


def _addresses(frames: Iterable[Frame]) -> tuple[str, str]:
    """A stack's addresses in one line, and its places in one each."""
    found = [(f"{stable_address(frame):#x}", frame) for frame in frames]
    shown = "".join(f"#\t{address}\t{_place(frame)}\n" for address, frame in found)
    return " ".join(address for address, _ in found), shown


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
