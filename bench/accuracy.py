"""Label accuracy: what a profile says of work whose labels are known by construction.

`python -m bench.accuracy WAY SAMPLER SECONDS` prints JSON: the true and the profiled
share of request `a` in percent points, and the share of known work whose label
contradicts its stack, or is missing.
"""

import contextlib
import json
import os
import sys
from collections import Counter

if "gevent" in sys.argv:  # before anything else is imported
    from gevent import monkey

    monkey.patch_all()

from bench import work

HZ = 100


def ours(way, seconds):
    import stroboscope
    from stroboscope._core import engine
    from stroboscope.profiles.cpu import to_profile

    window = engine.open_window(HZ)
    way(lambda label: stroboscope.do(request=label), seconds)
    return [to_profile(window.close())], "request", "cpu"


def ddtrace(way, seconds):
    from bench.receiver import Receiver

    receiver = Receiver()
    os.environ |= {
        "DD_TRACE_AGENT_URL": receiver.address,
        "DD_INSTRUMENTATION_TELEMETRY_ENABLED": "0",
        "DD_REMOTE_CONFIGURATION_ENABLED": "0",
    }
    import ddtrace.auto  # noqa: F401
    from ddtrace import tracer
    from ddtrace.profiling import Profiler

    @contextlib.contextmanager
    def tag(label):
        with tracer.trace("request", resource=label, span_type="web"):
            yield

    profiler = Profiler()
    profiler.start()
    way(tag, seconds)
    profiler.stop()
    return receiver.profiles(), "trace endpoint", "cpu-time"


def pyroscope(way, seconds):
    import time

    import pyroscope as peer

    from bench.receiver import Receiver

    receiver = Receiver()
    peer.configure(
        application_name="bench",
        server_address=receiver.address,
        sample_rate=HZ,
        oncpu=True,
    )
    way(lambda label: peer.tag_wrapper({"request": label}), seconds)
    # It pushes every ten seconds; what is left at the end would be lost.
    time.sleep(11)
    peer.shutdown()
    return receiver.profiles(), "request", "cpu"


SAMPLERS = {"ours": ours, "ddtrace": ddtrace, "pyroscope": pyroscope}


def judge(profiles, key, unit):
    """Known work in the profiles by (what the stack says, what the label says)."""
    seen = Counter()
    for profile in profiles:
        types = [one.type for one in profile.sample_types]
        at = types.index(unit) if unit in types else len(types) - 1
        for stack, values, labels in profile.samples:
            burning = {f.function for f in stack} & {"burn_a", "burn_b"}
            if burning and values[at]:
                label = dict(labels).get(key, "")
                seen[burning.pop()[-1], label] += values[at]
    return seen


def main(name, sampler, seconds):
    profiles, key, unit = SAMPLERS[sampler](work.WAYS[name], seconds)
    seen = judge(profiles, key, unit)
    total = seen.total()
    true = work.truth["a"] / work.truth.total()
    labelled = Counter()
    for (_, label), value in seen.items():
        labelled[label] += value
    known = labelled["a"] + labelled["b"]
    wrong = sum(v for (f, label), v in seen.items() if label in "ab" and label and f != label)
    result = {
        "way": name,
        "sampler": sampler,
        "true": 100 * true,
        "profiled": 100 * labelled["a"] / known if known else None,
        "wrong": 100 * wrong / total if total else None,
        "missing": 100 * labelled[""] / total if total else None,
        "seen": {f"{f}:{label}": value for (f, label), value in seen.items()},
    }
    print(json.dumps(result))
    sys.stdout.flush()
    os._exit(0)  # peers' threads may wait for an agent


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], float(sys.argv[3]))
