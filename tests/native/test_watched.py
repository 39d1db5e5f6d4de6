"""CPython's own tests of locks, threads and queues hold while all of it is watched."""

import importlib.util
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

NAMES = ("test_thread", "test_threading", "test_queue", "test_asyncio.test_locks")


@pytest.mark.slow
@pytest.mark.native
@pytest.mark.timeout(600)
def test_the_interpreters_own_tests_hold_while_watched(tmp_path: Path) -> None:
    """As they come with this interpreter, at the finest rates, and with contention."""
    if importlib.util.find_spec("test.lock_tests") is None:
        pytest.skip("this interpreter comes without its tests")

    done = watched(NAMES, tmp_path)
    if "tests failed:" in done.stdout or "test failed:" in done.stdout:
        # Some measure time, which others on the machine take: these once more.
        failed = [name for name in NAMES if f"    {name}\n" in done.stdout]
        done = watched(failed, tmp_path)

    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "Result: SUCCESS" in done.stdout


def watched(names: Sequence[str], folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(Path(__file__).with_name("watched.py")), *names],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
        timeout=250,
    )
