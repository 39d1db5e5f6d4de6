"""Under gevent a thread's time adds up too: its hub has what no greenlet has."""

import json
import subprocess
import sys

import pytest

pytestmark = pytest.mark.native
BODY = """
from gevent import monkey; monkey.patch_all()
import json, time
from collections import Counter
import gevent
from stroboscope._core import engine
from stroboscope.profiles.wall import collect_wall

taken = []
def naps():
    while not taken:
        gevent.sleep(0.004)
def burns():
    while not taken:
        sum(range(20_000))
        gevent.sleep(0.001)
engine.start_thread(lambda: taken.append(collect_wall(2.0, lambda window: None)))
gevent.joinall([gevent.spawn(naps), gevent.spawn(naps), gevent.spawn(burns)])
spent = Counter()
for sample in taken[0].samples:
    names = {frame.function for frame in sample.stack}
    state = dict(sample.labels)["state"]
    spent["all"] += sample.values[0]
    spent[state] += sample.values[0]
    spent["burns"] += sample.values[0] * ("burns" in names and state == "running")
print(json.dumps({"passed": taken[0].duration_ns, **spent}))
"""


def test_the_hubs_thread_adds_up_to_the_time_that_passed() -> None:
    """Greenlets that sleep and one that burns: on and off the CPU are all of it."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", BODY],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    spent = json.loads(done.stdout)

    assert spent["all"] == pytest.approx(spent["passed"], rel=0.02)
    assert spent["running"] + spent["waiting"] == spent["all"]
    assert spent["burns"] > 0
    assert spent["waiting"] > 0
