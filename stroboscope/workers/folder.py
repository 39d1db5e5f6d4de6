"""The folder where the workers of a service on this host meet; only we may enter it.

`<rundir>/<service>/`, mode 0700. Every step goes by descriptors and follows no link, so
that nobody who can write next to it can lead us elsewhere. It may be deleted at any time:
it is opened anew for each use, and made where it is missing. On a local file system.

A file is `<pid>.<kind>` when it ends with its process (see `members`), anything else when
it is of the service.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import secrets
import stat
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager

from stroboscope.errors import FolderError

#: The value of the setting `rundir` for a service whose workers shall not meet.
OFF = "off"
#: A file longer than this is not read.
FILE_CAP = 16 << 20
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,100}")
#: How a file is named while it is written, and how long that takes at most.
_NEW, _WRITES_S = "new.", 60.0
#: What a file system that is full does not take.
_PAGE = 4096
_FLAGS = os.O_CLOEXEC | os.O_NOFOLLOW


class Glance:
    """Tells by one call of the kernel whether anything in a folder was put or removed.

    What is written within a file in its place is not seen.
    """

    #: A change may have the time of the one before it, for so long: the kernel's tick.
    _TICK_NS = 50_000_000

    def __init__(self, path: str) -> None:
        self._path = path
        self._seen: tuple[int, ...] = ()

    def forget(self) -> None:
        """The next call says that there is."""
        self._seen = ()

    def __call__(self) -> bool:
        """Whether there is something new since the last call, as far as is known."""
        try:
            found = os.lstat(self._path)
        except OSError:
            self._seen = ()
            return True
        is_new = self._seen != (found.st_ino, found.st_mtime_ns)
        age_ns = time.time_ns() - found.st_mtime_ns
        # One that is new, or of tomorrow, because a clock was set, is looked at again.
        is_settled = age_ns > self._TICK_NS
        self._seen = (found.st_ino, found.st_mtime_ns) if is_settled else ()
        return is_new


def default_base() -> str:
    """The run directory where none is set: of this user, gone with the machine."""
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    if runtime and os.path.isdir(runtime):
        return os.path.join(runtime, "stroboscope")
    return os.path.join(tempfile.gettempdir(), f"stroboscope-{os.geteuid()}")


class Folder:
    """One service's folder and the files in it. Safe from any thread.

    Every method raises FolderError when the folder cannot be used, or not safely.
    """

    def __init__(self, base: str, service: str) -> None:
        self.path = os.path.join(base, service)
        self._base = base
        self._service = service

    @contextmanager
    def opened(self) -> Iterator[int]:
        """A descriptor of the folder. What the block raises passes unchanged."""
        with self._explained():
            folder = self._open()
        try:
            yield folder
        finally:
            os.close(folder)

    def names(self) -> list[str]:
        """The files in it, in order."""
        with self._explained(), self.opened() as folder:
            return sorted(os.listdir(folder))

    def open(self, name: str, flags: int = os.O_RDWR | os.O_CREAT) -> int:
        """A descriptor of a file, for a mapping or a lock; the caller closes it."""
        with self._explained(), self.opened() as folder:
            return os.open(_checked(name), flags | _FLAGS, 0o600, dir_fd=folder)

    def read(self, name: str) -> bytes | None:
        """A file's bytes; None where there is none."""
        with self._explained(), self.opened() as folder:
            try:
                descriptor = os.open(
                    _checked(name), os.O_RDONLY | os.O_NONBLOCK | _FLAGS, dir_fd=folder
                )
            except FileNotFoundError:
                return None
            with open(descriptor, "rb") as file:
                found = file.read(FILE_CAP + 1)
        if len(found) > FILE_CAP:
            raise FolderError(f"{self.path}/{name} is too long")
        return found

    def write(self, name: str, content: bytes) -> None:
        """Put a file in place: readers see the one before or this one, whole."""
        _checked(name)
        new = f"{_NEW}{secrets.token_hex(6)}"
        with self._explained(), self.opened() as folder:
            descriptor = os.open(
                new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _FLAGS, 0o600, dir_fd=folder
            )
            try:
                with open(descriptor, "wb") as file:
                    file.write(content)
                os.rename(new, name, src_dir_fd=folder, dst_dir_fd=folder)
            except OSError:
                os.unlink(new, dir_fd=folder)
                raise

    def check(self) -> None:
        """See whether a file can be written here; nothing is left of it."""
        name = f"{_NEW}{secrets.token_hex(6)}"
        with self._explained(), self.opened() as folder:
            descriptor = os.open(
                name,
                os.O_WRONLY | os.O_CREAT | os.O_EXCL | _FLAGS,
                0o600,
                dir_fd=folder,
            )
            try:
                os.write(descriptor, bytes(_PAGE))
            finally:
                os.unlink(name, dir_fd=folder)
                os.close(descriptor)

    def clean(self) -> None:
        """Remove what a writer left that was killed while it wrote."""
        with self._explained(), self.opened() as folder:
            for name in os.listdir(folder):
                if name.startswith(_NEW):
                    with contextlib.suppress(FileNotFoundError):
                        written_s = os.lstat(name, dir_fd=folder).st_mtime
                        if time.time() - written_s > _WRITES_S:
                            os.unlink(name, dir_fd=folder)

    def remove(self, name: str) -> None:
        """Remove a file or socket of ours, if it is there."""
        with (
            self._explained(),
            self.opened() as folder,
            contextlib.suppress(FileNotFoundError),
        ):
            if os.lstat(_checked(name), dir_fd=folder).st_uid != os.geteuid():
                raise FolderError(f"{self.path}/{name} belongs to another user")
            os.unlink(name, dir_fd=folder)

    def lock(self, name: str) -> int | None:
        """A descriptor that holds a file's lock until it is closed, or None.

        None when another descriptor holds it. The kernel frees it with its process.
        """
        descriptor = self.open(name)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            is_ours = self._is_named(name, descriptor)  # or removed by its last holder
        except BlockingIOError:
            is_ours = False
        except BaseException:
            os.close(descriptor)
            raise
        if is_ours:
            return descriptor
        os.close(descriptor)
        return None

    def is_locked(self, name: str) -> bool:
        """Whether a file is there and somebody holds its lock."""
        with self._explained(), self.opened() as folder:
            try:
                descriptor = os.open(_checked(name), os.O_RDWR | _FLAGS, dir_fd=folder)
            except FileNotFoundError:
                return False
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(descriptor)
        return False

    def _open(self) -> int:
        if not os.path.isdir(self._base):
            _make(self._base, 0o700)
        base = _directory(self._base)
        try:
            self._check_owner(self._base, os.fstat(base), {os.geteuid(), 0})
            with contextlib.suppress(FileExistsError):
                os.mkdir(self._service, 0o700, dir_fd=base)
            try:
                folder = _directory(self._service, base)
            except PermissionError:
                found = os.lstat(self._service, dir_fd=base)
                self._check_owner(self.path, found, {os.geteuid()})
                raise
        finally:
            os.close(base)
        try:
            found = os.fstat(folder)
            self._check_owner(self.path, found, {os.geteuid()})
            if stat.S_IMODE(found.st_mode) & 0o077:
                raise FolderError(
                    f"{self.path} is open to others; its mode must be 0700"
                )
        except FolderError:
            os.close(folder)
            raise
        return folder

    def _is_named(self, name: str, descriptor: int) -> bool:
        with self._explained(), self.opened() as folder:
            try:
                found = os.lstat(name, dir_fd=folder)
            except FileNotFoundError:
                return False
            return os.path.samestat(found, os.fstat(descriptor))

    def _check_owner(self, path: str, found: os.stat_result, owners: set[int]) -> None:
        if found.st_uid not in owners:
            raise FolderError(f"{path} belongs to user {found.st_uid}")

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise FolderError(f"{self.path}: {error.strerror or error}") from error


def _checked(name: str) -> str:
    if _NAME.fullmatch(name) is None:
        raise FolderError(f"{name!r:.80} is no name of a file here")
    return name


def _make(path: str, mode: int) -> None:
    """Make it, and what is missing on the way, which no umask opens to others' writing."""
    parent = os.path.dirname(os.path.abspath(path))
    if not os.path.isdir(parent):
        _make(parent, 0o755)
    with contextlib.suppress(FileExistsError):
        os.mkdir(path, mode)


def _directory(path: str, parent: int | None = None) -> int:
    return os.open(path, os.O_RDONLY | os.O_DIRECTORY | _FLAGS, dir_fd=parent)
