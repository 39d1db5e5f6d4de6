"""Django: an application and a middleware, which comes first and carries the surface.

`stroboscope.integrations.django` goes into INSTALLED_APPS,
`stroboscope.integrations.django.middleware.StroboscopeMiddleware` first into MIDDLEWARE.

Settings come from the dictionary `STROBOSCOPE` in Django's settings and from the
environment.
"""
