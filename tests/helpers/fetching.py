"""What tests need from elsewhere is fetched once a checkout, by one run at a time."""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def into(folder: Path) -> Iterator[Path]:
    """The folder, made if need be, for this process alone while the block runs."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield folder
