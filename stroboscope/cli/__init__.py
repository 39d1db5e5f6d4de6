"""The `stroboscope` command: key, password, token, top, serve, doctor.

Exit codes: 0 done; 1 nothing found, or the doctor found a fault; 2 wrong use.
"""

from __future__ import annotations

import argparse
import getpass
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from stroboscope._clock import duration_s
from stroboscope._core import engine
from stroboscope.auth.keys import check_keys, generate_key
from stroboscope.auth.passwords import hash_password
from stroboscope.auth.tokens import Tokens
from stroboscope.cli import report, serve
from stroboscope.errors import ProfileError, StroboscopeError
from stroboscope.formats import table
from stroboscope.formats.filters import OPTIONS, Slicer
from stroboscope.formats.pprof_reader import decode
from stroboscope.formats.profile import Profile, subtract
from stroboscope.settings import Settings


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    options = _parser().parse_args(arguments)
    try:
        code: int = options.run(options)
    except (StroboscopeError, OSError) as error:
        print(f"stroboscope: {error}", file=sys.stderr)
        return 2
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="stroboscope", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    key = commands.add_parser("key", help="print a new signing key")
    key.set_defaults(run=_key)

    password = commands.add_parser("password", help="hash a password from stdin")
    password.set_defaults(run=_password)

    token = commands.add_parser("token", help="sign a token with STROBOSCOPE_KEYS")
    token.add_argument("--scope", default="profile", help="profile,metrics,trace,admin")
    token.add_argument("--ttl", default="15m", type=_duration, help="such as 90s, 15m")
    token.add_argument("--service", help="audience; default STROBOSCOPE_SERVICE")
    token.add_argument("--env", help="environment; default STROBOSCOPE_ENV")
    token.add_argument("--host", default="", help="good on this host only")
    token.set_defaults(run=_token)

    top = commands.add_parser("top", help="print what a profile says")
    top.add_argument("file", type=Path)
    for name, meaning in OPTIONS.items():
        top.add_argument(f"--{name}", action="append", default=[], help=meaning)
    top.add_argument("--by", metavar="LABEL", help="CPU by the value of a label")
    top.add_argument("--base", type=Path, help="show the difference to this file")
    top.add_argument("--cum", action="store_true", help="sort by cumulative value")
    top.add_argument("-n", type=int, default=20, help="rows")
    top.set_defaults(run=_top)

    sidecar = commands.add_parser("serve", help="answer for all workers, beside them")
    serve.add_options(sidecar)
    sidecar.set_defaults(run=serve.serve)

    doctor = commands.add_parser("doctor", help="check engine, keys and SIGPROF")
    doctor.set_defaults(run=_doctor)
    return parser


def _duration(text: str) -> float:
    try:
        return duration_s(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _key(options: argparse.Namespace) -> int:
    del options
    print(generate_key())
    return 0


def _password(options: argparse.Namespace) -> int:
    del options
    text = (
        getpass.getpass() if sys.stdin.isatty() else sys.stdin.readline().rstrip("\n")
    )
    if len(text) < 12:
        print("stroboscope: a password needs 12 characters", file=sys.stderr)
        return 2
    print(hash_password(text))
    return 0


def _token(options: argparse.Namespace) -> int:
    chosen = {"service": options.service, "env": options.env}
    overrides = {name: value for name, value in chosen.items() if value}
    settings = Settings.from_environ(os.environ, **overrides)
    scopes = [scope.strip() for scope in options.scope.split(",")]
    print(Tokens(settings).mint(scopes, options.ttl, options.host))
    return 0


def _read(path: Path) -> Profile:
    try:
        return decode(path.read_bytes())
    except ProfileError as error:
        raise ProfileError(f"{path}: {error}") from error


def _top(options: argparse.Namespace) -> int:
    profile = _read(options.file)
    if options.base is not None:
        profile = subtract(profile, _read(options.base))
    wanted = [(name, text) for name in OPTIONS for text in getattr(options, name)]
    report.check_keys(profile, [*options.tagfocus, *options.tagignore])
    total = table.magnitude(profile, -1)
    profile = Slicer(wanted).apply(profile)
    if not profile.samples:
        print("stroboscope: no samples match", file=sys.stderr)
        return 1
    if options.by:
        print(report.by_label(profile, options.by))
    else:
        rows = table.functions(profile, total=total, by_cumulative=options.cum)
        print(table.text(rows, options.n), end="")
    return 0


def _doctor(options: argparse.Namespace) -> int:
    del options
    healthy = True
    info = engine.info()
    print(f"engine   {info.kind}: {info.reason}")
    owner = {1: "ours", 0: "free", -1: "another handler"}
    if "sigprof" in info.counters:
        print(f"SIGPROF  {owner[info.counters['sigprof']]}")
        healthy = info.counters["sigprof"] >= 0
    settings = Settings.from_environ(os.environ)
    if settings.keys:
        check_keys(settings.keys)
        print(f"keys     {len(settings.keys)}, strong; the last one signs")
    else:
        print("keys     none: /debug is off; make one with `stroboscope key`")
        healthy = False
    print("workers  each worker answers for itself; the profile names its process")
    return 0 if healthy else 1
