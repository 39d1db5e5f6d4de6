"""The surface: one chokepoint, one table, one record per request, over any carrier.

What is decided on the application's loop is cheap and touches no disk; everything else
happens on a thread of ours.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import time
import weakref
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial

from stroboscope._clock import SYSTEM, Clock
from stroboscope._core import engine
from stroboscope._greenlets import Log
from stroboscope._http import asgi, wsgi
from stroboscope._http.asgi import never
from stroboscope._http.messages import (
    Request,
    Response,
    refusal,
)
from stroboscope._http.parameters import first
from stroboscope._http.pool import Pool
from stroboscope._types import Environ, Receive, Scope, Send, StartResponse
from stroboscope.endpoints import joining, refusing, sharing, slicing
from stroboscope.endpoints.audit import Entry
from stroboscope.endpoints.call import Action, Call
from stroboscope.endpoints.desk import Desk, Shown, Tracer
from stroboscope.endpoints.doors import Doors
from stroboscope.endpoints.gate import SHARE_PATH, Admission
from stroboscope.endpoints.links import shareable
from stroboscope.endpoints.meaning import NOTHING, kind_of, meant, require
from stroboscope.endpoints.routes import find
from stroboscope.settings import Settings
from stroboscope.stalls import WATCH

_log = Log("stroboscope")


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
        if loop is None:
            engine.greet_thread(os.getpid())
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
        try:
            await asgi.send_response(answer, send)
        except Exception as error:  # uvicorn's: it has refused the body meanwhile
            _log.debug("stroboscope: an answer could not be sent: %r", error)

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
            if admitted.admission.pending is not None:
                decide = self._deciding(admitted)
                # Whoever listened for the client's end would take its body away.
                decided = await asgi.run(
                    self._pool, request, never, decide, is_capture=False
                )
                if decided is not _LET_IN:
                    return decided or self._refused(
                        admitted.entry, refusing.busy(request)
                    )
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

        def run(job: Callable[[], Response], *, is_capture: bool) -> Response | None:
            if pool is not None and not is_capture:
                # A thread of ours: another, and waiting for it, would each have to win
                # the GIL from a loop that is busy.
                return pool.run(job)
            asked = admitted.request
            own = pool or self._pool
            return wsgi.run(own, asked, client, job, sleep, is_capture=is_capture)

        if admitted.action.body and read_body is not None:
            if admitted.admission.pending is not None:
                decided = run(self._deciding(admitted), is_capture=False)
                if decided is not _LET_IN:
                    return decided or self._refused(
                        admitted.entry, refusing.busy(request)
                    )
            try:
                admitted.request = replace(request, body=read_body())
            except Exception as error:  # the server's stream may raise anything
                return self._refused(admitted.entry, refusing.of_body(request, error))
        answer = run(self._job(admitted), is_capture=admitted.action.is_capture)
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
            found = meant(request, path, admission, entry)
            if isinstance(found, Response):
                if admission.pending is None:
                    return self._refused(entry, found)
                return _Admitted(request, admission, NOTHING, entry, found)
            if admission.pending is None and admission.share is None:
                require(found, admission.grant)
            return _Admitted(request, admission, found, entry)
        except Exception as error:  # the application must not see our failure
            return self._refused(entry, self._refusal(request, entry, error))

    def _job(self, admitted: _Admitted) -> Callable[[], Response]:
        """What a thread of ours does: decide what was slow, write, act, write."""

        def job() -> Response:
            entry, request = admitted.entry, admitted.request
            answer = self._acted(admitted)
            if request.cancellation.cancelled:
                entry.cause = entry.cause or "the client went away"
            return self._ended(entry, answer)

        return job

    def _deciding(self, admitted: _Admitted) -> Callable[[], Response]:
        """The slow part of the decision, before a body is read; `_LET_IN` where it may."""

        def job() -> Response:
            try:
                refused = self._decided(admitted)
            except BaseException as error:
                refused = self._refusal(admitted.request, admitted.entry, error)
            return self._ended(admitted.entry, refused) if refused else _LET_IN

        return job

    def _decided(self, admitted: _Admitted) -> Response | None:
        """The refusal of a caller; None when it is let in. Raises what the gate does."""
        pending = admitted.admission.pending
        if pending is None:
            return None
        grant = pending()
        if admitted.refused is not None:
            return admitted.refused
        require(admitted.action, grant)
        admitted.admission = replace(admitted.admission, grant=grant, pending=None)
        return None

    def _ended(self, entry: Entry, answer: Response) -> Response:
        """Complete the record, on a thread of ours."""
        entry.complete(answer)
        self._count(entry)
        self.desk.audit.end(entry)
        return answer

    def _acted(self, admitted: _Admitted) -> Response:
        entry, request = admitted.entry, admitted.request
        try:
            if refused := self._decided(admitted):
                return refused
            grant = admitted.admission.grant
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
            kind = kind_of(request, admitted.action) or ""
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
        kind = kind_of(request, action) or ""
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


_LET_IN = Response(100, b"")


def _handled(call: Call, path: str, action: Action) -> Response:
    def whole(call: Call) -> Response:
        if action.joined is not None:
            return joining.answer(call, path, action.handler, action.joined(call))
        if action.of_one is not None:
            return joining.of_one(call, path, action.handler, action.of_one(call))
        return action.handler(call)

    return slicing.answer(call, whole) if action.is_sliced else whole(call)
