"""The application's entry in Django's registry."""

from django.apps import AppConfig


class StroboscopeConfig(AppConfig):  # type: ignore[misc]
    """Nothing runs here: the middleware does the work."""

    name = "stroboscope.integrations.django"
    label = "stroboscope"
