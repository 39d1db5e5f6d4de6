"""Go's URLs: profiles in pprof format, with Go's headers, bodies and errors.

Source: net/http/pprof of Go 1.27. Blocks while something is collected.
"""

from __future__ import annotations

import gc
import re
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial

from stroboscope._core import Window, engine
from stroboscope._http.messages import PROFILE, TEXT, Response, refusal
from stroboscope._http.parameters import (
    asked,
    exceeds,
    first,
    profile_seconds,
    seconds_of,
    snapshot_seconds,
)
from stroboscope.endpoints import native
from stroboscope.endpoints.call import Call
from stroboscope.endpoints.captures import HEADER, Capture
from stroboscope.endpoints.collectors import COLLECTORS, Collector
from stroboscope.endpoints.fencing import fenced
from stroboscope.endpoints.leases import Lease, LeaseTaken
from stroboscope.errors import EngineUnavailable, WindowsExhausted
from stroboscope.formats import text
from stroboscope.formats.pprof import encode, prune
from stroboscope.formats.profile import Profile, columns, subtract
from stroboscope.profiles import native_frames, stacks
from stroboscope.profiles.breath import Breath
from stroboscope.profiles.cpu import collect_cpu
from stroboscope.profiles.native_cpu import collect_native_cpu
from stroboscope.profiles.stacks import Snapshot
from stroboscope.profiles.wall import collect_wall

BUSY = "Could not enable CPU profiling: cpu profiling already in use"
FORENSIC_HZ = 1000
#: Profiles that are taken alone, as their lease calls them.
FORENSIC, NATIVE = "forensic profile", "native profile"
#: A capture on a worker with a timeout takes no more of it than this.
TIMEOUT_SHARE = 0.7
#: Those that `gc=1` means something to.
OF_MEMORY = ("allocs", "heap")
#: What a capture says it was asked with.
KEPT = ("seconds", "forensic", "native", "gc", "worker")
NAMES = ("allocs", "block", "goroutine", "heap", "mutex", "threadcreate")
_ADDRESS = re.compile(rb"0[xX][0-9a-fA-F]{1,16}")


def profile(call: Call) -> Response:
    """A CPU profile; with `forensic=1` alone and at the kernel's full rate.

    With `native=1` its stacks go on into C; alone, too.
    """
    request = call.request
    if refused := too_long(call, _cap_s(call)):
        return refused
    seconds, clamped = profile_seconds(request.query, _cap_s(call))
    kind = _alone(call)
    if not kind:
        return _timed(call, "profile", collect_cpu, seconds, clamped)
    collect = collect_cpu
    if native.is_wanted(call):
        collect = collect_native_cpu
        if why := native_frames.refusal():
            return refusal(request, 501, why)
    try:
        with call.desk.leases.hold(
            kind, call.grant.token_id, seconds, is_peer=call.is_peer
        ) as lease:
            take = partial(_timed, call, "profile", collect, seconds, clamped, lease)
            answer = take() if kind == NATIVE else _at_full_rate(call, take)
    except LeaseTaken as taken:
        return taken_response(call, taken)
    return fenced(call, lease, answer)


def _at_full_rate(call: Call, take: Callable[..., Response]) -> Response:
    before, knob = engine.hz, call.desk.knobs.get("cpu_hz")
    try:
        return take(hz=FORENSIC_HZ)
    finally:
        # A knob that was switched, or has run out, meanwhile is not undone.
        now = call.desk.knobs.get("cpu_hz")
        engine.set_rate(before if before and now == knob else now)


def _alone(call: Call) -> str:
    """What a CPU profile is called that is taken alone; empty for any other."""
    if first(call.request.query, "forensic") == "1":
        return FORENSIC
    return NATIVE if native.is_wanted(call) else ""


def under_lease(call: Call, seconds: float, take: Callable[[], Response]) -> Response:
    """What `take` answers, for who is no worker: alone where the capture is."""
    if not (kind := _alone(call)):
        return take()
    owner = call.grant.token_id
    try:
        with call.desk.leases.hold(kind, owner, seconds) as lease:
            answer = take()
    except LeaseTaken as taken:
        return taken_response(call, taken)
    return fenced(call, lease, answer)


def wall(call: Call) -> Response:
    """Time on and off the CPU, of threads and suspended tasks."""
    if native.is_wanted(call):
        return refusal(call.request, 501, native.NO_WALL)
    if refused := too_long(call, _cap_s(call)):
        return refused
    seconds, clamped = profile_seconds(call.request.query, _cap_s(call))
    collect = partial(collect_wall, loops=call.desk.loops)
    return _timed(call, "wall", collect, seconds, clamped)


def _timed(
    call: Call,
    name: str,
    collect: Callable[..., Profile],
    seconds: float,
    clamped: bool,
    lease: Lease | None = None,
    hz: int | None = None,
) -> Response:
    """What samples over `seconds`, while its lease holds; at `hz` everybody, if given."""
    desk, request = call.desk, call.request
    began_s = time.monotonic()
    windows: list[Window] = []

    def on_window(window: Window) -> None:
        windows.append(window)
        request.cancellation.on_cancel(window.cancel)
        if hz is not None:
            engine.set_rate(hz)

    def look() -> None:
        desk.governor.look()
        if lease is not None and lease.is_over():
            windows[0].cancel()

    try:
        collected = collect(
            seconds,
            on_window,
            hz=hz or desk.knobs.get("cpu_hz"),
            windows=desk.settings.windows,
            each=look,
            start_ns=call.start_ns,
        )
    except WindowsExhausted as error:
        wait = (("Retry-After", str(error.retry_after_s)),)
        return refusal(request, 429, BUSY, wait)
    except EngineUnavailable as error:
        return refusal(request, 503, f"Could not enable CPU profiling: {error}")
    headers = clamp(seconds, clamped)
    comments = _cut(seconds, clamped)
    if clamped and seconds < desk.settings.profile_seconds_cap:
        comments.append(f"the worker is killed after {request.worker_timeout_s:g} s")
    actions = desk.governor.actions_since(began_s)
    if actions:
        headers.append(("X-Stroboscope-Governed", actions[-1].kind))
        comments += [f"overhead governor {action.text}" for action in actions]
    collected = replace(collected, comments=(*collected.comments, *comments))
    return _attached(call, name, collected, headers)


def snapshot(name: str) -> Callable[[Call], Response]:
    """The handler of one of Go's snapshot profiles: `debug`, `seconds`, `gc`."""

    def handler(call: Call) -> Response:
        query = call.request.query
        debug = first(query, "debug") or "0"
        try:
            seconds, clamped = snapshot_seconds(query, _cap_s(call))
            collect = _collector(call, name)
        except ValueError as error:
            return refusal(call.request, 400, str(error))
        if seconds is not None and debug not in ("", "0"):
            return refusal(
                call.request, 400, "seconds and debug params are incompatible"
            )
        if refused := too_long(call, _cap_s(call)):
            return refused
        if debug == "2" and name == "goroutine":
            taken = stacks_asked(call, is_fresh=False).stacks
            shown = text.blocks(taken.blocks(), Breath())
            return Response(200, shown.encode("utf-8", "replace"), TEXT)
        if seconds is not None:
            call.until_start()
        notes = _collect_garbage(call, name)
        collected = collect(call.desk, seconds is not None)
        collected = replace(collected, comments=(*collected.comments, *notes))
        if debug not in ("", "0"):
            fraction = call.desk.knobs.get("mutex_fraction")
            shown = text.counts(name, collected, fraction, Breath())
            return Response(200, shown.encode("utf-8", "replace"), TEXT)
        if seconds is None:
            return _attached(call, name, collected, [])
        began_ns = time.monotonic_ns()
        if not _wait(call, seconds):
            return refusal(call.request, 408, "the client went away")
        ended_ns, duration_ns = time.time_ns(), time.monotonic_ns() - began_ns
        delta = subtract(collect(call.desk, True), collected)
        said = (*delta.comments, *_cut(seconds, clamped))
        delta = replace(delta, time_ns=ended_ns, duration_ns=duration_ns, comments=said)
        return _attached(call, f"{name}-delta", delta, clamp(seconds, clamped))

    handler.__name__ = name
    handler.__doc__ = f"Go's {name} profile."
    return handler


def stacks_asked(call: Call, *, is_fresh: bool) -> Snapshot:
    """The stacks now; with `min_age` those that are known to be so old.

    Raises: ValueError for an age that is no number.
    """
    oldest_s = seconds_of(call.request.query, "min_age")
    taken = call.desk.snapshots.get(is_fresh=is_fresh)
    return taken if oldest_s is None else taken.older_than(oldest_s)


def capture_s(call: Call) -> float:
    """For how many seconds a profile of CPU or time is taken here."""
    return profile_seconds(call.request.query, _cap_s(call))[0]


def delta_s(call: Call) -> float:
    """The same of a snapshot: none without `seconds`, none for bad ones."""
    try:
        return snapshot_seconds(call.request.query, _cap_s(call))[0] or 0.0
    except ValueError:
        return 0.0


def cmdline(call: Call) -> Response:
    """The program's name where settings allow it: arguments may hold secrets."""
    if not call.desk.settings.cmdline:
        return refusal(call.request, 404, "Unknown profile")
    return Response(200, sys.argv[0].encode("utf-8", "replace"))


def symbol(call: Call) -> Response:
    """Names of addresses in profiles that this process gave out."""
    asked = call.request.body or call.request.query.encode("latin-1", "replace")
    lines = ["num_symbols: 1"]
    for found in _ADDRESS.findall(asked)[:1000]:
        name = call.desk.symbols.get(int(found, 16))
        if name is not None:
            lines.append(f"{found.decode()} {name}")
    return Response(200, ("\n".join(lines) + "\n").encode("utf-8", "replace"))


def _cap_s(call: Call) -> float:
    return min(call.desk.settings.profile_seconds_cap, killed_after_s(call))


def killed_after_s(call: Call) -> float:
    """What a capture may take before the server kills its worker for being silent."""
    return TIMEOUT_SHARE * call.request.worker_timeout_s


def _collector(call: Call, name: str) -> Collector:
    """What collects this profile as the query asks. Raises: ValueError."""
    if name != "goroutine" or seconds_of(call.request.query, "min_age") is None:
        return COLLECTORS[name]
    return lambda desk, is_fresh: stacks.to_profile(
        stacks_asked(call, is_fresh=is_fresh), time.time_ns()
    )


def _collect_garbage(call: Call, name: str) -> tuple[str, ...]:
    """What `gc=1` does to a profile of memory; the comment it leaves."""
    if name not in OF_MEMORY or first(call.request.query, "gc") != "1":
        return ()
    left_s = call.desk.garbage.claim()
    if left_s > 0:
        return (f"gc: not collected, the next collection may be in {left_s:.0f} s",)
    gc.collect()
    return ("gc: collected before",)


def _wait(call: Call, seconds: float) -> bool:
    """Whether the time passed before the client went away."""
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        if call.request.cancellation.cancelled:
            return False
        engine.sleep(min(left, 0.05))
    return True


def _attached(
    call: Call, filename: str, collected: Profile, headers: list[tuple[str, str]]
) -> Response:
    breathe = Breath()
    pruned = prune(collected, breathe=breathe)
    body = encode(pruned, breathe)
    table = columns(pruned.samples, len(pruned.sample_types))
    call.desk.remember_symbols(table.frames)
    named = ("Content-Disposition", f'attachment; filename="{filename}"')
    answer = Response(200, body, PROFILE, (named, *headers))
    return kept(call, f"/pprof/{filename}", answer)


def kept(call: Call, endpoint: str, answer: Response) -> Response:
    """The answer under an id of its own, unless there is no room for it.

    A part of another worker's answer is kept there, with the whole.
    """
    if call.is_peer:
        return answer
    number = call.desk.captures.new_id()
    marked = replace(answer, headers=(*answer.headers, (HEADER, number)))
    capture = Capture(
        number,
        "profile",
        endpoint,
        marked,
        owner=call.grant.token_id,
        parameters=asked(call.request.query, KEPT),
    )
    return marked if call.desk.captures.keep(capture) else answer


def too_long(call: Call, cap_s: float) -> Response | None:
    """The refusal of what a cap would cut, where the settings are strict."""
    if not call.desk.settings.strict_seconds:
        return None
    why = exceeds(call.request.query, cap_s)
    return refusal(call.request, 400, why) if why else None


def clamp(seconds: float, clamped: bool) -> list[tuple[str, str]]:
    """The header that says a cap cut the request."""
    return [("X-Stroboscope-Clamped", f"seconds={seconds:g}")] if clamped else []


def _cut(seconds: float, clamped: bool) -> list[str]:
    """The same as a comment of the profile."""
    return [f"clamped: seconds={seconds:g}"] if clamped else []


def taken_response(call: Call, taken: LeaseTaken) -> Response:
    """The refusal while another exclusive capture runs."""
    wait = (("Retry-After", str(taken.retry_after_s)),)
    return refusal(call.request, 429, f"a {taken.kind} is being taken", wait)
