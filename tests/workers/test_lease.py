"""One exclusive capture on a host."""

import os
import signal
import subprocess
import sys
from pathlib import Path

from stroboscope.workers.folder import Folder
from stroboscope.workers.lease import Held, HostLease

_HOLDER = """
import os, signal, sys
from stroboscope.workers.folder import Folder
from stroboscope.workers.lease import HostLease
lease = HostLease(Folder(sys.argv[1], "shop"), 5.0)
assert isinstance(lease.take("trace", float(sys.argv[2]), 0.0), int)
print("held", flush=True)
signal.pause()
"""


def holder(base: Path, ends_s: float) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", _HOLDER, str(base), str(ends_s)],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def lease(base: Path) -> HostLease:
    return HostLease(Folder(str(base), "shop"), 5.0)


def test_h19_a_lease_is_one_for_the_host(tmp_path: Path) -> None:
    """Who comes second is told what is held and until when."""
    one = lease(tmp_path)
    process = holder(tmp_path, 100.0)

    found = one.take("profile", 60.0, 50.0)
    shown = one.current()
    process.kill()
    process.communicate()

    assert found == shown == Held("trace", 100.0)


def test_h20_the_kernel_frees_a_killed_holders_lease(tmp_path: Path) -> None:
    """At once, long before its end."""
    process = holder(tmp_path, 1e9)
    process.kill()
    process.communicate()
    one = lease(tmp_path)

    assert one.current() is None
    held = one.take("profile", 60.0, 50.0)
    assert isinstance(held, int)
    assert one.current() == Held("profile", 60.0)
    one.free(held)
    assert one.current() is None


def test_h20_a_holder_that_stands_still_loses_it_after_its_end(tmp_path: Path) -> None:
    """A stopped process keeps its locks; the lease goes on without it."""
    process = holder(tmp_path, 100.0)
    os.kill(process.pid, signal.SIGSTOP)
    one, other = lease(tmp_path), lease(tmp_path)

    early = one.take("profile", 164.0, 104.0)
    late = one.take("profile", 166.0, 106.0)
    third = other.take("profile", 167.0, 107.0)
    process.kill()
    process.communicate()

    assert early == Held("trace", 100.0)
    assert isinstance(late, int)
    assert third == Held("profile", 166.0)
    one.free(late)


def test_a_holder_that_could_not_say_its_end_keeps_it(tmp_path: Path) -> None:
    """The file system was full: it holds until it is done, or dead."""
    process = holder(tmp_path, 100.0)
    (tmp_path / "shop/lease").write_bytes(b"")
    one = lease(tmp_path)

    found = one.take("profile", 1e9, 1e8)
    process.kill()
    process.communicate()

    assert isinstance(found, Held)
    assert isinstance(one.take("profile", 1e9, 1e8), int)
