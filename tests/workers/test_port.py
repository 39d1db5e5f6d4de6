"""The admin port has one owner, takes nothing that is not ours, and leaves nothing."""

import os
import socket
from contextlib import closing
from pathlib import Path

import pytest

from stroboscope.bind import Bind
from stroboscope.errors import FolderError, PortTaken
from stroboscope.workers.folder import Folder
from stroboscope.workers.port import AdminPort


def ports(bind: str, tmp_path: Path) -> tuple[AdminPort, AdminPort]:
    folder = Folder(str(tmp_path), "shop")
    return AdminPort(Bind.parse(bind), folder), AdminPort(Bind.parse(bind), folder)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


@pytest.mark.parametrize("kind", ["tcp", "unix"])
def test_one_has_it_until_it_leaves(kind: str, tmp_path: Path) -> None:
    """The second is told that it is taken, and has it once the first is gone."""
    bind = f"unix:{tmp_path}/a.sock" if kind == "unix" else f"127.0.0.1:{free_port()}"
    first, second = ports(bind, tmp_path)

    with closing(first.enter()):
        with pytest.raises(PortTaken):
            second.enter()
        assert first.is_in()
        first.leave()
    with closing(second.enter()):
        assert second.is_in()
        second.leave()


def test_a_socket_that_a_dead_owner_left_is_replaced(tmp_path: Path) -> None:
    """Its lock went with it, its file did not."""
    first, second = ports(f"unix:{tmp_path}/a.sock", tmp_path)
    first.enter().close()
    first.after_fork()  # as the kernel does: the lock is gone, the file is there

    with closing(second.enter()):
        assert second.is_in()
        assert not first.is_in()
        second.leave()

    assert not (tmp_path / "a.sock").exists()


@pytest.mark.parametrize("kind", ["file", "link"])
def test_what_is_not_ours_stays(kind: str, tmp_path: Path) -> None:
    """A file, or a link to one, at the socket's place is neither removed nor followed."""
    target, path = tmp_path / "precious", tmp_path / "a.sock"
    target.write_text("precious")
    if kind == "file":
        path.write_text("precious")
    else:
        path.symlink_to(target)
    port, _ = ports(f"unix:{path}", tmp_path)

    with pytest.raises(FolderError):
        port.enter()

    assert path.read_text() == target.read_text() == "precious"


def test_a_child_does_not_keep_it(tmp_path: Path) -> None:
    """A forked child that lives on holds neither lock nor port."""
    first, second = ports(f"unix:{tmp_path}/a.sock", tmp_path)
    listening = first.enter()
    ours, theirs = socket.socketpair()
    pid = os.fork()
    if pid == 0:
        ours.close()
        first.after_fork()
        listening.close()
        theirs.send(b"x")
        theirs.recv(1)  # until the parent is done, or gone
        os._exit(0)
    theirs.close()
    ours.recv(1)
    first.leave()
    listening.close()

    with ours, closing(second.enter()):
        second.leave()

    os.waitpid(pid, 0)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("localhost:80", "127.0.0.1:80"),
        ("[::1]:6060", "[::1]:6060"),
        ("unix:/run/a.sock", "unix:/run/a.sock"),
    ],
)
def test_an_address_is_shown_as_settings_take_it(text: str, shown: str) -> None:
    """And read back it is the same."""
    assert str(Bind.parse(text)) == shown
    assert Bind.parse(shown) == Bind.parse(text)
