"""Stacks that go on into C, for an admin, or the reason why not."""

import json
import os
import re
import shutil
import sys
import sysconfig
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from asking import SETTINGS, Answer, asgi_inner, ask_asgi, bearer, token

from stroboscope._core import engine
from stroboscope.formats.pprof_reader import decode
from stroboscope.integrations import asgi
from stroboscope.profiles import native_cpu, native_frames, native_stacks

PY_SPY = shutil.which("py-spy", path=sysconfig.get_path("scripts"))
needs_py_spy = pytest.mark.skipif(
    PY_SPY is None or sys.platform != "linux",
    reason="py-spy is not installed here: pip install stroboscope[native]",
)
PATH = "/debug/stacks?native=1"


@pytest.fixture
def deflating() -> Iterator[None]:
    """A thread that is in zlib nearly all of its time."""
    done, data = threading.Event(), os.urandom(1 << 22)

    def work() -> None:
        while not done.is_set():
            zlib.compress(data, 6)

    thread = threading.Thread(target=work, name="deflating")
    thread.start()
    yield
    done.set()
    thread.join()


def app() -> Any:
    return asgi.Stroboscope(asgi_inner, SETTINGS)


@needs_py_spy
@pytest.mark.usefixtures("deflating")
def test_a_stack_goes_on_into_c() -> None:
    """The C function of zlib stands above the Python function that called it."""
    headers = bearer(token("admin")) | {"Accept": "application/json"}
    answer = ask_asgi(PATH, headers, app=app())
    assert answer.status == 200, answer.body
    found = {one["name"]: one for one in json.loads(answer.body)}

    names = [frame.split(" ")[0] for frame in found["deflating"]["frames"]]
    at = names.index(
        "deflating.<locals>.work" if "deflating.<locals>.work" in names else "work"
    )
    assert any("deflate" in name or "zlib" in name for name in names[:at])
    assert found["deflating"]["labels"] == {}
    assert not [name for name in names if name.startswith("0x")]


@needs_py_spy
def test_it_is_for_an_admin_and_once_in_ten_seconds() -> None:
    """It stops the process: a token for profiles is not enough, nor is haste."""
    served = app()

    assert ask_asgi(PATH, bearer(token()), app=served).status == 403
    first = ask_asgi(PATH, bearer(token("admin")), app=served)
    again = ask_asgi(PATH, bearer(token("admin")), app=served)
    assert (first.status, again.status) == (200, 429), first.body
    assert 1 <= int(again.headers["Retry-After"]) <= 11


def patient() -> Any:
    """A surface that takes as long as it is asked to."""
    return asgi.Stroboscope(asgi_inner, replace(SETTINGS, profile_seconds_cap=60))


PROFILE = "/debug/pprof/profile?native=1&seconds="


@pytest.mark.native
@pytest.mark.usefixtures("deflating")
def test_a_profile_goes_on_into_c(monkeypatch: pytest.MonkeyPatch) -> None:
    """Functions of zlib's library on top of Python's, and where that was proven."""
    monkeypatch.setattr(native_cpu, "ANSWER_S_CAP", 30.0)
    served = patient()
    answer = ask_asgi(PROFILE + "1", bearer(token()), app=served)
    assert answer.status == 200, answer.body
    found = decode(answer.body)

    (path,) = {
        frame.file
        for sample in found.samples
        for frame in sample.stack
        if frame.function == "deflate"
    }
    assert path in [mapping.path for mapping in found.mappings]
    assert any("native frames: followed" in said for said in found.comments)
    kept = f"/debug/captures/{answer.headers['X-Stroboscope-Capture']}?format=folded"
    folded = ask_asgi(kept, bearer(token()), app=served).body.decode()
    # In a stripped interpreter a function is known by its place.
    compress = r"(zlib_compress|[^; ]+\+0x[0-9a-f]+) \([^;]*\)"
    assert re.search(rf"work \([^;]*\);.*{compress};deflate ", folded)


@pytest.mark.native
def test_one_such_profile_at_a_time() -> None:
    """While one is taken another is told when to come again; a plain one is served."""
    answers: list[Answer] = []
    served = patient()
    first = threading.Thread(
        target=lambda: answers.append(
            ask_asgi(PROFILE + "30", bearer(token()), app=served)
        )
    )
    first.start()
    while not engine.info().windows:
        time.sleep(0.01)
    second = ask_asgi(PROFILE + "0.1", bearer(token()), app=served)
    plain = ask_asgi("/debug/pprof/profile?seconds=0.1", bearer(token()), app=served)
    engine.cancel_all()
    first.join()

    assert (second.status, second.body) == (429, b"a native profile is being taken\n")
    assert 1 <= int(second.headers["Retry-After"]) <= 40
    assert (plain.status, answers[0].status) == (200, 200)


def without_elftools(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(native_frames.importlib.util, "find_spec", lambda name: None)


def without_python(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(native_frames.sys, "executable", "/usr/bin/uwsgi")
    patch.setattr(native_frames.sysconfig, "get_config_var", lambda name: "/nowhere")


def elsewhere(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(native_frames.sys, "platform", "darwin")


def on_another_machine(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(type(native_frames.engine), "machine", lambda self: "")


@pytest.mark.native
@pytest.mark.parametrize(
    ("without", "reason"),
    [
        (without_elftools, b"stroboscope[native]"),
        (without_python, b"a Python that can be started"),
        (elsewhere, b"need Linux"),
        (on_another_machine, b"x86-64 or AArch64"),
    ],
)
def test_a_profile_that_cannot_have_them_says_why(
    monkeypatch: pytest.MonkeyPatch,
    without: Callable[[pytest.MonkeyPatch], None],
    reason: bytes,
) -> None:
    """501 at once, rather than a profile that is not what was asked for."""
    without(monkeypatch)
    began_s = time.monotonic()
    answer = ask_asgi(PROFILE + "30", bearer(token()))

    assert answer.status == 501
    assert reason in answer.body
    assert time.monotonic() - began_s < 10


def test_a_wall_profile_has_none() -> None:
    """Its threads at rest are read without their C stacks."""
    answer = ask_asgi("/debug/pprof/wall?seconds=30&native=1", bearer(token()))

    assert answer.status == 501
    assert b"/debug/pprof/profile?native=1" in answer.body


def test_without_py_spy_the_reason_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """501, and what to install; nothing was stopped, no turn was used up."""
    monkeypatch.setattr(native_stacks.shutil, "which", lambda *_, **__: None)
    answer = ask_asgi(PATH, bearer(token("admin")), app=app())

    assert answer.status == 501
    assert b"stroboscope[native]" in answer.body


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        (
            "echo 'Permission Denied: no' >&2; exit 1",
            "py-spy failed: Permission Denied",
        ),
        ("echo '{'", "py-spy said what we do not read"),
        ("echo '[1]'", "py-spy said what we do not read"),
        ("kill -KILL $$", "py-spy failed"),
        ("kill -STOP PID; kill -KILL $$", "py-spy failed"),
    ],
)
def test_a_py_spy_that_fails_costs_an_answer_only(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, script: str, reason: str
) -> None:
    """Whatever it does, the answer is 501 and the process goes on."""
    fake = tmp_path / "py-spy"
    fake.write_text(f"#!/bin/sh\n{script.replace('PID', str(os.getpid()))}\n")
    fake.chmod(0o755)
    monkeypatch.setattr(native_stacks, "command", lambda: str(fake))
    answer = ask_asgi(PATH, bearer(token("admin")), app=app())

    assert answer.status == 501
    assert reason in answer.body.decode()


@pytest.mark.slow
def test_a_py_spy_that_hangs_while_we_are_stopped_is_ended(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The process stands still for five seconds, not for ever."""
    fake = tmp_path / "py-spy"
    stop = f"kill -STOP {os.getpid()}"
    fake.write_text(f"#!/bin/sh\n{stop}\nexec sleep 60\n")
    fake.chmod(0o755)
    monkeypatch.setattr(native_stacks, "command", lambda: str(fake))
    began_s = time.monotonic()
    answer = ask_asgi(PATH, bearer(token("admin")), app=app())

    assert answer.status == 501
    assert 4 < time.monotonic() - began_s < 20


def test_the_child_knows_no_secret(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Nothing of our environment is passed on."""
    fake, seen = tmp_path / "py-spy", tmp_path / "seen"
    fake.write_text(f"#!/bin/sh\nenv > {seen}\necho '[]'\n")
    fake.chmod(0o755)
    monkeypatch.setattr(native_stacks, "command", lambda: str(fake))
    monkeypatch.setenv("DATABASE_PASSWORD", "hunter2")

    assert ask_asgi(PATH, bearer(token("admin")), app=app()).status == 200
    assert "hunter2" not in seen.read_text()
