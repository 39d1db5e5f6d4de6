"""What the stall watch stands on: hearts, the wait for a late one, a look at a thread.

Native where it can be, as the engine is; `_core/src/watch.h` says how.
"""

from __future__ import annotations

try:
    from stroboscope._core._native import (
        Heart,
        gc_phase,
        gc_spent,
        live_sampled,
        look,
        samples_are_kept,
        samples_open,
        watch_cpu_ns,
        watch_start,
        watch_stop,
        watch_wait,
    )
except ImportError:
    from stroboscope._core._pure_watching import (  # type: ignore[assignment]
        Heart,
        gc_phase,
        gc_spent,
        live_sampled,
        look,
        samples_are_kept,
        samples_open,
        watch_cpu_ns,
        watch_start,
        watch_stop,
        watch_wait,
    )

__all__ = [
    "Heart",
    "gc_phase",
    "gc_spent",
    "live_sampled",
    "look",
    "samples_are_kept",
    "samples_open",
    "watch_cpu_ns",
    "watch_start",
    "watch_stop",
    "watch_wait",
]
