"""Totals by stack and labels: what a request caused is counted under its final labels."""

import gc
import os
import subprocess
import sys
import time
import weakref
from array import array
from collections import Counter
from collections.abc import Callable, Iterator
from contextvars import Context
from typing import Any

import pytest

from stroboscope._core import LABELS, LabelCell, _native, engine

Owned = dict[tuple[object, ...], int]


@pytest.fixture
def ledger() -> Iterator[_native.Ledger]:
    _native.after_fork()  # nobody is known, whatever ran in this process before
    _native.configure_owners(None, None, 512)
    yield _native.Ledger(2)
    gc.collect()


def charge(ledger: _native.Ledger, cell: LabelCell | None, *values: int) -> int:
    """Add under the cell; the row it went to."""

    def add() -> int:
        LABELS.set(cell)
        row = ledger.row()
        ledger.add(row, *values)
        return row

    return Context().run(add)


def named(owners: list[Any], at: int) -> tuple[object, ...]:
    kind, thing, parent = owners[at]
    if kind == "live":
        return ("live", thing.serial)
    return (*named(owners, parent), thing) if kind == "pending" else tuple(thing)


def column(copy: _native.LedgerCopy, number: int) -> "array[int]":
    return array("q", copy.column(number))


def totals(ledger: _native.Ledger) -> Owned:
    """The first value by owner."""
    copy = ledger.copy()
    found: Counter[tuple[object, ...]] = Counter()
    for owner, first in zip(column(copy, 1), column(copy, 2), strict=True):
        if first:
            found[named(copy.owners, owner)] += first
    return dict(found)


def test_what_a_cell_caused_moves_to_the_labels_it_ends_with(
    ledger: _native.Ledger,
) -> None:
    """Labels known late count for everything that came before."""
    cell = LabelCell()
    charge(ledger, cell, 3, 0)
    before = totals(ledger)
    cell.labels = "late"
    cell.publish()
    charge(ledger, cell, 4, 0)

    assert before == {("live", cell.serial): 3}
    assert totals(ledger) == {("late",): 7}


def test_requests_leave_no_rows_behind(ledger: _native.Ledger) -> None:
    """Rows are as many as stacks and label sets, however many requests there were."""
    owners = _native.count_owners()
    for number in range(10_000):
        request = LabelCell()
        block = LabelCell("block", request)
        charge(ledger, block, 1, 0)
        block.publish()
        charge(ledger, request, 1, 0)
        request.labels = f"endpoint {number % 5}"
        request.publish()

    wanted = {(f"endpoint {n}",): 2000 for n in range(5)}
    blocks = {(f"endpoint {n}", "block"): 2000 for n in range(5)}
    assert totals(ledger) == wanted | blocks
    assert len(ledger.copy()) <= 2 * 10 + 1
    assert _native.count_owners() <= max(owners, 2) + 10


def test_blocks_of_one_overlay_share_an_owner_while_their_request_runs(
    ledger: _native.Ledger,
) -> None:
    """A request of a million blocks does not have a million owners."""
    request = LabelCell()
    charge(ledger, request, 1, 0)
    owners = _native.count_owners()
    for _ in range(1000):
        outer = LabelCell("outer", request)
        inner = LabelCell("inner", outer)
        charge(ledger, inner, 1, 0)
        inner.publish()
        charge(ledger, outer, 1, 0)
        outer.publish()
    during, used = totals(ledger), _native.count_owners() - owners
    request.labels = "request"
    request.publish()

    me = ("live", request.serial)
    assert during == {me: 1, (*me, "outer"): 1000, (*me, "outer", "inner"): 1000}
    assert used == 2
    assert totals(ledger) == {
        ("request",): 1,
        ("request", "outer"): 1000,
        ("request", "outer", "inner"): 1000,
    }


def test_a_block_that_outlives_its_request_has_its_labels_too(
    ledger: _native.Ledger,
) -> None:
    """Background work under a block ends after the request, under both labels."""
    request = LabelCell()
    block = LabelCell("block", request)
    charge(ledger, block, 1, 0)
    request.labels = "request"
    request.publish()
    charge(ledger, block, 1, 0)
    block.publish()
    charge(ledger, block, 1, 0)

    assert totals(ledger) == {("request", "block"): 3}


def test_a_block_that_works_on_after_its_end_is_counted_at_its_last_end(
    ledger: _native.Ledger,
) -> None:
    """A task that kept an ended block's context is charged until the cell is gone."""
    request = LabelCell()
    block = LabelCell("block", request)
    charge(ledger, block, 1, 0)
    block.publish()
    charge(ledger, block, 1, 0)
    request.labels = "request"
    request.publish()
    charge(ledger, block, 1, 0)
    del block

    assert totals(ledger) == {("request", "block"): 3}


def test_a_dropped_request_is_asked_for_its_labels(ledger: _native.Ledger) -> None:
    """A request that nobody ended ends with its cell, also inside of a cycle."""

    def drop(source: Callable[[], object]) -> None:
        cell = LabelCell()
        cell.source = source
        charge(ledger, cell, 5, 0)

    drop(lambda: "dropped")
    ring: list[Any] = []

    def in_a_ring() -> str:
        return "ring" if ring else ""

    ring.append(in_a_ring)
    drop(in_a_ring)
    gc.collect()

    assert totals(ledger) == {("dropped",): 5, ("ring",): 5}


def test_a_source_or_a_merge_that_fails_costs_the_labels_only(
    ledger: _native.Ledger,
) -> None:
    """The values stay; they are charged to nobody."""

    def fail(*_: object) -> Any:
        raise RuntimeError("no labels")

    cell = LabelCell()
    cell.source = fail
    charge(ledger, cell, 1, 0)
    del cell
    _native.configure_owners(fail, None, 512)
    cell = LabelCell("labels")
    charge(ledger, cell, 2, 0)
    cell.publish()

    assert totals(ledger) == {(): 3}


def test_a_held_row_follows_its_values(ledger: _native.Ledger) -> None:
    """Who remembers a row can take back from it after it was folded, twice."""
    request = LabelCell()
    block = LabelCell("block", request)
    rows = [charge(ledger, block, 10, 0) for _ in range(3)]
    for row in rows:
        ledger.hold(row)
    block.publish()
    charge(ledger, LabelCell("another"), 1, 0)
    request.labels = "request"
    request.publish()
    for row in rows[:2]:
        ledger.add(row, -10)
        ledger.drop(row)
    ledger.add(rows[2], -9)

    assert totals(ledger)["request", "block"] == 1
    ledger.drop(rows[2])


def test_a_held_row_follows_through_rows_that_were_merged(
    ledger: _native.Ledger,
) -> None:
    """Its id leads on though nobody else holds the one between."""
    requests = [LabelCell(), LabelCell()]
    blocks = [LabelCell("block", requests[n]) for n in (0, 1, 1)]
    rows = [charge(ledger, block, 10, 0) for block in blocks]
    for row in rows[1:]:
        ledger.hold(row)
    for block in blocks:
        block.publish()  # the third joins the second's row, under their request
    for request in requests:
        request.labels = "request"
        request.publish()  # and both join the first's
    ledger.drop(rows[1])
    others = [charge(ledger, LabelCell(f"other {n}"), 1, 0) for n in range(5)]
    ledger.add(rows[2], -9)
    ledger.drop(rows[2])

    assert totals(ledger)["request", "block"] == 21
    assert len(set(others)) == 5


def test_ids_of_folded_rows_are_used_again(ledger: _native.Ledger) -> None:
    """Holding and dropping across folds leaves nothing behind."""
    highest = 0
    for _ in range(1000):
        cell = LabelCell("same")
        row = charge(ledger, cell, 1, 0)
        ledger.hold(row)
        cell.publish()
        ledger.add(row, -1)
        ledger.drop(row)
        highest = max(highest, row)

    assert highest < 10


def test_what_finds_no_row_is_counted_without_stack(ledger: _native.Ledger) -> None:
    """Beyond the cap of rows the totals stay true, and ends still fold."""

    def deep(cells: list[LabelCell], left: int) -> None:
        for cell in cells:
            LABELS.set(cell)
            ledger.add(ledger.row(), 1)
        if left:
            deep(cells, left - 1)

    cells = [LabelCell(f"cell {n}") for n in range(700)]
    Context().run(deep, cells, 99)
    copy = ledger.copy()
    rows = zip(column(copy, 0), column(copy, 2), strict=True)
    without = sum(value for stack, value in rows if stack == -1)
    for cell in cells:
        cell.publish()

    assert len(copy) == 1 << 16
    assert without == 70_000 - (1 << 16) + 1
    assert sum(totals(ledger).values()) == 70_000
    # At most 512 label sets are kept apart.
    assert len(ledger.copy()) <= 514 * 100


def test_clearing_keeps_held_rows_valid(ledger: _native.Ledger) -> None:
    """After a clear, what is taken back from an old row breaks nothing."""
    row = charge(ledger, LabelCell("held"), 1, 0)
    ledger.hold(row)
    ledger.clear()
    empty = totals(ledger)
    ledger.add(row, -1)
    ledger.drop(row)
    charge(ledger, None, 3, 0)

    assert empty == {}
    assert sum(totals(ledger).values()) == 2


def test_two_ledgers_fold_together(ledger: _native.Ledger) -> None:
    """The end of one request moves its rows in every ledger."""
    one, two = ledger, _native.Ledger(2)
    cell = LabelCell("both")
    charge(one, cell, 1, 0)
    charge(two, cell, 2, 0)
    cell.publish()

    assert (totals(one), totals(two)) == ({("both",): 1}, {("both",): 2})


def test_a_forked_child_counts_from_zero(ledger: _native.Ledger) -> None:
    """The child keeps no total of its parent's and goes on under the same cells."""
    cell, ended = LabelCell("cell"), LabelCell("ended")
    row = charge(ledger, cell, 1, 0)
    ledger.hold(row)
    charge(ledger, ended, 1, 0)
    ended.publish()
    child = os.fork()
    if child == 0:
        try:
            _native.after_fork()
            good = totals(ledger) == {}
            ledger.add(row, 0)
            ledger.drop(row)
            charge(ledger, cell, 2, 0)
            charge(ledger, ended, 3, 0)
            cell.publish()
            good &= totals(ledger)["cell",] == 2
            os._exit(0 if good else 1)
        except BaseException:
            os._exit(2)
    _, status = os.waitpid(child, 0)

    assert os.waitstatus_to_exitcode(status) == 0
    ledger.drop(row)
    assert totals(ledger)["ended",] == 1


def test_what_a_window_saw_goes_with_it_while_ledgers_stay(
    ledger: _native.Ledger,
) -> None:
    """Ledgers live as long as the process: windows must not add to them for ever."""
    space: dict[str, Any] = {}
    exec("def burn(n):\n while n > 0:\n  n -= 1", space)
    code = weakref.ref(space["burn"].__code__)
    window = engine.open_window(250)
    end = time.thread_time() + 0.2
    while time.thread_time() < end:
        space["burn"](10_000)
    capture = window.close()
    del space
    gc.collect()

    assert "burn" in {frame[1] for frame in capture.frames}
    assert code() is None
    assert ledger.row() >= 0


REBORN = """
from stroboscope._core import _native

WRONG = []
for number in range(200):
    ledger = _native.Ledger(1)
    space = {"row": ledger.row}
    exec(f"def f{number}():\\n    return row()", space)
    ledger.add(space[f"f{number}"](), 1)
    copy = ledger.copy()
    (stack,) = (one for one in memoryview(copy.column(0)).cast("q") if one >= 0)
    numbers, _ = _native.stacks_of(True, [stack])
    names = [f[1] for f in _native.frames_of(True, list(memoryview(numbers).cast("I")))]
    if names[0] != f"f{number}":
        WRONG.append((number, names))
    space.clear()
    del ledger, copy  # nobody counts: the code's memory is the next one's
print(WRONG)
"""


def test_code_in_another_codes_place_has_its_own_name() -> None:
    """When nobody counts any more, no instruction's address keeps a name."""
    done = subprocess.run(
        [sys.executable, "-c", REBORN], capture_output=True, text=True, timeout=60
    )

    assert done.stdout.strip() == "[]", done.stdout[-500:] + done.stderr
