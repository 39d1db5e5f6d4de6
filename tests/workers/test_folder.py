"""The run directory: nobody else enters, nobody leads us elsewhere."""

import os
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from stroboscope.errors import FolderError
from stroboscope.workers.folder import FILE_CAP, Folder, Glance

NOBODY = 65534


def mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


def test_h28_only_its_owner_may_enter(tmp_path: Path) -> None:
    """Directory 0700, files 0600, whatever the umask."""
    folder = Folder(str(tmp_path / "run"), "shop")
    before = os.umask(0)
    try:
        folder.write("settings", b"{}")
        os.close(folder.open("1.samples"))
    finally:
        os.umask(before)

    assert mode(tmp_path / "run/shop") == 0o700
    assert mode(tmp_path / "run/shop/settings") == 0o600
    assert mode(tmp_path / "run/shop/1.samples") == 0o600


@pytest.mark.parametrize("path", ["run", "run/shop"])
def test_h28_a_folder_of_another_user_is_refused(tmp_path: Path, path: str) -> None:
    """Who owns it could put there what he likes."""
    if os.geteuid() != 0:
        pytest.skip("to be another user, too, takes root")
    (tmp_path / "run/shop").mkdir(parents=True, mode=0o700)
    os.chown(tmp_path / path, NOBODY, NOBODY)

    with pytest.raises(FolderError, match=f"belongs to user {NOBODY}"):
        Folder(str(tmp_path / "run"), "shop").names()


def test_h28_a_folder_open_to_others_is_refused(tmp_path: Path) -> None:
    """It is not repaired: somebody may be in it already."""
    (tmp_path / "shop").mkdir(mode=0o750)
    (tmp_path / "shop").chmod(0o750)

    with pytest.raises(FolderError, match="0700"):
        Folder(str(tmp_path), "shop").write("settings", b"")


@pytest.mark.parametrize("path", ["run", "run/shop"])
def test_h28_no_link_is_followed_into_the_folder(tmp_path: Path, path: str) -> None:
    """Planted before us, to lead our files elsewhere."""
    elsewhere = tmp_path / "elsewhere"
    (elsewhere / "shop").mkdir(parents=True, mode=0o700)
    if "/" in path:
        (tmp_path / "run").mkdir()
    (tmp_path / path).symlink_to(elsewhere / "shop" if "/" in path else elsewhere)

    with pytest.raises(FolderError):
        Folder(str(tmp_path / "run"), "shop").write("settings", b"")
    assert list((elsewhere / "shop").iterdir()) == []


@pytest.mark.parametrize("act", ["read", "open", "lock"])
def test_h28_no_link_is_followed_to_a_file(tmp_path: Path, act: str) -> None:
    """A planted name opens nothing; a file put in place replaces it."""
    folder = Folder(str(tmp_path), "shop")
    folder.write("other", b"")
    target = tmp_path / "target"
    target.write_bytes(b"untouched")
    (tmp_path / "shop/settings").symlink_to(target)

    with pytest.raises(FolderError):
        getattr(folder, act)("settings")
    folder.write("settings", b"new")

    assert target.read_bytes() == b"untouched"
    assert folder.read("settings") == b"new"


@pytest.mark.parametrize("name", ["../x", "a/b", ".", "..", "", "x" * 200, "a\0b"])
def test_h28_a_name_cannot_leave_the_folder(tmp_path: Path, name: str) -> None:
    """Whatever builds names, they stay in."""
    folder = Folder(str(tmp_path), "shop")

    for act in (folder.read, folder.remove, folder.lock, folder.open):
        with pytest.raises(FolderError, match="no name"):
            act(name)
    with pytest.raises(FolderError, match="no name"):
        folder.write(name, b"")
    assert folder.names() == []


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    """On a full file system the old content stays and no remains do."""
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "none", str(tmp_path)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("a full file system needs the right to mount one")
    try:
        folder = Folder(str(tmp_path), "shop")
        folder.write("settings", b"old")

        with pytest.raises(FolderError, match="No space"):
            folder.write("settings", bytes(200_000))

        assert folder.read("settings") == b"old"
        assert folder.names() == ["settings"]
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


def test_a_file_without_end_is_not_read(tmp_path: Path) -> None:
    """Whoever put it there: one of the cap is, one a byte longer is refused."""
    folder = Folder(str(tmp_path), "shop")
    folder.write("settings", b"")
    os.truncate(tmp_path / "shop/settings", FILE_CAP)
    assert len(folder.read("settings") or b"") == FILE_CAP

    os.truncate(tmp_path / "shop/settings", 1 << 40)
    with pytest.raises(FolderError, match="too long"):
        folder.read("settings")


def test_what_a_killed_writer_left_goes(tmp_path: Path) -> None:
    """After a minute; a file that is being written stays."""
    folder = Folder(str(tmp_path), "shop")
    folder.write("settings", b"")
    for name in ("new.old", "new.young"):
        (tmp_path / "shop" / name).touch()
    os.utime(tmp_path / "shop/new.old", (1, 1))

    folder.clean()

    assert folder.names() == ["new.young", "settings"]


def test_a_lock_has_one_holder(tmp_path: Path) -> None:
    """Also within one process, and until it is closed."""
    folder = Folder(str(tmp_path), "shop")
    held = folder.lock("lease")

    assert held is not None
    assert folder.lock("lease") is None
    assert folder.is_locked("lease")
    os.close(held)
    again = folder.lock("lease")
    assert again is not None
    os.close(again)
    assert not folder.is_locked("lease")
    assert not folder.is_locked("nothing")


def test_a_lock_that_was_removed_is_none(tmp_path: Path) -> None:
    """Who waited for a removed file's lock does not have the new file's."""
    folder = Folder(str(tmp_path), "shop")
    held = folder.lock("lease")
    assert held is not None
    folder.remove("lease")

    new = folder.lock("lease")

    assert new is not None
    os.close(held)
    assert folder.lock("lease") is None
    os.close(new)


def test_a_dead_process_holds_no_lock(tmp_path: Path) -> None:
    """The kernel frees it, however it died."""
    folder = Folder(str(tmp_path), "shop")
    code = (
        "import os, signal, sys; from stroboscope.workers.folder import Folder, Glance;"
        "assert Folder(sys.argv[1], 'shop').lock('lease') is not None;"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False)

    held = folder.lock("lease")

    assert held is not None
    os.close(held)


def test_a_folder_that_was_deleted_is_made_anew(tmp_path: Path) -> None:
    """A cleaner of temporary files costs what was in it, no more."""
    import shutil

    folder = Folder(str(tmp_path / "run"), "shop")
    folder.write("settings", b"1")
    shutil.rmtree(tmp_path / "run")

    assert folder.read("settings") is None
    folder.write("settings", b"2")
    assert folder.read("settings") == b"2"


def test_a_glance_sees_every_change_of_a_file(tmp_path: Path) -> None:
    """Also two within a tick of the kernel's clock, and a folder that is made anew."""
    folder = Folder(str(tmp_path), "shop")
    folder.write("settings", b"1")
    glance = Glance(folder.path)
    assert glance()
    time.sleep(0.1)
    assert glance()  # the first was too soon after the change to be sure
    assert not glance()
    for number in range(50):
        folder.write("settings", b"%d" % number)
        assert glance()
    time.sleep(0.1)
    assert glance()
    assert not glance()
    glance.forget()
    assert glance()
    folder.remove("settings")
    os.rmdir(folder.path)
    assert glance()
    assert glance()
    folder.write("settings", b"2")
    assert glance()


def test_a_glance_does_not_trust_a_clock_that_was_set(tmp_path: Path) -> None:
    """A folder of tomorrow is looked at again and again."""
    os.utime(tmp_path, (time.time() + 86400,) * 2)
    glance = Glance(str(tmp_path))

    assert [glance() for _ in range(3)] == [True] * 3
