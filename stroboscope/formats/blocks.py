"""A recorder's block cut to fewer events: its last ones, or its first.

Nothing of a block is believed here: one that contradicts itself comes back as it is, for
the reader to refuse.
Source: sb_box, sb_task_row and sb_event in `_core/src/box.h`.
"""

from __future__ import annotations

import struct

from stroboscope._core import recording

_STEP, _TASK_BYTES = recording.EVENT_BYTES, 64
#: Offsets of words: the block's bytes; where tasks are, and how many; the same of events;
#: when the recording ends; how many events ever were.
_BYTES, _TASKS, _EVENTS, _END, _HEAD = 16, 56, 104, 152, 384
_PAIR, _WORD = struct.Struct("<QQ"), struct.Struct("<Q")
_KIND = 8
#: The kind of event whose time is none.
_TRACE_ID = 5


def last_events(block: bytes, events: int) -> bytes:
    """The block with so many events, a power of two, the last, if it holds more."""
    at, room, head = _layout(block)
    if room <= events:
        return block
    cut = bytearray(block[:at] + bytes(events * _STEP))
    first = max(0, head - events)
    while first < head:  # in pieces that end at neither ring's edge
        last = min(head, first - first % events + events)
        place, source = at + first % events * _STEP, at + first % room * _STEP
        length = (last - first) * _STEP
        cut[place : place + length] = block[source : source + length]
        first = last
    _WORD.pack_into(cut, _BYTES, len(cut))
    _WORD.pack_into(cut, _EVENTS + 8, events)
    return bytes(cut)


def first_events(block: bytes, events: int) -> bytes:
    """A capture's block with at most so many events, the first.

    It ends with the last of them. Which tasks lived at the end is of another moment then,
    and is left out: those that have not ended are open.
    """
    at, room, head = _layout(block)
    if head > room or head <= events or events < 1:
        return block
    cut = bytearray(block[: at + events * _STEP])
    tasks_at, tasks = _PAIR.unpack_from(cut, _TASKS)
    tasks_end = min(at, tasks_at + tasks * _TASK_BYTES)
    if tasks_at < tasks_end:
        cut[tasks_at:tasks_end] = bytes(tasks_end - tasks_at)
    last = events - 1
    while last and cut[at + last * _STEP + _KIND] == _TRACE_ID:
        last -= 1
    cut[_END : _END + 8] = cut[at + last * _STEP : at + last * _STEP + 8]
    _WORD.pack_into(cut, _BYTES, len(cut))
    _WORD.pack_into(cut, _EVENTS + 8, events)
    _WORD.pack_into(cut, _HEAD, events)
    return bytes(cut)


def _layout(block: bytes) -> tuple[int, int, int]:
    """Where events are, how many fit and how many ever were; zeros for no block."""
    if len(block) < _HEAD + 8:
        return 0, 0, 0
    at, room = _PAIR.unpack_from(block, _EVENTS)
    if at + room * _STEP > len(block):
        return 0, 0, 0
    return at, room, _WORD.unpack_from(block, _HEAD)[0]
