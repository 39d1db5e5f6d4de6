"""The surface: one chokepoint, one table, one record per request, over any carrier.

What is decided on the application's loop is cheap and touches no disk; everything else
happens on a thread of ours.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
import secrets
import time
import weakref
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial

from stroboscope._clock import SYSTEM, Clock
from stroboscope._http import asgi, wsgi
from stroboscope._http.accepting import choose
from stroboscope._http.asgi import never
from stroboscope._http.messages import (
    BODY_CAP,
    JSON,
    Request,
    Response,
    refusal,
)
from stroboscope._http.parameters import first, is_too_long
from stroboscope._http.pool import Pool
from stroboscope._types import Environ, Receive, Scope, Send, StartResponse
from stroboscope.auth.tokens import Grant
from stroboscope.endpoints import joining, refusing, sharing, slicing
from stroboscope.endpoints.audit import Entry
from stroboscope.endpoints.call import Action, Call
from stroboscope.endpoints.desk import Desk, Shown, Tracer
from stroboscope.endpoints.doors import Doors
from stroboscope.endpoints.gate import SHARE_PATH, Admission
from stroboscope.endpoints.links import shareable
from stroboscope.endpoints.routes import find
from stroboscope.errors import Forbidden
from stroboscope.settings import Settings
from stroboscope.stalls import WATCH

_log = logging.getLogger("stroboscope")
#: What a server should have refused, and what would end a line where it is sent on.
_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")


@dataclass(slots=True)
class _Admitted:
    """A request past the gate, the action it meant and its audit record."""

    request: Request
    admission: Admission
    action: Action
    entry: Entry
    #: What is answered instead, once the slow part of the decision has let it through.
    refused: Response | None = None


class Surface:
    """The endpoints below the mount, over ASGI and WSGI.

    One that `is_worker` answers for its process and asks the others; the sidecar's
    only asks them.

    Raises: WeakKeyError for keys that could be guessed, SettingsError without one.
    """

    def __init__(
        self,
        settings: Settings,
        clock: Clock = SYSTEM,
        tracer: Tracer | None = None,
        *,
        is_worker: bool = True,
    ) -> None:
        self.desk = Desk(settings, clock, tracer, is_worker=is_worker)
        self.desk.shareable = partial(shareable, self.desk.evidence)
        self.desk.open = self._open
        self._pool = Pool()
        os.register_at_fork(after_in_child=self._pool.after_fork)
        self._awake_in = 0
        self._last_loop: Callable[[], object] = lambda: None
        self._doors = self.desk.doors = Doors(self.desk, self._answer_at_door)
        self._exact = settings.prefix
        self._below = settings.prefix + "/"

    @classmethod
    def from_settings(cls, settings: Settings) -> Surface | None:
        """The surface, or None without keys: then /debug is the application's own."""
        if settings.keys:
            return cls(settings)
        _log.warning("stroboscope: STROBOSCOPE_KEYS is not set; %s is off", "/debug")
        return None

    def shows(self, labeller: Shown) -> None:
        """Show a middleware's tenants, and let its knobs be switched."""
        self.desk.labellers.append(labeller)

    def wake(self, loop: asyncio.AbstractEventLoop | None = None) -> None:
        """Take part, in this process: cheap, called for every request, never raises.

        `loop` is the one that serves it; None for a server's thread. What fails to
        begin is logged, and the request goes on.
        """
        if self._awake_in != os.getpid():
            self._awake_in = os.getpid()
            self.desk.begin()
            if loop is None and self.desk.is_worker:
                WATCH.add_threads()
            self._doors.start()
        if loop is not None and self._last_loop() is not loop:
            self._last_loop = weakref.ref(loop)
            self.desk.add_loop(loop)

    def wake_here(self) -> None:
        """The same on the event loop that runs here; trio's is none to watch."""
        self.wake(asyncio._get_running_loop())

    def until_shutdown(self, send: Send) -> Send:
        """A lifespan's `send` that shuts our doors before the lifespan's last word."""
        return self._doors.until_shutdown(send)

    def rest(self) -> None:
        """Take part no more, in this process. Never raises."""
        self._doors.stop()

    def handles_scope(self, scope: Scope) -> bool:
        """Whether an ASGI HTTP request is ours; false for everything else."""
        return scope["type"] == "http" and self.handles(asgi.path_of(scope))

    def handles(self, path: str) -> bool:
        """Whether a decoded path, less its root path, is ours."""
        return path == self._exact or path.startswith(self._below)

    def hidden(self, path: str) -> str:
        """The part of a share link's path that logs may show; empty for other paths."""
        kept = self._exact + SHARE_PATH
        return kept if path.startswith(kept) else ""

    async def asgi(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer an HTTP request. Nothing is collected on the loop."""
        request = asgi.read(scope, asgi.path_of(scope))
        if kept := self.hidden(request.path):
            asgi.hide_path(scope, kept)

        async def read_body() -> bytes:
            return await asgi.read_body(receive)

        answer = await self.answer_async(request, receive, read_body)
        await asgi.send_response(answer, send)

    def wsgi(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        """Answer a request; blocks its thread while something is collected."""
        request = wsgi.read(environ, environ.get("PATH_INFO", ""))
        if kept := self.hidden(request.path):
            wsgi.hide_path(environ, kept)
        answer = self.answer(
            request, environ.get("gunicorn.socket"), lambda: wsgi.read_body(environ)
        )
        return wsgi.send_response(answer, environ, start_response)

    async def answer_async(
        self,
        request: Request,
        receive: Receive = never,
        read_body: Callable[[], Awaitable[bytes]] | None = None,
    ) -> Response:
        """The answer to a request whose path begins with the mount."""
        admitted = self._admit(request)
        if isinstance(admitted, Response):
            return admitted
        if admitted.action.body and read_body is not None:
            try:
                admitted.request = replace(request, body=await read_body())
            except Exception as error:  # the server's stream may raise anything
                return self._refused(admitted.entry, refusing.of_body(request, error))
        answer = await asgi.run(
            self._pool,
            admitted.request,
            receive,
            self._job(admitted),
            is_capture=admitted.action.is_capture,
        )
        return answer or self._refused(admitted.entry, refusing.busy(request))

    def answer(
        self,
        request: Request,
        client: object = None,
        read_body: Callable[[], bytes] | None = None,
        pool: Pool | None = None,
        sleep: Callable[[float], object] = time.sleep,
    ) -> Response:
        """The same, blocking; `client` is a socket to watch for its end.

        With a `pool`, the calling thread is ours.
        """
        admitted = self._admit(request)
        if isinstance(admitted, Response):
            return admitted
        if admitted.action.body and read_body is not None:
            try:
                admitted.request = replace(request, body=read_body())
            except Exception as error:  # the server's stream may raise anything
                return self._refused(admitted.entry, refusing.of_body(request, error))
        job, is_capture = self._job(admitted), admitted.action.is_capture
        if pool is not None and not is_capture:
            # A thread of ours: another, and waiting for it, would each have to win the
            # GIL from a loop that is busy.
            answer = pool.run(job)
        else:
            answer = wsgi.run(
                pool or self._pool,
                admitted.request,
                client,
                job,
                sleep,
                is_capture=is_capture,
            )
        return answer or self._refused(admitted.entry, refusing.busy(request))

    def _answer_at_door(
        self,
        request: Request,
        client: object,
        read_body: Callable[[], bytes],
        pool: Pool,
        sleep: Callable[[float], object],
    ) -> Response:
        """Only what is below the mount is ours: there is no application behind a door."""
        if not self.handles(request.path):
            return refusal(request, 404, "Unknown")
        return self.answer(request, client, read_body, pool, sleep)

    def _admit(self, request: Request) -> Response | _Admitted:
        entry = Entry.of(request, secrets.token_hex(4))
        try:
            path = request.path[len(self._exact) :]
            admission = self.desk.gate.admit(request, path)
            entry.token_id = admission.grant.token_id
            found = self._found(request, path, admission, entry)
            if isinstance(found, Response):
                if admission.pending is None:
                    return self._refused(entry, found)
                return _Admitted(request, admission, _NOTHING, entry, found)
            if admission.pending is None and admission.share is None:
                _require(found, admission.grant)
            return _Admitted(request, admission, found, entry)
        except Exception as error:  # the application must not see our failure
            return self._refused(entry, self._refusal(request, entry, error))

    def _found(
        self, request: Request, path: str, admission: Admission, entry: Entry
    ) -> Response | Action:
        """The action meant, or why there is none."""
        if is_too_long(request.query):
            return refusal(request, 414, "query too long")
        length = request.header("content-length") or "0"
        if length.isascii() and length.isdigit() and int(length[:18]) > BODY_CAP:
            return refusal(request, 413, "body too large")
        if _CONTROL.search("".join(value for _, value in request.headers)):
            return refusal(request, 400, "a header has control characters")
        if admission.share is not None:
            path = admission.share.target.partition("?")[0]
        route, _ = find(path)
        if route is None:
            is_profile = path.startswith("/pprof/")
            return refusal(request, 404, "Unknown profile" if is_profile else "Unknown")
        entry.endpoint = route.paths[0]
        action = route.actions.get(request.method)
        if action is None:
            allow = (("Allow", ", ".join(sorted(route.actions))),)
            return refusal(request, 405, "method not allowed", allow)
        if request.header("content-encoding") is not None:
            return refusal(request, 415, "request bodies are read as they are")
        kind = (request.header("content-type") or "").partition(";")[0].strip().lower()
        if action.body == "json" and kind != JSON:
            return refusal(request, 415, "the body has to be application/json")
        if _kind(request, action) is None:
            kinds = ", ".join(one.partition(";")[0] for one in action.kinds)
            return refusal(request, 406, f"this answers {kinds}")
        return action

    def _job(self, admitted: _Admitted) -> Callable[[], Response]:
        """What a thread of ours does: decide what was slow, write, act, write."""

        def job() -> Response:
            entry, request = admitted.entry, admitted.request
            answer = self._acted(admitted)
            if request.cancellation.cancelled:
                entry.cause = entry.cause or "the client went away"
            entry.complete(answer)
            self._count(entry)
            self.desk.audit.end(entry)
            return answer

        return job

    def _acted(self, admitted: _Admitted) -> Response:
        entry, request = admitted.entry, admitted.request
        try:
            grant = admitted.admission.grant
            if admitted.admission.pending is not None:
                grant = admitted.admission.pending()
                if admitted.refused is not None:
                    return admitted.refused
                _require(admitted.action, grant)
            if admitted.action.body == "json":
                known = (knob.name for knob in self.desk.knobs)
                entry.tell(
                    request.body.decode("utf-8", "replace"),
                    {*admitted.action.parameters, *known},
                )
            self.desk.audit.begin(entry)
            self.desk.watch_knobs()
            _, name = find(request.path[len(self._exact) :])
            # One that is asked alone answers as if its own client had asked.
            is_alone = first(request.query, "worker") is not None
            is_peer = admitted.admission.is_peer and not is_alone
            start_ns = joining.start_of(request) if is_peer else 0
            if admitted.admission.is_peer:
                request = replace(request, root=joining.root_of(request))
            kind = _kind(request, admitted.action) or ""
            call = Call(request, grant, self.desk, name, is_peer, start_ns, kind)
            if admitted.admission.share is not None:
                return sharing.opened(call, admitted.admission.share)
            return _handled(call, entry.endpoint, admitted.action)
        except BaseException as error:
            # A thread of ours: nobody else would see it, and the asker would wait.
            return self._refusal(request, entry, error)

    def _open(self, target: str, call: Call) -> Response:
        """What a link's target answers, to whoever may open what is there."""
        path, _, query = target.partition("?")
        route, name = find(path)
        action = self.desk.shareable(target)
        if route is None or action is None:
            return refusal(call.request, 404, "the artefact is gone")
        request = replace(call.request, query=query, path=self._exact + path)
        grant = replace(call.grant, scopes=call.grant.scopes | {action.scope})
        kind = _kind(request, action) or ""
        inside = replace(call, request=request, grant=grant, name=name, kind=kind)
        return _handled(inside, route.paths[0], action)

    def _refusal(
        self, request: Request, entry: Entry, error: BaseException
    ) -> Response:
        found = refusing.of_caller(request, error)
        entry.cause = "failure" if found is None else str(error)[:100]
        if found is not None:
            return found
        try:
            _log.error("stroboscope: internal error (%s)", entry.id, exc_info=error)
        except Exception:  # the user's log filters are not ours
            self.desk.audit.dropped += 1
        return refusal(request, 500, f"internal error ({entry.id})")

    def _refused(self, entry: Entry, answer: Response) -> Response:
        entry.complete(answer)
        self._count(entry)
        self.desk.audit.end_soon(entry)
        return answer

    def _count(self, entry: Entry) -> None:
        self.desk.answered[entry.endpoint, entry.status] += 1


def _nothing(call: Call) -> Response:
    return refusal(call.request, 404, "Unknown")


_NOTHING = Action("", _nothing, "", {})


def _handled(call: Call, path: str, action: Action) -> Response:
    def whole(call: Call) -> Response:
        if action.joined is not None:
            return joining.answer(call, path, action.handler, action.joined(call))
        if action.of_one is not None:
            return joining.of_one(call, path, action.handler, action.of_one(call))
        return action.handler(call)

    return slicing.answer(call, whole) if action.is_sliced else whole(call)


def _kind(request: Request, action: Action) -> str | None:
    """The content type to answer in; None for one that no form of it satisfies."""
    if not action.kinds or first(request.query, "format"):
        return ""
    return choose(request, action.kinds)


def _require(action: Action, grant: Grant) -> None:
    if not {action.scope, "admin"} & grant.scopes:
        raise Forbidden(f"needs {action.scope}")
