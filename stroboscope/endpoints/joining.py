"""One answer for all workers: whoever is asked asks the others and joins the answers.

A worker that does not answer in time is left out, counted and named: in the header
`X-Stroboscope-Workers: 3/4`, and inside the artefact. Where there is one worker, its
answer stays as it is.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import replace
from urllib.parse import parse_qsl, urlencode

from stroboscope._http.messages import Response, refusal
from stroboscope._http.parameters import first
from stroboscope.endpoints.call import Call
from stroboscope.endpoints.captures import HEADER as CAPTURE
from stroboscope.endpoints.counted import INSTANCE, Counted
from stroboscope.endpoints.gate import PEER_SCHEME
from stroboscope.endpoints.parts import Part, join
from stroboscope.endpoints.wedged import answer_for, part_of
from stroboscope.errors import FolderError
from stroboscope.workers.asking import Answer, Question

#: How much longer than ourselves another worker may take, in seconds.
GRACE_S = 0.8
#: The same after a capture: then all workers encode at once.
CAPTURE_GRACE_S = 2.0
HEADER = "X-Stroboscope-Workers"
#: Where a worker that does not answer has left something for others.
STACKS = "/stacks"
#: Not sent on: which worker, and how to join, is decided here.
_OURS = ("worker", "merge")


def answer(
    call: Call, path: str, handler: Callable[[Call], Response], seconds: float
) -> Response:
    """The joined answer of a GET below the mount, or the one of `?worker=`.

    `seconds` is how long the handler collects here; the others get no longer.
    """
    wanted = first(call.request.query, "worker") or "all"
    is_page = "text/html" in (call.request.header("accept") or "")
    if call.desk.members is None or is_page:
        return handler(call)
    count = Counted.of(call, path, seconds)
    if call.is_peer or wanted == str(os.getpid()):
        return count.taken(handler)
    if wanted != "all":
        return _forwarded(call, path, wanted, seconds)
    if seconds:
        return _whole(call, path, count, handler, seconds)
    asked = (path, call.request.query, call.request.header("accept"), call.grant.scopes)
    return call.desk.flights.share(
        asked,
        lambda: _whole(call, path, count, handler, 0.0),
        lambda: call.request.cancellation.cancelled,
    )


def forward(call: Call, path: str, process: str) -> Response | None:
    """What another worker answers to this request; None when there is no such worker."""
    if call.is_peer or process not in map(str, _others(call) or ()):
        return None
    return _forwarded(call, path, process, 0.0)


def _whole(
    call: Call,
    path: str,
    count: Counted,
    handler: Callable[[Call], Response],
    seconds: float,
) -> Response:
    others = _others(call)
    own, answers = _asked(call, path, count, handler, seconds, others or [])
    if own.status != 200:
        return own
    good, failed, notes = _sorted(answers)
    totals = count.of_others([part.instance for part in good])
    if not (good or failed or notes or totals):
        return _marked(own, "1/?" if others is None else "1/1")
    left = _left(call, answers) if path == STACKS else []
    parts = [Part(os.getpid(), own.body, own.content_type), *good, *left]
    parts.sort()
    body = join(call, own.content_type, parts, failed, [*notes, *count.notes], totals)
    came = len(parts) - len(left)
    share = f"{came}/{came + len(failed)}"
    return _kept(call, _marked(replace(own, body=body), share))


def ask_all(call: Call, path: str) -> tuple[list[Part], list[Answer]]:
    """What the other workers answer to a GET that collects nothing, and who failed."""
    members, others = call.desk.members, _others(call)
    if members is None or not others:
        return [], []
    question = Question(members, others, _request(call, path, 0.0))
    question.wait(time.monotonic() + GRACE_S)
    question.close()
    asked = [one for one in question.answers if not one.is_gone]
    failed = [one for one in asked if _failure(one)]
    return _sorted(question.answers)[0], [one for one in failed if one.status != 401]


def _others(call: Call) -> list[int] | None:
    """None when nobody knows: the log says why, and this worker knows itself."""
    members = call.desk.members
    try:
        found = members.processes() if members is not None else []
    except FolderError:
        return None
    return [process for process in found if process != os.getpid()]


def _asked(
    call: Call,
    path: str,
    count: Counted,
    handler: Callable[[Call], Response],
    seconds: float,
    others: list[int],
) -> tuple[Response, list[Answer]]:
    """Our own answer, taken while the others take theirs."""
    members, began_s = call.desk.members, time.monotonic()
    if members is None:
        raise FolderError("off")
    question = Question(members, others, _request(call, path, seconds))
    call.request.cancellation.on_cancel(question.close)
    try:
        own = count.taken(handler)
        if own.status == 200:
            ends_s = max(time.monotonic(), began_s + seconds)
            question.wait(ends_s + (CAPTURE_GRACE_S if seconds else GRACE_S))
    finally:
        question.close()
    return own, question.answers


def _forwarded(call: Call, path: str, wanted: str, seconds: float) -> Response:
    """The answer of one other worker, as it is."""
    members = call.desk.members
    if members is None or wanted not in map(str, _others(call) or []):
        return refusal(call.request, 404, "Unknown worker")
    question = Question(members, [int(wanted)], _request(call, path, seconds))
    call.request.cancellation.on_cancel(question.close)
    grace_s = CAPTURE_GRACE_S if seconds else GRACE_S
    question.wait(time.monotonic() + seconds + grace_s)
    question.close()
    (found,) = question.answers
    if not found.status and path == STACKS and not found.is_gone:
        return answer_for(call, found.process, found.failure, HEADER)
    if not found.status:
        return refusal(call.request, 503, f"worker {wanted} {found.failure}")
    return _response(found)


def _response(found: Answer) -> Response:
    """Another worker's answer; of its headers those that say something of the artefact."""
    kept = tuple(
        (name.title(), value)
        for name, value in found.headers.items()
        if name.startswith(("x-stroboscope-", "x-go-", "content-disposition", "retry-"))
    )
    return Response(found.status, found.body, found.headers["content-type"], kept)


def _request(call: Call, path: str, seconds: float) -> bytes:
    """The same as the other workers understand it, with what they need to trust it."""
    asked = [
        (name, value)
        for name, value in parse_qsl(call.request.query, keep_blank_values=True)
        if name not in _OURS and not (seconds and name == "seconds")
    ]
    if seconds:
        asked.append(("seconds", f"{seconds:.3f}"))
    accept = call.request.header("accept") or "*/*"
    lines = [
        f"{call.request.method} {call.desk.settings.prefix}{path}?{urlencode(asked)} HTTP/1.1",
        "Host: localhost",
        f"Authorization: {PEER_SCHEME} {call.desk.gate.tokens.mint_peer(call.grant)}",
        # Whatever a carrier let through, it is one header here.
        f"Accept: {''.join(filter(str.isprintable, accept))}",
    ]
    return "\r\n".join([*lines, "", ""]).encode("latin-1", "replace")


def _sorted(answers: list[Answer]) -> tuple[list[Part], list[str], list[str]]:
    """The parts that came, who did not answer, and who belongs to another copy."""
    good, failed, foreign = [], [], []
    for one in answers:
        if one.status == 401:  # it does not know our key
            foreign.append(f"worker {one.process} has other keys, and is left out")
        elif failure := _failure(one):
            failed.append(f"worker {one.process} {failure}")
        elif not one.is_gone:
            kind, instance = (
                one.headers.get(name, "") for name in ("content-type", INSTANCE.lower())
            )
            good.append(Part(one.process, one.body, kind, instance))
    return good, failed, foreign


def _left(call: Call, answers: list[Answer]) -> list[Part]:
    """What those that did not answer have left of their stacks."""
    silent = [one for one in answers if not one.status and not one.is_gone]
    return [part_of(call, one.process, one.failure) for one in silent]


def _failure(one: Answer) -> str:
    if one.is_gone:
        return ""
    return one.failure or ("" if one.status == 200 else f"answered {one.status}")


def _kept(call: Call, whole: Response) -> Response:
    """What was kept of our own part is the whole from now on."""
    number = dict(whole.headers).get(CAPTURE)
    capture = call.desk.captures.get(number) if number else None
    if capture is not None:
        call.desk.captures.keep(replace(capture, answer=whole))
    return whole


def _marked(own: Response, share: str) -> Response:
    return replace(own, headers=(*own.headers, (HEADER, share)))
