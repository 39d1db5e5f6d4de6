"""A short crash hunt on every run; `make hammer` is the long one."""

import subprocess
import sys
from pathlib import Path


def test_nothing_crashes_and_no_label_is_wrong() -> None:
    """Threads, code, forks, generators, tasks and a storm of signals at once."""
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("hammer.py")), "8"],
        capture_output=True,
        text=True,
        timeout=100,
    )

    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
