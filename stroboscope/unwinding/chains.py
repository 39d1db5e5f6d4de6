"""From a copy of a stack to the C calls on it, by the rules in the libraries' files.

A frame is only believed where the rules lead to it, from the registers and the copy:
where a rule, a value or an address is missing the chain ends, with what was proven.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from stroboscope.unwinding.copies import Copy, Machine
from stroboscope.unwinding.images import Rule
from stroboscope.unwinding.regions import Images, Region, Thing

DEPTH_CAP = 128
_WORD = struct.Struct("<Q")
#: The evaluation loop; from 3.14 a compiler may make a function of each instruction.
_EVALUATION = ("_PyEval_EvalFrameDefault", "_TAIL_CALL_")
#: Stands between the frames that are proven and Python's, where there are more.
UNFOLLOWED = "[not followed]"


class Chain(NamedTuple):
    """Frames, leaf first, by number; whether they end at the evaluation loop."""

    frames: tuple[int, ...]
    is_whole: bool


class _Place(NamedTuple):
    frame: int
    rule: Rule | None
    is_evaluation: bool


class Unwinder:
    """Follows copies of one process; keeps what it found out about its code.

    `frames` are (thing, address in it, name) and `things` what they are of, both by
    number.
    """

    def __init__(self, machine: Machine, images: Images) -> None:
        self.frames: list[tuple[int, int, str]] = []
        self.things: list[Thing] = []
        self._machine = machine
        self._images = images
        self._places: dict[int, _Place | None] = {}
        self._frame_numbers: dict[tuple[int, int, str], int] = {}
        self._thing_numbers: dict[Thing, int] = {}
        self._regions: dict[int, set[Region]] = {}

    def update(self, regions: list[Region]) -> None:
        """What is mapped from now on."""
        self._images.update(regions)
        self._places.clear()

    def knows(self, copy: Copy) -> bool:
        """Whether its leaf is in code that is known to be mapped."""
        return self._images.region_at(copy.registers[-1]) is not None

    def follow(self, copy: Copy) -> Chain:
        """The calls on a copy, from the leaf to the evaluation loop, without it."""
        machine = self._machine
        registers = dict(enumerate(copy.registers))
        begin = last = registers[machine.stack_pointer]
        last += machine.call_bytes - 1
        at = copy.registers[-1] & machine.code_mask
        frames: list[int] = []
        while len(frames) < DEPTH_CAP:
            place = self._place_at(at)
            if place is None:
                break
            rule = place.rule
            cfa = rule.frame_address(registers) if rule else None
            is_entered = bool(copy.entry) and cfa is not None and cfa > copy.entry
            if place.is_evaluation or is_entered:
                return Chain(tuple(frames), True)
            frames.append(place.frame)
            if cfa is None or rule is None or cfa <= last:
                break
            registers = self._callers(rule, cfa, registers, copy.stack, begin)
            returns = registers.pop(rule.returns, 0) & machine.code_mask
            registers[machine.stack_pointer] = last = cfa
            registers.pop(machine.registers - 1, None)  # only the leaf's is exact
            at = returns - 1  # a call may be a function's last instruction
        return Chain(tuple(frames), False)

    def gone(self, regions: list[Region]) -> set[int]:
        """The things of which something is mapped no more, or elsewhere, in the end."""
        left = set(regions)
        return {thing for thing, all_ in self._regions.items() if not all_ <= left}

    def _callers(
        self,
        rule: Rule,
        cfa: int,
        registers: dict[int, int],
        stack: bytes,
        begin: int,
    ) -> dict[int, int]:
        """The registers as the caller has them, as far as they can be told."""
        kept = self._machine.kept
        if rule.returns != self._machine.registers - 1:
            kept |= {
                rule.returns
            }  # a register, which holds it until somebody is called
        found = {
            number: value
            for number, value in registers.items()
            if number in kept and number not in rule.lost
        }
        for number, offset in rule.saved:
            at = cfa + offset - begin
            if 0 <= at <= len(stack) - _WORD.size:
                (found[number],) = _WORD.unpack_from(stack, at)
            else:
                found.pop(number, None)
        return found

    def _place_at(self, address: int) -> _Place | None:
        if address not in self._places:
            self._places[address] = self._found(address)
        return self._places[address]

    def _found(self, address: int) -> _Place | None:
        region = self._images.region_at(address)
        if region is None:
            return None
        thing = self._images.thing_of(region)
        number = self._thing_numbers.setdefault(thing, len(self.things))
        if number == len(self.things):
            self.things.append(thing)
        self._regions.setdefault(number, set()).add(region)
        image = self._images.image_of(region)
        offset = address - region.start + region.offset
        own = image.address_of(offset) if image else offset
        if own is None:
            return None
        if image is None:
            name, begin, rule = "", own, None
        else:
            begin, name = image.function_at(own)
            rule = image.rule_at(own)
        if not region.path:
            begin = region.offset  # code that was made here has no name that lasts
        base = thing.start - (image.code[0] if image else region.offset)
        key = number, base + begin, name or _unnamed(thing, begin)
        frame = self._frame_numbers.setdefault(key, len(self.frames))
        if frame == len(self.frames):
            self.frames.append(key)
        return _Place(frame, rule, name.startswith(_EVALUATION))


def _unnamed(thing: Thing, begin: int) -> str:
    """What is known of a function without a name: where its library has it."""
    if not thing.path.startswith("/"):
        return f"{thing.path}"
    return f"{thing.path.rpartition('/')[2]}+{begin:#x}"
