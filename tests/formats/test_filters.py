"""A slice is what the real pprof makes of the whole file with the same options."""

import itertools
import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pprofing import Pprof, made_up, rows, run_pprof

from stroboscope.errors import PatternError
from stroboscope.formats import folded, patterns, table, tree
from stroboscope.formats.filters import OPTIONS, TIMES_CAP, Slicer
from stroboscope.formats.pprof import encode
from stroboscope.formats.pprof_reader import decode
from stroboscope.formats.profile import (
    Frame,
    Mapping,
    Sample,
    columns,
    subtract,
)

pytestmark = pytest.mark.slow

WHOLE = made_up(1)

#: Options as pprof takes them, one of each name at most.
CASES: list[dict[str, str]] = [
    {},
    {"focus": "checkout"},
    {"focus": "^main$"},
    {"focus": "db\\.py"},
    {"focus": "python3"},
    {"focus": "donn.es|(?i)LOCK"},
    {"focus": "nothing of that name"},
    {"ignore": "lambda"},
    {"ignore": "python"},
    {"ignore": "nothing of that name"},
    {"focus": "main", "ignore": "Lock|T\\.call"},
    {"hide": "lib/"},
    {"hide": "python3"},
    {"hide": "^(main|_run)$"},
    {"show": "shop/"},
    {"show": "python3"},
    {"show": "nothing of that name"},
    {"show": "shop", "hide": "db", "focus": "json"},
    {"tagfocus": "endpoint=/checkout"},
    {"tagfocus": "endpoint=/items/{id}"},
    {"tagfocus": "endpoint=^/a"},
    {"tagfocus": "endpoint=/checkout,^/it"},
    {"tagfocus": "endpoint:/checkout,tenant:T1"},
    {"tagfocus": "tenant:T1$"},
    {"tagfocus": "checkout"},
    {"tagfocus": "latency=<=100ms"},
    {"tagfocus": "latency=>1s"},
    {"tagfocus": "nokey=x"},
    {"tagfocus": "tenant="},
    {"tagfocus": "="},
    {"tagfocus": "status=^5xx"},
    {"tagfocus": ":1ms"},
    {"tagfocus": "128kb:256kb"},
    {"tagfocus": "pid=4000:"},
    {"tagfocus": "pid=^4711$"},
    {"tagfocus": "-1:+2x"},
    {"tagfocus": "status=5xx:"},
    {"tagfocus": "status:5xx"},
    {"tagfocus": "1:2:3"},
    {"tagfocus": "2xx,5xx"},
    {"tagignore": "1:2"},
    {"tagignore": "tenant=T1"},
    {"tagignore": "status=^2"},
    {"tagfocus": "endpoint=/", "tagignore": "tenant=other"},
    {"tagshow": "endpoint|tenant"},
    {"taghide": "pid|status"},
    {"tagshow": "e", "taghide": "tenant"},
    {"tagfocus": "tenant=T17", "tagshow": "endpoint", "focus": "main"},
    {"tagroot": "endpoint"},
    {"tagroot": "endpoint,tenant"},
    {"tagleaf": "status,latency"},
    {"tagroot": "tenant", "tagleaf": "status", "focus": "T17|5xx"},
    {"tagroot": "nokey", "tagshow": "^$"},
]
IDS = [",".join(f"{k}={v}" for k, v in case.items()) or "all" for case in CASES]


@pytest.fixture(scope="module")
def real(go_pprof: list[str], tmp_path_factory: pytest.TempPathFactory) -> Pprof:
    return Pprof(go_pprof, WHOLE, tmp_path_factory.mktemp("pprof"))


def options(case: dict[str, str]) -> list[str]:
    return [f"-{name}={value}" for name, value in case.items()]


@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_samples_are_those_that_pprof_keeps(real: Pprof, case: dict[str, str]) -> None:
    """Stacks, values and labels, whatever is focused on, hidden or made a frame."""
    sliced = Slicer(case.items()).apply(WHOLE)

    expected = rows(real.sliced(*options(case)))
    assert rows(decode(encode(sliced))) == expected
    assert len(sliced.samples) == len(expected), "no two of the same stack and labels"


@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_the_table_is_the_one_of_pprof(real: Pprof, case: dict[str, str]) -> None:
    """Functions in order, with their own and cumulative values."""
    index = len(case) % 2
    sliced = Slicer(case.items()).apply(WHOLE)
    expected = real.top(*options(case), f"-sample_index={index}")

    assert [tuple(row) for row in table.functions(sliced, index).rows] == expected


@pytest.mark.parametrize("case", CASES[::3], ids=IDS[::3])
def test_sums_by_label_are_those_of_pprof(real: Pprof, case: dict[str, str]) -> None:
    """What `-tags` says of the whole file is what the slice holds."""
    sliced = Slicer(case.items()).apply(WHOLE)
    found: dict[str, Counter[str]] = {}
    for _, values, labels in sliced.samples:
        for key, value in labels:
            found.setdefault(key, Counter())[value] += values[1]

    assert found == real.tags(*options(case))


def test_the_table_sorts_by_cumulative_values_as_pprof_does(real: Pprof) -> None:
    """`sort=cum`."""
    found = table.functions(WHOLE, by_cumulative=True)

    assert [tuple(row) for row in found.rows] == real.top("-cum")


LIBRARIES = (
    Mapping("/usr/lib/libz.so.1", "ab12", 0x7F0000000000, 0x7F0000010000, 0x1000),
    Mapping("/usr/lib/libpython3.11.so", "cd", 0x7E0000000000, 0x7E0000010000, 0),
)
NATIVE = [
    Frame("/usr/lib/libz.so.1", "deflate", 0, 0, 0x7F0000000100),
    Frame("/usr/lib/libpython3.11.so", "PyObject_Call", 0, 0, 0x7E0000000300),
]


@pytest.mark.parametrize(
    "case",
    [
        {"focus": "^python3"},
        {"ignore": "^python3"},
        {"hide": "^python3"},
        {"show": "^python3"},
        {"show": "python3"},
        {"focus": "libz", "hide": "python3"},
        {"tagroot": "endpoint", "hide": "^python3"},
        {"tagleaf": "endpoint", "show": "^python3|deflate"},
        {"tagroot": "tenant", "ignore": "^python3"},
    ],
    ids=lambda case: ",".join(f"{k}={v}" for k, v in case.items()),
)
def test_frames_are_in_the_mapping_pprof_has_them_in(
    go_pprof: list[str], tmp_path: Path, case: dict[str, str]
) -> None:
    """Python's, a library's, or, where a label became a frame, none."""
    samples = [
        sample._replace(stack=(*NATIVE[: at % 3], *sample.stack[: at % 4]))
        for at, sample in enumerate(WHOLE.samples)
        if at % 3 or at % 4
    ]
    whole = replace(WHOLE, samples=samples, mappings=LIBRARIES)
    theirs = Pprof(go_pprof, whole, tmp_path).sliced(*options(case))

    assert rows(decode(encode(Slicer(case.items()).apply(whole)))) == rows(theirs)


def test_a_range_says_that_it_finds_nothing() -> None:
    """Whoever curls sees no warning of pprof's."""
    sliced = Slicer([("tagfocus", "pid=128kb:256kb")]).apply(WHOLE)

    assert len(sliced.samples) == 0
    assert sliced.comments[-1] == (
        "tagfocus=pid=128kb:256kb is a range of numbers, and no label here is a number"
    )


def test_a_number_is_text_where_labels_are_text(real: Pprof) -> None:
    """`5xx` is five of the unit xx for pprof, which finds none; here it is found."""
    ours = Slicer([("tagfocus", "status=5xx")]).apply(WHOLE)

    assert real.sliced("-tagfocus=status=5xx").samples == []
    assert rows(ours) == rows(real.sliced("-tagfocus=status=^5xx"))
    assert ours.samples != []


def test_options_given_several_times_all_hold(real: Pprof, tmp_path: Path) -> None:
    """As if pprof were asked again about what it answered."""
    wanted = [
        ("tagfocus", "endpoint=/checkout"),
        ("tagfocus", "tenant=T1"),
        ("ignore", "Lock"),
        ("ignore", "nothing of that name"),
        ("focus", "main"),
        ("focus", "shop"),
    ]
    steps: list[dict[str, str]] = [
        {"tagfocus": "endpoint=/checkout", "ignore": "Lock", "focus": "main"},
        {"tagfocus": "tenant=T1", "ignore": "nothing of that name", "focus": "shop"},
    ]
    left = WHOLE
    for step in steps:
        left = Pprof(real._command, left, tmp_path).sliced(*options(step))

    assert rows(Slicer(wanted).apply(WHOLE)) == rows(left)
    assert left.samples


def test_a_difference_is_the_one_of_pprof(go_pprof: list[str], tmp_path: Path) -> None:
    """Values subtracted as with `-base`; the slice is of the difference."""
    later = made_up(2)
    first = tmp_path / "first.pb.gz"
    first.write_bytes(encode(WHOLE))
    pprof = Pprof(go_pprof, later, tmp_path)
    case = {"tagfocus": "endpoint=/checkout", "tagshow": "endpoint"}
    ours = Slicer(case.items()).apply(subtract(later, WHOLE))

    for option in ("-base", "-diff_base"):
        theirs = pprof.sliced(f"{option}={first}", *options(case))
        kept = [s._replace(labels=_without_mark(s.labels)) for s in theirs.samples]
        theirs = replace(theirs, samples=kept)
        assert _nonzero(rows(ours)) == _nonzero(rows(theirs))
    assert pprof.top(f"-base={first}", *options(case)) == [
        tuple(row) for row in table.functions(ours).rows
    ]


def _without_mark(labels: tuple[tuple[str, str], ...]) -> tuple[tuple[str, str], ...]:
    return tuple(one for one in labels if one[0] != "pprof::base")


def _nonzero(found: Counter[object]) -> Counter[object]:
    return Counter({row: n for row, n in found.items() if any(row[2])})  # type: ignore[index]


names = st.sampled_from(
    ["main", "shop", "T1", "checkout", "^$", ".", "e", "[a-m]x?", "x"]
)
wanted = st.lists(
    st.tuples(
        st.sampled_from([*OPTIONS]),
        names | names.map("tenant={}".format) | names.map("endpoint={}".format),
    ),
    max_size=5,
)


@given(wanted)
def test_a_slice_is_never_more_than_the_whole(chosen: list[tuple[str, str]]) -> None:
    """Values stay or go; nothing is made up, whatever is combined."""
    sliced = Slicer(chosen).apply(WHOLE)

    assert sliced.total(0) <= WHOLE.total(0)
    assert sliced.total(1) <= WHOLE.total(1)
    assert Slicer(chosen).apply(WHOLE).samples == sliced.samples
    # What hides a frame or a label may hide what another option looks for.
    hiding = {"show", "hide", "tagroot", "tagleaf", "tagshow", "taghide"}
    if not hiding & {name for name, _ in chosen}:
        again = Slicer(chosen).apply(sliced)
        assert rows(again) == rows(sliced)


@given(wanted)
def test_every_form_shows_the_same_total(chosen: list[tuple[str, str]]) -> None:
    """pprof, folded stacks, tree and table of one slice agree."""
    sliced = Slicer(chosen).apply(WHOLE)
    total = sliced.total(1)

    lines = folded.write(sliced, 1).splitlines()
    grown = json.loads(tree.write(sliced, "mutex", 1))
    assert sum(int(line.rpartition(" ")[2]) for line in lines) == total
    assert grown["total"] == grown["root"]["total"] == total
    assert table.functions(sliced, 1).shown == total
    assert decode(encode(sliced)).total(1) == total


@pytest.mark.parametrize(
    ("wanted", "why"),
    [
        ([("focus", "(")], "focus: missing )"),
        ([("tagfocus", "a=[")], "tagfocus: missing ]"),
        ([("tagignore", "a,(?!x)")], "tagignore: unsupported group"),
        ([("taghide", "x" * 2000)], "taghide: longer than"),
        ([("nothing", "x")], "no option 'nothing'"),
        ([("focus", "x")] * (TIMES_CAP + 1), "focus: allowed 8 times"),
        ([("tagroot", "a,b,c,d,e,f,g,h,i")], "tagroot: allowed 8 keys"),
    ],
)
def test_a_bad_option_is_named(wanted: list[tuple[str, str]], why: str) -> None:
    """With what is wrong with it, before any profile is looked at."""
    with pytest.raises(PatternError) as refused:
        Slicer(wanted)

    assert str(refused.value).startswith(why)


def test_many_patterns_cost_no_more_than_one_may(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What all of a request's do together is bounded, not each of them."""
    monkeypatch.setattr(patterns, "WORK_CAP", 40_000)
    wanted = [("focus", f"a.{{9}}{at}") for at in range(TIMES_CAP)]
    names = ["".join(pair) for pair in itertools.product("ab", repeat=8)]
    frames = [Frame("x.py", name * 2, 1, 1) for name in names]
    large = replace(WHOLE, samples=[Sample((one,), (1, 1)) for one in frames])
    for one in wanted:
        Slicer([one]).apply(large)

    with pytest.raises(PatternError, match="too costly"):
        Slicer(wanted).apply(large)


def test_patterns_are_not_too_large_together() -> None:
    """A query of some kilobytes makes no program of hundreds of megabytes."""
    Slicer([("tagfocus", ",".join([".{999}"] * 15))])

    with pytest.raises(PatternError, match="tagfocus: the patterns are too large"):
        Slicer([("tagfocus", ",".join([".{999}"] * 1000))])


def test_a_large_profile_is_sliced_with_breaths() -> None:
    """No more than some hundred samples between two moments to give up the GIL."""
    small = columns(WHOLE.samples, 2)
    breaths = 0

    def breathe() -> None:
        nonlocal breaths
        breaths += 1

    Slicer([("tagfocus", "tenant=T1"), ("focus", "main")], breathe).apply(WHOLE)

    assert breaths >= 2 * len(small)


def test_the_real_pprof_reads_a_slice(go_pprof: list[str], tmp_path: Path) -> None:
    """Without a warning, and the slice says what it is."""
    case = {"tagfocus": "endpoint=/checkout", "tagroot": "tenant"}
    file = tmp_path / "slice.pb.gz"
    file.write_bytes(encode(Slicer(case.items()).apply(WHOLE)))

    shown = run_pprof(go_pprof, "-comments", str(file), home=tmp_path)
    assert "sliced: tagfocus=endpoint=/checkout" in shown
    assert "failed" not in run_pprof(go_pprof, "-top", str(file), home=tmp_path)
