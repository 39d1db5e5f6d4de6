"""Where the time of tasks went, from recordings whose truth is known."""

import time
from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

import stroboscope as strobe
from stroboscope._core import LABELS, LabelCell
from stroboscope.formats.timeline import Span, Timeline
from stroboscope.tracing import Recorder
from stroboscope.tracing.statistics import BOUNDS_S, TaskType, by_type, divided


def span(begin: int, end: int, name: int, track: int = 0) -> Span:
    return Span(begin, end, 1, name, 0, 0, 0, track, 0)


def shares(spans: list[Span], begin: int, end: int) -> dict[int | None, float]:
    found: Counter[int | None] = Counter()
    for name, time_ns in divided(spans, begin, end):
        found[name] += time_ns  # type: ignore[assignment]
    return dict(found)


def test_a_moment_belongs_to_the_innermost_region() -> None:
    """And what is in none is not accounted for."""
    spans = [span(10, 60, 1), span(20, 40, 2), span(80, 90, 1)]

    assert shares(spans, 0, 100) == {None: 40, 1: 40, 2: 20}


def test_regions_beside_each_other_share_the_moment() -> None:
    """In equal parts, as on two threads."""
    spans = [span(0, 100, 1), span(50, 100, 2, track=1)]

    assert shares(spans, 0, 100) == {1: 75, 2: 25}


def test_what_is_outside_of_the_part_asked_for_is_not_counted() -> None:
    """A region may reach over both ends."""
    spans = [span(0, 100, 1), span(10, 20, 2)]

    assert shares(spans, 30, 50) == {1: 20}


@given(
    st.lists(
        st.tuples(
            st.integers(0, 50), st.integers(0, 50), st.integers(1, 3), st.integers(0, 2)
        ),
        max_size=12,
    )
)
def test_all_shares_together_are_the_whole(
    found: list[tuple[int, int, int, int]],
) -> None:
    """Whatever regions there are, each moment is counted once."""
    spans = [span(min(a, b), max(a, b), name, track) for a, b, name, track in found]

    assert abs(sum(shares(spans, 5, 45).values()) - 40) < 1e-9


def test_types_are_counted_with_their_errors_and_regions(flight: Recorder) -> None:
    """By name and method; a task that raises is an error, one that lives has no end."""
    for number in range(5):
        try:
            with strobe.task("nightly"), strobe.region("load"):
                if number == 3:
                    raise KeyError
        except KeyError:
            pass
    before = LABELS.get()
    cell = LabelCell()
    cell.begin_task("GET", "http:/x", None)
    LABELS.set(cell)
    block = flight.snapshot()
    cell.end_task("http:/x", 503)
    LABELS.set(before)
    ended = flight.snapshot()
    assert block is not None
    assert ended is not None

    types = {one.name: one for one in by_type(Timeline.read(block))}
    after = {one.name: one for one in by_type(Timeline.read(ended))}

    nightly = types["nightly"]
    assert (nightly.method, nightly.ended, nightly.errors) == ("task", 5, 1)
    assert (nightly.regions["load"].count, nightly.regions["load"].failed) == (5, 1)
    assert sum(nightly.histogram()) == len(nightly.slowest) == 5
    whole = nightly.regions["load"].time_ns + nightly.unaccounted_ns
    assert abs(whole - nightly.time_ns) < 1
    assert (types["http:/x"].alive, types["http:/x"].ended) == (1, 0)
    assert (after["http:/x"].alive, after["http:/x"].errors) == (0, 1)


def test_a_duration_is_in_the_bucket_that_bounds_it() -> None:
    """As Prometheus has it: a bound belongs to its bucket; the last is open."""
    one = TaskType("x", "task")
    one.durations_ns.extend([1_000_000, 1_000_001, int(1e12)])

    counts = one.histogram()

    assert len(counts) == len(BOUNDS_S) + 1
    assert (counts[0], counts[1], counts[-1]) == (1, 1, 1)
    assert one.quantiles_ns(0.0, 1.0) == [1_000_000, int(1e12)]


def test_only_what_is_between_two_moments_is_charged(flight: Recorder) -> None:
    """A task that reaches over both has the time between; one that ended later lives."""
    with strobe.task("before"), strobe.region("load"):
        pass
    with strobe.task("over"), strobe.region("load"):
        from_ns = time.monotonic_ns()
        with strobe.task("within"):
            pass
        to_ns = time.monotonic_ns()
    with strobe.task("after"):
        pass
    block = flight.snapshot()
    assert block is not None

    types = {one.name: one for one in by_type(Timeline.read(block), from_ns, to_ns)}

    assert types.keys() == {"over", "within"}
    over = types["over"]
    assert (over.alive, over.ended, over.time_ns) == (1, 0, to_ns - from_ns)
    assert over.regions["load"].time_ns == to_ns - from_ns
    assert (types["within"].alive, types["within"].ended) == (0, 1)
