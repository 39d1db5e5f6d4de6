"""Ask the real pprof about a profile, and read its answers."""

import os
import random
import re
import subprocess
from collections import Counter
from pathlib import Path

from stroboscope.formats.pprof import encode
from stroboscope.formats.pprof_reader import decode
from stroboscope.formats.profile import Frame, Labels, Profile, Sample, ValueType

CONTENTIONS, DELAY = (
    ValueType("contentions", "count"),
    ValueType("delay", "nanoseconds"),
)
Rows = Counter[tuple[tuple[Frame, ...], Labels, tuple[int, ...]]]


def run_pprof(go_pprof: list[str], *args: str, home: Path) -> str:
    """What it prints. Its own files go to `home`."""
    done = subprocess.run(
        [*go_pprof, *args],
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
        env={**os.environ, "PPROF_TMPDIR": str(home)},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def made_up(seed: int, samples: int = 150) -> Profile:
    """Contention with recursion, shared names, missing labels and awkward text."""
    dice = random.Random(seed)
    files = ["shop/app.py", "shop/db.py", "lib/json.py", "<string>"]
    names = ["checkout", "items.<locals>.<lambda>", "Lock.acquire", "main", "dumps"]
    names += ["_run", "T.call", "données", "<module>", "<lambda>", "_ZN1aC1Ev"]
    frames = [
        Frame(dice.choice(files), name, line, line + dice.randrange(3))
        for name in names
        for line in (1, 10)
    ]
    choices = {
        "endpoint": ["/checkout", "/items/{id}", "(unmatched)", "/a,b"],
        "tenant": ["T1", "T17", "other"],
        "status": ["2xx", "5xx"],
        "latency": ["<=100ms", ">1s"],
        "pid": ["17", "170"],
    }
    found: dict[tuple[tuple[Frame, ...], Labels], Sample] = {}
    while len(found) < samples:
        stack = tuple(dice.choices(frames, k=dice.randrange(1, 7)))
        labels = tuple(
            (key, dice.choice(values))
            for key, values in choices.items()
            if dice.random() < 0.7
        )
        count = dice.randrange(1, 50)
        found[stack, labels] = Sample(
            stack, (count, count * dice.randrange(10**6)), labels
        )
    return Profile(
        sample_types=(CONTENTIONS, DELAY),
        samples=[*found.values()],
        period_type=CONTENTIONS,
        period=1,
        time_ns=1_700_000_000_000_000_000,
        mapping="python3.11",
    )


def rows(profile: Profile) -> Rows:
    """Its samples without order, those of the same stack and labels added up."""
    sums: dict[tuple[tuple[Frame, ...], Labels], list[int]] = {}
    for stack, values, labels in profile.samples:
        one = sums.setdefault((stack, tuple(sorted(labels))), [0] * len(values))
        for at, value in enumerate(values):
            one[at] += value
    return Counter((stack, labels, tuple(v)) for (stack, labels), v in sums.items())


class Pprof:
    """The real pprof beside one profile."""

    def __init__(self, command: list[str], profile: Profile, home: Path) -> None:
        self._command = command
        self._home = home
        self.file = home / "whole.pb.gz"
        self.file.write_bytes(encode(profile))

    def ask(self, *options: str) -> str:
        """What it prints of the profile."""
        return run_pprof(self._command, *options, str(self.file), home=self._home)

    def sliced(self, *options: str) -> Profile:
        """The profile it writes after applying its options."""
        out = self._home / "sliced.pb.gz"
        self.ask("-proto", f"-output={out}", *options)
        return decode(out.read_bytes())

    def top(self, *options: str) -> list[tuple[str, int, int]]:
        """Its table: function, flat, cum, exact."""
        shown = self.ask("-top", "-unit=ns", "-nodefraction=0", *options)
        row = r"^ *(-?[\d.]+)(?:ns)? +[\d.e+-]+% +[\d.e+-]+% +(-?[\d.]+)(?:ns)? +[\d.e+-]+%  (.+)$"
        return [
            (name, int(flat), int(cum))
            for flat, cum, name in re.findall(row, shown, re.MULTILINE)
        ]

    def tags(self, *options: str) -> dict[str, dict[str, int]]:
        """Its sums by label: key, value, sum."""
        shown = self.ask("-tags", "-unit=ns", *options)
        found: dict[str, dict[str, int]] = {}
        key = ""
        for line in shown.splitlines():
            if head := re.fullmatch(r" *(\S+): Total .*", line):
                key = head[1]
                found[key] = {}
            elif row := re.fullmatch(r" *(-?\d+)(?:ns)? \([^)]*\): (.+)", line):
                found[key][row[2]] = int(row[1])
        return found
