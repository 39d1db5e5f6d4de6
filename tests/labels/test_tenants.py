"""Tenants: few names for many, found in constant time."""

import sys
from collections import Counter
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stroboscope.labels.tenants import SpaceSaving, TenantBuckets
from stroboscope.settings import Settings

#: Skewed streams: a few keys often, many keys seldom, and runs of new ones.
STREAMS = st.lists(st.integers(0, 30) | st.integers(0, 3) | st.integers(0, 10**6))


@given(STREAMS, st.integers(1, 12))
def test_space_saving_keeps_its_guarantees(stream: list[int], capacity: int) -> None:
    """count >= true, count - error <= true, and every key above N/capacity is there."""
    sketch = SpaceSaving(capacity)
    for key in stream:
        sketch.add(str(key))
    truth = Counter(map(str, stream))

    assert len(sketch.counts) == min(capacity, len(truth))
    assert sketch.counts.keys() == sketch.errors.keys()
    assert sum(sketch.counts.values()) == len(stream)
    for key, count in sketch.counts.items():
        assert count - sketch.errors[key] <= truth[key] <= count
        assert sketch.errors[key] <= len(stream) / capacity
    for key, count in truth.items():
        assert count <= len(stream) / capacity or key in sketch.counts


@given(STREAMS, st.integers(1, 12))
def test_space_saving_replaces_a_lightest_key(stream: list[int], capacity: int) -> None:
    """A key that makes room had the smallest count of all at that moment."""
    sketch = SpaceSaving(capacity)
    for key in stream:
        before = dict(sketch.counts)
        count = sketch.add(str(key))
        for gone in before.keys() - sketch.counts.keys():
            assert before[gone] == min(before.values()) == count - 1


def calls(function: Callable[[], object]) -> int:
    """How many calls, of Python and of C, `function` makes: its work, not its time."""
    count = 0

    def on_event(frame: object, event: str, arg: object) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    sys.setprofile(on_event)
    try:
        function()
    finally:
        sys.setprofile(None)
    return count


class Key(str):
    """A key that calls Python whenever it is looked up, so that look-ups count."""

    def __hash__(self) -> int:
        return str.__hash__(self)


def test_a_flood_of_keys_costs_the_same_at_any_capacity() -> None:
    """An eviction among 2048 keys does what one among 16 does."""

    def flood(capacity: int) -> int:
        sketch = SpaceSaving(capacity)
        for i in range(capacity):
            sketch.add(Key(i))
        keys = [Key(-i) for i in range(1, 3000)]
        return calls(lambda: [sketch.add(key) for key in keys])

    assert flood(2048) < 1.2 * flood(16)


def test_an_unknown_tenant_costs_the_same_among_many_buckets() -> None:
    """Strangers are told from 256 shown tenants as fast as from two."""

    def flood(top: int) -> int:
        buckets = TenantBuckets(Settings(tenant_top=top))
        for i in range(top):
            for _ in range(20):
                buckets.bucket(f"heavy-{i}")
        return calls(lambda: [buckets.bucket(f"light-{i}") for i in range(3000)])

    assert flood(256) < 1.2 * flood(2)


@given(STREAMS, st.integers(1, 4))
def test_never_more_names_than_buckets(stream: list[int], top: int) -> None:
    """At each moment at most N names are shown, and an answer is one of them."""
    buckets = TenantBuckets(Settings(tenant_top=top))
    for tenant in stream:
        answer = buckets.bucket(str(tenant))
        shown = buckets.shown()
        assert len(shown) <= top
        assert answer == "other" or (answer == str(tenant) and answer in shown)


def test_a_heavy_tenant_that_comes_late_is_shown() -> None:
    """Tenants that were first are displaced by one that is clearly heavier."""
    buckets = TenantBuckets(Settings(tenant_top=2))
    for i in range(1000):
        buckets.bucket(f"early-{i % 50}")
    for _ in range(500):
        buckets.bucket("late")

    assert "late" in buckets.shown()


def test_heavy_tenants_get_a_bucket_and_the_rest_is_other() -> None:
    """A million ids leave N names, and heavy ones among them."""
    buckets = TenantBuckets(Settings(tenant_top=2))
    for i in range(5000):
        buckets.bucket(f"light-{i}")
        buckets.bucket("acme")
        buckets.bucket("globex")

    assert buckets.bucket("light-7") == "other"
    assert buckets.shown() == ["acme", "globex"]


def test_equal_tenants_do_not_flap() -> None:
    """Near equals keep their buckets: a challenger must be clearly heavier."""
    buckets = TenantBuckets(Settings(tenant_top=1))
    seen = {buckets.bucket(name) for _ in range(100) for name in ("a", "b")}

    assert seen == {"a", "other"}


def test_allow_listed_tenants_only() -> None:
    """With a list, nobody else has a name."""
    buckets = TenantBuckets(Settings(tenants=("acme",)))

    assert buckets.bucket("acme") == "acme"
    assert buckets.bucket("globex") == "other"


@pytest.mark.parametrize("tenant", [3, b"acme", "", object()])
def test_unusable_tenants_are_counted(tenant: object) -> None:
    """What is no id gives no label and one count."""
    buckets = TenantBuckets(Settings())

    assert buckets.bucket(tenant) is None
    assert buckets.unusable == 1


def test_hashed_tenants_hide_the_id_and_agree_between_workers() -> None:
    """The same key gives the same bucket, which does not hold the id."""
    settings = Settings(keys=("k" * 64,), hash_tenants=True, tenants=("acme",))
    names = {TenantBuckets(settings).bucket("acme") for _ in range(2)}

    assert len(names) == 1
    assert "acme" not in str(names)
