"""One admitted call, and the table's rows."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from stroboscope._core import engine
from stroboscope._http.messages import JSON, Request, Response
from stroboscope.auth.tokens import Grant
from stroboscope.endpoints.desk import Desk

_STEP_S = 0.05


@dataclass(frozen=True, slots=True)
class Call:
    """A request that was let through, by whom, and what it may use."""

    request: Request
    grant: Grant
    desk: Desk
    #: What stands in the path for `{id}`.
    name: str = ""
    #: Another worker asks: it joins the answers, this one answers for itself.
    is_peer: bool = False
    #: When a capture begins, on CLOCK_MONOTONIC, in all workers at once; 0 for now.
    start_ns: int = 0
    #: The content type to answer in, where there is a choice.
    kind: str = ""

    def until_start(self) -> None:
        """Block until a capture shall begin, or its client is gone."""
        while (left_ns := self.start_ns - time.monotonic_ns()) > 0:
            if self.request.cancellation.cancelled:
                return
            engine.sleep(min(left_ns / 1e9, _STEP_S))

    def for_data(self) -> Call:
        """The same of somebody who wants JSON."""
        others = [pair for pair in self.request.headers if pair[0] != "accept"]
        request = replace(self.request, headers=(*others, ("accept", JSON)))
        return replace(self, request=request, kind=JSON)

    @property
    def mount(self) -> str:
        """Where the surface is, as the client sees it."""
        return self.request.root + self.desk.settings.prefix


Handler = Callable[[Call], Response]


@dataclass(frozen=True, slots=True)
class Action:
    """What a method of an endpoint does, and the scope it needs.

    `parameters` maps a query parameter, or a member of the JSON body, to what it means.
    """

    scope: str
    handler: Handler
    description: str
    parameters: Mapping[str, str]
    #: What its request's body is: nothing, `json` or `text`.
    body: str = ""
    #: For how many seconds it collects, where the answers of all workers are joined to
    #: one; None where they are not.
    joined: Callable[[Call], float] | None = None
    #: The same where one worker answers: this one, or the one of `?worker=`.
    of_one: Callable[[Call], float] | None = None
    #: Whether it answers a profile, of which any part may be asked for.
    is_sliced: bool = False
    #: The content types it can answer in, the usual one first; empty where `Accept`
    #: changes nothing, as at Go's URLs.
    kinds: tuple[str, ...] = ()

    @property
    def is_capture(self) -> bool:
        """Whether it may take seconds, or take one for somebody else."""
        return bool({"seconds", "keep"} & self.parameters.keys())


@dataclass(frozen=True, slots=True)
class Route:
    """The paths of an endpoint below the mount, and its actions by method."""

    paths: tuple[str, ...]
    actions: Mapping[str, Action]

    @property
    def scope(self) -> str:
        """What its GET, or else its first action, needs."""
        return self._first.scope

    @property
    def description(self) -> str:
        """What its GET, or else its first action, does."""
        return self._first.description

    @property
    def _first(self) -> Action:
        return self.actions.get("GET") or next(iter(self.actions.values()))


def as_json(value: Any, status: int = 200, **headers: str) -> Response:
    """An answer in JSON; underscores in header names become hyphens."""
    body = json.dumps(value, indent=1).encode() + b"\n"
    named = tuple((key.replace("_", "-"), text) for key, text in headers.items())
    return Response(status, body, JSON, named)


def one_line(error: Exception) -> str:
    """What is wrong with a body, for a refusal."""
    return " ".join(str(error).split())[:300] or "the body is no JSON"
