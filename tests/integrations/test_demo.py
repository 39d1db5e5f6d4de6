"""The first thing anyone tries works."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_the_demo_shows_one_answer_of_each_kind() -> None:
    """To its end, with the endpoints that each answer is about."""
    done = subprocess.run(
        [sys.executable, str(ROOT / "scripts/demo.py")],
        capture_output=True,
        text=True,
        timeout=110,
        cwd=ROOT,
    )

    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    for shown in ("/checkout/{item}", "/report", "/debug/workers", "trace"):
        assert shown in done.stdout, shown
    after = done.stdout.split("by endpoint mutex.pb.gz", 1)[1].splitlines()
    assert "/render/{page}" in "".join(after[1:3]), "the printer was not fought over"
