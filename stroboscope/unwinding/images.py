"""A library's file: where its functions are, how they are called, how to leave them.

Addresses in here are the file's own, before it is loaded somewhere. pyelftools reads
the format; of a table that may have ten thousand entries only those that are asked for
are decoded. Source: System V ABI; Linux Standard Base, sections .eh_frame and
.eh_frame_hdr.
"""

from __future__ import annotations

import operator
import re
import struct
from array import array
from bisect import bisect_right
from collections.abc import Callable
from io import BytesIO
from typing import Any, BinaryIO, NamedTuple

from elftools.common.exceptions import DWARFError, ELFError, ELFParseError
from elftools.construct.core import ConstructError
from elftools.dwarf.callframe import FDE, CallFrameInfo, RegisterRule
from elftools.dwarf.dwarf_expr import DWARFExprParser
from elftools.dwarf.structs import DWARFStructs
from elftools.elf.elffile import ELFFile
from elftools.elf.segments import NoteSegment

#: What reading a file that is not as it should be may raise.
BROKEN = (
    *(ELFError, ELFParseError, DWARFError, ConstructError, OSError, struct.error),
    *(ValueError, KeyError, IndexError, AssertionError, AttributeError, TypeError),
    *(UnicodeError, RecursionError, OverflowError, MemoryError),
)
#: pyelftools' names of the processors we know.
_MACHINES = {"x64": "x86_64", "AArch64": "aarch64"}
_PAGE = 4096
_MASK = (1 << 64) - 1
_LITERAL, _REGISTER = re.compile(r"DW_OP_lit(\d+)"), re.compile(r"DW_OP_breg(\d+)")
_OPERATIONS: dict[str, Callable[[int, int], int]] = {
    "DW_OP_and": operator.and_,
    "DW_OP_plus": operator.add,
    "DW_OP_ge": lambda left, right: int(left >= right),
    "DW_OP_shl": lambda left, right: left << (right & 63),
}
#: Stubs through which one library calls another's functions.
_STUBS = ".plt"
_EXECUTABLE = 1
#: Symbols that are functions: STT_FUNC and STT_GNU_IFUNC.
_FUNCTIONS = (2, 10)
_SYMBOL = struct.Struct("<IBBHQQ")
#: The one encoding of the search table that linkers write: version 1, a pointer from
#: here in 32 bits, a count, and pairs of 32 bits from the table's begin.
_SEARCH_TABLE = b"\x01\x1b\x03\x3b"
_SYMBOLS_CAP, _NAME_CAP = 2_000_000, 512
_FDES_CAP = 1_000_000
#: An entry of unwinding rules is some dozens of bytes; a huge function's is some KiB.
_ENTRY_CAP = 1 << 20


class Rule(NamedTuple):
    """How to find the caller of a function that stands at some instruction.

    The canonical frame address, which the stack pointer has in the caller, is `offset`
    from a `register`, or what an `expression` of (operation, argument) computes; `saved` are registers and where, from that address, the caller's
    values are; `lost` are those that cannot be told. `returns` is the number that
    stands for the return address.
    """

    register: int
    offset: int
    saved: tuple[tuple[int, int], ...]
    lost: frozenset[int]
    returns: int
    expression: tuple[tuple[str, int], ...] = ()

    def frame_address(self, registers: dict[int, int]) -> int | None:
        """The canonical frame address; None where it cannot be told."""
        if self.expression:
            return _computed(self.expression, registers)
        base = registers.get(self.register)
        return None if base is None else base + self.offset & _MASK


class Entry(NamedTuple):
    """The rules of a function: for each begin of a stretch of it one, or None."""

    begin: int
    end: int
    starts: list[int]
    rules: list[Rule | None]

    def rule_at(self, address: int) -> Rule | None:
        """The rule of the stretch that an address is in."""
        at = bisect_right(self.starts, address) - 1
        return self.rules[at] if at >= 0 else None


class Image:
    """One file. Raises one of `BROKEN` where it is no library or program of ours."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        elf = ELFFile(stream)
        if elf.elfclass != 64 or not elf.little_endian:
            raise ValueError("neither of 64 bits nor little-endian")
        self.machine = _MACHINES.get(elf.get_machine_arch(), "")
        self._segments: list[tuple[int, int, int]] = []
        self._codes: list[tuple[int, int, int]] = []
        self.build_id = ""
        self._table = array("i")
        self._table_at = 0
        self._entries: dict[int, Entry | None] = {}
        self._read_segments(elf)
        offset, size, address = self._codes[0]
        cut = address % _PAGE
        #: Of its code: first address, size, and where that is in the file.
        self.code = (address - cut, size + cut, offset - cut)
        self._symbols: list[tuple[int, int, int]] = []
        self._names = b""
        self._read_symbols(elf)
        self._begins = [symbol[0] for symbol in self._symbols]
        self._stubs = [
            (section["sh_addr"], section["sh_size"])
            for section in elf.iter_sections()
            if section.name.startswith(_STUBS)
        ]

    def address_of(self, file_offset: int) -> int | None:
        """The address of the code that is there in the file; None where none is."""
        for offset, size, address in self._codes:
            # A mapping begins at a whole page, which may be before its segment does.
            if offset - offset % _PAGE <= file_offset < offset + size:
                return file_offset - offset + address
        return None

    def function_at(self, address: int) -> tuple[int, str]:
        """Begin and name of the function there; no name where nobody knows it.

        A symbol counts only where it says that it reaches so far, or, without a size,
        where it is in the same entry of the unwinding rules.
        """
        entry = self.entry_at(address)
        at = bisect_right(self._begins, address) - 1
        if at >= 0:
            begin, size, name = self._symbols[at]
            is_same = not size and entry is not None and entry.begin <= begin
            if address < begin + size or is_same:
                return begin, self._name(name)
        for begin, size in self._stubs:
            if begin <= address < begin + size:
                return begin, "[plt]"
        return (entry.begin if entry else address), ""

    def rule_at(self, address: int) -> Rule | None:
        """How to leave the function there; None where its file does not say it."""
        entry = self.entry_at(address)
        return entry.rule_at(address) if entry else None

    def entry_at(self, address: int) -> Entry | None:
        """The rules of the function that an address is in."""
        low, high = 0, len(self._table) // 2
        while low < high:  # the table is pairs, begins at even places
            middle = (low + high) // 2
            if self._table_at + self._table[2 * middle] <= address:
                low = middle + 1
            else:
                high = middle
        if low == 0:
            return None
        where = self._table_at + self._table[2 * low - 1]
        if where not in self._entries:
            try:
                self._entries[where] = self._decode(where)
            except BROKEN:
                self._entries[where] = None
        entry = self._entries[where]
        return entry if entry and entry.begin <= address < entry.end else None

    def _read(self, offset: int, size: int) -> bytes:
        self._stream.seek(offset)
        data = self._stream.read(size)
        if len(data) != size:
            raise ValueError("the file ends before")
        return data

    def _read_segments(self, elf: ELFFile) -> None:
        for segment in elf.iter_segments():
            kind, offset = segment["p_type"], segment["p_offset"]
            size, address = segment["p_filesz"], segment["p_vaddr"]
            if kind == "PT_LOAD":
                self._segments.append((offset, size, address))
                if segment["p_flags"] & _EXECUTABLE:
                    self._codes.append((offset, size, address))
            elif isinstance(segment, NoteSegment):
                for note in segment.iter_notes():
                    if note["n_type"] == "NT_GNU_BUILD_ID":
                        self.build_id = str(note["n_desc"])
            elif kind == "PT_GNU_EH_FRAME" and size > 12:
                self._read_search_table(address, self._read(offset, size))

    def _read_search_table(self, address: int, data: bytes) -> None:
        (count,) = struct.unpack_from("<I", data, 8)
        if data[:4] == _SEARCH_TABLE and count <= min(_FDES_CAP, len(data) // 8):
            self._table = array("i", data[12 : 12 + 8 * count])
            self._table_at = address

    def _read_symbols(self, elf: ELFFile) -> None:
        """Of the full table, or of the one that a stripped file still has."""
        for name in (".symtab", ".dynsym"):
            section = elf.get_section_by_name(name)
            if section is None or section["sh_size"] > _SYMBOLS_CAP * _SYMBOL.size:
                continue
            names = elf.get_section(section["sh_link"])
            rows = _SYMBOL.iter_unpack(
                self._read(section["sh_offset"], section["sh_size"])
            )
            self._symbols = sorted(
                (value, size, text)
                for text, info, _, where, value, size in rows
                if info & 15 in _FUNCTIONS and where
            )
            self._names = self._read(names["sh_offset"], names["sh_size"])
            if self._symbols:
                return

    def _name(self, at: int) -> str:
        end = self._names.find(b"\0", at, at + _NAME_CAP)
        raw = self._names[at : end if end >= 0 else at + _NAME_CAP]
        return raw.decode("utf-8", "replace").split("@")[0].removesuffix(".cold")

    def _decode(self, address: int) -> Entry | None:
        """The rules of one function, by pyelftools: it gets them as a whole section."""
        entry = self._entry_bytes(address)
        (back,) = struct.unpack_from("<I", entry, 4)
        common = self._entry_bytes(address + 4 - back)
        data = common + entry[:4] + struct.pack("<I", len(common) + 4) + entry[8:]
        structs = DWARFStructs(little_endian=True, dwarf_format=32, address_size=8)
        info = CallFrameInfo(
            BytesIO(data), len(data), address - len(common), structs, for_eh_frame=True
        )
        found = info.get_entries()[1]
        if not isinstance(found, FDE) or found.cie is None:
            return None
        begin = found["initial_location"]
        is_signal = b"S" in found.cie["augmentation"]
        rows = [] if is_signal else found.get_decoded().table
        returns = found.cie["return_address_register"]
        return Entry(
            begin,
            begin + found["address_range"],
            [row["pc"] for row in rows],
            [_rule(row, returns, structs) for row in rows],
        )

    def _entry_bytes(self, address: int) -> bytes:
        offset = self._offset_of(address)
        (length,) = struct.unpack("<I", self._read(offset, 4))
        if not 4 < length < _ENTRY_CAP:
            raise ValueError("no entry of unwinding rules")
        return self._read(offset, 4 + length)

    def _offset_of(self, address: int) -> int:
        for offset, size, begin in self._segments:
            if begin <= address < begin + size:
                return address - begin + offset
        raise ValueError("nothing is loaded there")


def _rule(row: dict[Any, Any], returns: int, structs: DWARFStructs) -> Rule | None:
    """A line of pyelftools' table."""
    cfa = row["cfa"]
    expression: tuple[tuple[str, int], ...] = ()
    if cfa.expr is not None:
        expression = _expression(cfa.expr, structs)
    elif cfa.reg is None or cfa.offset is None:
        return None
    saved, lost = [], set()
    for number, one in row.items():
        if isinstance(number, int) and isinstance(one, RegisterRule):
            if one.type == RegisterRule.OFFSET and isinstance(one.arg, int):
                saved.append((number, one.arg))
            elif one.type != RegisterRule.SAME_VALUE:
                lost.add(number)
    return Rule(
        cfa.reg or 0,
        cfa.offset or 0,
        tuple(saved),
        frozenset(lost),
        returns,
        expression,
    )


def _expression(raw: list[int], structs: DWARFStructs) -> tuple[tuple[str, int], ...]:
    """In DWARF's words, each with its one argument; a register is in the word."""
    made = DWARFExprParser(structs).parse_expr(raw)
    return tuple((one.op_name, one.args[0] if one.args else 0) for one in made)


def _computed(
    expression: tuple[tuple[str, int], ...], registers: dict[int, int]
) -> int | None:
    """What it computes; None for operations that stubs between libraries do not need.

    Source: DWARF 5, section 2.5.1.
    """
    stack: list[int] = []
    for name, argument in expression:
        if match := _LITERAL.fullmatch(name):
            stack.append(int(match[1]))
        elif match := _REGISTER.fullmatch(name):
            if (base := registers.get(int(match[1]))) is None:
                return None
            stack.append(base + argument)
        elif name in _OPERATIONS and len(stack) > 1:
            right, left = stack.pop(), stack.pop()
            stack.append(_OPERATIONS[name](left, right))
        else:
            return None
    return stack[-1] & _MASK if stack else None
