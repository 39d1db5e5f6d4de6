"""Django's middleware, for WSGI and ASGI, views of both kinds.

Touches neither database nor session, so it answers when those are broken.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import replace
from typing import Any

from asgiref.sync import iscoroutinefunction, markcoroutinefunction
from django.conf import settings as django_settings
from django.http import HttpRequest, HttpResponse
from django.http.response import HttpResponseBase

from stroboscope._http import asgi, wsgi
from stroboscope._http.messages import BODY_CAP, BodyTooLarge, Request, Response
from stroboscope.enablement import Enablement
from stroboscope.endpoints import Surface
from stroboscope.middleware.observed import Labeller, Observed, ThreadObserved, running
from stroboscope.middleware.routes import django_template
from stroboscope.settings import Settings

Answer = Callable[[HttpRequest], Any]


class DjangoRequest(Observed):
    """One Django request."""

    __slots__ = ()

    def path(self) -> object:
        """The path as it was asked for."""
        return self.carrier.path_info


class DjangoThreadRequest(DjangoRequest, ThreadObserved):
    """One Django request of a sync server."""

    __slots__ = ()


class StroboscopeMiddleware:
    """Labels requests and carries the surface. Put it first."""

    sync_capable = True
    async_capable = True

    def __init__(self, get_response: Answer) -> None:
        self.get_response = get_response
        options = getattr(django_settings, "STROBOSCOPE", {})
        settings = Settings.from_environ(os.environ, **options)
        self.surface = Surface.from_settings(settings)
        self.labeller = Labeller(settings, django_template)
        if self.surface is not None:
            self.surface.shows(self.labeller)
        self.enabled = Enablement(settings)
        self._is_async = iscoroutinefunction(get_response)
        #: Django calls it as soon as the route is known.
        self.process_view: Callable[..., Any] = _route_known
        if self._is_async:
            markcoroutinefunction(self)
            self.process_view = _route_known_async

    def __call__(self, request: HttpRequest) -> Any:
        """Serve one request, or return the awaitable that does."""
        if not self.enabled():
            return self.get_response(request)
        surface = self.surface
        if surface is not None:
            surface.wake_here() if self._is_async else surface.wake()
        if surface is not None and surface.handles(request.path_info):
            asked = _read(request)
            _hide(surface, request)
            if self._is_async:
                return self._surface_async(surface, request, asked)
            answer = surface.answer(
                asked,
                request.META.get("gunicorn.socket"),
                read_body=lambda: _body(request),
            )
            return _carried(answer)
        if self._is_async:
            return self._labelled_async(request)
        return self._labelled(request)

    def _begin(self, request: HttpRequest) -> Observed | None:
        kind = DjangoRequest if self._is_async else DjangoThreadRequest
        try:
            method = request.method or "GET"
            observed = kind(self.labeller, request, method, request.META)
            observed.enter()
        except Exception as error:  # ours: the application goes on without labels
            self.labeller.failed(error)
            return None
        return observed

    def _labelled(self, request: HttpRequest) -> HttpResponseBase:
        observed = self._begin(request)
        try:
            response: HttpResponseBase = self.get_response(request)
        except BaseException:
            _fail(observed)
            raise
        return _finish(observed, response)

    async def _labelled_async(self, request: HttpRequest) -> HttpResponseBase:
        observed = self._begin(request)
        try:
            awaitable: Awaitable[HttpResponseBase] = self.get_response(request)
            response = await awaitable
        except BaseException:
            _fail(observed)
            raise
        return _finish(observed, response)

    async def _surface_async(
        self, surface: Surface, request: HttpRequest, asked: Request
    ) -> HttpResponse:
        async def read_body() -> bytes:
            return _body(request)

        answer = await surface.answer_async(asked, read_body=read_body)
        return _carried(answer)


def _route_known(request: HttpRequest, *view: object) -> None:
    """Tell a span inside of us its endpoint: it is over when we see the response."""
    observed = running(DjangoRequest)
    if observed is not None and observed.is_recorded:
        observed.tell_span()


async def _route_known_async(request: HttpRequest, *view: object) -> None:
    _route_known(request, *view)


def _fail(observed: Observed | None) -> None:
    if observed is not None:
        observed.status = 500
        observed.leave()
        observed.end()


def _finish(observed: Observed | None, response: HttpResponseBase) -> HttpResponseBase:
    if observed is None:
        return response
    observed.leave()
    observed.status = response.status_code
    if not response.streaming:
        observed.end()
        return response
    if getattr(response, "is_async", False):
        response.streaming_content = _steps_async(
            observed,
            response.streaming_content,
        )
    else:
        response.streaming_content = _steps(
            observed,
            response.streaming_content,
        )
    return response


def _steps(observed: Observed, content: Iterator[bytes]) -> Iterator[bytes]:
    try:
        while True:
            observed.enter()
            try:
                chunk = next(content, None)
            finally:
                observed.leave()
            if chunk is None:
                return
            yield chunk
    finally:
        observed.end()


async def _steps_async(
    observed: Observed, content: AsyncIterator[bytes]
) -> AsyncIterator[bytes]:
    try:
        while True:
            observed.enter()
            try:
                chunk = await anext(content, None)
            finally:
                observed.leave()
            if chunk is None:
                return
            yield chunk
    finally:
        observed.end()


def _read(request: HttpRequest) -> Request:
    scope = getattr(request, "scope", None)
    path = request.path_info
    read = wsgi.read(request.META, path) if scope is None else asgi.read(scope, path)
    return replace(read, carrier=request)


def _hide(surface: Surface, request: HttpRequest) -> None:
    """Keep a share link out of the server's access log and out of Django's own."""
    kept = surface.hidden(request.path_info)
    if kept:
        scope = getattr(request, "scope", None)
        if scope is not None:
            asgi.hide_path(scope, kept)
        wsgi.hide_path(request.META, kept)
        request.path_info = f"{kept}..."
        request.path = request.path[: request.path.find(kept)] + request.path_info


def _body(request: HttpRequest) -> bytes:
    body: bytes = request.read(BODY_CAP + 1)
    if len(body) > BODY_CAP:
        raise BodyTooLarge
    return body


def _carried(response: Response) -> HttpResponse:
    carrier = HttpResponse(response.body, status=response.status)
    for key, value in response.all_headers():
        # Django keeps one value per name; challenges may stand in a list.
        is_list = key == "WWW-Authenticate" and key in carrier
        carrier[key] = f"{carrier[key]}, {value}" if is_list else value
    return carrier
