"""The plugin finds what leaks, and finds nothing in what we ship."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from asking import KEY, SETTINGS, asgi_inner, token, wsgi_inner
from burning import burn_a
from fastapi import FastAPI

from stroboscope.integrations import asgi, wsgi
from stroboscope.integrations.fastapi import install
from stroboscope.profiles import stacks
from stroboscope.settings import Settings
from stroboscope.testing import Leak, leaks, planted

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]


def tenant(carrier: Any) -> str:
    return "someone"


def fastapi_app() -> FastAPI:
    app = FastAPI()
    install(app, Settings(keys=(KEY,), service="shop", tenant=tenant))
    return app


APPS: dict[str, Callable[[], Any]] = {
    "asgi": lambda: asgi.Stroboscope(asgi_inner, SETTINGS),
    "wsgi": lambda: wsgi.Stroboscope(wsgi_inner, SETTINGS),
    "fastapi": fastapi_app,
}


@pytest.mark.parametrize("name", APPS)
def test_h29_h31_no_secret_comes_out(
    name: str, stroboscope_leaks: Callable[..., list[Leak]]
) -> None:
    """Of argv, environment, locals, names, errors, headers, paths and queries."""
    assert stroboscope_leaks(APPS[name](), token=token("admin", ttl_s=600)) == []


@pytest.mark.parametrize("carrier", ["asgi", "wsgi"])
@pytest.mark.parametrize(
    "options",
    [{"hash_tenants": True}, {"tenants": ("acme",)}],
    ids=["hashed", "listed"],
)
def test_h31_no_tenant_comes_out(
    carrier: str,
    options: dict[str, Any],
    stroboscope_leaks: Callable[..., list[Leak]],
) -> None:
    """Though its requests are sampled: hashed, or one of the others."""
    seen: list[str] = []

    def tenant_of(found: Any) -> str:
        raw = (
            dict(found["headers"]).get(b"x-tenant", b"").decode()
            if carrier == "asgi"
            else found.get("HTTP_X_TENANT", "")
        )
        seen.append(raw)
        return str(raw)

    async def busy_asgi(scope: Any, receive: Any, send: Any) -> None:
        burn_a(0.01)
        await asgi_inner(scope, receive, send)

    def busy_wsgi(environ: Any, start_response: Any) -> list[bytes]:
        burn_a(0.01)
        return wsgi_inner(environ, start_response)

    chosen = Settings(keys=(KEY,), service="shop", tenant=tenant_of, **options)
    app: Any = (
        asgi.Stroboscope(busy_asgi, chosen)
        if carrier == "asgi"
        else wsgi.Stroboscope(busy_wsgi, chosen)
    )

    assert stroboscope_leaks(app, token=token("admin", ttl_s=600)) == []
    assert any(one.startswith("canary") for one in seen), "none was sampled"


def test_h31_a_tenant_shown_by_name_is_found() -> None:
    """The search would see one that comes out."""

    def tenant_of(scope: Any) -> str:
        return str(dict(scope["headers"]).get(b"x-tenant", b"").decode())

    async def busy(scope: Any, receive: Any, send: Any) -> None:
        burn_a(0.01)
        await asgi_inner(scope, receive, send)

    app = asgi.Stroboscope(
        busy, Settings(keys=(KEY,), service="shop", tenant=tenant_of)
    )
    with planted() as secret:
        found = leaks(app, secret, token=token("admin", ttl_s=600))

    assert {leak.place for leak in found} == {"tenant"}
    assert any("/pprof/profile" in leak.address for leak in found)


def test_it_finds_what_leaks(monkeypatch: pytest.MonkeyPatch) -> None:
    """An endpoint that shows a secret is found, by place and address."""
    with planted() as secret:
        text = secret["local"]
        monkeypatch.setattr(stacks, "plain", lambda name, kind: text)
        found = leaks(APPS["asgi"](), secret, token=token("admin", ttl_s=600))

    assert {leak.place for leak in found} == {"local"}
    assert any("/debug/stacks" in leak.address for leak in found)


def test_a_surface_that_does_not_let_us_in_is_no_pass() -> None:
    """A wrong token is an error, not a clean result."""
    with planted() as secret, pytest.raises(AssertionError):
        leaks(APPS["asgi"](), secret, token="not.one")


def test_users_can_run_it_on_their_application(tmp_path: Path) -> None:
    """The three lines of its docstring, in a project of their own; tenants are listed,
    for those found at run time are shown by name."""
    (tmp_path / "conftest.py").write_text('pytest_plugins = ["stroboscope.testing"]\n')
    (tmp_path / "test_theirs.py").write_text(
        "from examples.fastapi_app import app\n"
        "def test_debug_leaks_nothing(stroboscope_leaks):\n"
        "    assert stroboscope_leaks(app) == []\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tmp_path)],
        cwd=tmp_path,
        env={
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "STROBOSCOPE_KEYS": KEY,
            "STROBOSCOPE_SERVICE": "shop",
            "STROBOSCOPE_TENANTS": "acme",
        },
        capture_output=True,
        text=True,
        timeout=100,
    )

    assert done.returncode == 0, done.stdout[-2000:]
