"""Route templates, read after routing from what the framework left behind.

Never the raw path and never a walk over an application's routes: a template or None.
Source: Starlette's Router and Mount, FastAPI's effective route context (0.137 and
later), werkzeug's Rule.
"""

from __future__ import annotations

import functools
import re
from typing import Any

from stroboscope._types import Environ, Scope

_OPAQUE_MOUNT = "/(mount)"


def starlette_template(scope: Scope) -> str | None:
    """`/shop/items/{id}` for a routed Starlette or FastAPI request."""
    # Asked for twice or more by each request that is recorded: a plain route's path
    # comes without another call.
    path = _fastapi_path(scope) if "fastapi" in scope else None
    route = scope.get("route")
    if path is None:
        if route is None:
            return None
        if hasattr(route, "routes") and hasattr(route, "app"):  # stopped at a Mount
            return None if route.routes else _mounts(scope, route) + "/{path}"
        path = getattr(route, "path_format", None) or getattr(route, "path", None)
    if path is None:
        return None
    return _mounts(scope, route) + str(path) if "app_root_path" in scope else str(path)


def _fastapi_path(scope: Scope) -> str | None:
    fastapi = scope["fastapi"]
    context = fastapi.get("effective_route_context") if fastapi else None
    path = getattr(context, "path_format", None)
    return path if isinstance(path, str) and path else None


def _mounts(scope: Scope, route: Any) -> str:
    """The mounted prefix as a template.

    `root_path` holds it as the client sent it: values go back to their names.
    """
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
    """`/shop/items/<int:id>` for a resolved Django request, regular expressions tamed.

    Groups become `<name>` or, without one, `<var>`. A route that is translated has one
    template per language; the prefix of `i18n_patterns` is in none.
    """
    match = getattr(request, "resolver_match", None)
    route = getattr(match, "route", None)
    return None if route is None else "/" + tamed(str(route))


_NAMED = re.compile(r"\(\?P<(\w+)>")
_QUANTIFIER = re.compile(r"(?:[?*+]|\{[0-9,]+\})[?+]?")
_CLASS = re.compile(r"\[\^?\]?(?:\\.|[^\]\\])*\]", re.DOTALL)


@functools.lru_cache(maxsize=1024)
def tamed(route: str) -> str:
    """A route of `path`, `re_path` or a mixture of both by `include`, for reading.

    `^articles/(?P<year>[0-9]{4})/$` gives `articles/<year>/`; what makes no group and
    is no anchor stays as it is written.
    """
    out: list[str] = []
    at = 0
    while at < len(route):
        char = route[at]
        if char == "(":
            end = _group_end(route, at)
            text = _group(route[at:end])
            quantifier = _QUANTIFIER.match(route, end)
            if quantifier is not None:
                end = quantifier.end()
                text = f"({text})?" if text and not text.startswith("<") else text
            out.append(text)
            at = end
        elif char == "\\" and at + 1 < len(route):
            escaped = route[at + 1]
            if escaped not in "AZbB":  # anchors; other letters are classes and stay
                out.append("\\" + escaped if escaped.isalnum() else escaped)
            at += 2
        else:
            piece = _CLASS.match(route, at)
            text = char if piece is None else piece.group()
            out.append("" if text in "^$" else text)
            at += len(text)
    return "".join(out)


def _group(group: str) -> str:
    named = _NAMED.match(group)
    if named is not None:
        return f"<{named.group(1)}>"
    if group.startswith("(?:"):
        inner = tamed(group[3:-1])
        return f"({inner})" if "|" in inner else inner
    return "" if group.startswith("(?") else "<var>"


def _group_end(route: str, at: int) -> int:
    """Where the group that opens at `at` is over; the end when it never is."""
    depth = 0
    while at < len(route):
        piece = _CLASS.match(route, at)
        if piece is not None:
            at = piece.end()
            continue
        depth += (route[at] == "(") - (route[at] == ")")
        at += 2 if route[at] == "\\" else 1
        if depth == 0:
            break
    return min(at, len(route))
