"""Regions and request tasks: what they cost at rest, recorded, and beside others.

Small things in nanoseconds of one process, minimum of several rounds, next to an empty
call in the same run. Requests in CPU of a server's process: rounds with the recorder off
and on alternate, and so do two servers for OpenTelemetry, which cannot be switched.
"""

import json
import statistics
import sys
import threading
import timeit
import urllib.request

from bench.requests import (
    ASKED,
    KEY,
    asked,
    per_request_us,
    requests,
    serving,
    summary,
    switched,
)
from stroboscope import region
from stroboscope._core import LABELS, LabelCell
from stroboscope.tracing import recorder

ROUNDS = 12
CALLS = 20_000
PATH = "/regions/1"


def empty():
    pass


def loop_of(body):
    """A function that runs the body CALLS times, without a call of its own."""
    space = {"region": region, "empty": empty}
    exec(f"def run(n={CALLS}):\n for _ in range(n):\n  {body}\n", space)
    return space["run"], space


def cost_ns(*runs, calls=CALLS):
    """Nanoseconds of each body, less the empty loop's."""
    nothing, _ = loop_of("pass")
    best = [
        min(timeit.repeat(lambda run=run: run(calls), number=1, repeat=9))
        for run in (nothing, *runs)
    ]
    return [round((one - best[0]) / calls * 1e9, 1) for one in best[1:]]


def small():
    body, _ = loop_of('with region("x"): pass')
    call, _ = loop_of("empty()")
    rest, called = cost_ns(body, call)
    recorder.set_flight(True)
    LABELS.set(LabelCell())
    LABELS.get().begin_task("GET", "http:/x", None)
    (on,) = cost_ns(body)
    recorder.close()
    LABELS.set(None)
    return {"region at rest": rest, "region recorded": on, "empty call": called, **others()}


def others():
    """Spans of OpenTelemetry, nobody exporting, and viztracer's own events."""
    found = {}
    from opentelemetry import trace
    from opentelemetry.sdk.trace import TracerProvider

    span, space = loop_of('with tracer.start_as_current_span("x"): pass')
    space["tracer"] = trace.NoOpTracer()
    (found["OpenTelemetry no-op span"],) = cost_ns(span, calls=CALLS // 20)
    space["tracer"] = TracerProvider().get_tracer("bench")
    (found["OpenTelemetry recording span"],) = cost_ns(span, calls=CALLS // 20)
    try:
        from viztracer import VizTracer
    except ImportError:
        return found
    tracer = VizTracer(tracer_entries=CALLS * 20, verbose=0)
    event, space = loop_of('with tracer.log_event("x"): pass')
    space["tracer"] = tracer
    (found["viztracer log_event"],) = cost_ns(event, calls=CALLS // 20)
    return found


def recorded():
    """Pairs: the recorder off and on, in one server."""
    off, on = ({"flight_recorder": is_on, "ttl": "none"} for is_on in (False, True))
    return switched(off, on, PATH)


def spelled():
    """The same application called in one process, in spells of some 20 ms, the recorder
    off and on in turn, CPU time: told to a thousandth where a server's rounds are not."""
    import asyncio
    import contextlib
    import gc
    import os

    from bench import wall

    os.environ["STROBOSCOPE_KEYS"] = KEY
    asking = {**ASKED, "path": PATH, "raw_path": PATH.encode()}
    recorder.configure("bench", 8 << 20)

    @contextlib.contextmanager
    def flying(loop):
        recorder.set_flight(True)
        try:
            yield
        finally:
            recorder.set_flight(False)

    async def main():
        from bench.app import fastapi

        app, pairs = fastapi(), []
        recorder.set_flight(False)
        gc.freeze()
        for at in range(wall.PAIRS * 4):
            order = (wall.off, flying) if at % 2 else (flying, wall.off)
            costs = [await wall.cost_us(app, way, asking) for way in order]
            pairs.append(tuple(costs) if at % 2 else tuple(reversed(costs)))
        return summary(pairs)

    return asyncio.run(main())


def captured():
    """Pairs: with the flight recorder alone, and while a trace is taken."""
    pairs, sizes = [], []
    with serving("uvicorn") as (port, pid):
        requests(port, PATH)
        for _ in range(ROUNDS // 3):
            without = per_request_us(port, pid, PATH)
            request = asked(port, "GET", "/debug/trace?seconds=10")
            taking = threading.Thread(
                target=lambda request=request: sizes.append(
                    len(urllib.request.urlopen(request).read())
                )
            )
            taking.start()
            pairs.append((without, per_request_us(port, pid, PATH)))
            taking.join()
    return pairs, max(sizes)


def spanned():
    """Pairs: a server without spans, and one with OpenTelemetry's SDK and ten spans."""
    pairs = []
    with serving("uvicorn", "none") as (plain, plain_pid), serving("uvicorn", "otel") as (
        port,
        pid,
    ):
        requests(plain, PATH)
        requests(port, PATH)
        for _ in range(ROUNDS):
            pairs.append((per_request_us(plain, plain_pid, PATH), per_request_us(port, pid, PATH)))
    return pairs


def ratio(pairs):
    return round(statistics.median(after / before for before, after in pairs), 4)


def main(what):
    if what == "small":
        return small()
    if what == "spells":
        return spelled()
    if what == "capture":
        pairs, size = captured()
        return {"ratio": ratio(pairs), "bytes": size, "pairs_us": pairs}
    if what == "ours":
        return summary(recorded())
    pairs = spanned()
    best = min(p[1] for p in pairs) / min(p[0] for p in pairs)
    return {"ratio": ratio(pairs), "ratio of minima": round(best, 4), "pairs_us": pairs}


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1])))
