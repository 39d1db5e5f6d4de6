"""CPU profiles whose stacks go on into C: what is shown is what was called."""

import asyncio
import hashlib
import operator
import os
import re
import threading
import time
import zlib
from array import array
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import c_calls
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pprofing import run_pprof

from stroboscope._core import LABELS, Capture, LabelCell, Window, _native, engine
from stroboscope._core.capture import Moment
from stroboscope.errors import EngineUnavailable
from stroboscope.formats import folded
from stroboscope.formats.pprof import encode
from stroboscope.formats.pprof_reader import decode
from stroboscope.formats.profile import Profile, merge
from stroboscope.labels import label_set
from stroboscope.profiles import native_cpu, native_frames
from stroboscope.profiles.native_cpu import collect_native_cpu, continued
from stroboscope.unwinding.chains import UNFOLLOWED
from stroboscope.unwinding.messages import Answer

pytestmark = pytest.mark.native

ABC = ("c_innermost", "b_middle", "a_outermost", "abc")
XY = ("y_innermost", "x_outermost", "xy")
#: Of one call into C. Longer than the 5 ms after which a thread that waits for the
#: interpreter is sure to get it: it may starve beside a loop with shorter ones.
TURNS = 5_000_000


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory) -> ModuleType:
    return c_calls.load(c_calls.build(tmp_path_factory.mktemp("known")))


@pytest.fixture(autouse=True, scope="module")
def a_slow_machine_is_waited_for() -> Iterator[None]:
    """Whoever shares it may keep the process that unwinds from running for seconds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(native_cpu, "ANSWER_S_CAP", 30.0)
        yield


def profiled(
    work: dict[str, Callable[[], object]], cpu_s: float = 0.8, hz: int = 250
) -> Profile:
    """A profile of tasks on one loop that take turns, each under its own endpoint."""
    windows: list[Window] = []
    opened = threading.Event()

    def on_window(window: Window) -> None:
        windows.append(window)
        opened.set()

    async def serve(endpoint: str, turn: Callable[[], object]) -> None:
        cell = LabelCell(label_set({"endpoint": endpoint}))
        LABELS.set(cell)
        while time.thread_time() < end_s:
            turn()
            await asyncio.sleep(0)
        windows[0].cancel()
        cell.publish()

    async def main() -> Profile:
        nonlocal end_s
        taken = asyncio.create_task(
            asyncio.to_thread(collect_native_cpu, 60, on_window, hz=hz)
        )
        await asyncio.to_thread(opened.wait, 60)
        end_s = time.thread_time() + cpu_s
        await asyncio.gather(*(serve(*one) for one in work.items()))
        return await taken

    end_s = 0.0
    return asyncio.run(main())


def by_endpoint(profile: Profile) -> dict[str, Counter[tuple[str, ...]]]:
    """Samples by their names, leaf first, for each endpoint."""
    found: dict[str, Counter[tuple[str, ...]]] = {}
    for stack, values, labels in profile.samples:
        names = tuple(frame.function for frame in stack)
        at = dict(labels).get("endpoint", "")
        found.setdefault(at, Counter())[names] += values[0]
    return found


def share(
    counts: Counter[tuple[str, ...]],
    *chain: str,
    same: Callable[[str, str], bool] = operator.eq,
) -> float:
    """Of samples, how many have these calls right above each other."""
    size = len(chain)
    matching = sum(
        count
        for names, count in counts.items()
        if any(
            all(map(same, names[at : at + size], chain))
            for at in range(len(names) - size + 1)
        )
    )
    return matching / counts.total()


@pytest.fixture(scope="module")
def profile(known: ModuleType) -> Profile:
    """Two endpoints that burn in C, at once."""

    def burn_abc() -> None:
        known.abc(TURNS)

    def burn_xy() -> None:
        known.xy(TURNS)

    return profiled({"/abc": burn_abc, "/xy": burn_xy})


def test_the_calls_in_c_are_seen_under_their_own_label(profile: Profile) -> None:
    """All of a chain, in order, from the innermost C function to Python's; never under
    the label of the request it took turns with."""
    found = by_endpoint(profile)

    assert min(found["/abc"].total(), found["/xy"].total()) > 30
    assert share(found["/abc"], *ABC) > 0.95
    assert share(found["/xy"], *XY) > 0.95
    assert (
        share(found["/abc"], "y_innermost") == share(found["/xy"], "c_innermost") == 0
    )
    for names in found["/abc"]:
        if names[:4] == ABC:
            assert [n for n in names if "burn_abc" in n]
    assert not [n for names in found.get("", ()) for n in names if n in ABC + XY]


def test_the_evaluation_loop_is_no_frame(profile: Profile) -> None:
    """Where Python's stack begins, the C stack of the interpreter ends."""
    names = {frame.function for sample in profile.samples for frame in sample.stack}

    assert not [one for one in names if one.startswith("_PyEval_EvalFrameDefault")]


def test_native_frames_are_in_mappings(profile: Profile) -> None:
    """Each has an address that is in its library's mapping, known by its build; the
    same through our own encoder and reader."""
    again = decode(encode(profile))
    places = {frame for one in again.samples for frame in one.stack if frame.address}

    assert again.mappings == profile.mappings
    assert {frame.function for frame in places} >= {*ABC, *XY}
    for frame in places:
        (mapping,) = [
            one for one in again.mappings if one.start <= frame.address < one.limit
        ]
        assert mapping.path == frame.file
        assert re.fullmatch("[0-9a-f]{16,}", mapping.build_id)
        assert frame.line == frame.start_line == 0


def test_workers_add_up(profile: Profile) -> None:
    """The same calls in two workers are the same, wherever they had their libraries."""
    other = decode(encode(profile))
    both = merge([profile, other])

    assert len(both.samples) == len(profile.samples)
    assert both.total() == 2 * profile.total()
    assert both.mappings == profile.mappings


def test_the_real_pprof_shows_them(
    profile: Profile, go_pprof: list[str], tmp_path: Path
) -> None:
    """By name and share, as a tree, and with labels to slice by."""
    file = tmp_path / "native.pb.gz"
    file.write_bytes(encode(profile))

    top = run_pprof(
        go_pprof,
        *("-top", "-relative_percentages", "-tagfocus=endpoint=/abc", str(file)),
        home=tmp_path,
    )
    tree = run_pprof(go_pprof, "-tree", "-focus=c_innermost", str(file), home=tmp_path)
    raw = run_pprof(go_pprof, "-raw", str(file), home=tmp_path)

    rows = re.findall(r" ([\d.]+)% +[\d.]+% +\S+ +([\d.]+)%  (\S+)", top)
    shares = {name: (float(flat), float(cum)) for flat, cum, name in rows}
    assert shares["c_innermost"][0] > 90
    assert shares["b_middle"][1] > 90
    assert shares["a_outermost"][1] > 90
    assert "y_innermost" not in shares
    assert re.search(r"b_middle\n.*c_innermost$", tree, re.MULTILINE)
    assert re.search(
        r"^\d+: 0x[0-9a-f]+/0x[0-9a-f]+/0x\d+ \S*known_calls.so [0-9a-f]+",
        raw,
        re.MULTILINE,
    )
    assert "failed" not in top + tree + raw


def test_they_are_in_every_form(profile: Profile) -> None:
    """A folded line goes from Python's function on into C."""
    lines = folded.write(profile).splitlines()

    ends = {
        tuple(part.split(" ")[0] for part in one.rpartition(" ")[0].split(";")[-4:])
        for one in lines
        if re.search(r"c_innermost \([^;]*\) \d+$", one)
    }
    assert ends == {tuple(reversed(ABC))}


def is_called(shown: str, name: str) -> bool:
    """A distribution's interpreter may be stripped: then its place stands for a name."""
    return shown == name or re.fullmatch(r"\S+\+0x[0-9a-f]+", shown) is not None


@pytest.mark.parametrize(
    ("work", "chain"),
    [
        (lambda data: zlib.compress(data * 8), ("deflate", "zlib_compress")),
        (
            lambda data: hashlib.pbkdf2_hmac("sha256", data[:9], b"b", 20_000),
            ("PKCS5_PBKDF2_HMAC", "pbkdf2_hmac"),
        ),
        (lambda data: sorted(data, key=str), ("list_sort_impl", "list_sort")),
    ],
    ids=["zlib", "openssl", "sort"],
)
def test_libraries_and_the_interpreter_itself(
    work: Callable[[bytes], object], chain: tuple[str, ...]
) -> None:
    """What the standard library calls is followed through libraries whose own functions
    have no names, and through the stubs between them."""
    data = os.urandom(1 << 16)
    found = by_endpoint(profiled({"/work": lambda: work(data)}, 0.4))["/work"]

    assert share(found, *chain, same=is_called) > 0.8, found
    assert share(found, UNFOLLOWED) < 0.05, found
    assert not [one for names in found for one in names if one.startswith("0x")]


def test_a_stripped_library_has_places_for_names(tmp_path: Path) -> None:
    """Without symbols a function is known by where its library has it, and followed."""
    stripped = c_calls.load(c_calls.build(tmp_path, stripped=True))
    found = by_endpoint(profiled({"/abc": lambda: stripped.abc(TURNS)}, 0.4))["/abc"]

    tops: Counter[tuple[str, ...]] = Counter()
    for names, count in found.items():
        tops[names[: len(ABC)]] += count

    (top, count), *_ = tops.most_common()
    assert count / found.total() > 0.8, tops
    assert all(name.startswith("known_calls.so+0x") for name in top)
    assert len({*top}) == len(ABC)


def test_a_stack_too_deep_is_followed_in_part(known: ModuleType) -> None:
    """What lies beyond the copy is not made up: proven frames, then a mark."""
    depth = _native.COPY_BYTES // 1024 + 4
    work = {"/deep": lambda: known.deep(depth, TURNS)}
    profile = profiled(work, 0.4)
    found = by_endpoint(profile)["/deep"]

    names, _ = found.most_common()[0]
    at = names.index(UNFOLLOWED)
    assert names[0] == "c_innermost"
    assert 5 < at < depth
    assert {*names[1:at]} == {"descend"}
    assert any("[not followed]" in comment for comment in profile.comments)


def test_a_deep_stack_within_the_limit_is_followed(known: ModuleType) -> None:
    """All frames of one that just fits."""
    depth = _native.COPY_BYTES // 1024 - 6
    profile = profiled({"/deep": lambda: known.deep(depth, TURNS)}, 0.4)
    found = by_endpoint(profile)["/deep"]

    expected = ("c_innermost", *["descend"] * (depth + 1), "deep")
    assert share(found, *expected) > 0.8


# ---- what goes wrong costs native frames only ------------------------------------------


def burnt() -> Profile:
    """A profile of a thread that burns beside this one."""
    return profiled({"/work": lambda: zlib.compress(bytes(1 << 22))}, 0.3)


def assert_python_only(profile: Profile, reason: str) -> None:
    assert [c for c in profile.comments if c.startswith("native frames: none")], (
        profile.comments
    )
    assert reason in " ".join(profile.comments)
    assert not profile.mappings
    assert by_endpoint(profile)["/work"].total() > 10
    assert not [f for one in profile.samples for f in one.stack if f.address]


def test_one_that_dies_costs_native_frames_only(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The process that unwinds is killed in the middle of a capture."""
    feed = native_frames.Unwinding.feed

    def killed(self: native_frames.Unwinding, copies: bytes) -> None:
        os.kill(self._process, 9)
        feed(self, copies)

    monkeypatch.setattr(native_frames.Unwinding, "feed", killed)

    assert_python_only(burnt(), "it ended early")


def test_one_that_is_late_costs_native_frames_only(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The answer comes within its time, without what is not done by then."""
    feed = native_frames.Unwinding.feed

    def stopped(self: native_frames.Unwinding, copies: bytes) -> None:
        os.kill(self._process, 19)
        feed(self, copies)

    monkeypatch.setattr(native_frames.Unwinding, "feed", stopped)
    monkeypatch.setattr(native_cpu, "ANSWER_S_CAP", 0.1)

    assert_python_only(burnt(), "it was not done 0.1 s after the capture")


def test_one_that_lies_costs_native_frames_only(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An answer that does not hang together is not believed."""
    program = "import os\nwhile os.read(0, 1 << 16): os.write(1, b'x' * 99)"
    monkeypatch.setattr(native_frames, "_PROGRAM", program)
    monkeypatch.setattr(native_cpu, "ANSWER_S_CAP", 0.3)

    assert_python_only(burnt(), "it ")


def test_a_backlog_has_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Copies that nobody reads are dropped, not hoarded."""
    unwinding = native_frames.Unwinding()
    try:
        os.kill(unwinding._process, 19)
        for _ in range(64):
            unwinding.feed(bytes(1 << 20))
        kept = len(unwinding._backlog)
    finally:
        unwinding.close()

    assert kept <= native_frames.BACKLOG_BYTES_CAP
    assert len(unwinding._backlog) == 0


def test_nothing_is_left_of_a_capture() -> None:
    """Neither a process nor a descriptor; not when it is refused, either."""
    before = set(os.listdir("/proc/self/fd"))
    with pytest.raises(ZeroDivisionError):
        collect_native_cpu(5, lambda window: 1 / 0)
    unwinding = native_frames.Unwinding()
    process = unwinding._process
    unwinding.close()
    unwinding.close()

    assert set(os.listdir("/proc/self/fd")) == before
    with pytest.raises(ProcessLookupError):
        os.kill(process, 0)
    assert _native.copies_take() == b""


def test_one_at_a_time() -> None:
    """A second one is refused, and the first goes on."""
    window = engine.open_window(copies=True, moments=1)
    try:
        with pytest.raises(EngineUnavailable, match="already"):
            collect_native_cpu(0.1, lambda window: None)
    finally:
        window.close()

    assert collect_native_cpu(0.1, lambda window: None).duration_ns > 0


def test_nobody_pays_for_a_capture_that_is_over(known: ModuleType) -> None:
    """A plain profile after one, and before: its samples take no copy. All there is of
    it then is one look at a number in the handler."""
    for copies in (False, True, False):
        window = engine.open_window(250, copies=copies, moments=10_000)
        assert _native.copies_counts()["wanted"] == copies
        end_s = time.thread_time() + 0.2
        while time.thread_time() < end_s:
            known.abc(TURNS // 100)
        capture = window.close()

        assert len(capture.moments) > 10
        assert any(moment.copy for moment in capture.moments) == copies
    assert _native.copies_counts()["wanted"] == 0


def test_copies_have_a_limit(known: ModuleType) -> None:
    """Without anybody who takes them there are so many at most; samples go on."""
    before = _native.copies_counts()["lost"]
    window = engine.open_window(1000, copies=True, moments=100_000)
    for _ in range(20):
        thread = threading.Thread(target=_native.storm, args=(600, 4000))
        thread.start()
        while thread.is_alive():
            known.abc(TURNS // 1000)
        thread.join()
        if _native.copies_counts()["lost"] > before:
            break
    capture = window.close()

    head = 16 + 8 * _native.REGISTERS
    assert len(capture.copies) <= _native.COPIES_MAX * (head + _native.COPY_BYTES)
    assert sum(1 for moment in capture.moments if moment.copy) <= _native.COPIES_MAX
    assert _native.copies_counts()["lost"] > before
    assert len(capture.moments) > _native.COPIES_MAX


# ---- sums ------------------------------------------------------------------------------

FRAMES = [("a.py", "f", 1, 2), ("a.py", "g", 5, 6)]


@given(st.data())
@settings(max_examples=100, deadline=None)
def test_sums_are_those_of_the_plain_profile(data: st.DataObject) -> None:
    """Whatever the frames are that were found: by label and Python stack, nothing is
    added, nothing lost and nothing below zero."""
    number = st.integers(0, 40)
    rows = data.draw(
        st.lists(
            st.tuples(
                st.integers(0, 2),
                st.integers(0, 2),
                number,
                number.map(lambda n: n * 7),
            ),
            unique_by=lambda row: row[:2],
        )
    )
    moments = data.draw(
        st.lists(
            st.builds(
                Moment,
                number,
                st.integers(0, 2),
                st.integers(0, 2),
                number,
                st.integers(1, 9),
                st.integers(0, 9),
            )
        )
    )
    pairs = data.draw(st.dictionaries(st.integers(1, 9), st.integers(0, 2)))
    capture = Capture(
        0, 1, 1, [*FRAMES], [(0,), (1, 0), (1,)], rows, {}, [], moments=moments
    )
    chain_of = array("I", [n for pair in pairs.items() for n in pair])
    found = Answer(
        [("/lib/a.so", "ab", 1 << 32, 2 << 32, 0)],
        [("/lib/a.so", "c", (1 << 32) + 1), ("", UNFOLLOWED, 0)],
        [[0], [], [0, 0, 1]],
        chain_of,
    )

    def sums(profile: Profile) -> Counter[Any]:
        made: Counter[Any] = Counter()
        for stack, values, labels in profile.samples:
            python = tuple(frame for frame in stack if frame.file == "a.py")
            assert min(values) >= 0
            for at, value in enumerate(values):
                made[python, labels, at] += value
        return +made

    assert sums(continued(capture, found)) == sums(continued(capture, "nothing"))
