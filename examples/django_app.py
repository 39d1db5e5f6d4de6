"""A Django service in one file: `gunicorn examples.django_app:app`, or uvicorn
`examples.django_app:asgi`."""

from django.conf import settings
from django.core.handlers.asgi import ASGIHandler
from django.core.handlers.wsgi import WSGIHandler
from django.http import JsonResponse
from django.urls import path

settings.configure(
    SECRET_KEY="examples need one; yours comes from your environment",
    ALLOWED_HOSTS=["127.0.0.1", "localhost"],
    ROOT_URLCONF=__name__,
    INSTALLED_APPS=["stroboscope.integrations.django"],
    MIDDLEWARE=["stroboscope.integrations.django.middleware.StroboscopeMiddleware"],
    STROBOSCOPE={"service": "shop"},
)


def checkout(request, item):
    return JsonResponse({"total": sum(i * i % (item + 7) for i in range(20_000))})


urlpatterns = [path("checkout/<int:item>", checkout)]

import django  # noqa: E402

django.setup()
app = WSGIHandler()
asgi = ASGIHandler()
