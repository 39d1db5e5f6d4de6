"""The file `<pid>.samples`: what a worker leaves for others while it cannot answer."""

from __future__ import annotations

import contextlib
import os

from stroboscope._core import watching
from stroboscope.errors import FolderError
from stroboscope.formats.samples import Left, parse
from stroboscope.workers.folder import Folder
from stroboscope.workers.members import Members

#: How many calls of `tend` look after the file once.
_TURNS_APART = 8


class Leaving:
    """Sees to it that this process's file is there, for the engine to write to."""

    def __init__(self, members: Members) -> None:
        self._members = members
        self._turns = 0
        #: Why nothing is left; empty while all is well.
        self.failure = "not started"

    def tend(self) -> None:
        """Make the file where it is missing; on a thread of ours, some twice a second."""
        if self._turns % _TURNS_APART == 0:
            self._make()
        self._turns += 1

    def after_fork(self) -> None:
        """The child has a file of its own."""
        self._turns = 0

    def _make(self) -> None:
        name, folder = f"{os.getpid()}.samples", self._members.folder
        if (
            os.path.lexists(os.path.join(folder.path, name))
            or not self._members.is_in()
        ):
            return
        try:
            file = folder.open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL)
            try:
                watching.samples_open(file)
                self.failure = ""
            finally:
                os.close(file)
        except (FolderError, OSError) as error:
            self.failure = str(error)
            with contextlib.suppress(FolderError):
                folder.remove(name)


def left_by(folder: Folder, process: int) -> list[Left]:
    """The samples a process has left, newest first; none where there is no such file."""
    try:
        return parse(folder.read(f"{process}.samples") or b"")
    except FolderError:
        return []
