"""Another user of the same machine, who may write next to the run directory.

What is a directory of his, or stands open to him, is refused elsewhere (test_folder).
Here he is a process that acts at the same time.
"""

import os
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from stroboscope.bind import Bind
from stroboscope.errors import FolderError
from stroboscope.workers.folder import Folder
from stroboscope.workers.members import Members
from stroboscope.workers.port import AdminPort

NOBODY = 65534
as_root = pytest.mark.skipif(
    os.geteuid() != 0, reason="to be another user, too, takes root"
)


@pytest.fixture
def public() -> Iterator[Path]:
    """A directory that everybody may write to, without the bit that keeps /tmp's names
    their owners'."""
    with tempfile.TemporaryDirectory() as made:
        Path(made).chmod(0o777)
        yield Path(made)


@contextmanager
def stranger(act: Callable[[], object]) -> Iterator[int]:
    """A process of another user that does it, until the block ends."""
    child = os.fork()
    if child == 0:
        try:
            os.setgroups([])
            os.setgid(NOBODY)
            os.setuid(NOBODY)
            act()
        finally:
            os._exit(1)
    try:
        yield child
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def wait_for(path: Path) -> None:
    for _ in range(1000):
        if os.path.lexists(path):
            return
        time.sleep(0.01)
    raise AssertionError(f"{path} never came")


@as_root
def test_h28_names_that_change_all_the_time_lead_nowhere(public: Path) -> None:
    """He puts links to a folder of ours, folders of his own, pipes and files in our
    place, and takes ours away: what we write is in a folder of ours that we made, or
    refused; nothing waits."""
    victim, run = public / "victim", public / "run"
    for folder in (victim, victim / "shop"):
        folder.mkdir(mode=0o700)
    ways: list[Callable[[], object]] = [
        lambda: run.symlink_to(victim),
        lambda: (run.mkdir(mode=0o700), (run / "shop").mkdir(mode=0o700)),
        lambda: (run.mkdir(mode=0o777), (run / "shop").symlink_to(victim / "shop")),
        lambda: os.mkfifo(run),
        run.touch,
        lambda: None,
    ]

    def swap() -> None:
        for number in range(10**9):
            with suppress(OSError):
                ways[number % len(ways)]()
            time.sleep(0.0002)  # as long as one of our steps may take
            with suppress(OSError):
                run.rename(public / f"gone{number}")

    done = refused = 0
    with stranger(swap) as child:
        wait_for(public / "gone0")
        ends_s = time.monotonic() + 20
        while (done < 60 or refused < 60) and time.monotonic() < ends_s:
            folder = Folder(str(run), "shop")
            try:
                folder.write("settings", b"{}")
                held = folder.lock("lease")
                if held is not None:
                    os.close(held)
                done += 1
            except FolderError:
                refused += 1
        os.kill(child, signal.SIGSTOP)
        os.waitpid(child, os.WUNTRACED)
        theirs = [
            path
            for path in public.iterdir()
            if stat.S_ISDIR(path.lstat().st_mode) and path.lstat().st_uid == NOBODY
        ]
        entered = [entry for path in theirs for entry in path.glob("shop/*")]

    assert done >= 60, refused
    assert refused >= 60, done
    assert [*victim.iterdir()] == [victim / "shop"]
    assert [*(victim / "shop").iterdir()] == []
    assert theirs
    assert entered == []


@pytest.mark.parametrize("path", ["run", "run/shop"])
@pytest.mark.parametrize("kind", ["pipe", "file", "socket"])
def test_h28_what_is_no_directory_is_refused_at_once(
    tmp_path: Path, path: str, kind: str
) -> None:
    """Also a pipe, which whoever opens it might wait at for ever."""
    place = tmp_path / path
    place.parent.mkdir(mode=0o700, exist_ok=True)
    with socket.socket(socket.AF_UNIX) as one:
        if kind == "pipe":
            os.mkfifo(place)
        elif kind == "file":
            place.touch()
        else:
            one.bind(str(place))
        before = place.lstat()

        with pytest.raises(FolderError):
            Folder(str(tmp_path / "run"), "shop").write("settings", b"")

        assert os.path.samestat(before, place.lstat())


def test_h28_nobody_may_write_to_what_leads_to_the_folder(tmp_path: Path) -> None:
    """Directories that are made on the way are not open to others, whatever the umask."""
    before = os.umask(0)
    try:
        Folder(str(tmp_path / "a/b/run"), "shop").write("settings", b"")
    finally:
        os.umask(before)

    modes = [stat.S_IMODE((tmp_path / p).stat().st_mode) for p in ("a", "a/b")]
    assert modes == [0o755, 0o755]


@as_root
def test_h28_a_socket_that_another_user_listens_at_gets_nothing(tmp_path: Path) -> None:
    """However it came into the folder: who listens is the kernel's word, and no token
    is sent."""
    members = Members(Folder(str(tmp_path), "shop"))
    members.folder.check()
    at = members.folder.path
    code = (
        "import os, socket, sys; one = socket.socket(socket.AF_UNIX);"
        "one.bind(f'{sys.argv[1]}/{os.getpid()}.sock'); os.setuid(65534); one.listen();"
        "print('ready', flush=True); one.settimeout(20); theirs, _ = one.accept();"
        "print(theirs.recv(100), flush=True)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, at], stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "ready\n"

        with pytest.raises(PermissionError, match="another user"):
            members.connect(other.pid)

        assert other.stdout.readline() == "b''\n"


@as_root
def test_an_admin_socket_that_another_user_made_is_left_alone(public: Path) -> None:
    """We neither remove it nor listen there."""
    place = public / "a.sock"

    def listen() -> None:
        with socket.socket(socket.AF_UNIX) as one:
            one.bind(str(place))
            one.listen()
            time.sleep(60)

    port = AdminPort(Bind.parse(f"unix:{place}"), Folder(str(public / "run"), "shop"))
    with stranger(listen):
        wait_for(place)
        before = place.lstat()

        with pytest.raises(FolderError, match="not ours"):
            port.enter()

        assert not port.is_in()
        port.leave()
        assert os.path.samestat(before, place.lstat())
