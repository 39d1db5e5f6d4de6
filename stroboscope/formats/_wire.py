"""The little of Protocol Buffers that pprof needs.

Source: protobuf.dev, "Encoding": varints, length-delimited fields, packed numbers.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from stroboscope.errors import ProfileFormatError

VARINT = 0
FIXED64 = 1
BYTES = 2
FIXED32 = 5
_MASK64 = (1 << 64) - 1


def varint(value: int) -> bytes:
    """A varint; negative numbers as 64-bit two's complement."""
    if 0 <= value < 0x80:
        return _SMALL[value]
    value &= _MASK64
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


_SMALL = [bytes([value]) for value in range(0x80)]


def number(field: int, value: int) -> bytes:
    """A varint field; nothing for zero, which is the default."""
    return varint(field << 3 | VARINT) + varint(value) if value else b""


def block(field: int, payload: bytes) -> bytes:
    """A length-delimited field, written even when empty."""
    return varint(field << 3 | BYTES) + varint(len(payload)) + payload


def packed(field: int, values: Iterable[int]) -> bytes:
    """Repeated numbers in one block; nothing for none."""
    payload = b"".join(map(varint, values))
    return block(field, payload) if payload else b""


def read_varint(data: bytes, at: int) -> tuple[int, int]:
    """The number and the offset behind it. Raises: ProfileFormatError."""
    result = shift = 0
    while True:
        if at >= len(data) or shift > 63:
            raise ProfileFormatError("a number is cut off or too long")
        byte = data[at]
        at += 1
        result |= (byte & 0x7F) << shift
        if byte < 0x80:
            return result & _MASK64, at
        shift += 7


def signed(value: int) -> int:
    """A varint read as int64."""
    return value - (1 << 64) if value >> 63 else value


def fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Every (field number, value) of a message. Raises: ProfileFormatError."""
    at = 0
    while at < len(data):
        tag, at = read_varint(data, at)
        kind = tag & 7
        if kind == VARINT:
            value, at = read_varint(data, at)
            yield tag >> 3, value
            continue
        if kind == BYTES:
            size, at = read_varint(data, at)
        elif kind in (FIXED64, FIXED32):
            size = 8 if kind == FIXED64 else 4
        else:
            raise ProfileFormatError(f"unknown wire type {kind}")
        if at + size > len(data):
            raise ProfileFormatError("a field is cut off")
        yield tag >> 3, data[at : at + size]
        at += size


def numbers(value: int | bytes) -> list[int]:
    """A repeated number field's values, packed or single."""
    if isinstance(value, int):
        return [value]
    out = []
    at = 0
    while at < len(value):
        item, at = read_varint(value, at)
        out.append(item)
    return out
