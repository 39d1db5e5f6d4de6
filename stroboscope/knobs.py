"""Knobs: values that switch at run time and switch themselves back.

A knob has a baseline, given at start, and for a while an override. The override ends by
itself after its ttl, on the monotonic clock; then the baseline returns, never the
override before. All functions are safe from any thread and block for no one.

Knows nothing of what a knob does: whoever owns the behaviour reads the value each time
(`get`) or asks to be told (`on_change`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from stroboscope._clock import SYSTEM, Clock
from stroboscope._greenlets import Log
from stroboscope._threads import Lock
from stroboscope.errors import KnobConflict, KnobError

TTL_DEFAULT_S = 15 * 60.0
TTL_CAP_S = 24 * 3600.0
_log = Log("stroboscope")


@dataclass(frozen=True, slots=True)
class Knob:
    """A knob's name, its value at start, and what it takes.

    `check` returns the value to keep, or raises ValueError with what is allowed.
    `presets` are its values under named presets.
    """

    name: str
    baseline: Any
    check: Callable[[Any], Any]
    presets: Mapping[str, Any]
    description: str


@dataclass(frozen=True, slots=True)
class Override:
    """A value in force instead of the baseline; `ends_s` None means until changed."""

    value: Any
    ends_s: float | None


class Knobs:
    """The knobs of one process.

    `version` counts changes; a writer who names an old one is refused.
    """

    def __init__(self, knobs: Iterable[Knob], clock: Clock = SYSTEM) -> None:
        self._knobs = {knob.name: knob for knob in knobs}
        self._clock = clock
        self._overrides: dict[str, Override] = {}
        self._listeners: list[tuple[str, Callable[[Any], object]]] = []
        self._lock = Lock()
        self.version = 1

    def __iter__(self) -> Iterator[Knob]:
        return iter(self._knobs.values())

    def get(self, name: str) -> Any:
        """The value in force now. Cheap; KeyError for no such knob."""
        override = self._overrides.get(name)
        if override is None or self._is_over(override):
            return self._knobs[name].baseline
        return override.value

    def on_change(self, name: str, listener: Callable[[Any], object]) -> None:
        """Call `listener` with each new value of a knob, on the changing thread."""
        self._listeners.append((name, listener))

    def apply(self) -> None:
        """Tell every listener the value in force: in each process, once it takes part."""
        with self._lock:
            self._tell([knob.name for knob in self])

    def change(
        self,
        values: Mapping[str, Any],
        ttl_s: float | None = TTL_DEFAULT_S,
        version: int | None = None,
    ) -> int:
        """Override several knobs at once, all or none; returns the new version.

        None as a value returns that knob to its baseline. `ttl_s` None means until it
        is changed again.
        Raises: KnobError for an unknown name, a value or ttl out of bounds;
        KnobConflict when `version` is not the current one.
        """
        if ttl_s is not None and not (math.isfinite(ttl_s) and 0 < ttl_s <= TTL_CAP_S):
            raise KnobError(
                f"ttl is {ttl_s} s; allowed: above 0, at most 24 h, or none"
            )
        checked = {name: self._checked(name, value) for name, value in values.items()}
        with self._lock:
            self._expire()
            if version is not None and version != self.version:
                raise KnobConflict(f"version is {self.version}, not {version}")
            ends_s = None if ttl_s is None else self._now_s() + ttl_s
            for name, value in checked.items():
                if value is None:
                    self._overrides.pop(name, None)
                else:
                    self._overrides[name] = Override(value, ends_s)
            self.version += 1
            self._tell(checked)
            return self.version

    def overrides(self) -> dict[str, Override]:
        """What is in force instead of baselines now."""
        with self._lock:
            self._expire()
            return dict(self._overrides)

    def adopt(self, overrides: Mapping[str, Override], version: int) -> None:
        """Let exactly these overrides hold, as of `version`; those over count as changes.

        What this process does not know, or could not take, stays at its baseline.
        """
        with self._lock:
            before = {name: self.get(name) for name in self._knobs}
            valid = {}
            for name, override in overrides.items():
                try:
                    value = self._checked(name, override.value)
                    valid[name] = Override(value, override.ends_s)
                except KnobError as error:
                    _log.warning("stroboscope: not adopted: %s", error)
            self._overrides = {
                name: one for name, one in valid.items() if not self._is_over(one)
            }
            self.version = version + len(valid) - len(self._overrides)
            self._tell(name for name in before if self.get(name) != before[name])

    def preset(self, name: str) -> dict[str, Any]:
        """The values of a preset. Raises: KnobError."""
        values = {
            knob.name: knob.presets[name]
            for knob in self._knobs.values()
            if name in knob.presets
        }
        if not values:
            known = sorted({p for knob in self._knobs.values() for p in knob.presets})
            raise KnobError(f"no preset {name!r:.40}; presets are {known}")
        return values

    def after_fork(self) -> None:
        """A lock another thread of the parent held would stay held here."""
        self._lock = Lock()

    def expire(self) -> float | None:
        """Return what has run out to its baseline; seconds until the next, or None."""
        with self._lock:
            return self._expire()

    def describe(self) -> dict[str, dict[str, Any]]:
        """Value, baseline, seconds left and presets of every knob."""
        with self._lock:
            self._expire()
            return {knob.name: self._described(knob) for knob in self._knobs.values()}

    def _described(self, knob: Knob) -> dict[str, Any]:
        override = self._overrides.get(knob.name)
        left = None
        if override is not None and override.ends_s is not None:
            left = round(override.ends_s - self._now_s(), 1)
        return {
            "value": knob.baseline if override is None else override.value,
            "baseline": knob.baseline,
            "overridden": override is not None,
            "expires_in": left,
            "presets": dict(knob.presets),
            "description": knob.description,
        }

    def _checked(self, name: str, value: Any) -> Any:
        knob = self._knobs.get(name)
        if knob is None:
            raise KnobError(
                f"no setting {name!r:.80}; settings are {sorted(self._knobs)}"
            )
        if value is None:
            return None
        try:
            return knob.check(value)
        except (ValueError, TypeError) as error:
            raise KnobError(f"{name}: {error}") from None

    def _expire(self) -> float | None:
        over = [n for n, o in self._overrides.items() if self._is_over(o)]
        for name in over:
            del self._overrides[name]
            _log.warning("stroboscope: setting %s is back at its baseline", name)
        if over:
            self.version += len(over)  # the same in every process, seen at once or not
            self._tell(over)
        ends = [o.ends_s for o in self._overrides.values() if o.ends_s is not None]
        return max(0.0, min(ends) - self._now_s()) if ends else None

    def _tell(self, names: Iterable[str]) -> None:
        changed = set(names)
        for name, listener in self._listeners:
            if name in changed:
                try:
                    listener(self.get(name))
                except Exception as error:  # the others must still hear of it
                    _log.error("stroboscope: setting %s", name, exc_info=error)

    def _is_over(self, override: Override) -> bool:
        return override.ends_s is not None and override.ends_s <= self._now_s()

    def _now_s(self) -> float:
        return self._clock.monotonic_ns() / 1e9


def whole(low: int, high: int) -> Callable[[Any], int]:
    """A check for whole numbers from `low` to `high`."""

    def check(value: Any) -> int:
        if type(value) is not int or not low <= value <= high:
            raise ValueError(f"allowed: a whole number from {low} to {high}")
        return value

    return check


def real(low: float, high: float) -> Callable[[Any], float]:
    """A check for numbers from `low` to `high`."""

    def check(value: Any) -> float:
        is_number = type(value) in (int, float) and math.isfinite(value)
        if not is_number or not low <= value <= high:
            raise ValueError(f"allowed: a number from {low:g} to {high:g}")
        return float(value)

    return check


def flag(value: Any) -> bool:
    """A check for true and false."""
    if type(value) is not bool:
        raise ValueError("allowed: true or false")
    return value
