"""A run directory on a file system that is full, under way."""

import contextlib
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from workers import workers

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="mounting takes root")


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 KiB."""
    place = tmp_path / "small"
    place.mkdir()
    subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", place], check=True
    )
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", place], check=True)


def test_a_folder_that_takes_nothing_more(small: Path) -> None:
    """Workers answer for all in time, a change holds and says for whom, none dies."""
    with workers(small, "burn('a', 0.3)", "") as (one, two):
        with (
            open(small / "filler", "wb", buffering=0) as file,
            contextlib.suppress(OSError),
        ):
            while True:
                file.write(b"x" * 4096)
        began_s = time.monotonic()
        stacks = one.ask("/stacks")
        heap = one.ask("/pprof/heap")
        profile = two.ask("/pprof/profile?seconds=0.5")
        put = one.ask("/settings", "admin", method="PUT", json={"cpu_hz": 50})
        took_s = time.monotonic() - began_s
        alive = [each.process.poll() for each in (one, two)]

    assert [a.status_code for a in (stacks, heap, profile, put)] == [200] * 4
    assert stacks.headers["X-Stroboscope-Workers"] == "2/2"
    assert put.json()["holds_for"] == "this worker"
    assert alive == [None, None]
    assert took_s < 0.5 + 2 + 5
