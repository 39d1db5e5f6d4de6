"""No test is left out silently."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from listed_skips import NEXT_PYTHON, OF_THE_NEXT, is_listed

SKIPPED = """
import pytest

def test_for_a_listed_reason():
    pytest.skip("no Jaeger: nobody built it")

def test_for_another():
    pytest.skip("not today")

@pytest.mark.skipif(True, reason="by a mark")
def test_by_a_mark():
    pass

@pytest.fixture
def missing():
    pytest.importorskip("no_such_package", reason="a package is missing")

def test_by_a_fixture(missing):
    pass

@pytest.mark.xfail(reason="known", strict=True)
def test_that_is_known_to_fail():
    assert False
"""


def run(code: str, folder: Path) -> subprocess.CompletedProcess[str]:
    (folder / "test_it.py").write_text(code)
    helpers = str(Path(__file__).parent / "helpers")
    command = [sys.executable, "-m", "pytest", "-q", "-c", "/dev/null", "test_it.py"]
    for option in ("listed_skips", "no:cacheprovider", "no:randomly"):
        command += ["-p", option]
    return subprocess.run(
        command,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": helpers},
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.mark.slow
def test_a_skip_for_a_reason_that_is_not_listed_fails(tmp_path: Path) -> None:
    """By a call, a mark or a fixture; what is expected to fail is no skip."""
    done = run(SKIPPED, tmp_path)

    assert done.returncode == 1
    for text in ("not today", "by a mark", "a package is missing"):
        assert f"{text}: no reason listed" in done.stdout
    assert "1 failed, 1 skipped, 1 xfailed, 2 errors in " in done.stdout


@pytest.mark.slow
def test_a_module_that_is_skipped_is_no_exception(tmp_path: Path) -> None:
    """Not one test of it would be heard of."""
    code = "import pytest\npytest.importorskip('no_such_package', reason='missing')\n"
    done = run(code, tmp_path)

    assert done.returncode not in (0, 5)
    assert "missing: no reason listed" in done.stdout


@pytest.mark.parametrize("reason", OF_THE_NEXT[:-1])
def test_packages_may_be_missing_for_the_next_python_only(reason: str) -> None:
    """For the others all of them can be installed."""
    assert is_listed(reason, NEXT_PYTHON)
    assert not is_listed(reason, (3, 13))
