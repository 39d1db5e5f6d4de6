"""The checklist has 49 promises: each has a test that carries its number."""

import re
from pathlib import Path


def test_every_promise_has_its_test() -> None:
    """By the name: `test_h19_one_trace_at_a_time`, or `test_h33_h20_...` for two."""
    numbers = {
        int(number)
        for file in Path(__file__).parent.rglob("test_*.py")
        for name in re.findall(r"^def test_((?:h[0-9]{2}_)+)", file.read_text(), re.M)
        for number in re.findall("h([0-9]{2})_", name)
    }

    assert numbers == set(range(1, 50))
