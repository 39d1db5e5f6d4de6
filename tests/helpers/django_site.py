"""Django with what stands in our way elsewhere: APPEND_SLASH, GZip, a dead database."""

import django
from django.conf import settings
from django.core.handlers.asgi import ASGIHandler
from django.core.handlers.wsgi import WSGIHandler
from django.http import HttpResponse
from django.urls import path

settings.configure(
    SECRET_KEY="for tests only, nothing is signed with it",
    ALLOWED_HOSTS=["127.0.0.1", "localhost"],
    ROOT_URLCONF=__name__,
    APPEND_SLASH=True,
    INSTALLED_APPS=["django.contrib.sessions", "stroboscope.integrations.django"],
    DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": "/no/db"}},
    MIDDLEWARE=[
        "django.middleware.gzip.GZipMiddleware",
        "stroboscope.integrations.django.middleware.StroboscopeMiddleware",
        "django.contrib.sessions.middleware.SessionMiddleware",
        "django.middleware.common.CommonMiddleware",
    ],
    STROBOSCOPE={"service": "shop"},
)
urlpatterns = [path("slow/<int:n>/", lambda request, n: HttpResponse(b"x" * 1000))]
django.setup()
app, asgi = WSGIHandler(), ASGIHandler()
