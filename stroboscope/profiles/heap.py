"""The heap profile: sampled allocations by stack and label, in total and still alive.

Off until `set_rate`; then Python's allocators (OBJ and MEM, as an option RAW) are hooked. Totals count
from the first time it was on and never fall; what is alive is known while it is on.
Values are estimates of the whole, scaled as Go scales them. See `_core/src/heap.h`.
"""

from __future__ import annotations

import atexit
import sys
import time
from array import array
from typing import Any

from stroboscope._core import engine
from stroboscope.errors import EngineUnavailable
from stroboscope.formats.profile import Columns, Profile, ValueType
from stroboscope.profiles.breath import Breath
from stroboscope.profiles.ledgers import keep_labels, to_columns

#: The C engine, which `_core` has loaded where there is one.
_native: Any = sys.modules.get("stroboscope._core._native")

_COUNT, _BYTES = "count", "bytes"
SAMPLE_TYPES = (
    ValueType("alloc_objects", _COUNT),
    ValueType("alloc_space", _BYTES),
    ValueType("inuse_objects", _COUNT),
    ValueType("inuse_space", _BYTES),
)
PERIOD_TYPE = ValueType("space", _BYTES)
#: Go's, and the period of a profile that never sampled.
RATE_DEFAULT_BYTES = 524_288
#: Columns of objects, and their unit in the ledger. Source: SB_HEAP_OBJECT in heap.h.
_OBJECTS, _UNIT_BITS = (0, 2), 10
_GROWING = (0, 1)

_registered = False


def set_rate(rate_bytes: int, label_sets: int = 512, *, with_raw: bool = False) -> None:
    """Sample one block in so many bytes from now on; 0 is off, and nothing is hooked.

    `label_sets` are kept apart at most. `with_raw` hooks Python's RAW domain as well,
    which C code asks without the GIL: what has no thread of Python's at hand counts
    under no stack. Cheap, safe from any thread.
    Raises: EngineUnavailable where there is no C engine, or no hook to be had.
    """
    if _native is None:
        if rate_bytes:
            raise EngineUnavailable("allocations are seen by the C engine only")
        return
    if not rate_bytes:
        _native.heap_stop()
        return
    _register()
    keep_labels(label_sets)
    try:
        _native.heap_start(rate_bytes, with_raw)
    except RuntimeError as error:
        raise EngineUnavailable(str(error)) from error


def collect_heap(default_sample_type: str = "") -> Profile:
    """The profile as it stands now; empty, and saying why, before it was ever on.

    Blocks for some milliseconds per thousand rows, with breaths.
    """
    copy = _native.heap_copy() if _native is not None else None
    width = len(SAMPLE_TYPES)
    samples = Columns([], [], [], width)
    if copy is not None:
        samples = to_columns(copy, width, _GROWING)
        _to_whole_objects(samples)
    info = _native.heap_info() if _native is not None else {}
    return Profile(
        sample_types=SAMPLE_TYPES,
        samples=samples,
        period_type=PERIOD_TYPE,
        period=int(info.get("rate", 0)) or RATE_DEFAULT_BYTES,
        time_ns=time.time_ns(),
        comments=_comments(info, was_on=copy is not None),
        default_sample_type=default_sample_type,
        mapping=f"python{sys.version_info.major}.{sys.version_info.minor}",
    )


def _to_whole_objects(samples: Columns) -> None:
    breathe = Breath()
    for column in _OBJECTS:
        whole = array("q")
        for value in samples.values[column]:
            whole.append(value >> _UNIT_BITS)
            breathe()
        samples.values[column][:] = whole


def _comments(info: dict[str, int], *, was_on: bool) -> tuple[str, ...]:
    if not info:
        return ("heap: allocations are seen by the C engine only, which is not here",)
    if not was_on:
        return ("heap: off; the setting heap_rate_bytes switches it on",)
    notes = []
    if not info["on"]:
        notes.append("heap: off now; totals are of when it was on, nothing is in use")
    for key, text in _LOSSES.items():
        if info[key]:
            notes.append(f"heap: {text}: {info[key]}")
    return tuple(notes)


_LOSSES = {
    "live_lost": "samples whose life is not followed, too many at once",
    "unsettled_lost": "frees without the GIL that were lost, no memory",
    "cut": "times another tool took our hooks away and use was counted anew",
}


def _register() -> None:
    global _registered
    if not _registered:
        _registered = True
        engine.register()  # a forked child begins without hooks
        # The interpreter frees to the last moment: not through our hooks.
        atexit.register(_native.heap_stop)
