"""A chain is what the rules prove: whatever the copy holds, and whatever the file."""

import os
import struct
import time
import zlib
from array import array
from io import BytesIO
from pathlib import Path

import c_calls
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stroboscope._core import _native, engine
from stroboscope.unwinding import messages
from stroboscope.unwinding.chains import DEPTH_CAP, UNFOLLOWED, Chain, Unwinder
from stroboscope.unwinding.child import WAITING_CAP, Session
from stroboscope.unwinding.copies import MACHINES, Copy, read, written
from stroboscope.unwinding.demangling import NAME_CAP, demangled
from stroboscope.unwinding.images import BROKEN, Image, Rule
from stroboscope.unwinding.messages import Answer
from stroboscope.unwinding.regions import Images, Region, regions_of

pytestmark = pytest.mark.native

HERE = MACHINES.get(_native.MACHINE, MACHINES["x86_64"])
FIND = settings(max_examples=150, deadline=None)


def maps() -> bytes:
    return Path("/proc/self/maps").read_bytes()


@pytest.fixture(scope="module")
def copies(tmp_path_factory: pytest.TempPathFactory) -> list[Copy]:
    """Real ones, of a thread in a library of ours, in zlib and in the interpreter."""
    known = c_calls.load(c_calls.build(tmp_path_factory.mktemp("known")))
    window = engine.open_window(1000, copies=True, moments=10_000)
    blocks = []
    end = time.thread_time() + 0.6
    while time.thread_time() < end:
        known.abc(1_000_000)
        known.deep(5, 500_000)
        zlib.compress(os.urandom(1 << 14))
        sorted(range(20_000), key=str)
        blocks.append(window.copies())
    blocks.append(window.close().copies)
    return [copy for block in blocks for copy in read(block, HERE)]


@pytest.fixture(scope="module")
def unwinder() -> Unwinder:
    made = Unwinder(HERE, Images(_native.MACHINE))
    made.update(regions_of(maps()))
    return made


@pytest.fixture(scope="module")
def whole(copies: list[Copy], unwinder: Unwinder) -> list[Chain]:
    unwinder.update(regions_of(maps()))
    return [unwinder.follow(copy) for copy in copies]


def test_real_copies_are_followed_to_python(
    copies: list[Copy], whole: list[Chain]
) -> None:
    """Nearly all, the shortest ones included; each is what it says it is long."""
    assert len(copies) > 50
    assert sum(chain.is_whole for chain in whole) >= 0.98 * len(whole)
    assert max(len(chain.frames) for chain in whole) > 8
    for copy in copies:
        assert len(copy.stack) <= _native.COPY_BYTES
        assert len(copy.stack) in (
            copy.entry - copy.registers[HERE.stack_pointer],
            _native.COPY_BYTES,
        )


def test_a_shorter_copy_gives_fewer_frames_and_no_other(
    copies: list[Copy], whole: list[Chain], unwinder: Unwinder
) -> None:
    """Cut anywhere, what is left of a chain is its begin."""
    for copy, chain in zip(copies[:60], whole, strict=False):
        for size in range(0, len(copy.stack), 56):
            found = unwinder.follow(copy._replace(stack=copy.stack[:size]))
            assert found.frames == chain.frames[: len(found.frames)]
            if found.is_whole:
                assert found == chain


@given(data=st.data())
@FIND
def test_garbage_is_followed_nowhere_far(
    copies: list[Copy], unwinder: Unwinder, data: st.DataObject
) -> None:
    """Stacks, registers and ends that cannot be: an end, and a depth with a cap."""
    copy = data.draw(st.sampled_from(copies[:30]))
    stack = bytearray(copy.stack)
    for _ in range(data.draw(st.integers(0, 20))):
        at = data.draw(st.integers(0, max(len(stack) - 8, 0)))
        word = data.draw(
            st.one_of(st.integers(0, (1 << 64) - 1), st.sampled_from(copy.registers))
        )
        stack[at : at + 8] = struct.pack("<Q", word)
    registers = [*copy.registers]
    for at in data.draw(st.lists(st.integers(0, len(registers) - 1), max_size=3)):
        registers[at] = data.draw(st.integers(0, (1 << 64) - 1))
    entry = data.draw(st.sampled_from([0, copy.entry, (1 << 64) - 1]))

    found = unwinder.follow(Copy(1, entry, tuple(registers), bytes(stack)))

    assert len(found.frames) <= DEPTH_CAP


def test_a_stack_that_leads_back_to_itself_ends() -> None:
    """Frames go up the stack or there are no more."""
    made = Modelled("x86_64", Rule(6, 16, ((16, -8), (6, -16)), frozenset(), 16))
    copy = Copy(1, 1 << 50, (0,) * 6 + (1000, 1000) + (0,) * 8 + (77,), words(1000, 77))

    assert len(made.follow(copy).frames) <= 2


# ---- a model: rules by construction, for both machines ----------------------------------


class Modelled(Unwinder):
    """One image, whose every function has the same rule, at addresses below 2**20."""

    def __init__(self, machine: str, rule: Rule | None) -> None:
        super().__init__(MACHINES[machine], OneImage(machine, rule))


class OneImage(Images):
    def __init__(self, machine: str, rule: Rule | None) -> None:
        super().__init__(machine)
        self.rule = rule
        self.build_id, self.code = "ab", (0, 1 << 20, 0)

    def region_at(self, address: int) -> Region | None:
        return Region(0, 1 << 20, 0, "/lib/one.so") if address < 1 << 20 else None

    def image_of(self, region: Region) -> "OneImage":  # type: ignore[override]
        return self

    def address_of(self, offset: int) -> int:
        return offset

    def function_at(self, address: int) -> tuple[int, str]:
        return address & ~0xFF, f"f{address >> 8}"

    def rule_at(self, address: int) -> Rule | None:
        return self.rule


def words(*values: int) -> bytes:
    return struct.pack(f"<{len(values)}Q", *values)


def names(unwinder: Unwinder, chain: Chain) -> list[str]:
    return [unwinder.frames[at][2] for at in chain.frames]


def test_the_evaluation_loop_is_known_by_its_frame() -> None:
    """Without a name: the frame that the entry's address is in ends the chain."""
    made = Modelled("x86_64", Rule(7, 16, ((16, -8),), frozenset(), 16))
    registers = (0,) * 7 + (0x8000,) + (0,) * 8 + (0x105,)
    copy = Copy(1, 0x8028, registers, words(0, 0x205, 0, 0x305, 0, 0x405))
    chain = made.follow(copy)

    assert names(made, chain) == ["f1", "f2"]
    assert chain.is_whole
    assert not made.follow(copy._replace(entry=0)).is_whole


def test_a_call_may_be_the_last_instruction() -> None:
    """A return address right behind a function is that function's."""
    made = Modelled("x86_64", Rule(7, 8, ((16, -8),), frozenset(), 16))
    registers = (0,) * 7 + (0x8000,) + (0,) * 8 + (0x200,)
    chain = made.follow(Copy(1, 0x8010, registers, words(0x300, 0x900)))

    assert names(made, chain)[:2] == ["f2", "f2"]


def test_arm_returns_through_a_register_and_signs_it() -> None:
    """A leaf has its caller in the link register; signed addresses count without their
    signature; a caller's own link register is none of ours."""
    signature = 0x00AB << 48
    made = Modelled("aarch64", Rule(31, 0, (), frozenset(), 30))
    x = [0] * 33
    x[30], x[31], x[32] = 0x205 | signature, 0x8000, 0x105
    chain = made.follow(Copy(1, 0x9000, tuple(x), words(0, 0)))
    assert names(made, chain) == ["f1", "f2"]
    assert not chain.is_whole

    made = Modelled("aarch64", Rule(29, 16, ((29, -16), (30, -8)), frozenset(), 30))
    x[29] = 0x8000
    stack = words(0x8010, 0x305 | signature, 0x8020, 0x405, 0, 0)
    chain = made.follow(Copy(1, 0x8025, tuple(x), stack))
    assert names(made, chain) == ["f1", "f3"]
    assert chain.is_whole


def test_what_is_lost_is_not_used() -> None:
    """A register that a rule gives up does not lead further."""
    rule = Rule(6, 16, ((16, -8),), frozenset({6}), 16)
    made = Modelled("x86_64", rule)
    registers = (0,) * 6 + (0x8000, 0x8000) + (0,) * 8 + (0x105,)
    chain = made.follow(Copy(1, 0x9000, registers, words(0, 0x205, 0, 0x305)))

    assert names(made, chain) == ["f1", "f2"]
    assert not chain.is_whole


# ---- files ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return c_calls.build(tmp_path_factory.mktemp("library")).read_bytes()


@given(
    cut=st.integers(0, 1 << 20),
    changes=st.lists(st.tuples(st.integers(0, 1 << 20), st.integers(0, 255))),
)
@FIND
def test_a_damaged_file_is_refused_or_says_nothing_wrong(
    library: bytes, cut: int, changes: list[tuple[int, int]]
) -> None:
    """Whatever is in it: one of the errors we know, or an image that can be asked."""
    data = bytearray(library[: cut % len(library)] if cut % 3 == 0 else library)
    for at, value in changes:
        if data:
            data[at % min(len(data), 4096 if at % 2 else len(data))] = value
    try:
        image = Image(BytesIO(bytes(data)))
    except BROKEN:
        return
    for address in range(0, 0x3000, 0x130):
        begin, name = image.function_at(address)
        image.rule_at(address)
        assert begin <= address
        assert isinstance(name, str)


def test_a_function_is_named_only_where_it_is(library: bytes) -> None:
    """Its last byte is its own, the byte behind it is not."""
    image = Image(BytesIO(library))
    named = {image._name(name): (at, size) for at, size, name in image._symbols}
    at, size = named["b_middle"]

    assert image.function_at(at) == (at, "b_middle")
    assert image.function_at(at + size - 1) == (at, "b_middle")
    assert image.function_at(at + size)[1] != "b_middle"
    assert image.rule_at(at) is not None


def test_what_is_not_a_file_of_this_machine_is_none(tmp_path: Path) -> None:
    """Deleted, anonymous, missing, no library: no image, and a name all the same."""
    (tmp_path / "no.so").write_bytes(b"no library")
    images = Images("x86_64")
    for path in (
        "/gone.so (deleted)",
        "",
        "[heap]",
        "/missing.so",
        f"{tmp_path}/no.so",
    ):
        region = Region(0x1000, 0x3000, 0x1000, path)
        assert images.image_of(region) is None
        thing = images.thing_of(region)
        assert thing.limit - thing.start == 0x2000

    made = Unwinder(HERE, images)
    made.update([Region(0x1000, 0x3000, 0x1000, "/missing.so")])
    registers = (*(0,) * (HERE.registers - 1), 0x1234)
    chain = made.follow(Copy(1, 0, registers, b""))
    assert names(made, chain) == ["missing.so+0x1234"]
    assert not chain.is_whole


def test_the_kernels_own_library_is_read_from_memory() -> None:
    """The clock is read in it, which no file has."""
    (region,) = [one for one in regions_of(maps()) if one.path == "[vdso]"]
    images = Images(_native.MACHINE)
    image = images.image_of(region)

    assert image is not None
    assert any("clock_gettime" in image._name(name) for _, _, name in image._symbols)


# ---- messages and the session -----------------------------------------------------------


def test_a_library_that_came_meanwhile_is_known_in_the_end(copies: list[Copy]) -> None:
    """Its copies wait for the maps of the end; so many at most."""
    session = Session(_native.MACHINE)
    assert session.take(messages.MAPS, b"") is None
    block = b"".join(map(written, copies))
    assert session.take(messages.COPIES, block) is None
    answer = session.take(messages.END, maps())

    assert answer is not None
    assert answer.whole >= 0.98 * len(copies)
    assert len(copies) < WAITING_CAP


def test_a_library_that_went_meanwhile_is_not_believed(copies: list[Copy]) -> None:
    """Its addresses may have become another's: those samples keep their Python stack."""
    session = Session(_native.MACHINE)
    session.take(messages.MAPS, maps())
    session.take(messages.COPIES, b"".join(map(written, copies)))
    without = [one for one in maps().splitlines(True) if b"known_calls" not in one]
    answer = session.take(messages.END, b"".join(without))

    assert answer is not None
    assert answer.unloaded > 10
    used = {at for chain in answer.chains for at in chain}
    assert not [at for at in used if "known_calls" in answer.frames[at][0]]


def test_an_answer_comes_back_as_it_was() -> None:
    """The bytes of one are read as the same."""
    answer = Answer(
        [("/a.so", "ab", 1, 2, 3)],
        [("/a.so", "f", 7), ("", UNFOLLOWED, 0)],
        [[0, 1], []],
        array("I", [5, 0, 9, 1]),
        whole=1,
        cut=1,
    )

    assert messages.unpacked(messages.packed(answer)) == answer


@given(st.binary(max_size=200), st.integers(0, 300))
@FIND
def test_any_other_answer_is_refused(noise: bytes, at: int) -> None:
    """Bytes that are no answer raise one error, and numbers lead nowhere."""
    good = messages.packed(
        Answer([], [("/a.so", "f", 7)], [[0]], array("I", [5, 0, 9, 0]))
    )
    data = bytearray(good)
    data[at % len(data) : at % len(data) + len(noise)] = noise
    try:
        answer = messages.unpacked(bytes(data))
    except ValueError:
        return
    for chain in answer.chains:
        assert all(0 <= one < len(answer.frames) for one in chain)
    assert all(0 <= one < len(answer.chains) for one in answer.chain_of[1::2])


@given(st.binary(max_size=400))
@FIND
def test_a_block_that_is_cut_is_refused(block: bytes) -> None:
    """Copies are read whole, or not at all."""
    try:
        found = [*read(block, HERE)]
    except ValueError:
        return
    assert b"".join(map(written, found)) == block


def test_names_are_as_their_authors_wrote_them() -> None:
    """C++'s are unfolded where it can be done, and all have a limit."""
    assert demangled("zlib_compress") == "zlib_compress"
    assert demangled("_ZN4shop8checkoutEi") in (
        "shop::checkout(int)",
        "_ZN4shop8checkoutEi",
    )
    assert len(demangled("x" * 9999)) == NAME_CAP
