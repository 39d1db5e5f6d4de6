"""Who lives, who is dead, and whose socket is whose."""

import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import pytest
from workers import worker, workers

from stroboscope.errors import FolderError
from stroboscope.workers.folder import Folder
from stroboscope.workers.members import Members

NOBODY = 65534


def members(base: Path) -> Members:
    return Members(Folder(str(base), "shop"))


def test_h28_the_socket_is_the_owners_alone(tmp_path: Path) -> None:
    """Mode 0600 in a folder of mode 0700, and gone with the process."""
    with worker(tmp_path) as one:
        found = one.socket.lstat()
        assert stat.S_ISSOCK(found.st_mode)
        assert stat.S_IMODE(found.st_mode) == 0o600
        assert stat.S_IMODE(one.folder.stat().st_mode) == 0o700

    assert list(one.folder.iterdir()) == []


_STRANGER = """
import os, socket, sys
os.setuid(65534)
with socket.socket(socket.AF_UNIX) as one:
    try:
        one.connect(sys.argv[1])
    except PermissionError:
        print("no entry")
        raise SystemExit
    try:
        one.sendall(b"GET /debug/ HTTP/1.1\\r\\nHost: localhost\\r\\n\\r\\n")
        print(one.recv(100))
    except (BrokenPipeError, ConnectionResetError):
        print(b"")
"""


def as_stranger(path: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-c", _STRANGER, str(path)],
        capture_output=True,
        text=True,
        timeout=20,
    )
    return done.stdout.strip() or done.stderr


def test_h28_another_user_is_refused() -> None:
    """By the folder; and were that open, by the listener, before a byte is read."""
    if os.geteuid() != 0:
        pytest.skip("to be another user, too, takes root")
    base = Path(tempfile.mkdtemp())
    base.chmod(0o755)
    with worker(base) as one:
        before = as_stranger(one.socket)
        one.folder.chmod(0o755)
        one.socket.chmod(0o666)
        after = as_stranger(one.socket)
    shutil.rmtree(base)

    assert before == "no entry"
    assert after == "b''"


def test_h28_stale_files_go_only_when_their_process_is_dead(tmp_path: Path) -> None:
    """Whoever looks removes what the dead left; the stopped and the living keep all."""
    with workers(tmp_path, "", "") as (killed, stopped):
        folder = killed.folder
        (folder / f"{killed.pid}.samples").touch()
        (folder / f"{stopped.pid}.samples").touch()
        os.kill(stopped.pid, signal.SIGSTOP)
        killed.process.kill()
        killed.process.wait()

        alive = members(tmp_path).processes()

        left = sorted(one.name for one in folder.iterdir() if one.name[0].isdigit())
        os.kill(stopped.pid, signal.SIGCONT)
    assert alive == [stopped.pid]
    assert left == [f"{stopped.pid}.{kind}" for kind in ("alive", "samples", "sock")]


def test_h28_a_number_in_use_is_not_taken_over(tmp_path: Path) -> None:
    """Two containers that share a folder by mistake may both have a process 1."""
    first, second = members(tmp_path), members(tmp_path)
    listening = first.enter()

    with pytest.raises(FolderError, match=f"another process {os.getpid()}"):
        second.enter()
    listening.close()
    first.leave()
    second.enter().close()
    second.leave()


def test_workers_of_another_container_are_kept_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a process id that nobody has here, too: nothing of theirs is touched, nobody
    else is claimed to be all there are; it may come when they are gone."""
    second = members(tmp_path)
    with worker(tmp_path) as one:
        monkeypatch.setattr("stroboscope.workers.members._container", lambda: "pid:[1]")
        before = second.folder.names()

        with pytest.raises(FolderError, match="workers of another container"):
            second.enter()

        assert second.is_refused
        assert second.folder.names() == before
        with pytest.raises(FolderError, match="workers of another container"):
            second.processes()
        assert members(tmp_path).processes() == [one.pid]  # who only asks may do so
    listening = second.enter()
    assert second.processes() == [os.getpid()]
    listening.close()
    second.leave()


def test_who_looks_whether_a_worker_lives_does_not_keep_it_out(tmp_path: Path) -> None:
    """A look holds its lock for a moment: it comes in, and nothing is said."""
    one = members(tmp_path)
    looking = one.folder.lock(f"{os.getpid()}.alive")
    assert looking is not None
    threading.Timer(0.05, os.close, (looking,)).start()

    listening = one.enter()

    assert one.processes() == [os.getpid()]
    listening.close()
    one.leave()


def test_a_socket_of_an_earlier_process_of_the_same_number_is_replaced(
    tmp_path: Path,
) -> None:
    """It was killed; process ids come again."""
    folder = Folder(str(tmp_path), "shop")
    folder.write(f"{os.getpid()}.samples", b"stale")
    stale = socket.socket(socket.AF_UNIX)
    stale.bind(str(tmp_path / f"shop/{os.getpid()}.sock"))
    stale.close()
    one = members(tmp_path)

    listening = one.enter()

    assert folder.names() == [f"{os.getpid()}.alive", f"{os.getpid()}.sock"]
    assert one.processes() == [os.getpid()]
    listening.close()
    one.leave()
    assert folder.names() == []


def test_a_path_longer_than_an_address_is_no_limit(tmp_path: Path) -> None:
    """A socket address has room for 107 bytes; run directories may be deeper."""
    base = tmp_path / ("d" * 120) / ("e" * 120)
    one = members(base)

    listening = one.enter()
    connection = one.connect(os.getpid())

    connection.close()
    listening.close()
    one.leave()


def test_a_deleted_folder_is_entered_again(tmp_path: Path) -> None:
    """The listener notices within a moment, and answers at the same place."""
    with worker(tmp_path) as one:
        shutil.rmtree(one.folder)
        for _ in range(200):
            if one.socket.exists():
                break
            signal.sigtimedwait([], 0.05)
        answer = one.ask("/workers", "metrics")

        assert answer.json()["workers"][0]["pid"] == one.pid


def test_nobody_is_alone_in_a_folder_that_was_deleted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Until it has come back itself, and the others had their time to: said once."""
    monkeypatch.setattr("stroboscope.workers.members.RETURNS_S", 0.3)
    one = members(tmp_path)
    listening = one.enter()
    assert one.processes() == [os.getpid()]
    shutil.rmtree(tmp_path / "shop")

    for _ in range(3):
        with pytest.raises(FolderError, match="deleted a moment ago"):
            one.processes()
    again = one.enter()
    with pytest.raises(FolderError, match="deleted a moment ago"):
        one.processes()
    time.sleep(0.4)

    assert one.processes() == [os.getpid()]
    assert [line.split(": ")[1][:20] for line in caplog.messages] == [
        "this worker answers ",
        "workers meet again i",
    ]
    listening.close()
    again.close()
    one.leave()


def test_a_child_of_a_worker_is_no_worker(tmp_path: Path) -> None:
    """A forked child holds neither the lock nor the socket of a parent that is gone."""
    code = """
import os
ours, theirs = os.pipe()
if os.fork() == 0:
    os.write(theirs, b"1")
    time.sleep(4)
    os._exit(0)
os.read(ours, 1)
"""
    with worker(tmp_path, code) as one:
        one.process.kill()
        one.process.wait()

        assert members(tmp_path).processes() == []
