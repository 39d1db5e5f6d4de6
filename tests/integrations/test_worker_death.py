"""A worker that is killed holds nothing; a capture does not get it killed."""

import os
import signal
import threading
import time

import httpx
import pytest
from fronts import GTHREAD, bearer
from servers import FLASK, GUNICORN, serving

from stroboscope.formats.pprof_reader import decode


@pytest.mark.slow
def test_h20_a_killed_worker_holds_no_lease() -> None:
    """SIGKILL in the middle of the one capture: the next worker takes one at once."""
    asked = "/debug/pprof/profile?forensic=1&seconds="
    with serving(GTHREAD, FLASK) as (base, _):

        def capture() -> None:
            with pytest.raises(httpx.HTTPError):
                httpx.get(base + asked + "30", headers=bearer(), timeout=40)

        pid = httpx.get(base + "/debug/selfcheck", headers=bearer()).json()["process"]
        holder = threading.Thread(target=capture)
        holder.start()
        time.sleep(1)
        busy = httpx.get(base + asked + "0.2", headers=bearer())
        os.kill(pid, signal.SIGKILL)
        killed_s = time.monotonic()
        holder.join()
        answer = None
        while answer is None:
            try:
                answer = httpx.get(base + asked + "0.2", headers=bearer(), timeout=20)
            except httpx.HTTPError:  # the new worker is not there yet
                assert time.monotonic() < killed_s + 20
                time.sleep(0.05)

    assert busy.status_code == 429
    assert int(busy.headers["Retry-After"]) >= 1
    assert answer.status_code == 200


@pytest.mark.slow
def test_h26_a_capture_ends_before_its_worker_is_killed() -> None:
    """A sync worker that gunicorn would kill after 4 s: clamped, said, and alive."""
    command = GUNICORN + "-k sync -t 4"
    with serving(command, FLASK) as (base, _):

        def process() -> int:
            checked = httpx.get(base + "/debug/selfcheck", headers=bearer(), timeout=20)
            return int(checked.json()["process"])

        before = process()
        answer = httpx.get(
            base + "/debug/pprof/profile?seconds=8", headers=bearer(), timeout=20
        )
        time.sleep(1.5)
        after = process()

    assert answer.status_code == 200
    assert answer.headers["X-Stroboscope-Clamped"] == "seconds=2.8"
    assert "killed after 4 s" in " ".join(decode(answer.content).comments)
    assert before == after
