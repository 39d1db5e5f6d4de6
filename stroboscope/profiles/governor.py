"""The overhead governor: watches what we cost and slows us down, then stops us.

It looks while somebody waits for a profile; nothing runs otherwise. Our cost is the CPU
time of the sampler's handler, its drainer and our threads, as a share of one CPU.
"""

from __future__ import annotations

from dataclasses import dataclass

from stroboscope._clock import SYSTEM, Clock
from stroboscope._core import Engine, engine
from stroboscope._threads import Lock

#: Above the share for this long before anything happens, and between two actions.
PATIENCE_S = 5.0
#: Each slowing divides the rate by this; below the floor comes the stop.
SLOWDOWN = 4
HZ_FLOOR = 5
_LOOK_S = 1.0


@dataclass(frozen=True, slots=True)
class Action:
    """What was done when, in seconds of the monotonic clock, as a comment says it."""

    at_s: float
    kind: str
    text: str


class Governor:
    """One per surface. `look` is cheap and may be called as often as one likes."""

    def __init__(
        self, share: float, clock: Clock = SYSTEM, governed: Engine = engine
    ) -> None:
        self.share = share
        self._clock = clock
        self._engine = governed
        self._lock = Lock()
        self._seen_s = self._now_s()
        self._seen_ns = governed.own_cpu_ns()
        self._over_s = 0.0
        self._actions: list[Action] = []
        self.slowed = self.stopped = 0
        #: The share of one CPU we used when last looked at.
        self.last = 0.0

    def look(self) -> None:
        """Measure, at most once a second; act when it was too much for 5 s."""
        with self._lock:
            elapsed_s = self._now_s() - self._seen_s
            if elapsed_s < _LOOK_S:
                return
            used_ns = self._engine.own_cpu_ns()
            self.last = (used_ns - self._seen_ns) / 1e9 / elapsed_s
            self._seen_s += elapsed_s
            self._seen_ns = used_ns
            # After a rest nobody looked: what was used then is spread too thin to say.
            is_over = self.last > self.share and elapsed_s < PATIENCE_S
            self._over_s = self._over_s + elapsed_s if is_over else 0.0
            if self._over_s >= PATIENCE_S:
                self._over_s = 0.0
                self._act()

    def actions_since(self, moment_s: float) -> list[Action]:
        """What was done since a moment of the monotonic clock."""
        return [action for action in self._actions if action.at_s >= moment_s]

    def _act(self) -> None:
        hz = self._engine.hz // SLOWDOWN
        cost = f"own CPU {100 * self.last:.1f} % of one, allowed {100 * self.share:g} %"
        if hz >= HZ_FLOOR:
            self.slowed += 1
            self._engine.set_rate(hz)
            done = Action(self._now_s(), f"rate={hz}", f"slowed to {hz} Hz: {cost}")
        else:
            self.stopped += 1
            self._engine.cancel_all()
            done = Action(self._now_s(), "stopped", f"stopped: {cost}")
        self._actions = [*self._actions[-15:], done]

    def _now_s(self) -> float:
        return self._clock.monotonic_ns() / 1e9
