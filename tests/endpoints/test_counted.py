"""Totals never fall: workers are killed, stopped, recycled between two looks."""

import os
import signal
from collections import Counter
from pathlib import Path

import pytest
from workers import Worker, worker, workers

from stroboscope.formats.pprof_reader import decode
from stroboscope.formats.profile import Frame, Profile

pytestmark = pytest.mark.slow

HEAP = {"heap_rate_bytes": 4096}
#: Holds 8 MB, and says by its name who did.
GROW = """
def hold_{0}(): return [bytes(1000) for _ in range(8000)]
held = hold_{0}()
"""
HEADER = "X-Stroboscope-Workers"
Stack = tuple[Frame, ...]


def by_stack(profile: Profile, column: int) -> Counter[Stack]:
    found = Counter[Stack]()
    for sample in profile.samples:
        found[sample.stack] += sample.values[column]
    return found


def bytes_of(profile: Profile, function: str, column: int) -> int:
    found = by_stack(profile, column)
    return sum(n for stack, n in found.items() if any(f.function == function for f in stack))  # fmt: skip


def heap(one: Worker, flat: str = "") -> Profile:
    return decode(one.ask(f"/pprof/heap?{flat}").content)


@pytest.mark.parametrize("flat", ["", "merge=flat"])
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP, signal.SIGTERM, 0])
def test_h43_totals_never_fall(tmp_path: Path, how: int, flat: str) -> None:
    """Killed, stopped or ended between two looks: no stack has less than before; what
    an exited worker held is free."""
    with (
        worker(tmp_path, GROW.format("a"), **HEAP) as one,
        worker(tmp_path, GROW.format("b"), **HEAP) as lost,
    ):
        before = heap(one, flat)
        if how:
            os.kill(lost.pid, how)
        else:
            assert lost.process.stdin is not None
            lost.process.stdin.close()
        if how != signal.SIGSTOP:
            lost.process.wait(10)
        after = heap(one, flat)
        allocs = decode(one.ask(f"/pprof/allocs?{flat}").content)
        if how == signal.SIGSTOP:
            os.kill(lost.pid, signal.SIGCONT)

    assert 4e6 < bytes_of(before, "hold_b", 1) < 16e6
    for column in (0, 1):
        had, has = by_stack(before, column), by_stack(after, column)
        assert {s for s in had if has[s] < had[s]} == set()
        assert {s for s in had if by_stack(allocs, column)[s] < had[s]} == set()
    in_use = bytes_of(after, "hold_b", 3)
    assert (in_use > 4e6) is (how == signal.SIGSTOP)
    assert allocs.default_sample_type == "alloc_space"
    assert any(str(lost.pid) in note for note in after.comments)


def test_h43_what_nobody_had_seen_is_written_at_the_end(tmp_path: Path) -> None:
    """A recycled worker that was never asked leaves its total."""
    with worker(tmp_path, **HEAP) as one:
        with worker(tmp_path, GROW.format("b"), **HEAP):
            pass
        found = heap(one)

    assert bytes_of(found, "hold_b", 1) > 4e6
    assert bytes_of(found, "hold_b", 3) == 0


def test_h43_a_worker_writes_before_it_shows(tmp_path: Path) -> None:
    """Killed the moment after it was asked for itself alone, its total is there."""
    with (
        worker(tmp_path, **HEAP) as one,
        worker(tmp_path, GROW.format("b"), **HEAP) as lost,
    ):
        shown = decode(lost.ask(f"/pprof/heap?worker={lost.pid}").content)
        lost.process.kill()
        lost.process.wait()
        found = heap(one)

    had, has = by_stack(shown, 1), by_stack(found, 1)
    assert {stack for stack in had if has[stack] < had[stack]} == set()


def test_h43_totals_outlive_the_last_worker(tmp_path: Path) -> None:
    """A single worker is recycled; nobody is there in between."""
    with worker(tmp_path, GROW.format("a"), **HEAP):
        pass
    with worker(tmp_path, GROW.format("b"), **HEAP) as one:
        answer = one.ask("/pprof/heap")

    found = decode(answer.content)
    assert answer.headers[HEADER] == "1/1"
    assert bytes_of(found, "hold_a", 1) > 4e6
    assert bytes_of(found, "hold_b", 3) > 4e6


def test_a_difference_is_of_the_living_only(tmp_path: Path) -> None:
    """What exited workers had counted did not change meanwhile."""
    with worker(tmp_path, GROW.format("a"), **HEAP):
        pass
    with workers(tmp_path, "", "", **HEAP) as (one, _):
        found = decode(one.ask("/pprof/heap?seconds=0.3").content)

    assert bytes_of(found, "hold_a", 1) == 0
    assert found.duration_ns > 2e8
