"""Who of a service lives on this host: a locked file and a socket for each process.

`<pid>.alive` is locked for as long as its process lives. Unlike the process id, which may
be somebody else's by now or of another container, the lock says who is there. What a dead
process left is removed by whoever looks.

Members are of one container, whose process ids tell them apart: workers of a second one
are kept out. Who only asks, as the sidecar does, may be of another.
"""

from __future__ import annotations

import _socket
import contextlib
import os
import re
import sys
import time
from collections.abc import Iterator

from stroboscope._core import engine
from stroboscope._greenlets import Log
from stroboscope.errors import FolderError
from stroboscope.workers.folder import Folder

_log = Log("stroboscope")
_OF_PROCESS = re.compile(r"([1-9][0-9]{0,9})\.[a-z]+")
_ALIVE, _SOCKET = ".alive", ".sock"
_BACKLOG = 64
#: So long a folder that was deleted may be without somebody who was in it.
RETURNS_S = 2.0
#: A lock that is still held after so long is another process's for good.
_LOOKED_AT_S, _STEP_S = 0.2, 0.005


class Members:
    """The members of one folder, and this process among them."""

    def __init__(self, folder: Folder) -> None:
        self.folder = folder
        self._process = 0
        self._lock: int | None = None
        self._socket_inode = 0
        self._seen: tuple[int, int] | None = None
        self._knows_s = 0.0
        self._refusal = ""
        #: Why nobody meets here, as far as was seen; empty while they do.
        self.failure = ""

    @property
    def is_refused(self) -> bool:
        """Whether this process is kept out: it has no place among the files here."""
        return bool(self._refusal)

    @property
    def name(self) -> str:
        """The folder, which a process is in once."""
        return self.folder.path

    def enter(self) -> _socket.socket:
        """Take part from now on; the socket to listen at. Raises: FolderError.

        Again after the folder was deleted: then in the new one.
        """
        if not hasattr(_socket, "SO_PEERCRED"):
            raise FolderError("this system does not say who is at a socket's other end")
        if self._socket_inode:
            self._knows_s = time.monotonic() + RETURNS_S
        self._release()
        self._process = process = os.getpid()
        try:
            self._lock = self._place(process)
        except _Refused as error:
            self._refusal = str(error)
            raise
        self._remove_all(process, but=_ALIVE)
        self.folder.clean()
        self._alive()  # the dead may have left something, and nobody looked
        return self._bind(f"{process}{_SOCKET}")

    def is_in(self) -> bool:
        """Whether this process's socket is still in its place."""
        path = os.path.join(self.folder.path, f"{self._process}{_SOCKET}")
        try:
            return os.lstat(path).st_ino == self._socket_inode
        except OSError:
            return False

    def leave(self) -> None:
        """Remove what is this process's. Raises nothing."""
        if self._lock is not None and self._process == os.getpid():
            with contextlib.suppress(FolderError):
                if self.is_in():
                    self._remove_all(self._process)
        self._release()

    def after_fork(self) -> None:
        """The child is no member: the lock stays its parent's alone."""
        self._release()

    def processes(self) -> list[int]:
        """Those that listen, in order; the dead are removed.

        Raises: FolderError, also while some may not have come back yet to a folder that
        was deleted.
        """
        with self._telling():
            with self.folder.opened() as folder:
                found = os.fstat(folder)
            if self._seen not in (None, (found.st_dev, found.st_ino)):
                self._knows_s = time.monotonic() + RETURNS_S
            self._seen = (found.st_dev, found.st_ino)
            if self._refusal:
                raise FolderError(self._refusal)
            is_out = self._process == os.getpid() and self._socket_inode
            if time.monotonic() < self._knows_s or (is_out and not self.is_in()):
                raise FolderError(f"{self.folder.path} was deleted a moment ago")
            return self._alive()

    @contextlib.contextmanager
    def _telling(self) -> Iterator[None]:
        """Say once that nobody meets here and why, and once that it is over."""
        try:
            yield
        except FolderError as error:
            if self.failure != str(error):
                is_worker = self._process == os.getpid()
                whom = (
                    "this worker answers for itself" if is_worker else "no worker found"
                )
                _log.warning("stroboscope: %s: %s", whom, error)
            self.failure = str(error)
            raise
        if self.failure:
            self.failure = ""
            _log.warning("stroboscope: workers meet again in %s", self.folder.path)

    def _alive(self) -> list[int]:
        names = self.folder.names()
        found = {int(one[1]) for one in map(_OF_PROCESS.fullmatch, names) if one}
        alive = []
        for process in sorted(found):
            if self.is_alive(process):
                if f"{process}{_SOCKET}" in names:
                    alive.append(process)
            else:
                self._bury(process)
        return alive

    def is_alive(self, process: int) -> bool:
        """Whether it is a member now. Raises: FolderError."""
        return self.folder.is_locked(f"{process}{_ALIVE}")

    def connect(self, process: int) -> _socket.socket:
        """A connection that blocks no one. Raises: OSError; FolderError."""
        with self.folder.opened() as folder:
            connection = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
            try:
                connection.setblocking(False)
                connection.connect(_address(folder, f"{process}{_SOCKET}"))
                if peer_of(connection)[1] != os.geteuid():
                    raise PermissionError("another user's socket")
            except OSError:
                connection.close()
                raise
        return connection

    def _place(self, process: int) -> int:
        """The lock that says that we live. Raises: _Refused."""
        here = _container()
        self._keep_apart(here)
        held = self._locked(f"{process}{_ALIVE}")
        if held is None:
            raise _Refused(
                f"{self.folder.path}: another process {process} is here; "
                "containers need a run directory each"
            )
        try:
            with contextlib.suppress(OSError):  # full: then nobody is kept out
                os.ftruncate(held, 0)
                os.pwrite(held, here.encode(), 0)
            self._keep_apart(here)  # who came at the same time
        except FolderError:
            os.close(held)
            raise
        return held

    def _keep_apart(self, here: str) -> None:
        """Raises: _Refused while somebody of another container lives here."""
        for name in self.folder.names() if here else ():
            if not (name.endswith(_ALIVE) and _OF_PROCESS.fullmatch(name)):
                continue
            there = (self.folder.read(name) or b"").decode("ascii", "replace")
            if there not in ("", here) and self.folder.is_locked(name):
                raise _Refused(
                    f"{self.folder.path}: workers of another container are here; "
                    "containers need a run directory each"
                )

    def _locked(self, name: str) -> int | None:
        # Who looks whether its holder lives holds it for a moment, too.
        ends_s = time.monotonic() + _LOOKED_AT_S
        while (held := self.folder.lock(name)) is None:
            if time.monotonic() > ends_s:
                return None
            engine.sleep(_STEP_S)
        return held

    def _bind(self, name: str) -> _socket.socket:
        with self.folder.opened() as folder:
            listening = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
            try:
                listening.bind(_address(folder, name))
                os.chmod(name, 0o600, dir_fd=folder)
                listening.listen(_BACKLOG)
                self._socket_inode = os.lstat(name, dir_fd=folder).st_ino
            except OSError as error:
                listening.close()
                raise FolderError(f"{self.folder.path}: {error.strerror}") from error
        return listening

    def _bury(self, process: int) -> None:
        held = self.folder.lock(f"{process}{_ALIVE}")
        if held is not None:  # else somebody is faster, or it lives again
            try:
                self._remove_all(process)
            finally:
                os.close(held)

    def _remove_all(self, process: int, but: str = "") -> None:
        mine = f"{process}."
        for name in self.folder.names():
            if name.startswith(mine) and name != f"{process}{but}":
                self.folder.remove(name)

    def _release(self) -> None:
        self._socket_inode, self._refusal = 0, ""
        held, self._lock = self._lock, None
        if held is not None:
            os.close(held)


class _Refused(FolderError):
    """There is no place for this process in the folder, for now."""


def _container() -> str:
    """What tells process ids of ours from those of other containers; may be empty.

    Source: namespaces(7), the inode of `/proc/self/ns/pid`.
    """
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""


def peer_of(connection: _socket.socket) -> tuple[int, int]:
    """Process and user id at the other end, as the kernel knows them."""
    raw = connection.getsockopt(_socket.SOL_SOCKET, _socket.SO_PEERCRED, 12)
    process, user = (int.from_bytes(raw[i : i + 4], sys.byteorder) for i in (0, 4))
    return process, user


def _address(folder: int, name: str) -> str:
    # By the descriptor: a socket address has room for 107 bytes.
    return f"/proc/self/fd/{folder}/{name}"
