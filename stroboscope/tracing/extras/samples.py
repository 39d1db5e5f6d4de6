"""CPU samples, each with its moment, thread and stack, as densely as the kernel ticks."""

from __future__ import annotations

from collections.abc import Sequence

from stroboscope._core import engine
from stroboscope._core.engine import Window
from stroboscope._threads import alive
from stroboscope.formats.callstacks import Callstacks
from stroboscope.formats.names import plain
from stroboscope.tracing.extras import Collector, Fact

#: Asked for: CPU timers fire at the kernel's tick at most, which is often 250 a second.
HZ = 250
#: Samples of one capture: four threads that burn all of ten seconds, five times over.
MOMENTS_CAP = 50_000
#: Windows open at once, of all who sample; see `_core/src/window.h`.
_WINDOWS_CAP = 16


class CpuSamples(Collector):
    """Shares the sampler; others that sample meanwhile do so at this rate, too."""

    name = "cpu_samples"

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._window: Window | None = None
        self._threads: dict[int, str] = {}
        #: What was sampled; None before the end, or without samples one by one.
        self.callstacks: Callstacks | None = None

    def start(self) -> None:
        """Open a window. Raises: WindowsExhausted, EngineUnavailable."""
        self._threads = _thread_names()
        self._window = engine.open_window(
            HZ, seconds=self._seconds, limit=_WINDOWS_CAP, moments=MOMENTS_CAP
        )

    def stop(self) -> Sequence[Fact]:
        """Close it. Blocks some milliseconds."""
        if self._window is None:
            return ()
        taken = self._window.close()
        moments, late = taken.moments, taken.late
        periods = sum(moment.weight for moment in moments)
        # What came too late for the limit is no fault of the timers'.
        true_hz = round(HZ * len(moments) / periods) if periods else HZ
        self._threads |= _thread_names()
        self.callstacks = Callstacks(
            moments, taken.frames, taken.stacks, true_hz, self._threads
        )
        facts: list[Fact] = [
            ("cpu_samples", len(moments)),
            ("cpu_samples_periods", periods),
            ("cpu_samples_hz_asked", HZ),
            ("cpu_samples_hz", true_hz),
            ("cpu_samples_beyond_limit", late),
        ]
        facts += [("cpu_samples_note", note) for note in taken.notes]
        return facts


def _thread_names() -> dict[int, str]:
    """By the system's id, of threads that live. Takes no lock."""
    active = alive()
    named = [(getattr(one, "native_id", None), one) for one in active]
    return {
        tid: plain(str(getattr(one, "_name", "")), f"thread {tid}")
        for tid, one in named
        if tid
    }
