"""A stall of 300 ms with 50 requests in flight, many times: `make stalls`.

Each round must leave one stall that names the guilty endpoint, function and line. What
else the machine makes late is counted and shown, by its cause.
"""

import sys
from collections import Counter

from servers import UVICORN, serving
from test_stalls_served import APP, stall_once, stalls


def main(rounds: int, loop: str) -> int:
    right, others = 0, Counter[str]()
    with serving(UVICORN + f"--loop {loop}", APP) as (base, _):
        seen: set[int] = set()
        for _ in range(rounds):
            stall_once(base)
            new = [one for one in stalls(base) if one["number"] not in seen]
            seen |= {one["number"] for one in new}
            guilty = [
                one
                for one in new
                if one["labels"].get("endpoint") == "/on-loop/{way}"
                and one["frame"]["function"] == "sleeps"
                and one["labels"]["tenant"] == "acme"
            ]
            right += len(guilty) == 1
            others.update(
                f"{one['cause']} {one['labels'].get('endpoint', 'no request')}"
                for one in new
                if one not in guilty
            )
    print(
        f"{loop}: {right} of {rounds} recorded once and right; others: {dict(others)}"
    )
    return right != rounds


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), sys.argv[2]))
