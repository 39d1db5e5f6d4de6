"""What is mapped where in a process, of its code, and the images behind it."""

from __future__ import annotations

import ctypes
import re
from bisect import bisect_right
from hashlib import blake2b
from io import BytesIO
from mmap import ACCESS_READ, mmap
from typing import BinaryIO, NamedTuple, cast

from stroboscope.unwinding.images import BROKEN, Image

_LINE = re.compile(
    rb"([0-9a-f]+)-([0-9a-f]+) ..x. ([0-9a-f]+) \S+ \d+ *([^\n]*)", re.ASCII
)
_VDSO = "[vdso]"
_GONE = " (deleted)"
REGIONS_CAP = 20_000
#: A library's addresses in a profile are its own, from a place of its own that follows
#: from its build: the same in all processes and at all times.
_PLACES, _PLACE_BITS = 1 << 29, 32


class Region(NamedTuple):
    """Executable memory, and the file, if any, that it is of."""

    start: int
    end: int
    offset: int
    path: str


class Thing(NamedTuple):
    """A library or program in a profile: addresses from `start` to `limit` are its own."""

    path: str
    build_id: str
    start: int
    limit: int
    offset: int


def regions_of(maps: bytes) -> list[Region]:
    """The executable lines of `/proc/PID/maps`, in order of address."""
    found = []
    for match in _LINE.finditer(maps):
        start, end, offset = (int(match[i], 16) for i in (1, 2, 3))
        path = match[4].decode("utf-8", "replace")
        found.append(Region(start, end, offset, path))
        if len(found) == REGIONS_CAP:
            break
    return sorted(found)


class Images:
    """The images of a process's regions, each opened when it is first asked for."""

    def __init__(self, machine: str) -> None:
        self._machine = machine
        self._regions: list[Region] = []
        self._starts: list[int] = []
        self._images: dict[str, Image | None] = {}

    def update(self, regions: list[Region]) -> None:
        """From now on these are what is mapped."""
        self._regions = regions
        self._starts = [region.start for region in regions]

    def region_at(self, address: int) -> Region | None:
        """The code that an address is in."""
        at = bisect_right(self._starts, address) - 1
        return (
            self._regions[at] if at >= 0 and address < self._regions[at].end else None
        )

    def image_of(self, region: Region) -> Image | None:
        """Its file; None where it cannot be read, or is not the one that was mapped."""
        if region.path not in self._images:
            self._images[region.path] = self._opened(region)
        return self._images[region.path]

    def thing_of(self, region: Region) -> Thing:
        """What stands for it in a profile."""
        image = self.image_of(region)
        path = region.path or "[anonymous]"
        build_id = image.build_id if image else ""
        digest = blake2b((build_id or path).encode("utf-8", "replace"), digest_size=8)
        base = int.from_bytes(digest.digest(), "big") % _PLACES + 1 << _PLACE_BITS
        if image is None:
            end = region.offset + region.end - region.start
            return Thing(path, "", base + region.offset, base + end, region.offset)
        begin, size, offset = image.code
        return Thing(path, build_id, base + begin, base + begin + size, offset)

    def _opened(self, region: Region) -> Image | None:
        try:
            if region.path == _VDSO:
                image = Image(BytesIO(_own_vdso(region.end - region.start)))
            elif not region.path.startswith("/") or region.path.endswith(_GONE):
                return None
            else:
                with open(region.path, "rb") as file:
                    mapped = mmap(file.fileno(), 0, access=ACCESS_READ)
                image = Image(cast("BinaryIO", mapped))  # it can do what is needed
        except BROKEN:
            return None
        return image if image.machine == self._machine else None


def _own_vdso(size: int) -> bytes:
    """The kernel maps the same into every process. Raises: OSError for another size."""
    with open("/proc/self/maps", "rb") as file:
        for region in regions_of(file.read()):
            if region.path == _VDSO and region.end - region.start == size:
                return ctypes.string_at(region.start, size)
    raise OSError("no such image here")
