"""What a request is called, worked out when a sampled request ends."""

import gc
from collections.abc import Iterator
from typing import Any

import pytest

from stroboscope.labels import TABLE
from stroboscope.middleware.observed import Labeller, Observed
from stroboscope.settings import LABEL_SETS_CAP, Settings


def template(carrier: Any) -> str:
    return str(carrier)


def ended(labeller: Labeller, endpoint: str) -> Observed:
    request = Observed(labeller, endpoint, "GET")
    request.status, request.ended_ns = 200, request.began_ns + 5_000_000
    return request


@pytest.fixture
def labeller() -> Iterator[Labeller]:
    gc.collect()
    yield Labeller(Settings(), template)
    TABLE.configure(LABEL_SETS_CAP, "")


def test_equal_requests_do_not_make_their_labels_anew(labeller: Labeller) -> None:
    """Nobody holds the set between two requests, and yet it is made once."""
    labeller.labels(ended(labeller, "/a"))
    made = TABLE.stats().made

    found = labeller.labels(ended(labeller, "/a"))

    assert TABLE.stats().made == made
    assert found is not None
    assert dict(found)["endpoint"] == "/a"


def test_sets_nobody_holds_take_little_of_the_cap(labeller: Labeller) -> None:
    """An eighth at most: the others stay free for those who run."""
    for number in range(1000):
        labeller.labels(ended(labeller, f"/{number}"))

    stats = TABLE.stats()
    assert stats.alive <= LABEL_SETS_CAP // 8 + 10


def test_many_labellers_keep_no_more_than_one() -> None:
    """An application made anew for each of its tests fills no table."""
    several = [
        Labeller(Settings(labels={"build": str(number)}), template)
        for number in range(20)
    ]
    for one in several:
        for path in range(40):
            one.labels(ended(one, f"/{path}"))

    gc.collect()
    assert TABLE.stats().alive <= LABEL_SETS_CAP // 8 + 30


def test_an_overflow_is_not_remembered(labeller: Labeller) -> None:
    """Once there is room again, the request has its own labels."""
    TABLE.configure(TABLE.stats().alive - 2, "")  # the two permanent ones are free
    full = labeller.labels(ended(labeller, "/b"))
    TABLE.configure(LABEL_SETS_CAP, "")
    free = labeller.labels(ended(labeller, "/b"))

    assert dict(full or ())["endpoint"] == "(overflow)"
    assert dict(free or ())["endpoint"] == "/b"


def test_what_is_cut_is_counted_each_time(labeller: Labeller) -> None:
    """A value too long is cut in every request, and each is counted."""
    before = TABLE.stats().truncated
    for _ in range(3):
        labeller.labels(ended(labeller, "/" + "x" * 200))

    assert TABLE.stats().truncated == before + 3
