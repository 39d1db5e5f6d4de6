"""memray beside the heap profile: it replaces Python's allocators as we do."""

import pytest
from heaping import HOLD, run

pytest.importorskip("memray", reason="memray is in the test group where it has wheels")
pytestmark = pytest.mark.native

TRACKED = (
    HOLD
    + """
import contextlib, tempfile, memray
from pathlib import Path

@contextlib.contextmanager
def tracked():
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "m.bin"
        with memray.Tracker(file, trace_python_allocators=True):
            yield file

def by_memray(file):
    found = memray.FileReader(file).get_high_watermark_allocation_records()
    return sum(
        one.size for one in found
        if any(frame[0] == "hold" for frame in one.stack_trace())
    ) / 20.6e6

def set_rate(bytes_): heap.set_rate(bytes_, with_raw=WITH_RAW)
"""
)
ORDERS = {
    "ours first, ours ends first": """
with tempfile.TemporaryDirectory() as folder:
    file = Path(folder) / "m.bin"
    set_rate(RATE)
    with memray.Tracker(file, trace_python_allocators=True):
        kept = hold(); near(1)
        heap.set_rate(0)
        again = hold()
        set_rate(RATE)
        del kept, again
        kept = hold(); near(1)
    seen = by_memray(file)
    assert 1.8 < seen < 2.3, seen
del kept
near(0)
""",
    "ours first, memray ends first": """
set_rate(RATE)
kept = hold(); near(1)
with tracked():
    more = hold(); near(2)
near(2)
del kept, more
near(0)
""",
    "memray first, ours ends first": """
with tempfile.TemporaryDirectory() as folder:
    file = Path(folder) / "m.bin"
    with memray.Tracker(file, trace_python_allocators=True):
        set_rate(RATE)
        kept = hold(); near(1)
        del kept
        near(0)
        heap.set_rate(0)
        assert not _native.heap_info()["in_chain"]
        kept = hold()
    seen = by_memray(file)
    assert 0.9 < seen < 1.2, seen
""",
    "memray first, memray ends first": """
with tracked():
    set_rate(RATE)
    kept = hold(); near(1)
# It puts back what it found, and with it we are gone: we notice, and count anew.
del kept
live()
kept = hold(); near(1)
del kept
near(0)
""",
    "again and again": """
for _ in range(5):
    set_rate(RATE)
    with tracked():
        heap.set_rate(0); set_rate(RATE); heap.set_rate(0)
    set_rate(RATE)
    with tracked():
        kept = hold()
    del kept
    with tracked():
        heap.set_rate(0)
    heap.set_rate(0)
set_rate(RATE)
kept = hold(); near(1)
del kept
near(0)
assert _native.heap_info()["layers"] < 10
""",
}
END = """
heap.set_rate(0)
assert not _native.heap_info()["in_chain"]
"""


#: Hooks on all functions, on RAW as well, and those that leave `free` alone.
MODES = {
    "full": "RATE, WITH_RAW = 2000, False\n",
    "raw": "RATE, WITH_RAW = 2000, True\n",
    "lean": "RATE, WITH_RAW = 16_384, False\n",
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("order", ORDERS)
def test_memray_and_we_count_beside_each_other(order: str, mode: str) -> None:
    """On and off in either order: each has the truth, and in the end nobody is hooked."""
    run(MODES[mode] + TRACKED + ORDERS[order] + END)
