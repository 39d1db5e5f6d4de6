"""`python -m bench`: run everything, print the table, keep the raw data."""

import json
import os
import re
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from bench import collectors, work

RESULTS = Path(__file__).parent / "results"
PEERS = ("ddtrace", "pyroscope")
PACKAGES = (
    *("ddtrace", "pyroscope-io", "uvicorn", "fastapi", "gunicorn", "flask", "gevent"),
    *("django", "anyio", "asgiref", "opentelemetry-instrumentation-fastapi", "memray"),
)


SMALL = (
    "empty call",
    "OpenTelemetry no-op span",
    "OpenTelemetry recording span",
    "viztracer log_event",
)


PAUSES = (
    ("rest", ""),
    *((kind, "rest + 5") for kind in ("cpu", "wall", "trace")),
)


def run(module, *arguments):
    """A measurement in a process of its own; None where it could not run."""
    print("...", module, *arguments, file=sys.stderr, flush=True)
    done = subprocess.run(
        [sys.executable, "-m", f"bench.{module}", *map(str, arguments)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONWARNINGS": "ignore"},
    )
    try:
        return json.loads(done.stdout.strip().splitlines()[-1])
    except (IndexError, ValueError):
        return {"failed": done.stderr.strip().splitlines()[-1:]}


def versions():
    found = {"python": sys.version.split()[0]}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found


def measure(seconds):
    accuracy = {}
    for way in work.WAYS:
        for sampler in ("ours", *PEERS):
            took = seconds if way == "loop" else seconds / 3
            accuracy[f"{way}/{sampler}"] = run("accuracy", way, sampler, took)
    requests = {
        f"{server}/{peer or 'ours'}": run("requests", server, peer)
        for server in ("uvicorn", "gthread")
        for peer in ("", *PEERS)
    }
    return {
        "versions": versions(),
        "accuracy": accuracy,
        "requests": requests,
        "at rest": run("at_rest"),
        "workers": run("workers"),
        "handler": run("handler"),
        "pause": run("pause"),
        "capture": {what: run("capture", what) for what in ("ours", "viztracer", "pauses")},
        "collectors": collectors.measure(run),
        "trace": {
            what: run("trace", what)
            for what in ("small", "spells", "ours", "otel", "capture")
        },
    }


def capture_rows(capture):
    """At a steady rate of small requests, beside viztracer."""
    ours, theirs, pauses = capture["ours"], capture["viztracer"], capture["pauses"]
    named = f"at {ours.get('rate')} requests a second"
    pause = "pause in it, median ms"
    return [
        (f"CPU in a capture, {named}", "<= 1.15", f"{ours.get('ratio')}"),
        ("the same under viztracer", "", f"{theirs.get('ratio')}"),
        ("loop's longest pause in it, ms", "<= 5", f"{ours.get(pause)}"),
        ("the same under viztracer", "", f"{theirs.get(pause)}"),
        *(
            (f"the same, 2 s at a time: {kind}", about, f"{pauses.get(f'{kind}, median ms')}")
            for kind, about in PAUSES
        ),
        ("bytes of it", "<= 50 MB", f"{ours.get('bytes')}"),
    ]


def table(raw):
    def accuracy(way, sampler):
        one = raw["accuracy"][f"{way}/{sampler}"]
        if one.get("profiled") is None:
            return "no labels" if "failed" not in one else "did not run"
        off = one["profiled"] - one["true"]
        return f"off {off:+.1f}, wrong {one['wrong']:.1f} %, none {one['missing']:.1f} %"

    def ratio(server, peer):
        return str(raw["requests"][f"{server}/{peer}"].get("ratio", "did not run"))

    rest, handler, pause = raw["at rest"], raw["handler"], raw["pause"]
    names = ("ours", *PEERS)
    rows = [
        (f"labels, {way}", "2 points, 0 wrong", *(accuracy(way, n) for n in names))
        for way in work.WAYS
    ]
    rows += [
        (f"CPU a request, {server}", "<= 1.01", *(ratio(server, n) for n in names))
        for server in ("uvicorn", "gthread")
    ]
    rows += [
        ("middleware at rest, ASGI", "<= 5 us", f"{rest['asgi']} us"),
        ("middleware at rest, WSGI", "<= 5 us", f"{rest['wsgi']} us"),
        ("middleware at rest, Django", "<= 8 us", f"{rest['django']} us"),
        ("install() at rest, FastAPI", "", f"{rest['fastapi']} us"),
        ("an empty BaseHTTPMiddleware", "", f"{rest['empty BaseHTTPMiddleware']} us"),
        ("OpenTelemetry's for FastAPI", "", f"{rest['OpenTelemetry FastAPI']} us"),
        ("handler, 40 frames", "<= 20 us", f"{handler['median us']} us"),
        (
            "loop's longest pause, encoding 50 000",
            "<= 5 ms",
            f"{pause['encoding, median ms']} ms; at rest {pause['at rest, median ms']}",
        ),
    ]
    trace, small = raw["trace"], raw["trace"]["small"]
    rows += [
        ("region at rest", "<= 100 ns", f"{small['region at rest']} ns"),
        ("region recorded", "<= 300 ns", f"{small['region recorded']} ns"),
        *((name, "", f"{small[name]} ns") for name in SMALL if name in small),
        ("CPU a request, recorder, 10 regions", "<= 1.01", f"{trace['ours']['ratio']}"),
        ("the same in spells, 95 %", "<= 1.01", "{0} to {1}".format(*trace["spells"]["95 %"])),
        ("OpenTelemetry's SDK, the same 10 spans", "", f"{trace['otel']['ratio']}"),
        ("CPU a request in a capture", "<= 1.15", f"{trace['capture']['ratio']}"),
        ("bytes of that capture", "<= 50 MB", f"{trace['capture']['bytes']}"),
        *capture_rows(raw["capture"]),
        *collectors.rows(raw["collectors"]),
    ]
    return written(rows)


NUMBER = re.compile(r"[+-]?[0-9]+(?:\.[0-9]+)?")


def is_met(target, value):
    """yes or no, where the target is a bound and the value begins with a number."""
    bound, found = NUMBER.search(target), NUMBER.match(str(value))
    if target.startswith("2 points") and str(value).startswith("off"):
        off, wrong = (abs(float(one)) for one in NUMBER.findall(value)[:2])
        return "yes" if off <= 2 and wrong == 0 else "no"
    if target[:2] not in ("<=", ">=") or bound is None or found is None:
        return ""
    least = target.startswith(">=")
    ours, limit = float(found[0]), float(bound[0])
    return "yes" if (ours >= limit if least else ours <= limit) else "no"


def written(rows):
    """The rows as a table, each with whether its target is met."""
    heads = ("measure", "target", "met", "stroboscope", "ddtrace", "pyroscope-io")
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for measure, target, ours, *others in rows:
        cells = (measure, target, is_met(target, ours), ours, *others)
        padded = (*map(str, cells), *[""] * (len(heads) - len(cells)))
        lines.append(f"| {' | '.join(padded)} |")
    return "\n".join(lines)


def main():
    if sys.argv[1:] == ["collectors"]:
        print(written(collectors.rows(collectors.measure(run))))
        return
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 30
    raw = measure(seconds)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "latest.json").write_text(json.dumps(raw, indent=1) + "\n")
    shown = table(raw)
    (RESULTS / "latest.md").write_text(shown + "\n")
    print(shown)


if __name__ == "__main__":
    main()
