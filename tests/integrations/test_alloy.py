"""Alloy's own check and delta, built from its source, read what we emit."""

import random
import subprocess
from pathlib import Path

import alloy
import pytest
import scrapers
from asking import ask_asgi, bearer, token

from stroboscope.formats.pprof import encode
from stroboscope.formats.pprof_reader import decode
from stroboscope.formats.profile import Frame, Profile, Sample, ValueType

TYPES = {
    "memory": (
        *("alloc_objects/count", "alloc_space/bytes"),
        *("inuse_objects/count", "inuse_space/bytes"),
    ),
    "mutex": ("contentions/count", "delay/nanoseconds"),
}
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def alloy_delta() -> Path:
    return alloy.build(ROOT / ".cache/alloy")


def totals(profile: Profile) -> dict[object, tuple[int, ...]]:
    return {
        (tuple(f.function for f in one.stack), tuple(sorted(one.labels))): tuple(
            one.values
        )
        for one in profile.samples
        if any(one.values)
    }


@pytest.mark.slow
@pytest.mark.parametrize("kind", TYPES)
def test_h49_alloys_delta_is_what_was_added(
    kind: str, alloy_delta: Path, tmp_path: Path
) -> None:
    """Three scrapes of growing totals: each difference is, to the unit, what came."""
    types = tuple(ValueType(*one.split("/")) for one in TYPES[kind])
    chosen = random.Random(7)
    stacks = [
        tuple(Frame(f"m{i % 5}.py", f"f{i}_{d}", d + 1, 1) for d in range(1 + i % 9))
        for i in range(60)
    ]
    keys = [
        (stack, labels)
        for stack in stacks
        for labels in ((), (("endpoint", "/a"),), (("endpoint", "/b"), ("tenant", "é")))
    ]
    counts = {key: [0] * len(types) for key in keys}
    files, added = [], []
    for scrape in range(3):
        before = {key: list(values) for key, values in counts.items()}
        for key in chosen.sample(keys, 100):
            # What is in use may shrink; what was allocated only grows.
            for at in range(len(types)):
                counts[key][at] += chosen.randrange(1, 1000)
        samples = [
            Sample(stack, tuple(values), labels)
            for (stack, labels), values in counts.items()
            if any(values)
        ]
        chosen.shuffle(samples)
        body = encode(Profile(types, samples, types[0], 1, time_ns=1_700_000_000))
        scrapers.check(body)
        files.append(tmp_path / str(scrape))
        files[-1].write_bytes(body)
        added.append((before, {key: tuple(values) for key, values in counts.items()}))

    done = subprocess.run(
        [alloy_delta, kind, *files], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    for file, (before, after) in zip(files[1:], added[1:], strict=True):
        found = totals(decode(Path(f"{file}.delta").read_bytes()))
        expected = {}
        for (stack, labels), values in after.items():
            # Alloy subtracts what is cumulative and passes on what is in use.
            row = [
                value - (before[stack, labels][at] if at < 2 else 0)
                for at, value in enumerate(values)
            ]
            if any(row):
                names = tuple(frame.function for frame in stack)
                expected[names, tuple(sorted(labels))] = tuple(row)
        assert found == expected


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "kind"),
    [("allocs", "memory"), ("heap", "memory"), ("mutex", "mutex"), ("block", "mutex")],
)
def test_h49_alloy_reads_what_the_endpoints_answer(
    name: str, kind: str, alloy_delta: Path, tmp_path: Path
) -> None:
    """Two scrapes in a row, empty or not, without its `internal panic`."""
    for at in "ab":
        body = ask_asgi(f"/debug/pprof/{name}", bearer(token())).body
        (tmp_path / at).write_bytes(body)

    done = subprocess.run(
        [alloy_delta, kind, tmp_path / "a", tmp_path / "b"],
        capture_output=True,
        text=True,
        timeout=60,
    )

    assert done.returncode == 0, done.stderr
