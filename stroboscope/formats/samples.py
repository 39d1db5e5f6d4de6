"""The newest samples of a process as its signal handler leaves them in a file.

Source: `_core/src/samples.h`. Whoever wrote may be writing still, be dead or of another
version: what does not add up is no sample.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from stroboscope.formats.profile import Frame

MAGIC = b"SBSAMP01"
_HEAD = struct.Struct("=8sIIII")
_SLOT = struct.Struct("=QQQQQIIII")
_FRAME = struct.Struct("=IBB")
_CUT, _HOLDER, _MAIN = 1, 2, 4
_SLOTS_CAP, _BYTES_CAP = 1024, 1 << 16
_FNV_START, _FNV_PRIME, _WORD = 0xCBF29CE484222325, 0x100000001B3, (1 << 64) - 1


@dataclass(frozen=True, slots=True)
class Left:
    """A thread at one moment: `time_ns` of the monotonic clock, which a host shares.

    `endpoint` is empty where it was not known; `serial` is the label cell's, 0 for none.
    Frames are leaf first and hold the ends of long names.
    """

    time_ns: int
    serial: int
    ident: int
    tid: int
    is_main: bool
    is_holder: bool
    endpoint: str
    frames: tuple[Frame, ...]


def parse(raw: bytes) -> list[Left]:
    """What is whole in a file, newest first; nothing where it is no such file."""
    if len(raw) < _HEAD.size:
        return []
    magic, slot_bytes, slots, _, _ = _HEAD.unpack_from(raw)
    if (
        magic != MAGIC
        or slots > _SLOTS_CAP
        or not _SLOT.size < slot_bytes <= _BYTES_CAP
    ):
        return []
    starts = range(slot_bytes, min((slots + 1) * slot_bytes, len(raw)), slot_bytes)
    found = [_sample(raw[at : at + slot_bytes]) for at in starts]
    return sorted((one for one in found if one), key=lambda one: -one.time_ns)


def _sample(slot: bytes) -> Left | None:
    if len(slot) < _SLOT.size:
        return None
    sequence, checksum, time_ns, serial, ident, tid, flags, depth, length = (
        _SLOT.unpack_from(slot)
    )
    end = _SLOT.size + length
    if sequence == 0 or sequence % 2 or end > len(slot):
        return None
    if checksum != _checksum(slot[16:end]):
        return None
    shown = slot[_SLOT.size]
    at = _SLOT.size + 1 + shown
    endpoint = slot[at - shown : at].decode("ascii", "replace")
    frames: list[Frame] = []
    while len(frames) < depth and at + _FRAME.size <= end:
        line, name, file = _FRAME.unpack_from(slot, at)
        at += _FRAME.size
        function = slot[at : at + name].decode("ascii", "replace")
        path = slot[at + name : at + name + file].decode("ascii", "replace")
        frames.append(Frame(path, function, 0, line))
        at += name + file
    if flags & _CUT:
        frames.append(Frame("", "[truncated]", 0, 0))
    return Left(
        time_ns,
        serial,
        ident,
        tid,
        bool(flags & _MAIN),
        bool(flags & _HOLDER),
        endpoint,
        tuple(frames),
    )


def _checksum(data: bytes) -> int:
    total = _FNV_START
    for byte in data:
        total = (total ^ byte) * _FNV_PRIME & _WORD
    return total
