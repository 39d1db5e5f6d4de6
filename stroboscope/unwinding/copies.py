"""Copies of C stacks as the engine hands them out, one behind the other.

Source: `copy_head` of `_core/src/copies.c`, and `machine.h` beside it.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import NamedTuple

_MASK = (1 << 64) - 1


class Machine(NamedTuple):
    """What unwinding must know of a processor; registers by DWARF's numbers.

    `registers` come with a copy, the program counter last. `kept` are those a function
    gives back as it found them. `call_bytes` is what a call puts on the stack.
    `code_mask` are the bits of an address of code: others may sign it.
    """

    registers: int
    stack_pointer: int
    kept: frozenset[int]
    call_bytes: int
    code_mask: int


#: By the name the engine gives. Source: the ABIs of both, and of AArch64 its 48-bit
#: addresses of user space, above which pointer authentication has its bits.
MACHINES = {
    "x86_64": Machine(17, 7, frozenset((3, 6, 12, 13, 14, 15)), 8, _MASK),
    "aarch64": Machine(33, 31, frozenset(range(19, 30)), 0, (1 << 48) - 1),
}


class Copy(NamedTuple):
    """A stack from its pointer up; `entry` is in the evaluation loop's frame, or 0."""

    number: int
    entry: int
    registers: tuple[int, ...]
    stack: bytes


def read(block: bytes, machine: Machine) -> Iterator[Copy]:
    """The copies in a block. Raises: ValueError where it ends inside of one."""
    head = struct.Struct(f"<2I{1 + machine.registers}Q")
    at = 0
    while at < len(block):
        if at + head.size > len(block):
            raise ValueError("a copy without its head")
        number, length, entry, *registers = head.unpack_from(block, at)
        at += head.size
        if at + length > len(block):
            raise ValueError("a copy without its end")
        yield Copy(number, entry, tuple(registers), block[at : at + length])
        at += length


def written(copy: Copy) -> bytes:
    """The bytes of one: what `read` reads."""
    count = 1 + len(copy.registers)
    head = (copy.number, len(copy.stack), copy.entry, *copy.registers)
    return struct.pack(f"<2I{count}Q", *head) + copy.stack
