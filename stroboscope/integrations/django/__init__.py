"""Django: `stroboscope.integrations.django` in INSTALLED_APPS, and its middleware
first in MIDDLEWARE. The middleware carries the surface; no URL is needed.

Settings come from the dictionary `STROBOSCOPE` in Django's settings and from the
environment.
"""
