"""Django's own handlers, both kinds of views: the template, the status, and no path."""

import json
import subprocess
import sys

import pytest

SITE = """
import asyncio, json, sys
from django.conf import settings
from django.core.exceptions import PermissionDenied
from django.http import HttpResponse, StreamingHttpResponse
from django.urls import include, path, re_path
from django.views import View

settings.configure(
    SECRET_KEY="x" * 50, ALLOWED_HOSTS=["*"], ROOT_URLCONF=__name__, APPEND_SLASH=True,
    DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3",
                           "NAME": "/nonexistent/folder/db"}},
    INSTALLED_APPS=["django.contrib.sessions", "stroboscope.integrations.django"],
    MIDDLEWARE=[
        "stroboscope.integrations.django.middleware.StroboscopeMiddleware",
        "django.middleware.gzip.GZipMiddleware",
        "django.contrib.sessions.middleware.SessionMiddleware",
        "django.middleware.common.CommonMiddleware",
    ],
    STROBOSCOPE={"keys": (KEY,), "service": "shop"},
)

def sync_view(request, **kwargs):
    return HttpResponse("x" * 500)
async def async_view(request, **kwargs):
    return HttpResponse("x" * 500)
class ClassView(View):
    def get(self, request, **kwargs):
        return HttpResponse("x")
def fails(request):
    raise ValueError("secret")
def denied(request):
    raise PermissionDenied
def needs_session(request):
    request.session["user"] = 1
    return HttpResponse("x")
def stream(request, **kwargs):
    return StreamingHttpResponse(iter([b"a", b"b"]))

inner = ([path("<slug:item>/", sync_view, name="item")], "inner")
urlpatterns = [
    path("sync/<int:n>/", sync_view),
    path("async/<int:n>/", async_view),
    path("class/<str:n>/", ClassView.as_view()),
    re_path(r"^year/(?P<year>[0-9]{4})/$", sync_view),
    path("shop/<str:org>/", include(inner, namespace="a")),
    path("fails/", fails), path("denied/", denied), path("session/", needs_session),
    path("stream/<int:n>/", stream),
]
import django; django.setup()
from django.test import AsyncClient, Client
from stroboscope.middleware.observed import Observed
ended = []
def end(self):
    self.ended_ns = self.began_ns + 1
    ended.append(dict(self.labels()))
Observed.end = end
def body(answer):
    return b"".join(answer.streaming_content) if answer.streaming else answer.content
for asked in json.loads(sys.argv[2]):
    if sys.argv[1] == "wsgi":
        body(Client(raise_request_exception=False).get(asked))
    else:
        async def get():
            client = AsyncClient(raise_request_exception=False)
            answer = await client.get(asked)
            if answer.streaming:
                async for _ in answer: pass
        asyncio.run(get())
token = __import__("stroboscope.auth.tokens", fromlist=["Tokens"]).Tokens(
    __import__("stroboscope").Settings(keys=(KEY,), service="shop")).mint(["metrics"], 60)
answer = Client().get("/debug/", headers={"Authorization": f"Bearer {token}", "Host": "localhost"})
plain = answer.content[:15].decode()
print(json.dumps([[(e["endpoint"], e["status"]) for e in ended], answer.status_code, plain]))
"""

CASES = {
    "/sync/7/": ("/sync/<int:n>/", "2xx"),
    "/async/7/": ("/async/<int:n>/", "2xx"),
    "/class/secret/": ("/class/<str:n>/", "2xx"),
    "/year/2024/": ("/year/<year>/", "2xx"),
    "/shop/secret/secret/": ("/shop/<str:org>/<slug:item>/", "2xx"),
    "/fails/": ("/fails/", "5xx"),
    "/denied/": ("/denied/", "4xx"),
    "/session/": ("/session/", "5xx"),  # its database cannot be opened
    "/stream/7/": ("/stream/<int:n>/", "2xx"),
    "/nowhere/secret/": ("(unmatched)", "4xx"),
    "/sync/7": ("(unmatched)", "3xx"),  # the slash is appended by a redirect
}


@pytest.mark.parametrize("carrier", ["wsgi", "asgi"])
def test_h39_templates_and_the_surface_with_a_broken_database(carrier: str) -> None:
    """Every kind of view and error has its template; /debug needs no database."""
    from stroboscope.auth.keys import generate_key

    done = subprocess.run(
        [
            *(sys.executable, "-W", "ignore", "-c"),
            SITE.replace("KEY,", f"{generate_key()!r},"),
            carrier,
            json.dumps(list(CASES)),
        ],
        capture_output=True,
        text=True,
        timeout=60,
    )

    assert done.stdout, done.stderr[-2000:]
    ended, status, plain = json.loads(done.stdout)
    assert [tuple(one) for one in ended] == list(CASES.values())
    assert "secret" not in str(ended)
    assert (status, plain) == (200, "<!doctype html>")
