"""The knobs of the surface: what can be switched at run time, and how far."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Mapping
from typing import Any

from stroboscope._clock import SYSTEM, Clock
from stroboscope._core import engine
from stroboscope._core.contention import contention
from stroboscope._greenlets import among_greenlets
from stroboscope.endpoints.audit import LOGGER
from stroboscope.knobs import Knob, Knobs, flag, real, whole
from stroboscope.profiles import heap
from stroboscope.settings import CPU_HZ_MAX, STALL_MS_MIN, Settings

_LOGGERS_CAP = 32
_BOUNDS_CAP = 8
_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")


def _presets(safe: Any, forensic: Any) -> dict[str, Any]:
    return {"production-safe": safe, "forensic": forensic}


def knobs_of(settings: Settings, clock: Clock = SYSTEM) -> Knobs:
    """The knobs, their baselines taken from the settings."""
    s, levels = settings, _LogLevels()
    made = Knobs(
        (
            Knob(
                "cpu_hz",
                s.cpu_hz,
                whole(1, CPU_HZ_MAX),
                _presets(100, 1000),
                "CPU samples a second of CPU time and thread.",
            ),
            Knob(
                "mutex_fraction",
                s.mutex_fraction,
                whole(0, 10**6),
                _presets(100, 1),
                "One in so many contentions is charged to the holder; 0 is off.",
            ),
            Knob(
                "block_rate_ns",
                s.block_rate_ns,
                whole(0, 10**12),
                _presets(10**6, 1),
                "One wait per so many nanoseconds waited is counted; 0 is off.",
            ),
            Knob(
                "heap_rate_bytes",
                s.heap_rate_bytes,
                whole(0, 1 << 40),
                _presets(524_288, 65_536),
                "One allocation per so many bytes; 0 is off.",
            ),
            Knob(
                "trace_fraction",
                s.trace_fraction,
                real(0, 1),
                _presets(1.0, 1.0),
                "Share of requests that are recorded.",
            ),
            Knob(
                "flight_recorder",
                s.flight_recorder,
                flag,
                _presets(True, True),
                "Whether the last seconds are kept.",
            ),
            Knob(
                "stall_threshold_ms",
                s.stall_threshold_ms,
                _late_ms,
                _presets(100.0, 50.0),
                "A loop that is late by more is a stall; 0 watches nothing.",
            ),
            Knob(
                "threadcreate",
                s.threadcreate,
                flag,
                _presets(True, True),
                "Whether starts of threads are counted.",
            ),
            Knob(
                "latency_buckets",
                list(s.latency_buckets),
                _bounds,
                {},
                "Upper bounds of the latency label, in seconds.",
            ),
            Knob(
                "span_ids",
                False,
                flag,
                {},
                "Samples of CPU and running time say whose span they are.",
            ),
            Knob("log_levels", {}, levels.check, {}, "Level by logger."),
        ),
        clock,
    )
    made.on_change("log_levels", levels)
    made.on_change("cpu_hz", engine.set_rate)
    made.on_change(
        "heap_rate_bytes",
        lambda rate: heap.set_rate(rate, s.label_sets, with_raw=s.heap_raw),
    )
    made.on_change("mutex_fraction", contention.set_mutex_fraction)
    made.on_change("block_rate_ns", contention.set_block_rate)
    return made


def _late_ms(value: Any) -> float:
    ms = real(0, 60_000)(value)
    if 0 < ms < STALL_MS_MIN:
        raise ValueError(f"allowed: 0, or {STALL_MS_MIN:g} to 60000")
    return ms


def _bounds(value: Any) -> list[float]:
    check = real(0.000_001, 86_400)
    if not isinstance(value, list) or not 1 <= len(value) <= _BOUNDS_CAP:
        raise ValueError(f"allowed: a list of 1 to {_BOUNDS_CAP} seconds")
    bounds = [check(one) for one in value]
    if any(a >= b for a, b in itertools.pairwise(bounds)):
        raise ValueError("allowed: ascending seconds")
    return bounds


class _LogLevels:
    """Sets levels, and sets back those that are no longer named."""

    def __init__(self) -> None:
        self._before: dict[str, int] = {}

    def check(self, value: Any) -> dict[str, str]:
        """The levels wanted. Raises: ValueError."""
        if not isinstance(value, dict) or len(value) > _LOGGERS_CAP:
            raise ValueError(
                f"allowed: at most {_LOGGERS_CAP} loggers with their level"
            )
        for name, level in value.items():
            # Naming a logger makes it, for ever: only those that are there.
            if name and name not in logging.root.manager.loggerDict:
                raise ValueError(f"no logger {name!r:.80} in this process")
            if level not in _LEVELS:
                raise ValueError(f"allowed levels: {', '.join(_LEVELS)}")
        if among_greenlets(lambda: self._silences(value, logging.getLogger(LOGGER))):
            raise ValueError("this would silence the audit log")
        return dict(value)

    def _silences(self, levels: Mapping[str, str], log: logging.Logger | None) -> bool:
        if log is None or not log.isEnabledFor(logging.INFO):
            return False
        while log is not None:  # the first with a level of its own decides
            name = "" if log is logging.root else log.name
            level = logging.getLevelNamesMapping().get(levels.get(name, ""))
            level = level or self._before.get(name, log.level)
            if level:
                return level > logging.INFO
            log = log.parent
        return False

    def __call__(self, levels: Mapping[str, str]) -> None:
        among_greenlets(lambda: self._set(levels))

    def _set(self, levels: Mapping[str, str]) -> None:
        for name in [name for name in self._before if name not in levels]:
            logging.getLogger(name).setLevel(self._before.pop(name))
        for name, level in levels.items():
            logger = logging.getLogger(name)
            self._before.setdefault(name, logger.level)
            logger.setLevel(level)
