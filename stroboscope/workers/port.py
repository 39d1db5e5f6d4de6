"""The admin port: one address on this host that always some worker listens at.

Whoever binds it has it; when its process dies the kernel frees it, and the next worker
that tries is the owner. For a TCP port the binding itself decides; a unix socket, whose
file outlives its process, is decided by a lock beside the workers' own.
"""

from __future__ import annotations

import _socket
import contextlib
import errno
import os
import stat

from stroboscope.bind import Bind
from stroboscope.errors import FolderError, PortTaken
from stroboscope.workers.folder import Folder

_LOCK = "admin.lock"
_BACKLOG = 64


class AdminPort:
    """The port of one service, had by one process at a time.

    `folder` is where the workers meet, or None where they do not: then a unix socket
    cannot be had.
    """

    def __init__(self, bind: Bind, folder: Folder | None) -> None:
        self.bind = bind
        self._folder = folder
        self._lock: int | None = None
        self._file: tuple[int, ...] = ()

    @property
    def name(self) -> str:
        """The address, as settings give it."""
        return str(self.bind)

    def enter(self) -> _socket.socket:
        """The listening socket.

        Raises: PortTaken while another process has it; FolderError.
        """
        self.leave()
        if self.bind.path:
            return self._unix()
        is_six = ":" in self.bind.host
        family = _socket.AF_INET6 if is_six else _socket.AF_INET
        listening = _socket.socket(family, _socket.SOCK_STREAM)
        try:
            # What the last owner's connections left behind must not keep us out; a
            # living listener does, for SO_REUSEPORT is not set.
            listening.setsockopt(_socket.SOL_SOCKET, _socket.SO_REUSEADDR, 1)
            listening.bind((self.bind.host, self.bind.port))
            listening.listen(_BACKLOG)
        except OSError as error:
            listening.close()
            if error.errno == errno.EADDRINUSE:
                raise PortTaken(f"{self.bind} is another process's") from error
            raise FolderError(f"{self.bind}: {error.strerror}") from error
        return listening

    def is_in(self) -> bool:
        """Whether the address still leads here."""
        if not self.bind.path:
            return True
        try:
            return _identity(self.bind.path) == self._file
        except OSError:
            return False

    def leave(self) -> None:
        """Let the next have it. Raises nothing."""
        if self._lock is not None and self.is_in():
            with contextlib.suppress(OSError):
                os.unlink(self.bind.path)
        self.after_fork()

    def after_fork(self) -> None:
        """The child does not have it: its parent does."""
        held, self._lock = self._lock, None
        if held is not None:
            os.close(held)

    def _unix(self) -> _socket.socket:
        if self._folder is None:
            raise FolderError(f"{self.bind} needs a run directory")
        self._lock = self._folder.lock(_LOCK)
        if self._lock is None:
            raise PortTaken(f"{self.bind} is another worker's")
        path = self.bind.path
        listening = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
        try:
            with contextlib.suppress(FileNotFoundError):
                _remove_left(path)
            os.fchmod(
                listening.fileno(), 0o600
            )  # the file's mode; no umask to race for
            listening.bind(path)
            listening.listen(_BACKLOG)
            self._file = _identity(path)
        except OSError as error:
            listening.close()
            self.after_fork()
            raise FolderError(f"{self.bind}: {error.strerror or error}") from error
        return listening


def _identity(path: str) -> tuple[int, ...]:
    # An inode's number is used again at once; the moment it was made is not.
    found = os.lstat(path)
    return found.st_dev, found.st_ino, found.st_mtime_ns


def _remove_left(path: str) -> None:
    """Remove the socket a dead owner left. Raises: OSError for anything else there."""
    found = os.lstat(path)
    if not stat.S_ISSOCK(found.st_mode) or found.st_uid != os.geteuid():
        raise FileExistsError(errno.EEXIST, "there is something that is not ours")
    os.unlink(path)
