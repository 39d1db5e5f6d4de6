"""Which endpoint leaks tasks is one request."""

import json
import time
from typing import Any

import httpx
import pytest
from servers import UVICORN, serving, token

pytestmark = [pytest.mark.native, pytest.mark.slow]
REQUESTS, LEFT_EACH = 5, 3


def by_endpoint(answer: httpx.Response) -> dict[str, int]:
    """What there is more of, by the outermost frames of a call tree, the endpoints.

    Less of something is a task that has ended, or is not so old now.
    """
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = json.loads(answer.text)
    children = found["root"]["children"]
    return {c["name"]: c["total"] for c in children if c["total"] > 0}


def test_a_leak_is_found_by_its_endpoint_in_one_request() -> None:
    """The old tasks of now without those of before: of one endpoint alone, by count."""
    with serving(UVICORN, "leaking_site:app") as (address, _), httpx.Client() as client:
        client.headers["Authorization"] = f"Bearer {token()}"

        def stacks(**query: str) -> httpx.Response:
            return client.get(f"{address}/debug/pprof/goroutine", params=query)

        client.get(f"{address}/leak/0")  # before the base: no news
        before = stacks().headers["X-Stroboscope-Capture"]
        for item in range(REQUESTS):
            client.get(f"{address}/leak/{item}")
            client.get(f"{address}/tidy")
        time.sleep(1.5)

        found = stacks(
            base=before,
            min_age="1",
            tagfocus="kind=task",
            tagroot="endpoint",
            format="json",
        )
        all_old = stacks(
            min_age="1", tagfocus="kind=task", tagroot="endpoint", format="json"
        )
        none_so_old = stacks(
            min_age="600", tagfocus="endpoint=/leak", tagroot="endpoint", format="json"
        )

    assert by_endpoint(found) == {"/leak/{item}": REQUESTS * LEFT_EACH}
    assert by_endpoint(all_old)["/leak/{item}"] == (REQUESTS + 1) * LEFT_EACH
    assert by_endpoint(none_so_old) == {}
