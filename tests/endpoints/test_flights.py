"""Who asks the same at the same time shares the answer."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from workers import workers

from stroboscope._http.messages import Response
from stroboscope.endpoints.flights import Flights

pytestmark = pytest.mark.slow


def test_one_acts_for_all_who_wait(tmp_path: Path) -> None:
    """They get the same answer; the next one after it acts anew."""
    flights, acts = Flights(), []
    begin = threading.Barrier(9)

    def act() -> Response:
        acts.append(1)
        time.sleep(0.1)
        return Response(200, str(len(acts)).encode())

    def ask(_: int) -> bytes:
        begin.wait()
        return flights.share("a", act).body

    with ThreadPoolExecutor(9) as pool:
        bodies = set(pool.map(ask, range(9)))

    assert bodies == {b"1"}
    assert flights.share("a", act).body == b"2"


@pytest.mark.parametrize("how", ["lost", "raised"])
def test_an_answer_that_is_none_is_nobody_elses(how: str) -> None:
    """Its asker went away, or it failed: who waited acts for himself."""
    flights, began, acts = Flights(), threading.Event(), []

    def fail() -> Response:
        began.set()
        time.sleep(0.1)
        if how == "raised":
            raise KeyError
        return Response(500, b"partial")

    def act() -> Response:
        acts.append(1)
        return Response(200, b"whole")

    def lead() -> None:
        try:
            flights.share("a", fail, lambda: True)
        except KeyError:
            pass

    thread = threading.Thread(target=lead)
    thread.start()
    began.wait(5)
    answer = flights.share("a", act)
    thread.join()

    assert (answer.body, acts) == (b"whole", [1])


def test_h22_many_questions_to_all_workers_are_few(tmp_path: Path) -> None:
    """200 at once are answered or refused; the other workers hear a few of them."""
    with workers(tmp_path, "", "", "") as (one, two, _):

        def ask(_: int) -> int:
            return one.ask("/pprof/goroutine", timeout=30).status_code

        began = time.monotonic()
        with ThreadPoolExecutor(50) as pool:
            statuses = list(pool.map(ask, range(200)))
        took_s = time.monotonic() - began
        metrics = two.ask(f"/metrics?worker={two.pid}", "metrics").text

    heard = 'requests_total{endpoint="/pprof/goroutine",status="200"} '
    (count,) = [line for line in metrics.splitlines() if heard in line]
    assert set(statuses) <= {200, 429, 503}
    assert statuses.count(200) > 20
    assert int(count.rpartition(" ")[2]) < statuses.count(200) / 2
    assert took_s < 30
