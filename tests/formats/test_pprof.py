"""Profiles are what pprof, Parca, Pyroscope and Alloy accept, and read back equal."""

import gzip
import zlib
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pprofing import run_pprof

from stroboscope.errors import ProfileError, ProfileFormatError
from stroboscope.formats._wire import fields, numbers
from stroboscope.formats.pprof import encode, prune, stable_address
from stroboscope.formats.pprof_reader import decode
from stroboscope.formats.profile import (
    Frame,
    Mapping,
    Profile,
    Sample,
    ValueType,
    aggregate,
    merge,
    subtract,
)

CPU = ValueType("cpu", "nanoseconds")
COUNT = ValueType("samples", "count")
WORK = Frame("app.py", "work", 10, 12)
MAIN = Frame("app.py", "main", 1, 3)


def profile(*samples: Sample) -> Profile:
    return Profile(
        sample_types=(COUNT, CPU),
        samples=list(samples),
        period_type=CPU,
        period=10_000_000,
        time_ns=1_700_000_000_000_000_000,
        duration_ns=5_000_000_000,
        comments=("pid 1",),
        mapping="python3.11",
    )


def sample(endpoint: str, count: int = 1) -> Sample:
    labels = (("endpoint", endpoint),)
    return Sample((WORK, MAIN), (count, count * 10_000_000), labels)


text = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
line = st.integers(0, 1 << 31)
LIBRARY = Mapping("/lib/a.so", "a1b2", 1 << 32, 2 << 32, 4096)


def native(name: str) -> Frame:
    address = LIBRARY.start + zlib.crc32(name.encode())
    return Frame(LIBRARY.path, name, 0, 0, address)


frame = st.builds(Frame, text, text, line, line, st.just(0)) | st.builds(native, text)
any_sample = st.builds(
    Sample,
    st.lists(frame, max_size=5).map(tuple),
    st.tuples(st.integers(-(1 << 40), 1 << 40), st.integers(0, 1 << 40)),
    st.dictionaries(
        st.from_regex(r"[A-Za-z_][A-Za-z0-9_]{0,8}", fullmatch=True),
        st.text("abc", min_size=1, max_size=5),
        max_size=3,
    ).map(lambda d: tuple(sorted(d.items()))),
)


@given(st.lists(any_sample, max_size=8))
def test_what_is_written_reads_back_equal(samples: list[Sample]) -> None:
    """The reader is the writer's inverse, up to adding up equal samples."""
    written = replace(profile(*samples), mappings=(LIBRARY,))
    read = decode(encode(written))

    assert read.samples == aggregate(samples)
    assert read.mappings == written.mappings
    assert (read.sample_types, read.period, read.comments, read.duration_ns) == (
        written.sample_types,
        written.period,
        written.comments,
        written.duration_ns,
    )


@given(st.binary(max_size=200))
def test_garbage_is_a_format_error(data: bytes) -> None:
    """Any bytes give a profile or ProfileFormatError, never another exception."""
    for body in (data, gzip.compress(data)):
        try:
            decode(body)
        except ProfileFormatError:
            pass


@given(st.binary(max_size=20), st.integers(0, 10_000))
def test_damaged_profiles_are_a_format_error(noise: bytes, at: int) -> None:
    """A profile with some bytes replaced never breaks the reader."""
    good = gzip.decompress(encode(profile(sample("/a"), sample("/b"))))
    at %= len(good)
    try:
        decode(good[:at] + noise + good[at + len(noise) :])
    except ProfileFormatError:
        pass


def test_wire_rules_of_the_scrapers_hold() -> None:
    """Ids are sequential, the mapping has names, addresses are unique and stable."""
    data = gzip.decompress(encode(profile(sample("/a"), sample("/b"))))
    parts: dict[int, list[int | bytes]] = {}
    for field, value in fields(data):
        parts.setdefault(field, []).append(value)

    def messages(field: int) -> list[dict[int, int | bytes]]:
        return [dict(fields(v)) for v in parts[field] if isinstance(v, bytes)]

    assert parts[6][0] == b""
    assert [m[1] for m in messages(3)] == [1]
    assert all(messages(3)[0][field] == 1 for field in (7, 8, 9))
    assert [m[1] for m in messages(4)] == [1, 2]
    assert [m[3] for m in messages(4)] == [stable_address(WORK), stable_address(MAIN)]
    assert {m[2] for m in messages(4)} == {1}
    assert [m[1] for m in messages(5)] == [1, 2]
    for message in messages(2):
        assert len(numbers(message[2])) == 2


def test_addresses_never_change() -> None:
    """Alloy's deltas break if a place moves: this number is part of the format."""
    assert stable_address(WORK) == 3881141354188475891


def test_an_empty_profile_keeps_its_types() -> None:
    """No samples is an answer, not an error."""
    empty = decode(encode(profile()))

    assert empty.sample_types == (COUNT, CPU)
    assert empty.samples == []


def test_undecodable_file_names_do_not_spoil_the_profile() -> None:
    """Pyroscope refuses a whole profile for one string that is no UTF-8."""
    bad = Sample((Frame("\udcff.py", "f" * 5000, 1, 1),), (1, 1))

    read = decode(encode(profile(bad))).samples[0].stack[0]

    assert read.file == "?.py"
    assert len(read.function) == 1024


def test_a_wrong_number_of_values_is_an_error() -> None:
    """pprof would refuse the file; we refuse to write it."""
    with pytest.raises(ProfileError):
        encode(profile(Sample((WORK,), (1,))))


def test_pruning_keeps_totals_true() -> None:
    """What is cut is summed up in one sample that says so."""
    big = profile(*(sample(f"/{i}", i + 1) for i in range(50)))
    small = prune(big, 10)

    assert len(small.samples) == 10
    assert small.total() == big.total()
    assert "[truncated]" in small.comments[-1]


def test_merge_adds_and_subtract_takes_away() -> None:
    """A profile less itself is empty; twice itself has twice its total."""
    one = profile(sample("/a", 2), sample("/b", 3))

    assert merge([one, one]).total() == 2 * one.total()
    assert subtract(one, one).samples == []
    with pytest.raises(ProfileError):
        merge([])


@pytest.mark.slow
def test_go_tool_pprof_reads_slices_and_compares(
    go_pprof: list[str], tmp_path: Path
) -> None:
    """The real pprof shows our functions, labels, tag focus, difference and merge."""
    first, second = tmp_path / "1.pb.gz", tmp_path / "2.pb.gz"
    first.write_bytes(encode(profile(sample("/a", 30), sample("/b", 70))))
    second.write_bytes(encode(profile(sample("/a", 50), sample("/b", 70))))

    top = run_pprof(go_pprof, "-top", str(first), home=tmp_path)
    focus = run_pprof(
        go_pprof, "-top", "-tagfocus=endpoint=/a", str(first), home=tmp_path
    )
    tags = run_pprof(go_pprof, "-tags", str(first), home=tmp_path)
    base = run_pprof(
        go_pprof, "-top", f"-diff_base={first}", str(second), home=tmp_path
    )
    merged = tmp_path / "merged.pb.gz"
    run_pprof(
        go_pprof,
        "-proto",
        f"-output={merged}",
        str(first),
        str(second),
        home=tmp_path,
    )

    assert "Local symbolization failed" not in top
    assert "work" in top
    assert "Total samples = 1s" in top
    assert "300ms 30.00%" in focus
    assert "endpoint" in tags
    assert "/b" in tags
    assert "20.00%" in base
    assert decode(merged.read_bytes()).total() == 2_200_000_000
