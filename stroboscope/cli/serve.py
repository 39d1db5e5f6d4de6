"""`stroboscope serve`: the sidecar, which answers for all workers from its own process.

It asks them by the run directory, so it answers while every one of them is stuck, and says
who did not. It holds no application and samples nothing itself.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from argparse import ArgumentParser, Namespace

from stroboscope.endpoints import Surface
from stroboscope.settings import Settings

#: How long the address may take to be ours.
_OPENS_S = 5.0
_STEP_S = 0.05
_ENDS = {signal.SIGTERM, signal.SIGINT}


def add_options(parser: ArgumentParser) -> None:
    """What `serve` takes; the rest is read from `STROBOSCOPE_*`, as in the workers."""
    parser.add_argument("--rundir", help="where the workers meet")
    parser.add_argument("--service", help="whose workers; default STROBOSCOPE_SERVICE")
    parser.add_argument(
        "--bind", default="127.0.0.1:6060", help="ADDRESS:PORT or unix:PATH"
    )
    parser.add_argument("--certificate", help="PEM file; then it speaks TLS")
    parser.add_argument("--certificate-key", help="PEM file of its key")
    parser.add_argument(
        "--plaintext",
        action="store_true",
        help="plain HTTP on an address that other hosts reach",
    )


def serve(options: Namespace) -> int:
    """Answer until SIGTERM or SIGINT. Raises: SettingsError, WeakKeyError."""
    chosen = {
        "rundir": options.rundir,
        "service": options.service,
        "admin_bind": options.bind,
        "admin_certificate": options.certificate,
        "admin_key": options.certificate_key,
        "admin_plaintext": options.plaintext,
    }
    settings = Settings.from_environ(
        os.environ, **{name: value for name, value in chosen.items() if value}
    )
    surface = Surface(settings, is_worker=False)
    signal.pthread_sigmask(signal.SIG_BLOCK, _ENDS)  # before any thread is started
    surface.wake()
    failure = _opened(surface)
    if failure:
        print(f"stroboscope: {failure}", file=sys.stderr)
        return 1
    print(f"stroboscope: {settings.service} at {settings.admin_bind}", flush=True)
    signal.sigwait(_ENDS)
    surface.rest()
    return 0


def _opened(surface: Surface) -> str:
    """Why the address is not ours, or nothing."""
    ends_s = time.monotonic() + _OPENS_S
    while surface.desk.doors.admin_failure and time.monotonic() < ends_s:
        time.sleep(_STEP_S)
    return surface.desk.doors.admin_failure
