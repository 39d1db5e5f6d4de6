"""What workers have counted since they began, kept for when they are gone.

A worker writes its total down before it shows it to anybody, and now and then, and at its
end. So the sum over those who answer and the files of those who do not never falls: what
was shown is in an answer or in a file. A killed worker costs what it counted and showed
to nobody since it last wrote.

`total.<kind>.<copy>.<pid>-<random>` is one worker's. Of the exited, only the last few keep
a file; the others' add up in `total.<kind>.<copy>.exited`, which names whose files it took.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from stroboscope.errors import ProfileError
from stroboscope.formats.pprof import encode, prune
from stroboscope.formats.pprof_reader import decode
from stroboscope.formats.profile import Profile, Sample, merge
from stroboscope.workers.folder import Folder

#: Exited workers that keep a file each.
EXITED_CAP = 4
#: Names of files that the sum remembers to have taken.
_TAKEN_CAP = 256
_EXITED, _TAKEN = "exited", "taken: "


@dataclass(frozen=True, slots=True)
class Total:
    """What somebody who did not answer has counted; `owner` is its pid, or `exited`."""

    owner: str
    profile: Profile


class Totals:
    """Of one copy of a service: `copies` are the names it reads, the first it writes.

    Methods raise FolderError when the folder cannot be used.
    """

    def __init__(self, folder: Folder, copies: tuple[str, ...]) -> None:
        self._folder = folder
        self._copies = copies

    def keep(self, kind: str, body: bytes) -> None:
        """Write down this process's total, a profile's bytes."""
        self._folder.write(f"total.{kind}.{self._copies[0]}.{instance()}", body)

    def of_others(
        self,
        kind: str,
        answered: Iterable[str],
        is_alive: Callable[[int], bool],
        breathe: Callable[[], None],
    ) -> list[Total]:
        """The totals of all who are not among the instances that answered.

        Of those that are gone, nothing is in use any more.
        """
        answered = set(answered)
        living = {one.partition("-")[0] for one in answered}

        def is_gone(name: str) -> bool:
            # An instance that answered has the number now, if not the process of old.
            process = _process_of(name)
            return str(process) in living or not is_alive(process)

        names = self._names(kind) - {
            f"total.{kind}.{copy}.{one}" for copy in self._copies for one in answered
        }
        found: dict[str, Total] = {}
        for name in sorted(names):
            total = self._read(name, is_gone, breathe)
            if total is not None:
                found[name] = total
        # The sum is read last: a file that was taken meanwhile is in it.
        sums, taken = self._sums(kind, breathe)
        found = {name: one for name, one in found.items() if name not in taken}
        gone = [name for name in found if is_gone(name)]
        if len(gone) > EXITED_CAP:
            self._take(kind, gone, found, breathe)
        return [*found.values(), *(Total(_EXITED, one) for one in sums)]

    def _names(self, kind: str) -> set[str]:
        mine = tuple(f"total.{kind}.{copy}." for copy in self._copies)
        return {
            name
            for name in self._folder.names()
            if name.startswith(mine) and not name.endswith(f".{_EXITED}")
        }

    def _read(
        self, name: str, is_gone: Callable[[str], bool], breathe: Callable[[], None]
    ) -> Total | None:
        try:
            profile = decode(self._folder.read(name) or b"", breathe)
        except ProfileError:  # gone meanwhile, or another version's
            return None
        if is_gone(name):
            profile = _unused(profile)
        return Total(str(_process_of(name)), profile)

    def _sums(
        self, kind: str, breathe: Callable[[], None]
    ) -> tuple[list[Profile], set[str]]:
        sums, taken = [], set()
        for copy in self._copies:
            body = self._folder.read(f"total.{kind}.{copy}.{_EXITED}")
            if body is None:
                continue
            try:
                found = decode(body, breathe)
            except ProfileError:
                continue
            names = [c for c in found.comments if c.startswith(_TAKEN)]
            taken |= {name.removeprefix(_TAKEN) for name in names}
            sums.append(replace(found, comments=()))
        return sums, taken

    def _take(
        self,
        kind: str,
        gone: list[str],
        found: dict[str, Total],
        breathe: Callable[[], None],
    ) -> None:
        """Add the files of the exited to the sum. One at a time; others do not wait."""
        copy = self._copies[0]
        lock = self._folder.lock(f"total.{kind}.{copy}.lock")
        if lock is None:
            return
        try:
            name = f"total.{kind}.{copy}.{_EXITED}"
            body = self._folder.read(name)
            sums = [decode(body, breathe)] if body else []
            before = [c for one in sums for c in one.comments if c.startswith(_TAKEN)]
            known = {text.removeprefix(_TAKEN) for text in before}
            new = [one for one in gone if one not in known]
            whole = merge([*(found[one].profile for one in new), *sums], breathe)
            notes = [*before, *(f"{_TAKEN}{one}" for one in new)][-_TAKEN_CAP:]
            whole = prune(replace(whole, comments=tuple(notes)), breathe=breathe)
            self._folder.write(name, encode(whole, breathe))
            for one in gone:
                self._folder.remove(one)
        except ProfileError:  # of several versions: each keeps its file
            return
        finally:
            os.close(lock)


def instance() -> str:
    """Our process, by a name that no later one of its number has."""
    process = os.getpid()
    if process not in _RANDOM:
        _RANDOM.clear()
        _RANDOM[process] = secrets.token_hex(4)
    return f"{process}-{_RANDOM[process]}"


#: By process id: a forked child makes its own.
_RANDOM: dict[int, str] = {}


def _process_of(name: str) -> int:
    number = name.rpartition(".")[2].partition("-")[0]
    return int(number) if number.isdigit() else 0


def _unused(profile: Profile) -> Profile:
    """Without what was in use: the memory of an exited process is."""
    counts = [not kind.type.startswith("inuse_") for kind in profile.sample_types]
    if all(counts):
        return profile
    samples = [
        Sample(
            one.stack,
            tuple(v if c else 0 for v, c in zip(one.values, counts, strict=True)),
            one.labels,
        )
        for one in profile.samples
    ]
    return replace(profile, samples=samples)
