"""One answer for all workers: whoever is asked asks the others and joins the answers.

A worker that does not answer in time is left out, counted and named: in the header
`X-Stroboscope-Workers: 3/4`, and inside the artefact. Where there is one worker, its
answer stays as it is.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from urllib.parse import parse_qsl, urlencode

from stroboscope._http.messages import HTML, POLICY, PROFILE, Request, Response, refusal
from stroboscope._http.parameters import first
from stroboscope.endpoints.call import Call
from stroboscope.endpoints.captures import HEADER as CAPTURE
from stroboscope.endpoints.counted import INSTANCE, Counted
from stroboscope.endpoints.gate import PEER_SCHEME
from stroboscope.endpoints.parts import Part, join
from stroboscope.endpoints.profiles import kept, under_lease
from stroboscope.endpoints.wedged import answer_for, part_of
from stroboscope.errors import FolderError
from stroboscope.workers.asking import Answer, Question
from stroboscope.workers.totals import Total

#: How much longer than ourselves another worker may take, in seconds.
GRACE_S = 0.8
#: The same after a capture: then all workers encode at once.
CAPTURE_GRACE_S = 2.0
HEADER, MISSING = "X-Stroboscope-Workers", "X-Stroboscope-Missing"
#: Characters of the second, which has one entry for each worker.
_MISSING_CAP = 500
#: How long all workers have to hear of a capture before it begins, in nanoseconds, and
#: the furthest moment one believes another.
LEAD_NS = 100_000_000
LEAD_CAP_NS = 1_000_000_000
_START = "x-stroboscope-start"
#: Where the client sees the application, for the links in another worker's answer.
_ROOT = "x-stroboscope-root"
_ROOT_TEXT = re.compile(r"(/[!-~]{1,500})?")
#: Where a worker that does not answer has left something for others.
STACKS = "/stacks"
CAPTURES = "/captures"
#: What may be forensic, and then is one for all.
CPU = "/pprof/profile"
#: What another worker answers that does not say what it is.
BYTES = "application/octet-stream"
#: Not sent on: which worker, and how to join, is decided here.
_WORKER = "worker"
_OURS = (_WORKER, "merge")
_PASSED_ON = ("accept", "content-type", "if-match")


def answer(
    call: Call, path: str, handler: Callable[[Call], Response], seconds: float
) -> Response:
    """The joined answer of a GET below the mount, or the one of `?worker=`.

    `seconds` is how long the handler collects here; the others get no longer.
    """
    wanted = first(call.request.query, _WORKER) or "all"
    is_page = call.kind == HTML
    if call.desk.members is None or (is_page and call.desk.is_worker):
        return handler(call)
    count = Counted.of(call, path, seconds)
    if call.is_peer or wanted == str(call.desk.process):
        return count.taken(handler)
    if wanted != "all":
        return _forwarded(call, path, wanted, seconds)
    if seconds:
        return _whole(call, path, count, handler, seconds)
    asked = (path, call.request.query, call.kind, call.grant.scopes)
    return call.desk.flights.share(
        asked,
        lambda: _whole(call, path, count, handler, 0.0),
        lambda: call.request.cancellation.cancelled,
    )


def forward(
    call: Call, path: str, process: str, seconds: float = 0.0
) -> Response | None:
    """What another worker answers to this request; None when there is no such worker."""
    if call.is_peer or process not in map(str, _others(call) or ()):
        return None
    return _forwarded(call, path, process, seconds)


def _whole(
    call: Call,
    path: str,
    count: Counted,
    handler: Callable[[Call], Response],
    seconds: float,
) -> Response:
    if not call.desk.is_worker:
        take = partial(_of_others, call, path, count, handler, seconds)
        return under_lease(call, seconds, take) if path == CPU else take()
    others = _others(call)
    if seconds and others:
        call = count.call = replace(call, start_ns=time.monotonic_ns() + LEAD_NS)
    own, answers = _asked(call, path, count, handler, seconds, others or [])
    if own.status != 200:
        return own
    good, failed, notes = _sorted(answers)
    totals = count.of_others([part.instance for part in good])
    if not (good or failed or notes or totals):
        return _marked(own, "1/?" if others is None else "1/1")
    left = _left(call, answers) if path == STACKS else []
    parts = [Part(call.desk.process, own.body, own.content_type), *good, *left]
    whole = _joined(call, own, count, parts, totals, len(left), failed, notes)
    return _kept(call, whole)


def of_one(
    call: Call, path: str, handler: Callable[[Call], Response], seconds: float
) -> Response:
    """The answer of one worker: of `?worker=`, of this one, or of the first there is."""
    desk, wanted = call.desk, first(call.request.query, _WORKER) or ""
    if desk.members is None or call.is_peer:
        return handler(call)
    if desk.is_worker and wanted in ("", "all", str(desk.process)):
        return handler(call)
    if wanted in ("", "all"):
        others = _others(call)
        if not others:
            return _nobody(call, [])
        wanted = str(others[0])
    return _forwarded(call, path, wanted, seconds)


def _of_others(
    call: Call,
    path: str,
    count: Counted,
    handler: Callable[[Call], Response],
    seconds: float,
) -> Response:
    """The joined answer of all workers, for who is none."""
    if seconds:
        call = replace(call, start_ns=time.monotonic_ns() + LEAD_NS)
    answers = _answers(call, path, seconds, _others(call) or [])
    good, failed, notes = _sorted(answers)
    left = _left(call, answers) if path == STACKS else []
    if good:
        own = next(_response(one) for one in answers if one.process == good[0].process)
    elif left:
        own = Response(200, b"", left[0].content_type)
    elif path == CAPTURES:  # evidence outlives those that wrote it
        return _marked(handler(call), f"0/{len(failed)}")
    else:
        refused = [one for one in answers if one.status not in (0, 401)]
        return _response(refused[0]) if refused else _nobody(call, [*failed, *notes])
    totals = count.of_others([part.instance for part in good])
    parts = [*good, *left]
    whole = _joined(call, own, count, parts, totals, len(left), failed, notes)
    return kept(call, path, whole) if whole.content_type == PROFILE else whole


def _joined(
    call: Call,
    own: Response,
    count: Counted,
    parts: list[Part],
    totals: list[Total],
    left: int,
    failed: list[str],
    notes: list[str],
) -> Response:
    """One answer of all parts, in the form of `own`; so many only left something."""
    parts.sort()
    body = join(call, own.content_type, parts, failed, [*notes, *count.notes], totals)
    headers = counted(own.headers, len(parts) - left, failed)
    return replace(own, body=body, headers=headers)


def counted(
    headers: tuple[tuple[str, str], ...], came: int, failed: list[str]
) -> tuple[tuple[str, str], ...]:
    """With how many of how many are in an answer, and who is not."""
    kept = [pair for pair in headers if pair[0] not in (HEADER, MISSING)]
    kept.append((HEADER, f"{came}/{came + len(failed)}"))
    if failed:
        said = "".join(c for c in "; ".join(failed) if " " <= c <= "~")
        kept.append((MISSING, said[:_MISSING_CAP]))
    return tuple(kept)


def _answers(
    call: Call, path: str, seconds: float, others: list[int], alone: str = ""
) -> list[Answer]:
    """What others answer within their time; from nobody nothing."""
    members = call.desk.members
    if members is None or not others:
        return []
    question = Question(members, others, _request(call, path, seconds, alone))
    call.request.cancellation.on_cancel(question.close)
    question.wait(_begins_s(call) + seconds + _grace_s(seconds))
    question.close()
    return question.answers


def _nobody(call: Call, said: list[str]) -> Response:
    why = call.desk.members.failure if call.desk.members is not None else ""
    reason = "; ".join(filter(None, ["no worker answers", why, *said]))[:300]
    return refusal(call.request, 503, reason, (("Retry-After", "1"),))


def start_of(request: Request) -> int:
    """When the worker that asks wants a capture to begin; 0 for now."""
    text = request.header(_START) or ""
    if not text.isascii() or not text.isdigit() or len(text) > 19:
        return 0
    return min(int(text), time.monotonic_ns() + LEAD_CAP_NS)


def root_of(request: Request) -> str:
    """Where the client of the worker that asks sees the application."""
    text = request.header(_ROOT) or ""
    return text if _ROOT_TEXT.fullmatch(text) else ""


def _begins_s(call: Call) -> float:
    return max(time.monotonic(), call.start_ns / 1e9)


def _grace_s(seconds: float) -> float:
    return CAPTURE_GRACE_S if seconds else GRACE_S


def ask_all(call: Call, path: str) -> tuple[list[Part], list[Answer]]:
    """What the other workers answer to a GET that collects nothing, and who failed."""
    asked = _answers(call, path, 0.0, _others(call) or [])
    failed = [one for one in asked if _failure(one)]
    return _sorted(asked)[0], [one for one in failed if one.status != 401]


def _others(call: Call) -> list[int] | None:
    """None when nobody knows: the log says why, and this worker knows itself."""
    members = call.desk.members
    try:
        found = members.processes() if members is not None else []
    except FolderError:
        return None
    return [process for process in found if process != call.desk.process]


def _asked(
    call: Call,
    path: str,
    count: Counted,
    handler: Callable[[Call], Response],
    seconds: float,
    others: list[int],
) -> tuple[Response, list[Answer]]:
    """Our own answer, taken while the others take theirs."""
    members, began_s = call.desk.members, _begins_s(call)
    if members is None:
        raise FolderError("off")
    question = Question(members, others, _request(call, path, seconds))
    call.request.cancellation.on_cancel(question.close)
    try:
        own = count.taken(handler)
        if own.status == 200:
            ends_s = max(time.monotonic(), began_s + seconds)
            question.wait(ends_s + _grace_s(seconds))
    finally:
        question.close()
    return own, question.answers


def _forwarded(call: Call, path: str, wanted: str, seconds: float) -> Response:
    """The answer of one other worker, as it is."""
    if wanted not in map(str, _others(call) or []):
        return refusal(call.request, 404, "Unknown worker")
    (found,) = _answers(call, path, seconds, [int(wanted)], wanted)
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
        if name.startswith(
            ("x-stroboscope-", "x-go-", "content-disposition", "retry-", "etag")
        )
    )
    kind = found.headers.get("content-type", BYTES)
    policy = found.headers.get("content-security-policy", POLICY)
    return Response(found.status, found.body, kind, kept, policy)


def _request(call: Call, path: str, seconds: float, alone: str = "") -> bytes:
    """Our request as another worker understands it, with what it needs to trust it.

    `alone` is the worker it is for where it answers as if it had been asked itself.
    """
    request = call.request
    asked = [
        (name, value)
        for name, value in parse_qsl(request.query, keep_blank_values=True)
        if name not in _OURS and not (seconds and name == "seconds")
    ]
    if seconds:
        asked.append(("seconds", f"{seconds:.3f}"))
    if alone:
        asked.append((_WORKER, alone))
    lines = [
        f"{request.method} {call.desk.settings.prefix}{path}?{urlencode(asked)} HTTP/1.1",
        "Host: localhost",
        f"Authorization: {PEER_SCHEME} {call.desk.gate.tokens.mint_peer(call.grant)}",
        f"Content-Length: {len(request.body)}",
        f"{_START}: {call.start_ns}",
        f"{_ROOT}: {''.join(filter(str.isprintable, request.root))}",
        *(
            # Whatever a carrier let through, it is one header here.
            f"{name}: {''.join(filter(str.isprintable, value))}"
            for name, value in request.headers
            if name in _PASSED_ON
        ),
    ]
    head = "\r\n".join([*lines, "", ""]).encode("latin-1", "replace")
    return head + request.body


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
