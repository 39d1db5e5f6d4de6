"""The documents name everything there is, and their code runs."""

import json
import os
import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import asking
import pytest
import yaml
from servers import FASTAPI, UVICORN, serving, token

from stroboscope import Settings
from stroboscope.cli import _parser, main, serve
from stroboscope.endpoints import Surface
from stroboscope.endpoints.knobset import knobs_of
from stroboscope.endpoints.routes import ROUTES
from stroboscope.environ import VARIABLES

ROOT = Path(__file__).parents[1]
REFERENCE = (ROOT / "docs/reference.md").read_text()


@pytest.mark.parametrize("name", [field.name for field in fields(Settings)])
def test_every_setting_is_in_the_reference(name: str) -> None:
    """With its environment variable, where it has one."""
    row = re.search(rf"^\| `{name}` \|(.*)$", REFERENCE, re.MULTILINE)

    assert row is not None
    variable = f"STROBOSCOPE_{name.upper()}"
    assert (f"`{variable}`" in row[1]) is (name in VARIABLES)


@pytest.mark.parametrize("path", [route.paths[0] for route in ROUTES])
def test_every_endpoint_is_in_the_reference(path: str) -> None:
    """With the scope it needs."""
    route = next(route for route in ROUTES if route.paths[0] == path)

    assert f"| `/debug{path}` | {route.scope} |" in REFERENCE


def test_every_command_and_option_is_in_the_reference(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """What `--help` lists is documented."""
    for command in ([], ["token"], ["top"]):
        with pytest.raises(SystemExit):
            main([*command, "--help"])
    shown = capsys.readouterr().out
    options = set(re.findall(r"--[a-z]{3,}", shown)) - {"--help"}
    commands = set(re.findall(r"^    ([a-z]+) ", shown, re.MULTILINE))

    assert {"token", "top"} <= commands
    assert {one for one in options if one not in REFERENCE} == set()
    assert {one for one in commands if f"`{one}`" not in REFERENCE} == set()


def test_the_readme_example_installs_and_answers(tmp_path: Path) -> None:
    """Its Python is run as it stands, with a key from its own shell lines."""
    readme = (ROOT / "README.md").read_text()
    example = re.search(r"```python\n(.*?)```", readme, re.DOTALL)
    assert example is not None
    (tmp_path / "shop.py").write_text(example[1])
    code = """
import os, subprocess, sys
tool = [sys.executable, "-m", "stroboscope.cli"]
run = lambda *a: subprocess.run([*tool, *a], check=True, capture_output=True, text=True)
os.environ["STROBOSCOPE_KEYS"] = run("key").stdout.strip()
arguments = os.environ["TOKEN_ARGUMENTS"].split()
token = run(*arguments).stdout.strip()
import shop
from starlette.testclient import TestClient
client = TestClient(shop.app, base_url="http://127.0.0.1")
print(client.get("/checkout/7").status_code)
headers = {"Authorization": f"Bearer {token}"}
print(client.get("/debug/pprof/profile?seconds=0.2", headers=headers).status_code)
"""
    token_line = re.search(r"TOKEN=\$\(stroboscope (token .*)\)", readme)
    assert token_line is not None
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "TOKEN_ARGUMENTS": token_line[1],
        },
        capture_output=True,
        text=True,
    )

    assert done.stdout.split() == ["200", "200"], done.stderr


@pytest.mark.parametrize("path", [route.paths[0] for route in ROUTES])
def test_every_parameter_is_in_the_reference(path: str) -> None:
    """In the row of its endpoint, or in what stands above them all."""
    route = next(route for route in ROUTES if route.paths[0] == path)
    (row,) = re.findall(
        rf"^\| `/debug{re.escape(path)}` \|.*$", REFERENCE, re.MULTILINE
    )
    knobs = REFERENCE.partition("### Knobs")[2].partition("###")[0]
    joined = REFERENCE.partition("### Workers")[2].partition("###")[0]

    for action in route.actions.values():
        listed = (
            row + (knobs if action.body else "") + (joined if action.joined else "")
        )
        if action.is_sliced:
            assert "[slices](#slices)" in row
            listed += REFERENCE.partition("### Slices")[2].partition("###")[0]
        for name in action.parameters:
            assert re.search(rf"\b{name}\b", listed), name


def test_every_metric_and_knob_is_in_the_reference() -> None:
    """By their names, with their kind; none that is not there any more."""
    surface = Surface(asking.SETTINGS)
    asked = asking.authorised("/debug/metrics", asking.token("metrics"))
    shown = surface.answer(asked).body.decode()
    families = set(re.findall(r"# TYPE (\S+) (\S+)", shown))
    table = REFERENCE.partition("### Metrics")[2].partition("###")[0]
    knobs = REFERENCE.partition("### Knobs")[2].partition("###")[0]

    assert len(families) > 10
    assert {name for name, _ in families if f"`{name}`" not in REFERENCE} == set()
    assert set(re.findall(r"^\| `(\S+)` \| (\w+) \|", table, re.M)) <= families
    assert {k.name for k in surface.desk.knobs if f"`{k.name}`" not in knobs} == set()


def test_every_status_and_header_is_in_the_reference() -> None:
    """Those the surface's code can send, found in its text."""
    folder = ROOT / "stroboscope"
    code = "".join(
        file.read_text()
        for name in ("endpoints", "_http")
        for file in (folder / name).glob("*.py")
    )
    statuses = set(re.findall(r"refusal\(\s*(?:call\.)?request, (\d{3})", code))
    headers = set(re.findall(r"\"(X-[A-Za-z-]+|Retry-After|ETag|Allow)\"", code))
    listed = set(re.findall(r"\b\d{3}\b", REFERENCE.partition("| status |")[2]))

    assert len(statuses) > 8
    assert statuses <= listed
    assert {one for one in headers if f"`{one}" not in REFERENCE} == set()


@pytest.mark.slow
def test_the_slicing_how_to_runs(tmp_path: Path) -> None:
    """Every command of it, in order, against the example served by uvicorn."""
    text = (ROOT / "docs/slicing.md").read_text()
    blocks = re.findall(r"```sh\n(.*?)```", text, re.DOTALL)
    script = "set -euo pipefail\n" + "\n".join(
        f"echo '--- {number}'\n{block}" for number, block in enumerate(blocks)
    )
    with serving(UVICORN, FASTAPI) as (base, _):
        script = script.replace("http://127.0.0.1:8000", base)
        done = subprocess.run(
            ["bash", "-c", script],
            cwd=tmp_path,
            env={
                **os.environ,
                "TOKEN": token("profile"),
                "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            },
            capture_output=True,
            text=True,
            timeout=100,
        )

    answers = re.split(r"--- \d+\n", done.stdout)[1:]
    assert done.returncode == 0, done.stderr
    assert len(answers) == len(blocks) == 7
    assert answers[1].startswith("Type: delay\nShowing 0 of 0 functions")
    assert answers[2].startswith("Type: cpu\n")
    assert "$schema" in (tmp_path / "cpu.speedscope.json").read_text()
    assert "thread (kind);" in answers[4]
    assert '"root"' in answers[4]
    assert '"dropped"' in answers[5]
    assert (tmp_path / "checkout.pb.gz").stat().st_size > 50


def test_the_presets_in_the_reference_are_those_in_force() -> None:
    """Every knob of a preset, with its value."""
    knobs = {knob.name: knob for knob in knobs_of(Settings()) if knob.presets}
    (head,) = re.findall(r"^\| preset \|(.*)\|$", REFERENCE, re.MULTILINE)
    names = [name.strip(" `") for name in head.split("|")]

    assert set(names) == set(knobs)
    for preset in ("production-safe", "forensic"):
        (row,) = re.findall(rf"^\| `{preset}` \|(.*)\|$", REFERENCE, re.MULTILINE)
        values = [json.loads(value) for value in row.split("|")]
        assert values == [knobs[name].presets[preset] for name in names]


def blocks(kind: str) -> list[dict[str, Any]]:
    """The YAML of the how-to for several workers that has such a field."""
    text = (ROOT / "docs/servers.md").read_text()
    found = [*map(yaml.safe_load, re.findall(r"```yaml\n(.*?)```", text, re.DOTALL))]
    return [one for one in found if kind in one]


def test_the_compose_file_of_the_how_to_lets_the_sidecar_in() -> None:
    """One user, one run directory, one set of keys, and a command that there is."""
    (whole,) = blocks("services")
    web, side = whole["services"]["web"], whole["services"]["stroboscope"]
    place = web["environment"]["STROBOSCOPE_RUNDIR"]
    options = whole["volumes"]["stroboscope"]["driver_opts"]["o"].split(",")

    for name in ("user", "environment", "volumes", "image"):
        assert web[name] == side[name]
    assert web["volumes"] == [f"stroboscope:{place}"]
    assert {f"uid={web['user']}", "mode=0700"} <= set(options)
    assert side["network_mode"] == "service:web"
    assert _parser().parse_args(side["command"].split()[1:]).run is serve.serve


def test_the_pod_of_the_how_to_lets_the_sidecar_in() -> None:
    """The same of Kubernetes; no field is missing that tells them apart."""
    (pod,) = blocks("kind")
    web, side = pod["spec"]["containers"]
    (volume,) = pod["spec"]["volumes"]
    (mount,) = web["volumeMounts"]
    environ = {one["name"]: one.get("value") for one in web["env"]}

    for name in ("env", "volumeMounts", "image"):
        assert web[name] == side[name]
    assert "securityContext" not in {*web, *side}  # one user for both, the pod's
    assert pod["spec"]["securityContext"]["runAsUser"] > 0
    assert (mount["name"], volume["emptyDir"]["medium"]) == (volume["name"], "Memory")
    assert environ["STROBOSCOPE_RUNDIR"] == mount["mountPath"]
    assert set(environ) <= {f"STROBOSCOPE_{name.upper()}" for name in VARIABLES}
    assert _parser().parse_args(side["command"][1:]).run is serve.serve
