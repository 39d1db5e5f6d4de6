"""What a share link may open."""

from __future__ import annotations

from dataclasses import replace

from stroboscope.endpoints.call import Action
from stroboscope.endpoints.evidence import SCOPE, Evidence
from stroboscope.endpoints.routes import find

_SHARED = ("/stacks", "/trace", "/fgprof")


def shareable(evidence: Evidence, target: str) -> Action | None:
    """The GET a link may open; pages, knobs and what is for admins alone may not be.

    Of captures only evidence, which all workers have, with the scope that it needs.
    """
    path, _, query = target.partition("?")
    route, name = find(path)
    if route is None or len(query) > 512 or not query.isascii():
        return None
    action = route.actions.get("GET")
    if name:
        is_evidence = path == f"/captures/{name}" and evidence.has(name)
        return replace(action, scope=SCOPE) if action and is_evidence else None
    is_artefact = path.startswith("/pprof/") and path != "/pprof/"
    return action if is_artefact or path in _SHARED else None
