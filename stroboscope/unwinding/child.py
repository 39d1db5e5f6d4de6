"""The process itself: reads copies from its standard input, answers once, ends.

It ends by itself when its parent does, and when it has used up its CPU time. It leaves
no core file, and nobody may trace it: what it holds are pieces of another's stack.
"""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import sys
from array import array

from stroboscope.unwinding import messages
from stroboscope.unwinding.chains import UNFOLLOWED, Chain, Unwinder
from stroboscope.unwinding.copies import MACHINES, Copy, read
from stroboscope.unwinding.demangling import demangled
from stroboscope.unwinding.messages import Answer
from stroboscope.unwinding.regions import Images, regions_of

CPU_S_CAP = 20
MEMORY_BYTES_CAP = 2 << 30
#: Behind the application, whose process waits for it a moment only.
_NICE = 5
#: Copies whose code was not mapped when the process began: a library came since then.
WAITING_CAP = 2000
# Source: Linux, include/uapi/linux/prctl.h.
_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE = 1, 4


class Session:
    """What one capture asks, from its first maps to its answer."""

    def __init__(self, machine: str) -> None:
        self._machine = MACHINES[machine]
        self._unwinder = Unwinder(self._machine, Images(machine))
        self._chains: dict[Chain, list[int]] = {}
        self._waiting: list[Copy] = []

    def take(self, kind: int, body: bytes) -> Answer | None:
        """Do what a message says; the answer to the last one. Raises: ValueError."""
        if kind == messages.COPIES:
            for copy in read(body, self._machine):
                self._follow(copy)
            return None
        regions = regions_of(body)
        if kind == messages.MAPS:
            self._unwinder.update(regions)
            return None
        gone = self._unwinder.gone(regions)
        self._unwinder.update(regions)
        for copy in self._waiting:
            self._chains.setdefault(self._unwinder.follow(copy), []).append(copy.number)
        return self._answer(gone)

    def _follow(self, copy: Copy) -> None:
        if not self._unwinder.knows(copy) and len(self._waiting) < WAITING_CAP:
            self._waiting.append(copy)
            return
        self._chains.setdefault(self._unwinder.follow(copy), []).append(copy.number)

    def _answer(self, gone: set[int]) -> Answer:
        """All chains, but those with a frame of a thing that was unloaded meanwhile.

        Its addresses may have become another's in between.
        """
        made = self._unwinder
        frames = [
            (made.things[thing].path, demangled(name), address)
            for thing, address, name in made.frames
        ]
        unfollowed = len(frames)
        frames.append(("", UNFOLLOWED, 0))
        things = [(*one,) for one in made.things]
        answer = Answer(things, frames, [], array("I"))
        for chain, copies in self._chains.items():
            if any(made.frames[one][0] in gone for one in chain.frames):
                answer.unloaded += len(copies)
                continue
            shown = [*chain.frames]
            if chain.is_whole:
                answer.whole += len(copies)
            else:
                answer.cut += len(copies)
                shown.append(unfollowed)
            for number in copies:
                answer.chain_of.extend((number, len(answer.chains)))
            answer.chains.append(shown)
        return answer


def _limit() -> None:
    os.nice(_NICE)
    libc = ctypes.CDLL(None)
    libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)
    # The thread that started us is the one that waits for us. A child of a fork may hold
    # the other end of our input, which then does not end with our parent.
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    for what, cap in (
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_CPU, CPU_S_CAP),
        (resource.RLIMIT_AS, MEMORY_BYTES_CAP),
    ):
        _, hard = resource.getrlimit(what)
        least = cap if hard == resource.RLIM_INFINITY else min(cap, hard)
        resource.setrlimit(what, (least, least))


def main() -> None:
    """Serve the one who started us: `argv[1]` is the name of the machine."""
    _limit()
    session = Session(sys.argv[1])
    while True:
        try:
            kind, body = messages.receive(lambda size: os.read(0, size))
        except EOFError:
            return
        answer = session.take(kind, body)
        if answer is not None:
            out = messages.packed(answer)
            while out:
                out = out[os.write(1, out) :]
            return
