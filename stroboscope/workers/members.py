"""Who of a service lives on this host: a locked file and a socket for each process.

`<pid>.alive` is locked for as long as its process lives. Unlike the process id, which may
be somebody else's by now or of another container, the lock says who is there. What a dead
process left is removed by whoever looks.
"""

from __future__ import annotations

import _socket
import contextlib
import logging
import os
import re
import sys
import time
from collections.abc import Iterator

from stroboscope._core import engine
from stroboscope.errors import FolderError
from stroboscope.workers.folder import Folder

_log = logging.getLogger("stroboscope")
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
        self._failure = ""

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
        self._lock = self._locked(f"{process}{_ALIVE}")
        if self._lock is None:
            raise FolderError(
                f"{self.folder.path}: another process {process} is here; "
                "containers need a run directory each"
            )
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
            if self._failure != str(error):
                _log.warning("stroboscope: this worker answers for itself: %s", error)
            self._failure = str(error)
            raise
        if self._failure:
            self._failure = ""
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
        self._socket_inode = 0
        held, self._lock = self._lock, None
        if held is not None:
            os.close(held)


def peer_of(connection: _socket.socket) -> tuple[int, int]:
    """Process and user id at the other end, as the kernel knows them."""
    raw = connection.getsockopt(_socket.SOL_SOCKET, _socket.SO_PEERCRED, 12)
    process, user = (int.from_bytes(raw[i : i + 4], sys.byteorder) for i in (0, 4))
    return process, user


def _address(folder: int, name: str) -> str:
    # By the descriptor: a socket address has room for 107 bytes.
    return f"/proc/self/fd/{folder}/{name}"
