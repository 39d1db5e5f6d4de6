"""Contention over the surface: switched by its knobs, read at Go's URLs."""

import functools
import json
import subprocess
import threading
import time
from pathlib import Path

import pytest
import scrapers
from asking import SETTINGS, Ask, admin, asgi_inner, ask_asgi, bearer, token, wsgi_inner
from contending import Clock, once_in_three, together

from stroboscope import do
from stroboscope._core.contention import contention
from stroboscope.formats.pprof_reader import decode
from stroboscope.integrations import asgi, wsgi

pytestmark = pytest.mark.native


@pytest.fixture
def ask_one(ask: Ask) -> Ask:
    """One application for all requests: its knobs are what is switched."""
    if ask is ask_asgi:
        return functools.partial(ask, app=asgi.Stroboscope(asgi_inner, SETTINGS))
    return functools.partial(ask, app=wsgi.Stroboscope(wsgi_inner, SETTINGS))


def switch(ask: Ask, **values: object) -> None:
    body = json.dumps(values).encode()
    assert ask("/debug/settings", admin(), method="PUT", body=body).status == 200


def contend(clock: Clock) -> None:
    lock, held = threading.Lock(), threading.Event()

    def holds() -> None:
        with do(endpoint="/holds"), lock:
            held.set()
            time.sleep(0.1)

    def waits() -> None:
        held.wait()
        with do(endpoint="/waits"):
            with clock("waits"):
                lock.acquire()
            lock.release()

    together(holds, waits)


@pytest.mark.parametrize(
    ("name", "endpoint"), [("mutex", "/holds"), ("block", "/waits")]
)
@once_in_three
def test_go_tool_pprof_reads_contention_by_endpoint(
    ask_one: Ask, go_pprof: list[str], tmp_path: Path, name: str, endpoint: str
) -> None:
    """The delay of one endpoint, by `-tagfocus`, within 5 % of the truth."""
    headers = bearer(token("profile"))
    base, file = tmp_path / "base.pb.gz", tmp_path / "profile.pb.gz"
    clock = Clock()
    switch(ask_one, preset="forensic", cpu_hz=100)
    try:
        base.write_bytes(ask_one(f"/debug/pprof/{name}", headers).body)
        contend(clock)
        body = ask_one(f"/debug/pprof/{name}", headers).body
    finally:
        switch(ask_one, mutex_fraction=None, block_rate_ns=None)
    file.write_bytes(body)

    scrapers.check(body)
    done = subprocess.run(
        [
            *(*go_pprof, "-top", "-sample_index=delay", "-unit=ms", "-flat"),
            *(f"-tagfocus=endpoint=^{endpoint}$", f"-base={base}", str(file)),
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    assert contention.mutex_fraction == contention.block_rate_ns == 0
    (total,) = [x for x in done.stdout.splitlines() if "Showing nodes" in x]
    shown_ms = float(total.split("accounting for ")[1].split("ms")[0])
    assert shown_ms == pytest.approx(clock.took["waits"] * 1e3, rel=0.05)


@once_in_three
def test_a_difference_holds_what_was_added_meanwhile(ask_one: Ask) -> None:
    """`seconds` on a cumulative profile; before and after do not count."""
    clocks = Clock(), Clock()
    switch(ask_one, mutex_fraction=1)
    try:
        contend(clocks[0])
        during = threading.Timer(0.02, contend, args=(clocks[1],))
        during.start()
        answer = ask_one("/debug/pprof/mutex?seconds=0.2", bearer(token("profile")))
        during.join()
    finally:
        switch(ask_one, mutex_fraction=None)

    delta = decode(answer.body)
    delays = [
        s.values[1] / 1e9
        for s in delta.samples
        if ("endpoint", "/holds") in tuple(s.labels)
    ]
    assert sum(delays) == pytest.approx(clocks[1].took["waits"], rel=0.05)


def test_the_text_form_names_the_fraction(ask_one: Ask) -> None:
    """As Go prints what `SetMutexProfileFraction` was given."""
    switch(ask_one, mutex_fraction=42)
    try:
        text = ask_one("/debug/pprof/mutex?debug=1", bearer(token("profile"))).body
    finally:
        switch(ask_one, mutex_fraction=None)

    assert text.startswith(
        b"--- mutex:\ncycles/second=1000000000\nsampling period=42\n"
    )
