"""Evidence: the recorder's last seconds, kept on disk when a rule was met, or of the dead.

`evidence-<milliseconds>-<pid>-<endpoint>-<number>` in the service's folder, or in
`evidence_dir`: one line that says what it is, and the recorder's block, deflated. It
outlives its process, and every worker and the sidecar give it out. What cannot be kept is
counted by reason, and the first of each reason is logged.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
import zlib
from collections import Counter, OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from stroboscope._clock import SYSTEM, Clock
from stroboscope._core import engine
from stroboscope._greenlets import POST, Log
from stroboscope._threads import Lock
from stroboscope.endpoints import otel
from stroboscope.errors import FolderError, RecordingFormatError
from stroboscope.formats.prometheus import Family, one
from stroboscope.formats.timeline import Timeline
from stroboscope.settings import Settings
from stroboscope.stalls import WATCH
from stroboscope.tracing import recorder
from stroboscope.tracing.triggers import PROCESS, TRIGGERS, Hit
from stroboscope.workers.documents import locked
from stroboscope.workers.folder import Folder

_log = Log("stroboscope")
KIND, SCOPE = "evidence", "trace"
#: The rule, and the kind, of what a killed process has left.
BLACKBOX = "blackbox"
#: Older evidence goes, whether there is room or not.
AGE_S = 7 * 86_400.0
#: Files, and the longest of them; the folder reads none that is longer.
FILES_CAP, FILE_BYTES_CAP = 256, 16 << 20
#: A block, once it is inflated again.
BLOCK_BYTES_CAP = 64 << 20
#: Hits that wait for our thread, and endpoints whose last one is remembered.
WAITING_CAP, REMEMBERED_CAP = 8, 4096
#: Events of a piece: what a recorder of 8 MiB holds.
SNAPSHOT_EVENTS = 1 << 18
#: Why a trigger left no evidence. Not so many at once, an hour or for an endpoint; not
#: on this disk, or longer than allowed; nothing recorded; no thread, or a fault of ours.
REASONS = ("window", "hour", "busy", "disk", "size", "recorder", "folder", "failure")
_HOUR_S = 3600.0
_HEAD_CAP = 64 << 10
_TEXT_CAP = 256
_NAME = re.compile(
    r"evidence-([0-9]{13})-([1-9][0-9]{0,9})-([0-9a-f]{8})-([0-9a-f]{16})"
)


@dataclass(frozen=True, slots=True)
class Piece:
    """A piece of evidence as it lies there. `about` is its first line."""

    id: str
    taken_s: float
    file_bytes: int
    about: dict[str, Any]
    block: bytes = b""

    @property
    def kind(self) -> str:
        """What made it: a rule that was met, or the death of a process."""
        return BLACKBOX if self.about.get("rule") == BLACKBOX else KIND

    @property
    def reason(self) -> str:
        """Why it is there, with its rule and endpoint."""
        said = [self.about.get(name, "") for name in ("rule", "endpoint", "reason")]
        return "{}: {} {}".format(*said)

    def timeline(self) -> Timeline:
        """What it holds. Raises: RecordingFormatError."""
        if not self.block:
            raise RecordingFormatError("it cannot be inflated")
        return Timeline.read(self.block)


class Evidence:
    """That of one service on this host. Only `take` is for a request's path."""

    def __init__(
        self, settings: Settings, folder: Folder | None, clock: Clock = SYSTEM
    ) -> None:
        self.rules = settings.evidence_rules
        if settings.evidence_dir:
            folder = Folder(settings.evidence_dir, settings.service)
        self._folder = folder
        self._settings = settings
        self._clock = clock
        self._lock = Lock()
        self._waiting: deque[tuple[str, Hit]] = deque()
        self._works = False
        #: Moments of what was taken in the last hour, and by endpoint, oldest first.
        self._taken_s: deque[float] = deque()
        self._last_s: OrderedDict[str, float] = OrderedDict()
        self.kept = 0
        #: reason: pieces that are not there.
        self.dropped: Counter[str] = Counter()
        #: Why the last could not be kept; empty while all is well.
        self.failure = ""

    def begin(self, loops: Callable[[], list[Any]]) -> None:
        """Let the rules hold in this process. Never raises."""
        TRIGGERS.take, TRIGGERS.loops = self.take, loops
        WATCH.book.on_close = TRIGGERS.stalled
        try:
            TRIGGERS.configure(self.rules, self._settings.label_sets)
        except RuntimeError as error:
            self.failure = str(error)

    def take(self, hit: Hit, span: Any = None) -> None:
        """Freeze what the recorder has, soon, if the budget lets it. Microseconds.

        The span, or else the one that is current, gets an event with the id.
        """
        with self._lock:
            why = self._refusal(hit.endpoint)
            if why:
                self.dropped[why] += 1
                return
            name = f"{os.getpid()}-{secrets.token_hex(8)}"
            self._waiting.append((name, hit))
            is_first, self._works = not self._works, True
        if is_first:
            try:
                engine.start_thread(self._work)
            except RuntimeError:  # the next one tries again
                self._works = False
        POST.send(lambda: otel.note_evidence(span, name, hit.rule, self._url(name)))

    def adopt(self, name: str, about: dict[str, Any], block: bytes) -> str:
        """Keep what another process has left, under the same budget; or why not. Blocks.

        Under an id that it already has it is kept. Only failures to write are left to
        the caller to say; he may try again.
        """
        if self.has(name):
            return ""
        told = {"id": name, "rule": BLACKBOX, "endpoint": PROCESS, **about}
        try:
            return self._put(told, block, _digest(name))
        except (FolderError, OSError) as error:
            self.failure = str(error)
            return "disk"

    def pieces(self) -> list[Piece]:
        """Everything that lies there, newest first, without blocks. Blocks."""
        if self._folder is None:
            return []
        try:
            return [*filter(None, map(self._about, reversed(self._names())))]
        except FolderError:
            return []

    def get(self, name: str) -> Piece | None:
        """One piece, whole; None where it is not, or not whole. Blocks."""
        file = self._file(name)
        try:
            content = self._folder.read(file) if file and self._folder else None
        except FolderError:
            content = None
        return None if content is None else _piece(file, content, len(content))

    def has(self, name: str) -> bool:
        """Whether there is a piece of this id."""
        return bool(self._file(name))

    def drop(self, name: str) -> None:
        """Remove a piece, if it is there. Raises: FolderError."""
        if (file := self._file(name)) and self._folder is not None:
            self._folder.remove(file)

    def state(self) -> str:
        """Whether rules hold, and what is wrong."""
        return self.failure or ("on" if self.rules.are_any else "off")

    def after_fork(self) -> None:
        """The child keeps its own."""
        self._lock = Lock()
        self._waiting.clear()
        self._works = False
        self._taken_s.clear()
        self._last_s.clear()
        self.kept, self.dropped, self.failure = 0, Counter(), ""

    def _refusal(self, endpoint: str) -> str:
        """Why this process takes none now; else it is written down as taken."""
        now_s = self._clock.monotonic_ns() / 1e9
        while self._taken_s and self._taken_s[0] <= now_s - _HOUR_S:
            self._taken_s.popleft()
        last_s = self._last_s.get(endpoint)
        if last_s is not None and now_s - last_s < self.rules.window:
            return "window"
        if len(self._taken_s) >= self.rules.per_hour:
            return "hour"
        if len(self._waiting) >= WAITING_CAP:
            return "busy"
        self._taken_s.append(now_s)
        self._last_s[endpoint] = now_s
        self._last_s.move_to_end(endpoint)
        if len(self._last_s) > REMEMBERED_CAP:
            self._last_s.popitem(last=False)
        return ""

    def _url(self, name: str) -> str:
        settings = self._settings
        return f"{settings.public_url.rstrip('/')}{settings.prefix}/captures/{name}"

    def _work(self) -> None:
        """On a thread of ours: freeze each, then write it; ends when none waits."""
        while True:
            with self._lock:
                if not self._waiting:
                    self._works = False
                    return
                name, hit = self._waiting.popleft()
            try:
                why = self._keep(name, hit)
            except (FolderError, OSError) as error:
                why, self.failure = "disk", str(error)
            except Exception as error:  # nobody else would see it
                why, self.failure = "failure", repr(error)[:_TEXT_CAP]
            else:
                self.failure = "" if not why else self.failure
            if why:
                self.say(why, f"{hit.endpoint} {hit.reason}")

    def say(self, why: str, about: str) -> None:
        """Count a piece that is not kept; the first of each cause is logged."""
        self.dropped[why] += 1
        if self.dropped[why] == 1:
            _log.error(
                "stroboscope: evidence is not kept (%s) %s: %s",
                *(why, self.failure, about),
            )

    def _keep(self, name: str, hit: Hit) -> str:
        """Keep it, or why not. Raises: FolderError."""
        block = recorder.snapshot(SNAPSHOT_EVENTS)
        if block is None:
            return "recorder"
        why = self._put(self._described(name, hit), block, _digest(hit.endpoint))
        if not why:
            _log.warning(
                "stroboscope: evidence %s: %s %s: %s%s",
                *(name, hit.rule, hit.endpoint, hit.reason),
                f" (trace {hit.trace_id})" if hit.trace_id else "",
            )
        return why

    def _put(self, about: dict[str, Any], block: bytes, digest: str) -> str:
        """Write a piece, or why not. Raises: FolderError, OSError."""
        if self._folder is None:
            return "folder"
        content = json.dumps(about).encode() + b"\n" + zlib.compress(block, 1)
        if len(content) > min(FILE_BYTES_CAP, self.rules.bytes):
            return "size"
        lock = locked(self._folder, "evidence.lock")
        try:
            why = self._refused_by_host(digest)
            if not why:
                self._make_room(len(content))
                taken_ms, pid = int(self._clock.time_s() * 1000), about["pid"]
                number = about["id"].rpartition("-")[2]
                file = f"evidence-{taken_ms}-{pid}-{digest}-{number}"
                self._folder.write(file, content)
                self.kept += 1
        finally:
            os.close(lock)
        return why

    def _described(self, name: str, hit: Hit) -> dict[str, Any]:
        labels = {key[:_TEXT_CAP]: text[:_TEXT_CAP] for key, text in hit.labels.items()}
        return {
            "id": name,
            "rule": hit.rule,
            "endpoint": hit.endpoint[:_TEXT_CAP],
            "reason": hit.reason[:_TEXT_CAP],
            "labels": labels,
            "trace_id": hit.trace_id,
            "span_id": hit.span_id,
            "task": hit.task,
            "pid": os.getpid(),
        }

    def _refused_by_host(self, digest: str) -> str:
        """Why the workers together take none now."""
        now_s, count = self._clock.time_s(), 0
        for file in self._names():
            taken_s, _, other = _parts(file)
            age_s = now_s - taken_s
            if other == digest and 0 <= age_s < self.rules.window:
                return "window"
            count += 0 <= age_s < _HOUR_S
        return "hour" if count >= self.rules.per_hour else ""

    def _make_room(self, more_bytes: int) -> None:
        """Remove the oldest until so many bytes fit, and what is too old."""
        if self._folder is None:
            return
        self._folder.clean()
        files = [(file, self._size(file)) for file in self._names()]
        used = sum(size for _, size in files)
        for count, (file, size) in enumerate(files):
            is_old = self._clock.time_s() - _parts(file)[0] > AGE_S
            is_much = used + more_bytes > self.rules.bytes
            if not (is_old or is_much or len(files) - count >= FILES_CAP):
                break
            self._folder.remove(file)
            used -= size

    def _names(self) -> list[str]:
        """The files, oldest first."""
        names = self._folder.names() if self._folder is not None else []
        return [name for name in names if _NAME.fullmatch(name)]

    def _file(self, name: str) -> str:
        process, _, number = name.partition("-")
        try:
            found = [
                file
                for file in self._names()
                if file.endswith(f"-{number}") and file.split("-")[2] == process
            ]
        except FolderError:
            return ""
        return found[0] if found and len(number) == 16 else ""

    def _size(self, file: str) -> int:
        return os.lstat(os.path.join(self._folder.path, file)).st_size  # type: ignore[union-attr]

    def _about(self, file: str) -> Piece | None:
        """A piece by its first line."""
        if self._folder is None:
            return None
        try:
            descriptor = self._folder.open(file, os.O_RDONLY)
        except FolderError:  # gone meanwhile
            return None
        with open(descriptor, "rb") as opened:
            size = os.fstat(descriptor).st_size
            return _piece(file, opened.readline(_HEAD_CAP), size, is_whole=False)


def _parts(file: str) -> tuple[float, str, str]:
    """When it was taken, by which process, and for which endpoint."""
    _, taken_ms, process, digest, _ = file.split("-")
    return int(taken_ms) / 1000, process, digest


def _digest(endpoint: str) -> str:
    return hashlib.blake2b(
        endpoint.encode("utf-8", "replace"), digest_size=4
    ).hexdigest()


def _piece(
    file: str, content: bytes, size: int, *, is_whole: bool = True
) -> Piece | None:
    head, _, deflated = content.partition(b"\n")
    taken_s, process, _ = _parts(file)
    try:
        about = json.loads(head)
        block = b""
        if is_whole:
            inflate = zlib.decompressobj()
            block = inflate.decompress(deflated, BLOCK_BYTES_CAP)
            block = block if inflate.eof else b""
    except (ValueError, zlib.error):
        return None
    if not isinstance(about, dict):
        return None
    number = file.rpartition("-")[2]
    return Piece(f"{process}-{number}", taken_s, size, about, block)


def families(evidence: Evidence) -> list[Family]:
    """What was kept and what was not, of this process."""
    dropped = tuple(
        ({"reason": reason}, float(evidence.dropped[reason])) for reason in REASONS
    )
    name = "stroboscope_evidence_"
    return [
        one(name + "kept_total", "counter", "Pieces written.", evidence.kept),
        Family(name + "dropped_total", "counter", "Triggers without one.", dropped),
    ]
