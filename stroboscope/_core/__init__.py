"""The engine's floor: LABELS, LabelCell, `engine`; native where it can be.

`STROBOSCOPE_PURE` at build time leaves the C engine out; the portable twin then runs
and says in every profile what it cannot see.
"""

from stroboscope._core import recording
from stroboscope._core.at_rest import AtRest, TaskRow, task_sets
from stroboscope._core.capture import TRUNCATED, Capture
from stroboscope._core.engine import Driver, Engine, EngineInfo, Window
from stroboscope._greenlets import POST

_driver: Driver
try:
    from stroboscope._core._native import LABELS, LabelCell
    from stroboscope._core.native import NativeDriver

    _driver, _reason = NativeDriver(), "built with the C engine"
except ImportError as _error:
    from stroboscope._core._pure import (  # type: ignore[assignment]
        LABELS,
        LabelCell,
        PortableDriver,
    )

    _driver, _reason = PortableDriver(), f"no C engine: {_error}"

engine = Engine(_driver, _reason)
POST.start_thread = engine.start_thread

__all__ = [
    "LABELS",
    "TRUNCATED",
    "AtRest",
    "Capture",
    "Engine",
    "EngineInfo",
    "LabelCell",
    "TaskRow",
    "Window",
    "engine",
    "recording",
    "task_sets",
]
