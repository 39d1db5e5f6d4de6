"""Build the part of Grafana Alloy that checks and subtracts profiles, from its source."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

VERSION = "v1.11.0"
_MODULE = "stroboscope.test/alloy"
_THEIRS = "github.com/grafana/alloy/internal/component/pyroscope/scrape"
_NEEDS = (
    "github.com/spaolacci/murmur3@v1.1.0",
    "github.com/richardartoul/molecule@v1.0.1-0.20240531184615-7ca0df43c0b3",
)


def build(folder: Path) -> Path:
    """The binary, kept in `folder`; skips, and says why, where it cannot be built."""
    binary = folder / "alloy-delta"
    if binary.exists():
        return binary
    go = shutil.which("go")
    if go is None:
        pytest.skip("no Go on this machine: Alloy's own delta was not run")
    folder.mkdir(parents=True, exist_ok=True)
    environ = {**os.environ, "GOFLAGS": "-mod=mod", "GOPATH": str(folder / "path")}

    def run(*arguments: str) -> str:
        done = subprocess.run(
            [go, *arguments],
            cwd=folder,
            env=environ,
            capture_output=True,
            text=True,
            timeout=100,
        )
        if done.returncode:
            pytest.skip(f"Alloy's own delta was not run: {done.stderr[-300:]}")
        return done.stdout

    (folder / "go.mod").write_text(f"module {_MODULE}\n\ngo 1.22\n")
    found = json.loads(
        run("mod", "download", "-json", f"github.com/grafana/alloy@{VERSION}")
    )
    theirs = Path(found["Dir"]) / _THEIRS.partition("grafana/alloy/")[2]
    for name in ("fastdelta", "pproflite"):
        (folder / name).mkdir(exist_ok=True)
        for file in (theirs / "internal" / name).glob("*.go"):
            if not file.name.endswith("_test.go"):
                text = file.read_text().replace(f"{_THEIRS}/internal/", f"{_MODULE}/")
                (folder / name / file.name).write_text(text)
    text = (theirs / "validate.go").read_text()
    (folder / "validate.go").write_text(text.replace("package scrape", "package main"))
    shutil.copy(Path(__file__).with_name("alloy_delta.go"), folder / "main.go")
    run("get", *_NEEDS)
    run("build", "-o", str(binary), ".")
    return binary
