"""Folded stacks, speedscope's files, call trees and tables are what their readers expect."""

import json
import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import fetching
import pytest
from pprofing import made_up

from stroboscope.formats import folded, speedscope, table, text, tree
from stroboscope.formats.profile import Frame, Profile, Sample, ValueType, subtract

ROOT = Path(__file__).parents[2]
WHOLE = made_up(3)
CPU = ValueType("cpu", "nanoseconds")


def of(*samples: Sample) -> Profile:
    return Profile((CPU,), [*samples], CPU, 1)


def frame(name: str, file: str = "a.py") -> Frame:
    return Frame(file, name, 1, 2)


def costs(profile: Profile, index: int) -> dict[str, list[int]]:
    """By function, file and first line: own cost and that with all it calls."""
    found: dict[str, list[int]] = {}
    for stack, values, _ in profile.samples:
        names = [f"{one.function} ({one.file}:{one.start_line})" for one in stack]
        for name in set(names):
            found.setdefault(name, [0, 0])[1] += values[index]
        found[names[0]][0] += values[index]
    return {name: both for name, both in found.items() if any(both)}


@pytest.fixture(scope="module")
def speedscope_packages() -> Path:
    """The real speedscope from npm, once a checkout."""
    if shutil.which("npm") is None or shutil.which("node") is None:
        pytest.skip("npm and node are not installed: speedscope's importer cannot run")
    with fetching.into(ROOT / ".cache/npm") as folder:
        if not (folder / "node_modules/ajv").exists():
            packages = ("speedscope@1.25.0", "ajv@8")
            command = ["npm", "install", "--no-audit", "--no-fund", *packages]
            (folder / "package.json").write_text("{}")
            subprocess.run(command, cwd=folder, check=True, timeout=110)
    return folder


def imported(packages: Path, text: str, home: Path) -> Any:
    """What speedscope makes of a file."""
    file = home / "a.speedscope.json"
    file.write_text(text)
    done = subprocess.run(
        ["node", ROOT / "tests/helpers/speedscoping.mjs", packages, file],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return json.loads(done.stdout.splitlines()[-1])


def test_speedscope_imports_what_we_write(
    speedscope_packages: Path, tmp_path: Path
) -> None:
    """Its schema finds nothing; its importer finds every function's own cost and total."""
    text = speedscope.write(WHOLE, "mutex", 1)
    found = imported(speedscope_packages, text, tmp_path)

    assert found["errors"] == []
    assert found["active"] == 1
    assert [one["name"] for one in found["profiles"]] == ["contentions", "delay"]
    assert [one["unit"] for one in found["profiles"]] == ["none", "nanoseconds"]
    for index, one in enumerate(found["profiles"]):
        assert one["total"] == WHOLE.total(index)
        assert one["frames"] == costs(WHOLE, index)


def test_speedscope_shows_what_grew_and_what_shrank(
    speedscope_packages: Path, tmp_path: Path
) -> None:
    """A difference has no negative weights: what shrank is a flame graph of its own."""
    change = subtract(made_up(4), WHOLE)
    found = imported(
        speedscope_packages, speedscope.write(change, "mutex", 1), tmp_path
    )

    stacks: Counter[tuple[Frame, ...]] = Counter()
    for stack, values, _ in change.samples:
        stacks[stack] += values[1]
    grown = sum(value for value in stacks.values() if value > 0)
    shrunk = -sum(value for value in stacks.values() if value < 0)
    names = [one["name"] for one in found["profiles"]]
    assert found["errors"] == []
    assert names[found["active"]] == "delay"
    totals = {one["name"]: one["total"] for one in found["profiles"]}
    assert totals["delay"] == grown
    assert totals["delay, less than before"] == shrunk


def test_an_empty_profile_is_an_empty_file(
    speedscope_packages: Path, tmp_path: Path
) -> None:
    """Of the right shape in every form."""
    empty = replace(WHOLE, samples=[])

    text = speedscope.write(empty, "mutex")
    assert imported(speedscope_packages, text, tmp_path)["errors"] == []
    assert folded.write(empty) == ""
    assert json.loads(tree.write(empty, "mutex"))["root"]["children"] == []
    assert table.functions(empty).rows == []


def test_folded_stacks_add_up_over_labels() -> None:
    """A line a stack, outermost first; zeros are left out."""
    stack = (frame("leaf"), frame("main"))
    profile = of(
        Sample(stack, (2,), (("a", "1"),)),
        Sample(stack, (3,), (("a", "2"),)),
        Sample((frame("idle"),), (0,)),
    )

    assert folded.write(profile) == "main (a.py);leaf (a.py) 5\n"


def test_no_name_breaks_a_folded_line() -> None:
    """Semicolons and line breaks in names are no separators."""
    profile = of(Sample((frame("a;b\nc"), frame("d\r")), (1,)))

    assert folded.write(profile) == "d  (a.py);a:b c (a.py) 1\n"


def test_a_tree_adds_up() -> None:
    """A node's total is its own cost and that of its children, dearest first."""
    found = json.loads(tree.write(WHOLE, "mutex", 1))
    left = [found["root"]]
    seen: dict[str, int] = {}
    while left:
        node = left.pop()
        totals = [child["total"] for child in node["children"]]
        assert node["total"] == node["self"] + sum(totals)
        assert totals == sorted(totals, reverse=True)
        name = f"{node['name']} ({node.get('file')}:{node.get('line')})"
        seen[name] = seen.get(name, 0) + node["self"]
        left += node["children"]

    own = {name: both[0] for name, both in costs(WHOLE, 1).items()}
    assert {name: n for name, n in seen.items() if n} == {
        name: n for name, n in own.items() if n
    }
    assert (found["type"], found["unit"]) == ("delay", "nanoseconds")


def test_a_tree_may_be_deeper_than_pythons_encoder() -> None:
    """Five thousand calls, one in the other."""
    stack = tuple(frame(f"f{depth}") for depth in range(5000))
    text = tree.write(of(Sample(stack, (7,))), "cpu")

    assert text.count('"children": [') == 5001
    assert text.count("{") == text.count("}")
    assert '"name": "f0", "file": "a.py", "line": 1, "self": 7' in text


def test_a_tree_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Calls beyond the cap are summed up where they were made; totals stay true."""
    monkeypatch.setattr(tree, "NODES_CAP", 50)
    found = json.loads(tree.write(WHOLE, "mutex", 1))
    text = json.dumps(found)

    assert text.count('"self"') <= 110
    assert "[truncated]" in text
    assert found["root"]["total"] == WHOLE.total(1)


def test_text_forms_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond their bytes the rest is one line or sample, and totals stay true."""
    monkeypatch.setattr(folded, "BYTES_CAP", 1000)
    monkeypatch.setattr(speedscope, "BYTES_CAP", 1000)
    lines = folded.write(WHOLE, 1).splitlines()
    (_, delay) = json.loads(speedscope.write(WHOLE, "mutex"))["profiles"]

    assert sum(map(len, lines)) < 2500
    assert lines[-1].startswith("[truncated] ")
    assert sum(int(line.rpartition(" ")[2]) for line in lines) == WHOLE.total(1)
    assert len(delay["weights"]) < 100
    assert sum(delay["weights"]) == delay["endValue"] == WHOLE.total(1)


def sums(shown: str) -> tuple[int, int]:
    """Delay and number of a `debug=1`, added up."""
    rows = re.findall(r"^(\d+) (\d+) @", shown, re.MULTILINE)
    return sum(int(row[0]) for row in rows), sum(int(row[1]) for row in rows)


def test_counts_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """The lightest are summed up in a last line: what is there still adds up."""
    whole = text.counts("mutex", WHOLE)
    monkeypatch.setattr(text, "BYTES_CAP", 2000)
    shown = text.counts("mutex", WHOLE)

    assert len(shown) < 4000 < len(whole)
    assert whole.startswith(
        shown.rpartition("@\n#\t[truncated]")[0].rpartition("\n")[0]
    )
    more = re.search(r"\[truncated\]: (\d+) more\n$", shown)
    assert more is not None
    assert int(more[1]) + shown.count(" @ 0x") == len(WHOLE.samples)
    assert sums(shown) == sums(whole) == (WHOLE.total(1), WHOLE.total(0))


@pytest.mark.parametrize("form", [text.blocks, text.lines])
def test_dumps_are_bounded(
    form: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """So many tasks as deep as may be come to no gigabyte; how many more is said."""
    stack = tuple(frame(f"f{depth}") for depth in range(100))
    blocks = [
        text.Block("task", f"Task-{at}", "suspended", 7.0, (("a", "b"),), stack)
        for at in range(50)
    ]
    breaths: list[int] = []
    whole = form(iter(blocks), lambda: breaths.append(1))
    monkeypatch.setattr(text, "BYTES_CAP", len(whole) // 5)
    shown = form(iter(blocks))

    assert whole.count("Task-") == len(breaths) == 50
    kept = shown.count("Task-")
    assert 9 <= kept <= 12
    assert shown.endswith(f"[truncated]: {50 - kept} more\n")
    assert whole.startswith(shown.removesuffix(f"[truncated]: {50 - kept} more\n"))


def test_the_table_reads_like_pprofs() -> None:
    """Shares are of the whole profile, amounts have units."""
    profile = of(
        Sample((frame("leaf"), frame("main")), (1_500_000_000,)),
        Sample((frame("main"),), (500_000_000,)),
    )
    lines = table.text(table.functions(profile, total=4 * 10**9), 1).splitlines()

    assert lines[0] == "Type: cpu"
    assert lines[1] == "Showing 1 of 2 functions, 2s (50.00%) of 4s total"
    assert lines[3].split() == ["1.5s", "37.50%", "37.50%", "1.5s", "37.50%", "leaf"]
    assert len(lines) == 4
