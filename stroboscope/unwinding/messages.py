"""What goes through the pipes to the process that unwinds, and comes back.

To it: a kind and a length, then so many bytes; the last message asks for the answer.
From it: one JSON object with its length before it, then pairs of numbers, a copy's and
its chain's.
"""

from __future__ import annotations

import json
import struct
from array import array
from collections.abc import Callable
from dataclasses import asdict, dataclass

#: `/proc/PID/maps`; copies; the end, with the maps as they are then.
MAPS, COPIES, END = 1, 2, 3
_HEAD = struct.Struct("<BI")
_LENGTH = struct.Struct("<I")
MESSAGE_CAP = 64 << 20
ANSWER_CAP = 32 << 20


@dataclass(slots=True)
class Answer:
    """Frames, leaf first in each chain, and which copy has which chain.

    `things` are (path, build id, start, limit, file offset); `frames` (path, name,
    address); `chains` numbers of frames. `chain_of` are pairs, flat. `whole` counts
    copies that were followed to Python's evaluation loop, `cut` those that were not.
    """

    things: list[tuple[str, str, int, int, int]]
    frames: list[tuple[str, str, int]]
    chains: list[list[int]]
    chain_of: array[int]
    whole: int = 0
    cut: int = 0
    unloaded: int = 0


def message(kind: int, body: bytes) -> bytes:
    """The bytes of one to the process."""
    return _HEAD.pack(kind, len(body)) + body


def receive(read: Callable[[int], bytes]) -> tuple[int, bytes]:
    """The next one, by `read(size)`, which may return less. Raises: EOFError, ValueError."""
    kind, length = _HEAD.unpack(_exactly(read, _HEAD.size))
    if length > MESSAGE_CAP:
        raise ValueError("a message beyond the cap")
    return kind, _exactly(read, length)


def _exactly(read: Callable[[int], bytes], size: int) -> bytes:
    parts: list[bytes] = []
    while size:
        part = read(min(size, 1 << 20))
        if not part:
            raise EOFError
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


def packed(answer: Answer) -> bytes:
    """The bytes of an answer."""
    said = asdict(answer)
    del said["chain_of"]
    head = json.dumps(said).encode()
    return _LENGTH.pack(len(head)) + head + answer.chain_of.tobytes()


def unpacked(data: bytes) -> Answer:
    """The answer in these bytes. Raises: ValueError for anything else."""
    try:
        (length,) = _LENGTH.unpack_from(data)
        said = json.loads(data[_LENGTH.size : _LENGTH.size + length])
        chain_of = array("I", data[_LENGTH.size + length :])
        return _checked(Answer(chain_of=chain_of, **said))
    except (struct.error, TypeError, KeyError, RecursionError) as error:
        raise ValueError(f"no answer: {error}") from error


def _checked(answer: Answer) -> Answer:
    """It came from a process of ours that read files of others: numbers are checked."""
    answer.things = [
        (str(path), str(build_id), int(start), int(limit), int(offset))
        for path, build_id, start, limit, offset in answer.things
    ]
    answer.frames = [
        (str(path), str(name), int(address)) for path, name, address in answer.frames
    ]
    frames = range(len(answer.frames))
    if any(one not in frames for chain in answer.chains for one in chain):
        raise ValueError("a chain of frames that are not there")
    if len(answer.chain_of) % 2 or max(answer.chain_of[1::2], default=-1) >= len(
        answer.chains
    ):
        raise ValueError("a copy with a chain that is not there")
    return answer
