"""Totals by stack and labels, as profiles show them."""

import _thread
import threading
from collections import Counter
from contextvars import Context

import pytest

from stroboscope._core import LABELS, LabelCell, _native
from stroboscope.formats.profile import Labels
from stroboscope.labels import do, label_set, set, without
from stroboscope.profiles.ledgers import keep_labels, to_columns

REQUEST: Labels = (("endpoint", "/a"), ("status", "2xx"))
KNOWN: Labels = (("endpoint", "/a"),)


@pytest.fixture
def ledger() -> _native.Ledger:
    _native.after_fork()  # nobody is known, whatever ran in this process before
    keep_labels(512)
    return _native.Ledger(2)


def request() -> LabelCell:
    cell = LabelCell()
    cell.source = lambda: label_set(dict(KNOWN))
    return cell


def end(cell: LabelCell) -> None:
    cell.labels = label_set(dict(REQUEST))
    cell.publish()


def by_labels(ledger: _native.Ledger) -> dict[Labels, tuple[int, ...]]:
    """Both values; the first is one that only grows."""
    found: dict[Labels, tuple[int, ...]] = {}
    samples = to_columns(ledger.copy(), 2, growing=[0])
    for sample in samples:
        old = found.get(sample.labels, (0, 0))
        found[sample.labels] = (old[0] + sample.values[0], old[1] + sample.values[1])
    keys = Counter((s.stack, s.labels) for s in samples)
    assert not [key for key, count in keys.items() if count > 1]
    return found


def charge(ledger: _native.Ledger, first: int, second: int) -> None:
    ledger.add(ledger.row(), first, second)


def test_what_only_grows_waits_for_the_end_of_its_request(
    ledger: _native.Ledger,
) -> None:
    """No set of labels ever loses what was counted under it."""
    cell = request()
    context = Context()
    context.run(LABELS.set, cell)
    context.run(charge, ledger, 10, 5)
    during = by_labels(ledger)
    end(cell)

    assert during == {KNOWN: (0, 5)}
    assert by_labels(ledger) == {REQUEST: (10, 5)}


def test_blocks_without_a_request_count_at_once(ledger: _native.Ledger) -> None:
    """A worker that never leaves its block is seen all the time."""

    def work() -> None:
        set(queue="mail")
        with do(job="send"):
            charge(ledger, 1, 2)
            seen.append(by_labels(ledger))
        with do(job="send"):
            charge(ledger, 1, 2)
            seen.append(by_labels(ledger))

    seen: list[dict[Labels, tuple[int, ...]]] = []
    Context().run(work)

    labels: Labels = (("job", "send"), ("queue", "mail"))
    assert seen == [{labels: (1, 2)}, {labels: (2, 4)}]


def test_removed_keys_stay_away_whatever_the_request_learns(
    ledger: _native.Ledger,
) -> None:
    """`without` inside a request holds for labels that are bound after it."""
    cell = request()

    def work() -> None:
        LABELS.set(cell)
        for _ in range(100):
            with without("status"), do(step="x"):
                charge(ledger, 1, 1)

    Context().run(work)
    waiting = _native.count_owners()
    end(cell)

    assert by_labels(ledger) == {(("endpoint", "/a"), ("step", "x")): (100, 100)}
    assert waiting < 10


def test_values_beyond_the_caps_are_shown_as_overflow(ledger: _native.Ledger) -> None:
    """Label sets beyond the cap share one, and totals stay true."""
    keep_labels(3)
    for number in range(5):
        context = Context()
        cell = LabelCell(label_set({"job": str(number)}))
        context.run(LABELS.set, cell)
        context.run(charge, ledger, 1, 1)
        cell.publish()

    found = by_labels(ledger)
    assert len(found) == 4
    assert found[(("endpoint", "(overflow)"),)] == (2, 2)


def test_what_no_python_function_caused_has_a_place(ledger: _native.Ledger) -> None:
    """A thread that only runs C code has no frame, and scrapers want one."""
    done = threading.Event()
    _thread.start_new_thread(ledger.row, ())
    while len(ledger.copy()) < 2:
        done.wait(0.01)
    ledger.add(1, 5, 5)  # the row after that of overflow

    (sample,) = to_columns(ledger.copy(), 2, growing=[0])
    assert [frame.function for frame in sample.stack] == ["[no python frame]"]
