"""Route templates, read after routing from what the framework left behind.

Never the raw path and never a walk over an application's routes: a template or None.
Source: Starlette's Router and Mount, FastAPI's effective route context (0.137 and
later), werkzeug's Rule.
"""

from __future__ import annotations

from typing import Any

from stroboscope._types import Environ, Scope

_OPAQUE_MOUNT = "/(mount)"


def starlette_template(scope: Scope) -> str | None:
    """`/shop/items/{id}` for a routed Starlette or FastAPI request."""
    path = _fastapi_path(scope)
    route = scope.get("route")
    if path is None:
        if route is None:
            return None
        if hasattr(route, "app") and hasattr(route, "routes"):  # stopped at a Mount
            return None if route.routes else _mounts(scope, route) + "/{path}"
        path = getattr(route, "path_format", None) or getattr(route, "path", None)
    return None if path is None else _mounts(scope, route) + str(path)


def _fastapi_path(scope: Scope) -> str | None:
    fastapi = scope.get("fastapi")
    context = fastapi.get("effective_route_context") if fastapi else None
    path = getattr(context, "path_format", None)
    return path if isinstance(path, str) and path else None


def _mounts(scope: Scope, route: Any) -> str:
    """The mounted prefix as a template.

    `root_path` holds it as the client sent it: values go back to their names.
    """
    if "app_root_path" not in scope:
        return ""
    prefix = scope["root_path"][len(scope["app_root_path"]) :]
    own = getattr(route, "param_convertors", None) or {}
    segments = prefix.split("/")
    for name, value in (scope.get("path_params") or {}).items():
        if name in own:
            continue
        if str(value) not in segments:
            return _OPAQUE_MOUNT
        segments[segments.index(str(value))] = "{" + name + "}"
    return "/".join(segments)


_RULE = "stroboscope.rule"


def keep_rule(environ: Environ) -> None:
    """Note the rule when the response starts: Flask drops its request before close."""
    environ[_RULE] = getattr(environ.get("werkzeug.request"), "url_rule", None)


def werkzeug_template(environ: Environ) -> str | None:
    """`/shop/items/<int:id>` for a routed Flask or werkzeug request."""
    rule = environ.get(_RULE)
    if rule is None:
        rule = getattr(environ.get("werkzeug.request"), "url_rule", None)
    template: str | None = getattr(rule, "rule", None)
    return template


def django_template(request: Any) -> str | None:
    """`/shop/items/<int:id>` for a resolved Django request; regex anchors go."""
    match = getattr(request, "resolver_match", None)
    route = getattr(match, "route", None)
    if route is None:
        return None
    text: str = route
    return "/" + text.replace("^", "").removesuffix("$").removesuffix(r"\Z")
