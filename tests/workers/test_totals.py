"""What workers have counted, when they are gone."""

from collections import Counter
from pathlib import Path

import pytest

from stroboscope.formats.pprof import encode
from stroboscope.formats.profile import Frame, Profile, Sample, ValueType
from stroboscope.workers import totals as module
from stroboscope.workers.folder import Folder
from stroboscope.workers.totals import EXITED_CAP, Total, Totals

TYPES = (ValueType("alloc_space", "bytes"), ValueType("inuse_space", "bytes"))


def profile(function: str, *values: int) -> Profile:
    sample = Sample((Frame("a.py", function, 1, 2),), values)
    return Profile(TYPES, [sample], ValueType("space", "bytes"), 1)


def keep(monkeypatch: pytest.MonkeyPatch, folder: Folder, one: str, *v: int) -> None:
    monkeypatch.setattr(module, "instance", lambda: one)
    Totals(folder, ("copy",)).keep("heap", encode(profile("f", *v)))


def others(folder: Folder, *answered: str, alive: tuple[int, ...] = ()) -> list[Total]:
    totals = Totals(folder, ("copy",))
    return totals.of_others("heap", answered, alive.__contains__, lambda: None)


def summed(found: list[Total]) -> tuple[int, int]:
    sums = Counter[int]()
    for one in found:
        for sample in one.profile.samples:
            sums.update(dict(enumerate(sample.values)))
    return sums[0], sums[1]


def test_h43_who_answered_is_not_counted_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stopped worker's file stands for it; what an exited one used is free."""
    folder = Folder(str(tmp_path), "shop")
    keep(monkeypatch, folder, "1-answered", 100, 100)
    keep(monkeypatch, folder, "2-stopped", 20, 20)
    keep(monkeypatch, folder, "3-exited", 3, 3)

    found = others(folder, "1-answered", alive=(1, 2))

    assert {(one.owner, one.profile.samples[0].values) for one in found} == {
        ("2", (20, 20)),
        ("3", (3, 0)),
    }


def test_h43_a_number_that_comes_again_is_another_worker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The new process 3 answers; the old process 3 is gone, and counts."""
    folder = Folder(str(tmp_path), "shop")
    keep(monkeypatch, folder, "3-old", 3, 3)
    keep(monkeypatch, folder, "3-new", 50, 50)

    (found,) = others(folder, "3-new", alive=(3,))

    assert (found.owner, found.profile.samples[0].values) == ("3", (3, 0))


def test_h43_many_exited_workers_are_one_sum(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker recycled a thousand times leaves a few files and no byte uncounted."""
    folder = Folder(str(tmp_path), "shop")
    for number in range(1, 40):
        keep(monkeypatch, folder, f"{number}-x", 10, 10)

        assert summed(others(folder)) == (10 * number, 0)

    files = [name for name in folder.names() if name.startswith("total.heap")]
    assert len(files) <= EXITED_CAP + 2
    assert {one.owner for one in others(folder)} > {"exited"}


def test_h43_a_file_taken_into_the_sum_counts_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever added it was killed before it could remove it."""
    folder = Folder(str(tmp_path), "shop")
    kept = {}
    for number in range(1, EXITED_CAP + 2):
        keep(monkeypatch, folder, f"{number}-x", 10, 10)
        name = f"total.heap.copy.{number}-x"
        kept[name] = folder.read(name)
    others(folder)
    for name, body in kept.items():
        folder.write(name, body or b"")

    assert summed(others(folder)) == (10 * len(kept), 0)


def test_another_copy_and_another_version_are_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of other keys, or bytes that are no profile."""
    folder = Folder(str(tmp_path), "shop")
    keep(monkeypatch, folder, "1-x", 10, 10)
    monkeypatch.setattr(module, "instance", lambda: "2-x")
    Totals(folder, ("other",)).keep("heap", encode(profile("f", 5, 5)))
    folder.write("total.heap.copy.3-x", b"of another version")

    assert summed(others(folder)) == (10, 0)
    both = Totals(folder, ("copy", "other"))
    found = both.of_others("heap", (), lambda process: False, lambda: None)
    assert summed(found) == (15, 0)
