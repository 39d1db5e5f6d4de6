"""What processes hold, counted from outside, before a fault and after it."""

import os
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

#: What was begun before the count may take so long to end: a listener's turn, a fork.
SETTLES_S = 8.0


@dataclass(frozen=True, slots=True)
class Held:
    """What a process has open, and its threads; `folder` are the names in it."""

    files: int = 0
    sockets: int = 0
    threads: int = 0

    def exceeds(self, other: "Held") -> bool:
        return (
            self.files > other.files
            or self.sockets > other.sockets
            or self.threads > other.threads
        )


def held(process: int) -> Held:
    """Of a process that lives. Raises: FileNotFoundError."""
    proc = Path(f"/proc/{process}")
    files = sockets = 0
    for one in (proc / "fd").iterdir():
        with suppress(FileNotFoundError):  # closed meanwhile
            if os.readlink(one).startswith("socket:"):
                sockets += 1
            else:
                files += 1
    return Held(files, sockets, len(list((proc / "task").iterdir())))


def resident_bytes(process: int) -> int:
    """Memory of a process that is not swapped out."""
    pages = Path(f"/proc/{process}/statm").read_text().split()[1]
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


@contextmanager
def nothing_leaks(
    processes: Iterable[int],
    folder: Path | None = None,
    clients: int = 0,
    connections: int = 0,
) -> Iterator[None]:
    """Those that live after the block hold no more than before it, soon.

    Of those that died in it, nothing is in the run directory. For each of the clients
    that ask the application meanwhile its server may keep a thread; so many connections
    more may be open, each a file.
    """
    before = {process: held(process) for process in processes}
    before = {
        process: replace(
            had,
            threads=had.threads + clients,
            sockets=had.sockets + connections,
            files=had.files + connections,
        )
        for process, had in before.items()
    }
    yield
    ends_s = time.monotonic() + SETTLES_S
    while left := _left(before, folder):
        assert time.monotonic() < ends_s, left
        time.sleep(0.05)


def _left(before: dict[int, Held], folder: Path | None) -> list[object]:
    found: list[object] = []
    names = os.listdir(folder) if folder is not None else []
    for process, had in before.items():
        try:
            has = held(process)
        except FileNotFoundError:
            found += [name for name in names if name.startswith(f"{process}.")]
        else:
            if has.exceeds(had):
                found.append((process, had, has))
    return found
